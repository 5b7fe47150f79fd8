"""Level 4, leaks: what a backend keeps of the process, what it tells that is secret, and what it leaves on the storage."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from volgate.conformance.cases import Level, proves
from volgate.conformance.child import Child, Lost
from volgate.conformance.faults import Victims
from volgate.conformance.in_process import Opened
from volgate.conformance.subject import Subject
from volgate.conformance.tracing import Trace, descendants
from volgate.conformance.verbs import VERBS
from volgate.errors import VolgateError
from volgate.model import Volume
from volgate.secret import Secret

__all__ = ["Leaks"]

_REST_SECONDS = 10.0
_OF_ALL = ("mounts",)
"""What others on this machine have some of too: a backend leaks with every life, and so as many as there are lives."""
Secretly = Callable[[str], dict[str, object]]


class Footprint:
    """What this process has now: threads, descriptors, children, mounts, temporary files."""

    def __init__(self) -> None:
        """Look."""
        self.held = {
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "descriptors": _descriptors(),
            "children": sorted(map(_program, descendants(os.getpid()))),
            "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            "temporary files": sorted(os.listdir(tempfile.gettempdir())),  # noqa: PTH208  # names are all that is wanted
        }

    def grown(self, lives: int) -> dict[str, list[str]]:
        """What there is more of than `lives` ago, given some seconds to go by itself."""
        deadline = time.monotonic() + _REST_SECONDS
        while (more := self._more(lives)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return more

    def _more(self, lives: int) -> dict[str, list[str]]:
        found = {}
        for what, now in Footprint().held.items():
            left = list(now)
            for old in self.held[what]:
                if old in left:
                    left.remove(old)
            more = len(now) - len(self.held[what])
            if more >= lives or (more > 0 and what not in _OF_ALL):
                found[what] = left
        return found


class Leaks:
    """What must not be left behind, and not be told."""

    @pytest.mark.usefixtures("own_temporary_files")
    @proves(Level.FAULTS, wire=False)
    def test_nothing_is_leaked(self, subject: Opened, lives: int) -> None:
        """Lives of volumes, with their refusals, leave no thread, descriptor, process, mount or temporary file behind."""
        for _ in range(min(2, lives)):
            _life(subject)
        before = Footprint()
        for _ in range(lives):
            _life(subject)
        assert not (grown := before.grown(lives)), f"after {lives} lives there are more: {grown}"

    @pytest.mark.usefixtures("own_temporary_files")
    @proves(Level.FAULTS, wire=False)
    def test_a_closed_pool_keeps_nothing(self, subject: Opened, lives: int) -> None:
        """`close` lets go of all that `open` took: pools that are opened, used and closed again and again leave nothing behind."""
        subject.reopen()
        before = Footprint()
        for _ in range(lives):
            subject.reopen()
            subject.delete(subject.create())
        assert not (grown := before.grown(lives)), f"after {lives} times there are more: {grown}"

    @proves(Level.FAULTS, wire=False)
    def test_deleted_volumes_leave_nothing_on_the_storage(self, subject: Opened, lives: int) -> None:
        """After lives of volumes the storage holds what it held before: nothing is promised any more, and no object is left."""
        for _ in range(min(2, lives)):
            _life(subject)
        subject.reopen()
        subject.nothing_is_left()

    @proves(Level.FAULTS, wire=False)
    def test_a_secret_stays_one(self, victims: Victims, secret_table: Secretly, canary: str, capfd: pytest.CaptureFixture[str]) -> None:
        """A secret of the pool's table is in no log, error or answer, and in no argument or environment of a process that is started."""
        told: list[str] = []
        child = Child(victims.plugin, victims.kind, secret_table("test:canary"), secret=lambda _reference: Secret(canary))
        try:
            with Trace(child.pid, "execve") as trace:
                for verb in VERBS:
                    if verb.applies(victims.pool):
                        call = verb.prepare(victims.pool)
                        told += [_said(child, call.method, *call.arguments, **call.keywords) for _ in range(2)]
                told += [_said(child, method) for method in ("check", "list_volumes")]
        finally:
            child.end()
        told += [line.text for line in trace.lines]
        told += list(capfd.readouterr())
        assert not [text for text in told if canary in text], "the secret was told"


def _said(child: Child, method: str, *args: Any, **kwargs: Any) -> str:
    try:
        return repr(child.call(method, *args, **kwargs))
    except (VolgateError, RuntimeError, Lost) as error:
        return f"{error!r} {vars(error)}"


def _life(subject: Opened) -> None:
    """Every verb once, then its refusals."""
    for verb in VERBS:
        if not verb.applies(subject):
            continue
        call = verb.prepare(subject)
        for _ in range(2):
            getattr(subject.backend, call.method)(*call.arguments, **call.keywords)
    _refusals(subject)
    subject.clear()


def _refusals(subject: Subject) -> None:
    made: Volume = subject.create()
    with pytest.raises(VolgateError):
        subject.get(subject.name())
    with pytest.raises(VolgateError):
        subject.create(made.name, size=subject.size(2))
    with pytest.raises(VolgateError):
        subject.create(size=subject.traits.maximum + subject.traits.grain)


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(_kind(str(entry.readlink())))
        except OSError:
            continue  # the one that listed them
    return sorted(found)


def _kind(target: str) -> str:
    """A descriptor's target without what differs from one to the next."""
    return target.partition(":")[0] if ":[" in target else target


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
