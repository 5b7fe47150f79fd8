"""The page of hooks is true: its table is the API's, its plugin does what it says."""

import inspect
import re
import time
import tomllib
import types
from pathlib import Path

import pytest

from volgate.amendment import FREE_ELEMENTS
from volgate.backend import AdmitRequest, DiskContext, FinishedRecord, hooks
from volgate.errors import Denied
from volgate.registry import _HOOK_SECONDS, Registry

PAGE = (Path(__file__).parents[2] / "docs/hooks.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
DISK = '<disk><driver name="qemu" type="raw" cache="none"/><source file="/a"/></disk>'


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """The plugin of the page, with its files below a folder of this test."""
    module = types.ModuleType("house_rules")
    exec(compile(FILES["house_rules.py"].replace("/etc/house-rules", str(tmp_path)), "house_rules.py", "exec"), vars(module))
    (tmp_path / "limits.json").write_text('{"a": 100}')
    (tmp_path / "vault/fast").mkdir(parents=True)
    (tmp_path / "vault/fast/login").write_text("open sesame\n")
    return Registry(extra={"house-rules": module})


def test_the_table_of_hooks_is_that_of_the_api():
    known = {name: list(inspect.signature(spec).parameters) for name, spec in vars(hooks).items() if name.startswith("volgate_")}
    shown = re.findall(r"^\| `(volgate_\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`", arguments) for name, arguments in shown} == known
    assert f"more than {_HOOK_SECONDS:g} seconds" in PAGE


def test_every_field_and_every_free_element_is_named():
    words = set(re.findall(r"`<?(\w+)>?`", PAGE))
    for kind in (AdmitRequest, DiskContext, FinishedRecord):
        assert set(kind.__dataclass_fields__) <= words, kind
    assert set(FREE_ELEMENTS) <= words


def test_the_plugin_of_the_page_does_what_it_says(registry, tmp_path):
    registry.admit(AdmitRequest("CreateVolume", "pools/p/volumes/v", "local", {"tenant": "a"}, 100))
    for labels, size in (({"tenant": "a"}, 101), ({}, 1)):
        with pytest.raises(Denied, match="ask the storage team") as refused:
            registry.admit(AdmitRequest("CreateVolume", "pools/p/volumes/v", "local", labels, size))
        assert refused.value.reason == "POLICY"
    assert 'queues="4"' in registry.amend_disk(DISK, DiskContext("attachments/a", "pools/p/volumes/v", "db-1", "hosts/h"))
    assert registry.amend_disk(DISK, DiskContext("attachments/a", "pools/p/volumes/v", "web-1", "hosts/h")) == DISK
    registry.finished(FinishedRecord("operations/1", "CreateVolume", "pools/p/volumes/v", "u", "local", "ok", 0.1))
    deadline = time.monotonic() + 10
    while not ((tmp_path / "audit.log").exists() and (tmp_path / "audit.log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "audit.log").read_text() == "local CreateVolume pools/p/volumes/v u ok\n"


def test_its_vault_is_asked(registry):
    assert registry.secret("house:login", "fast").reveal() == "open sesame"


def test_its_package_names_it():
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    assert project["entry-points"]["volgate.plugins"] == {"house-rules": "house_rules"}
