"""kill -9 behind every system call of every mutation that changes a file: afterwards it is finished or undone, and a repeat ends it.

`make test` takes points drawn from a printed seed; the soak takes every one.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.recovery.calls import POOL, Call, Caller, Refused, snapshot_name, volume_name
from tests.recovery.daemon import Daemon
from tests.recovery.images import make_image, write_pattern
from tests.recovery.pool_files import names, stray
from tests.recovery.stepping import Stepping
from tests.soaking import SOAK, count, draw
from volgate.v1 import volume_pb2

MIB = 1 << 20
QCOW2, RAW = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_RAW
POINTS = count(3, soak=10_000)
MOST = 400  # no verb has as many; a sweep that gets here does not end


@dataclass(frozen=True)
class Case:
    """A verb on objects of its own: what to make first, and the call; `file` is what an export makes."""

    call: Call
    about: tuple[str, ...]
    file: Path | None = None


def fresh(prefix: str = "v") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def _create(name: str, **fields: Any) -> Call:
    return Call("create", {"pool": POOL, "volume_id": name, "size_bytes": MIB, "request_id": fresh("r"), **fields})


def _new(**fields: Any) -> Callable[[Daemon, Caller, bytes], Case]:
    def prepare(_daemon: Daemon, _caller: Caller, _pattern: bytes) -> Case:
        name = fresh()
        return Case(_create(name, **fields), (name,))

    return prepare


def _clone(*, snapshot: bool) -> Callable[[Daemon, Caller, bytes], Case]:
    def prepare(daemon: Daemon, caller: Caller, pattern: bytes) -> Case:
        source, clone = _written(daemon, caller, pattern), fresh("c")
        of = volume_name(source)
        if snapshot:
            caller(Call("snapshot", {"volume": of, "snapshot_id": "s", "request_id": fresh("r")}))
            of = snapshot_name(source, "s")
        return Case(_create(clone, source=of, size_bytes=0), (source, clone))

    return prepare


def _on(verb: str, **fields: Any) -> Callable[[Daemon, Caller, bytes], Case]:
    """A verb on a volume with content, a snapshot of it, and other content since (but for verbs that a snapshot forbids)."""

    def prepare(daemon: Daemon, caller: Caller, pattern: bytes) -> Case:
        name = _written(daemon, caller, pattern)
        request = {"name": volume_name(name), "request_id": fresh("r"), **fields}
        if verb in ("revert", "unsnapshot"):
            for cut in ("s", "t"):
                caller(Call("snapshot", {"volume": volume_name(name), "snapshot_id": cut, "request_id": fresh("r")}))
                write_pattern(daemon, name, pattern[0] ^ 0xFF, offset=MIB // 2)
        if verb == "unsnapshot":
            request["name"] = snapshot_name(name, "t")
        if verb == "snapshot":
            del request["name"]
            request |= {"volume": volume_name(name), "snapshot_id": "s"}
        return Case(Call(verb, request), (name,))

    return prepare


def _filled(verb: str) -> Callable[[Daemon, Caller, bytes], Case]:
    def prepare(daemon: Daemon, _caller: Caller, pattern: bytes) -> Case:
        name = fresh()
        folder = daemon.images if verb == "import" else daemon.pool
        image = make_image(folder / f"{name}.qcow2", MIB, pattern[0])
        request = {"pool": POOL, "volume_id": name, "request_id": fresh("r")}
        more = {"path": str(image), "source_format": QCOW2, "format": RAW} if verb == "import" else {"locator": image.name, "format": QCOW2}
        return Case(Call(verb, request | more), (name,))

    return prepare


def _exported(kind: int) -> Callable[[Daemon, Caller, bytes], Case]:
    def prepare(daemon: Daemon, caller: Caller, pattern: bytes) -> Case:
        name = _written(daemon, caller, pattern)
        file = daemon.exports / fresh("e")
        return Case(Call("export", {"name": volume_name(name), "path": str(file), "format": kind, "request_id": fresh("r")}), (name,), file)

    return prepare


def _written(daemon: Daemon, caller: Caller, pattern: bytes) -> str:
    name = fresh()
    caller(_create(name))
    write_pattern(daemon, name, pattern[0], length=MIB)
    return name


CASES = {
    "create qcow2": _new(),
    "create thick raw": _new(format=RAW, provisioning=volume_pb2.PROVISIONING_THICK),
    "clone a volume": _clone(snapshot=False),
    "clone a snapshot": _clone(snapshot=True),
    "delete": _on("delete"),
    "expand": _on("expand", size_bytes=2 * MIB),
    "update": _on("update", labels={"tier": "gold"}),
    "snapshot": _on("snapshot"),
    "unsnapshot": _on("unsnapshot"),
    "revert": _on("revert", snapshot="s"),
    "import": _filled("import"),
    "adopt": _filled("adopt"),
    "export raw": _exported(RAW),
    "export qcow2": _exported(QCOW2),
}


def look(caller: Caller, case: Case) -> dict[str, object]:
    """What a caller can see of some volumes, by the index and by the storage, which must agree; and of a file that was exported."""
    seen: dict[str, object] = {"file": case.file.read_bytes() if case.file and case.file.exists() else None}
    for position, name in enumerate(case.about):
        if name not in caller.list_volumes():
            with pytest.raises(Refused, match="NOT_FOUND"):
                caller.volume(name, refresh=True)
            continue
        deadline = time.monotonic() + 10
        while _told(row := caller.list_volumes()[name]) != _told(read := caller.volume(name, refresh=True)):
            assert time.monotonic() < deadline, (row, read)
            caller.settle()  # a merge that the dead daemon did not begin is begun by the next one's first check
        snapshots = {cut: caller.content(snapshot_name(name, cut)) for cut in caller.list_snapshots(name)}
        seen[f"volume {position}"] = (read.size_bytes, read.format, read.state, dict(read.labels), caller.content(name), snapshots)
    return seen


def _told(volume: volume_pb2.Volume) -> tuple[object, ...]:
    return volume.uid, volume.size_bytes, dict(volume.labels), volume.depth


@pytest.mark.drawn(7)
@pytest.mark.timeout(36_000 if SOAK else 180)
@pytest.mark.parametrize("verb", CASES)
def test_a_kill_behind_any_system_call_is_finished_or_undone(base: Path, verb):
    random = draw()
    killed = 0
    with Daemon(base) as daemon, daemon.caller() as caller:

        def prepared() -> tuple[Case, dict[str, object]]:
            case = CASES[verb](daemon, caller, b"\x42")
            caller.settle()
            return case, look(caller, case)

        case, before = prepared()
        with Stepping(daemon, 0) as steps:
            answer = caller(case.call)
            caller.settle()
        after = look(caller, case)
        assert after != before or verb == "adopt"
        print(f"{verb}: {steps.seen} system calls change files")
        assert 10 < steps.seen < MOST
        points, last = iter(range(1, MOST)), steps.seen
        while killed < POINTS:
            point = next(points) if SOAK else random.randint(1, last)
            case, before = prepared()
            with Stepping(daemon, point) as steps, contextlib.suppress(Refused):
                caller.once(case.call, timeout=20)
                caller.settle()
            if not steps.killed_at:  # the verb has fewer: its commits touch a page more or less
                if SOAK:
                    break
                last = point - 1
                assert last > 10
                continue
            killed += 1
            where = f"killed behind call {point}: {steps.killed_at}"
            daemon.start()
            caller.settle()
            assert look(caller, case) in (before, after), where
            again = caller(case.call)
            caller.settle()
            assert look(caller, case) == after, where
            assert again.operation.state == answer.operation.state, where
            assert caller(case.call) == again, where
            assert stray(daemon.pool, daemon.state / "spool") == [], where
            assert sorted(caller.list_volumes()) == names(daemon.pool), where
            assert list(daemon.images.glob(".*")) == list(daemon.exports.glob(".*")) == [], where
    print(f"{verb}: {killed} kills")
    assert killed > 10 or not SOAK
