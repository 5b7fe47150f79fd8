"""The backend of the plugin author's guide is complete: installed as a third party's package it passes its tests and serves a guest."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import console
from tests.edge.server import Server
from tests.labs.domain import Guest
from volgate.backend import facets, hooks

GUIDE = Path(__file__).parents[2] / "docs/plugin-guide.md"
FILES = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
MOST = 130  # lines of a useful backend, without blank ones


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment into which the package of the guide is installed, as pip leaves it."""
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    site = tmp_path / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in project["entry-points"].items()]
    (info / "entry_points.txt").write_text("".join(lines))
    (site / "volgate_plain.py").write_text(FILES["volgate_plain.py"])
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


@pytest.fixture
def server(environment: Path, guest: Guest, pool_dir: Path) -> Iterator[Server]:
    """A gateway with the guide's pool and the lab's libvirt."""
    config = FILES["volgate.toml"].replace("/srv/scratch", str(pool_dir)) + f'[hosts.local]\nuri = "{guest.libvirtd.uri}"\n'
    made = Server(pool_dir.parent / "state", config=config).start(timeout=60)
    yield made
    assert made.stop() == 0
    guest.detach_all()


def test_the_table_of_facets_is_that_of_the_api():
    shown = re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    added = [
        (facet.__name__, {name for name, made in vars(facet).items() if getattr(made, "__isabstractmethod__", False)})
        for facet in facets._FACETS
    ]
    assert [(name, set(re.findall(r"`(\w+)`", methods))) for name, methods in shown] == added


def test_every_hook_is_explained():
    asked = {name for name in vars(hooks) if name.startswith("volgate_")}
    assert len(asked) == 5
    assert asked == set(re.findall(r"volgate_(?:backends|admit|disk|finished|secrets)\b", GUIDE.read_text(encoding="utf-8")))


def test_the_backend_is_small():
    assert len([line for line in FILES["volgate_plain.py"].splitlines() if line]) <= MOST


def test_the_tests_of_the_guide_pass(environment, tmp_path):
    (tmp_path / "test_plain.py").write_text(FILES["test_plain.py"])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        "test_plain.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout + done.stderr


def test_an_operator_serves_it(server, tmp_path):
    assert len(console.run(GUIDE, server=server.address, folder=tmp_path)) > 10
