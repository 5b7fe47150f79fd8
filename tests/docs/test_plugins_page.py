"""The plugin author's guide, followed to the letter: a backend of a third party that passes the suite and serves a guest."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.docs import console
from tests.labs.domain import Guest
from tests.soak import CONFORMANCE, SECONDS_PER_TEST
from tests.soaking import SOAK
from volgate.backend import facets
from volgate.conformance import plugin

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/plugins.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
FEWER_THAN = 150  # lines of a useful backend, blank ones included
PROVEN = {"Resizes", "Snapshots", "Reverts", "Clones", "Measures"}
DEEP = ("a-kill-at-any-point-is-made-good", "a-call-that-hangs-is-made-good", "a-failed-system-call-is-told-and-made-good")
MUTATIONS = ("create", "delete", "expand", "snapshot", "unsnapshot", "revert", "clone-volume", "clone-snapshot")


def environment(guest: Guest) -> dict[str, str]:
    """What a newcomer's shell has: nothing of this run's own environment, versions as they are tested, the lab's libvirt."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "VIRTUAL_ENV", "VOLGATE"))}
    told = {"VOLGATE": str(ROOT), "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "LIBVIRT_DEFAULT_URI": guest.libvirtd.uri}
    return {
        **kept,
        **told,
        "PYTEST_ADDOPTS": " ".join(CONFORMANCE if SOAK else ["--conformance-points", "1", "--conformance-examples", "1"]),
    }


@pytest.mark.timeout(SECONDS_PER_TEST if SOAK else 420)
def test_the_page_followed_to_the_letter_ends_in_a_passing_report(guest, pool_dir):
    assert console.follow(PAGE, folder=pool_dir, environment=environment(guest)) == [
        "volgate_copies.py",
        "pyproject.toml",
        "test_copies.py",
    ]
    report = json.loads((pool_dir / "volgate-copies/report.json").read_text(encoding="utf-8"))
    assert (report["passed"], report["level"], report["over_the_wire"]) == (True, 4, False)
    assert (report["backend"], report["kind"]) == ("volgate_copies.Copies", "copies")
    assert {name for name, verdict in report["facets"].items() if verdict == "proven"} == PROVEN
    assert set(report["facets"].values()) == {"proven", "absent"}
    outcomes = {case["rule"]: case["outcome"] for case in report["cases"]}
    assert {outcomes[f"{rule}[{verb}]"] for rule in DEEP for verb in MUTATIONS} == {"passed"}
    assert {case["level"] for case in report["cases"] if case["outcome"] == "passed"} == {1, 2, 3, 4}
    assert report["counts"]["passed"] > 100
    guest.detach_all()


def test_the_backend_is_small():
    assert len(FILES["volgate_copies.py"].splitlines()) < FEWER_THAN


def test_the_table_of_facets_is_that_of_the_api():
    shown = re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", TEXT, re.MULTILINE)
    added = [
        (facet.__name__, {name for name, made in vars(facet).items() if getattr(made, "__isabstractmethod__", False)})
        for facet in facets._FACETS
    ]
    assert [(name, set(re.findall(r"`(\w+)`", methods))) for name, methods in shown] == added


def test_every_option_of_the_suite_is_explained_with_its_default():
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    options = {option.names()[0]: option.default for option in parser.getgroup("volgate conformance").options}
    rows = dict(re.findall(r"^\| (`--conformance-.*?) \| (.*?) \|$", TEXT, re.MULTILINE))
    assert {name for names in rows for name in re.findall(r"`(--[\w-]+)`", names)} == set(options)
    for names, words in rows.items():
        for name in re.findall(r"`(--[\w-]+)`", names):
            assert not options[name] or f"({options[name]})" in words, f"{name}: the default is {options[name]}"
