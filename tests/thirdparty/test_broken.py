"""Plugins that do not work: the gateway starts without them and serves the others; `plugins` and `doctor` say what is wrong and what to do."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from tests.labs.third_party import installed
from volgate.v1 import pool_pb2, volume_pb2

MIB = 1 << 20
_OFFER = """
from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory import Directory, DirectorySettings

{extra}

@hookimpl
def volgate_backends():
    return [BackendType(kind="{kind}", settings=DirectorySettings, open={opens}, summary="", {more})]
"""
_CRASHES = """
import ctypes

class Crashes(Directory):
    def create_volume(self, spec):
        ctypes.string_at(0)
"""
_LACKS = """
import ctypes

def lacks(settings, context):
    ctypes.CDLL("librados.so.2000")
"""
_HOOK = "from volgate.backend import hookimpl\n\n@hookimpl\ndef {}: ...\n"


def offer(kind: str, extra: str = "", opens: str = "Directory.open", more: str = "") -> str:
    return _OFFER.format(kind=kind, extra=extra, opens=opens, more=more)


GOOD = {
    "works": offer("works"),
    "crashes": offer("crashes", _CRASHES, "Crashes.open"),
    "lacks": offer("lacks", _LACKS, "lacks"),
}
"""Those that load; what the last two have is found by their pools."""
BAD = {  # the words of the problem, and of what to do
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom", "tell its author"),
    "segfaults": ("import ctypes\nctypes.string_at(0)", "ended by signal 11", r'leave it out: \[plugins\] blocked = \["segfaults"\]'),
    "exits": ("import os\nos._exit(3)", "ended with status 3", "tell its author"),
    "unlinked": (
        "import ctypes\nctypes.CDLL('libgfapi.so.99')",
        r"libgfapi\.so\.99: cannot open shared object file",
        "apt-file search libgfapi.so.99 names the package",
    ),
    "moduleless": ("import nobody_has_this", "No module named 'nobody_has_this'", "pip install it into the gateway's environment"),
    "directory": (offer("other"), "the name directory is taken", "uninstall one of the two"),
    "grabs": (offer("directory"), "kind 'directory' is already offered by plugin directory", "uninstall one of the two"),
    "strange": (
        _HOOK.format("volgate_backends()").replace("...", "return ['disk']"),
        "returned 'disk', not a BackendType",
        "tell its author",
    ),
    "misspells": (
        _HOOK.format("volgate_admitt(request)"),
        "answers volgate_admitt, a hook that this volgate does not have",
        "tell its author",
    ),
    "newer-hook": (_HOOK.format("volgate_admit(request, moon)"), "its volgate_admit wants moon", "^upgrade volgate$"),
    "newer-facet": (offer("moon", more='written_for={"Clones": 99}'), "was written for Clones 99", "^upgrade volgate$"),
    "older-facet": (offer("sun", more='written_for={"Clones": 0}'), "was written for Clones 0", "^upgrade the plugin$"),
    "newer-api": (
        "from volgate.backend import Teleports",
        "cannot import name 'Teleports'.*another volgate",
        "^upgrade the older of the two$",
    ),
}


@dataclass(frozen=True)
class Place:
    """A gateway and its callers."""

    server: Server
    wire: Wire


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A gateway with all of them installed, and pools of those that load and of one that does not."""
    site, top = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("top")
    for name, source in (GOOD | {name: source for name, (source, _, _) in BAD.items()}).items():
        path = installed(site, name, f"vgtest_{name.replace('-', '_')}", source=source)
    config = f'[hosts.lab]\nuri = "test:///default"\n[pools.main]\nkind = "directory"\npath = "{top}/main"\n'
    for kind in (*GOOD, "raises"):
        config += f'[pools.{kind}]\nkind = "{kind}"\npath = "{top}/{kind}"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        server = Server(top / "state", config=config).start(timeout=90)
        try:
            with Wire(server.address) as wire:
                yield Place(server, wire)
        finally:
            assert server.stop() == 0


def volgate(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, in the environment of the gateway."""
    command = [sys.executable, "-m", "volgate.cli", "--server", place.server.address, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_COLOR": "1"})


def create(pool: str, name: str = "v") -> volume_pb2.CreateVolumeRequest:
    return volume_pb2.CreateVolumeRequest(pool=f"pools/{pool}", volume_id=name, size_bytes=MIB)


def test_the_others_are_served(place):
    for pool in ("main", "works"):
        assert place.wire.volumes.CreateVolume(create(pool), timeout=30).volume.uid


def test_every_plugin_is_listed_with_what_is_wrong_and_what_to_do(place):
    told = {plugin["name"]: plugin for plugin in json.loads(volgate(place, "plugins", "--output", "json").stdout)}
    for name, (_, problem, action) in BAD.items():
        found = told.get(name if name != "directory" else "directory (vgtest_directory)", {})
        assert found.get("status") == "broken", found
        assert re.search(problem, found["problem"]), found
        assert "\n" not in found["problem"], "one line"
        assert re.search(action, found["action"]), found
    assert {name: told[name]["status"] for name in (*GOOD, "directory", "memory")} == dict.fromkeys(
        (*GOOD, "directory", "memory"), "loaded"
    )


def test_people_read_it_too(place):
    shown = volgate(place, "plugins").stdout
    assert re.search(r"^unlinked +1\.0 +broken .*libgfapi\.so\.99.*\n +do: .*apt-file search libgfapi", shown, re.MULTILINE), shown


def test_doctor_finds_them(place):
    ran = volgate(place, "doctor", "--output", "json")
    assert ran.returncode == 1
    found = {finding["subject"]: finding for finding in json.loads(ran.stdout)["findings"] if not finding["ok"]}
    assert {f"plugin {name} 1.0" for name in BAD if name != "directory"} <= found.keys()
    assert "boom" in found["plugin raises 1.0"]["seen"] and "tell its author" in found["plugin raises 1.0"]["action"]
    lacks = found["pools/lacks"]
    assert "librados.so.2000" in lacks["seen"] and "apt-file search librados.so.2000" in lacks["action"]


def test_a_pool_whose_plugin_is_broken_is_down_and_says_why(place):
    pool = place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name="pools/raises"), timeout=30).pool
    assert pool.health == pool_pb2.POOL_HEALTH_DOWN
    assert "plugin raises is broken" in pool.problem and "boom" in pool.problem
    told = refused(place.wire.volumes.CreateVolume, create("raises"))
    assert (told.code, told.reason) == ("UNAVAILABLE", "POOL_DOWN") and told.retry_after


def test_a_check_of_the_configuration_warns_of_such_a_pool_and_lets_the_service_start(place):
    ran = volgate(place, "serve", "--check", "--config", str(place.server.config))
    assert ran.returncode == 0 and "warning: pool raises will be down: " in ran.stderr and "plugin raises is broken" in ran.stderr


def test_a_plugin_that_crashes_at_its_first_call_is_named_and_hurts_nobody(place):
    told = refused(place.wire.volumes.CreateVolume, create("crashes"))
    assert (told.code, told.reason) == ("ABORTED", "IN_DOUBT") and told.metadata["operation"] and told.retry_after, told
    assert "signal 11" in told.message, told
    assert place.wire.volumes.CreateVolume(create("main", "beside"), timeout=30).volume.uid
    deadline = time.monotonic() + 90
    while not in_doubt(findings := found(place), "pools/crashes/volumes/v", "signal 11"):
        assert time.monotonic() < deadline, findings  # while it is tried again it is in no doubt


def found(place) -> list[dict[str, str]]:
    """What doctor tells."""
    return json.loads(volgate(place, "doctor", "--output", "json").stdout)["findings"]


def in_doubt(findings: list[dict[str, str]], *words: str) -> bool:
    return any(all(word in finding["seen"] for word in words) for finding in findings)


def test_a_plugin_that_hangs_at_import_is_given_up_in_time(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "hangs", "vgtest_hangs", source="import time\ntime.sleep(3600)"))
    found = {plugin["name"]: plugin for plugin in json.loads(volgate(place, "plugins", "--output", "json").stdout)}["hangs"]
    assert found["status"] == "broken" and "did not end within 20 s" in found["problem"] and "leave it out" in found["action"]
