"""In a guest of the kernel lab: one LUN with two ways, connected and let go in turns by ours, by a script, and by os-brick.

Prints JSON: for each contender the seconds of every round, and how many programs each round started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.kernel.san import HOST, PORTALS, Lun, eventually, sh, two_ways
from volgate.connect.iscsi import Iscsi
from volgate.connection import IscsiLun, IscsiPortal

MIB = 1 << 20
SECONDS = 120.0
TRACING = Path("/sys/kernel/tracing")


class Contender(Protocol):
    """Makes the LUN a device with both its ways, and takes it away; `device` is what it made."""

    name: str

    def connect(self) -> str: ...

    def disconnect(self) -> None: ...


class Ours:
    """The connector of the product."""

    name = "ours"

    def __init__(self, lun: IscsiLun) -> None:
        self._lun, self._host = lun, Iscsi()

    def connect(self) -> str:
        return self._host.connect(self._lun, {}, deadline=time.monotonic() + SECONDS).path

    def disconnect(self) -> None:
        self._host.disconnect(self._lun, deadline=time.monotonic() + SECONDS)


class Script:
    """What an administrator types: iscsiadm and multipath, and a loop that waits for both ways."""

    name = "script"

    def __init__(self, lun: IscsiLun) -> None:
        self._lun = lun

    def connect(self) -> str:
        target = self._lun.portals[0].target
        for portal in self._lun.portals:
            sh(
                f"iscsiadm -m node -T {target} -p {portal.place} -o new && iscsiadm -m node -T {target} -p {portal.place} --login",
                timeout=SECONDS,
            )
        sh(
            f"until [ $(multipathd show paths raw format '%w %t' | grep -c '{self._lun.wwid} active') = 2 ]; do sleep 0.1; done",
            timeout=SECONDS,
        )
        sh(f"until [ -b {self._lun.source} ]; do sleep 0.1; done", timeout=SECONDS)
        return self._lun.source

    def disconnect(self) -> None:
        target = self._lun.portals[0].target
        sh(f"until multipath -f {self._lun.wwid}; do sleep 0.2; done", timeout=SECONDS)  # udev may look at it still
        sh(f"iscsiadm -m node -T {target} --logout && iscsiadm -m node -T {target} -o delete", timeout=SECONDS)


class OsBrick:
    """The connector of OpenStack, as root and in this process: its helper process is not counted against it."""

    name = "os-brick"

    def __init__(self, lun: IscsiLun) -> None:
        import os_brick
        from os_brick import privileged
        from os_brick.initiator.connectors.iscsi import ISCSIConnector
        from oslo_concurrency import lockutils
        from oslo_config import cfg

        lockutils.set_defaults("/run/lock")
        os_brick.setup(cfg.CONF)
        privileged.default.set_client_mode(False)
        self._connector = ISCSIConnector("", use_multipath=True)
        count = len(lun.portals)
        self._properties = {
            "target_discovered": False,
            "target_iqns": [portal.target for portal in lun.portals],
            "target_portals": [portal.place for portal in lun.portals],
            "target_luns": [lun.lun] * count,
            "access_mode": "rw",
        }
        self._made: Any = None

    def connect(self) -> str:
        self._made = self._connector.connect_volume(dict(self._properties))
        return str(self._made["path"])

    def disconnect(self) -> None:
        self._connector.disconnect_volume(dict(self._properties), self._made)


@contextmanager
def programs() -> Iterator[list[int]]:
    """Count the programs that this process and its children start meanwhile; the number is added to the list at the end."""
    (TRACING / "trace").write_text("")
    (TRACING / "events/sched/sched_process_exec/enable").write_text("1")
    found: list[int] = []
    yield found
    (TRACING / "events/sched/sched_process_exec/enable").write_text("0")
    found.append(sum("sched_process_exec:" in line for line in (TRACING / "trace").read_text().splitlines()))


def nothing_left() -> bool:
    """Whether sessions, SCSI devices and maps of the round before are gone."""
    return not any((*Path("/sys/class/iscsi_session").glob("session*"), *Path("/sys/bus/scsi/devices").glob("[0-9]*:*"), *_maps()))


def _maps() -> list[Path]:
    return [path for path in Path("/sys/block").glob("dm-*") if (path / "dm/uuid").read_text().startswith("mpath-")]


def _both_ways(device: str) -> bool:
    return len(list((Path("/sys/class/block") / Path(device).resolve().name / "slaves").iterdir())) == len(PORTALS)


def _made() -> IscsiLun:
    two_ways()
    if not (TRACING / "events").exists():
        sh(f"mount -t tracefs tracefs {TRACING}")
    (TRACING / "options/event-fork").write_text("1")  # of this process and all that comes of it, the forker's children too
    (TRACING / "set_event_pid").write_text(str(os.getpid()))
    path = Path("/srv/bench.img")
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    lun = Lun("bench", path, "b".rjust(25, "b"))
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={HOST}\n")
    portals = tuple(IscsiPortal(address, 3260, lun.target) for address in PORTALS)
    return IscsiLun(f"36001405{'b' * 25}", portals, 1, 32 * MIB)


def main(rounds: int) -> None:
    """Measure."""
    lun = _made()
    contenders: list[Contender] = [Ours(lun), Script(lun), OsBrick(lun)]
    found: dict[str, dict[str, list[float]]] = {one.name: {"connect": [], "disconnect": [], "programs": []} for one in contenders}
    for _ in range(rounds + 1):
        for one in contenders:
            figures = found[one.name]
            with programs() as started:
                began = time.perf_counter()
                device = one.connect()
                connected = time.perf_counter()
                eventually(lambda device=device: _both_ways(device))  # not timed: who answers before both are there is not slower for it
                ready = time.perf_counter()
                one.disconnect()
                ended = time.perf_counter()
            figures["connect"].append(connected - began)
            figures["disconnect"].append(ended - ready)
            figures["programs"] += started
            eventually(nothing_left)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
