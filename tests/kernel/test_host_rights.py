"""A host's connectors with the rights of its unit and drop-in, and no others, in the kernel lab. Systemd does not run there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.kernel.san import eventually, make_room_for_registrations, two_ways
from tests.kernel.test_iscsi import SECONDS, Target, left
from tests.labs.kernel.machine import ROOT
from volgate.connection import IscsiLun

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(300)]
UNITS = ("volgate-host.service", "volgate-luns.conf")
RECORDS, LOCKS, NOTES = "/etc/iscsi", "/run/lock", "/run/volgate"
"""What may be written to."""
SANDBOX = """for place in $RECORDS $LOCKS $NOTES; do mkdir -p $place; mount --bind $place $place; done
mount -o remount,bind,ro /
if mountpoint -q /run; then mount -o remount,bind,ro /run; fi
for place in /etc /run /srv; do if touch $place/x 2>/dev/null; then echo "$place can be written to" >&2; exit 1; fi; done
exec "$@"
"""
PROGRAM = """
import json, sys, time
import msgspec, structlog
from volgate.connection import IscsiLun
from volgate.errors import VolgateError
from volgate.hosts.connectors import Connectors
from volgate.secret import Secret

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
lun = msgspec.json.decode(sys.argv[1], type=IscsiLun)
host = Connectors("here", Secret, lambda _deadline: ())
acts = {
    "attach": lambda until: host.connect(lun, until).path,
    "share": lambda until: host.connect(lun, until, shared=True).path,
    "grow": lambda until: host.grow(lun.source, lun.size, until),
    "paths": lambda until: [way.state for way in host.paths(lun, until)],
    "leftovers": lambda until: [one.name for one in host.leftovers([lun.source], until, apply=True)],
    "release": lambda until: host.release(lun.source, until),
}
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    try:
        said = acts[line.strip()](time.monotonic() + SECONDS)
    except VolgateError as error:
        said = f"{error.status}: {error.message}"
    print(json.dumps(said), flush=True)
""".replace("SECONDS", str(SECONDS))


@pytest.fixture(scope="module", autouse=True)
def ways() -> None:
    two_ways()
    make_room_for_registrations()


def rights() -> list[str]:
    """The capabilities of the unit with its drop-in."""
    texts = [(ROOT / "deploy/systemd" / name).read_text() for name in UNITS]
    for line in ("User=root", f"ReadWritePaths=-{RECORDS} -{LOCKS}", f"RuntimeDirectory={Path(NOTES).name}"):
        assert line in texts[1].splitlines()
    return " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", "\n".join(texts), re.MULTILINE)).split()


class Confined:
    """Connectors for one LUN in a process of that user, with these capabilities and a file system that is read-only elsewhere."""

    def __init__(self, lun: IscsiLun, capabilities: Sequence[str]) -> None:
        only = ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in capabilities)])
        sandbox = ["unshare", "--mount", "--propagation=private", "sh", "-ec", SANDBOX, "sh"]
        allowed = ["setpriv", "--clear-groups", "--no-new-privs", f"--bounding-set={only}", f"--inh-caps={only}"]
        env = {**os.environ, "RECORDS": RECORDS, "LOCKS": LOCKS, "NOTES": NOTES}
        program = [sys.executable, "-c", PROGRAM, msgspec.json.encode(lun).decode()]
        self._process = subprocess.Popen(
            [*sandbox, *allowed, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )
        assert self._said() == "ready"

    def does(self, act: str) -> object:
        """What it answers."""
        assert self._process.stdin
        self._process.stdin.write(f"{act}\n")
        self._process.stdin.flush()
        return self._said()

    def _said(self) -> object:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def end(self) -> int:
        """Its exit status; it is killed if it does not end."""
        try:
            self._process.communicate(timeout=SECONDS)
        finally:
            self._process.kill()
        return self._process.returncode


@contextmanager
def confined(lun: IscsiLun, capabilities: Sequence[str]) -> Iterator[Confined]:
    made = Confined(lun, capabilities)
    try:
        yield made
    finally:
        status = made.end()
    assert status == 0


def test_the_rights_of_the_drop_in_are_enough_for_a_host_of_luns() -> None:
    target = Target(1)
    lun = target.reached()
    with confined(lun, rights()) as host:
        assert host.does("attach") == host.does("share") == lun.source
        eventually(lambda: host.does("paths") == ["active-optimized"] * 3, SECONDS)  # two portals and the map
        assert host.does("grow") is None and host.does("leftovers") == []
        assert host.does("release") is None
        assert left() == []


def test_a_disk_that_somebody_has_open_is_seen_with_them_and_without_them_nothing_is_taken_away() -> None:
    target = Target(2)
    lun = target.reached(multipath=False)
    with confined(lun, [word for word in rights() if word != "CAP_SYS_PTRACE"]) as blind:
        assert blind.does("attach") == lun.source
        told = str(blind.does("release"))
        assert told.startswith("PERMISSION_DENIED: ") and "CAP_SYS_PTRACE" in told
        assert Path(lun.source).exists()
    with confined(lun, rights()) as host:
        with Path(lun.source).open("rb"):
            told = str(host.does("release"))
            assert "is in use by process" in told and Path(lun.source).exists()
        assert host.does("release") is None
        assert left() == []
