"""What a running use case has: the facts drawn in its first commit, steps with their undo, notes for the final commit."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry import metrics

from volgate.errors import Cancelled, InDoubt, Unreachable
from volgate.operations.world import World
from volgate.store.database import Commit
from volgate.store.records import AttachmentRecord, StepRecord
from volgate.tracing import span

__all__ = ["Context", "Parked"]

_seconds = metrics.get_meter("volgate").create_histogram("volgate.step.duration", unit="s", description="Time of one step of an operation")
_UNKNOWN = ("LANE_TIMEOUT", "WORKER_LOST")  # the call may have had its effect
_TICK = 0.01  # watchers are told of every hundredth
Undo = Callable[[], object]


class Parked(Exception):
    """The use case waits for the world outside: it runs again in `seconds`, or when a host tells news. Meanwhile it holds no thread."""

    def __init__(self, seconds: float) -> None:
        """Keep the time."""
        super().__init__(seconds)
        self.seconds = seconds


class Context:
    """One attempt at one operation.

    After a crash the whole use case runs again with the same facts: every step finds what the dead attempt left and finishes it.
    """

    def __init__(
        self, world: World, operation: str, method: str, facts: dict[str, Any], changed: Callable[[], None], *, resumed: bool
    ) -> None:
        """Start an attempt; `changed` is called when watchers have something to see. `resumed`: an earlier one ended somewhere."""
        self.world = world
        self.operation = operation
        self.method = method
        self.facts = facts
        self.resumed = resumed
        self.steps: list[StepRecord] = []
        self.progress = 0.0
        self.uid = ""
        self.cancelled = threading.Event()
        self.waited: Callable[[], float] = lambda: 0.0
        self.on_pending: Callable[[AttachmentRecord], None] = lambda _record: None
        self.checkpoint: Callable[[], None] = lambda: None
        self.require_ours: Callable[[Commit], None] = lambda _commit: None
        self._changed = changed
        self._undo: list[tuple[str, Undo]] = []
        self._finally: list[Callable[[Commit], object]] = []
        self._after: list[Callable[[], None]] = []

    @property
    def drawn_uid(self) -> str:
        """The uid drawn for the object that this operation makes."""
        return str(self.facts["uid"])

    @property
    def nonce(self) -> str:
        """Eight hex digits that no other operation has."""
        return str(self.facts["nonce"])

    @contextlib.contextmanager
    def step(self, name: str, undo: Undo | None = None) -> Iterator[None]:
        """Run a part under a span. `undo` is registered before the part begins: it must tolerate a part that never happened."""
        self.raise_if_cancelled()
        if undo is not None:
            self._undo.append((name, undo))
        self._mark(name, "running")
        began = time.monotonic()
        outcome = "failed"
        try:
            with span(f"step {name}", operation=self.operation):
                yield
            outcome = "done"
        except Parked:
            outcome = "waiting"
            raise
        except Unreachable as error:
            if error.reason not in _UNKNOWN:
                raise
            raise InDoubt(f"{name}: {error.message}; how far it came is looked at next") from error
        finally:
            self._mark(name, outcome)
            _seconds.record(time.monotonic() - began, {"method": self.method, "step": name, "outcome": outcome})

    def undo_earlier(self, name: str, undo: Undo) -> None:
        """Register the undo of what an earlier attempt may have done, before anything that can refuse this one."""
        if self.resumed:
            self._undo.append((name, undo))

    def note(self, **facts: str | float | bool) -> None:
        """Write facts durably now, before an effect that must be found again by them."""
        self.facts.update(facts)
        with self.world.lease.resting():
            self.checkpoint()

    def write(self, change: Callable[[Commit], object]) -> None:
        """Write a change durably now, if the operation is still ours. Raises Unreachable (TAKEN_OVER, DATABASE_DOWN)."""

        def checked(commit: Commit) -> None:
            self.require_ours(commit)
            change(commit)

        with self.world.lease.resting():
            self.world.database.write(checked)

    def commit(self, change: Callable[[Commit], object]) -> None:
        """Put a change into the commit that ends the operation."""
        self._finally.append(change)

    def after(self, act: Callable[[], None]) -> None:
        """Do something once the operation has ended with success and is recorded."""
        self._after.append(act)

    def report(self, fraction: float) -> None:
        """Tell how far the work is, 0 to 1. Raises Cancelled when the caller asked for that."""
        self.raise_if_cancelled()
        if fraction - self.progress >= _TICK or fraction >= 1:
            self.progress = min(1.0, fraction)
            self._changed()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled when somebody asked the operation to stop."""
        if self.cancelled.is_set():
            raise Cancelled(f"operation {self.operation} was cancelled; what it had done is undone")

    def undo(self) -> list[tuple[str, Exception]]:
        """Undo what was done, newest first; return what could not be undone."""
        failures: list[tuple[str, Exception]] = []
        while self._undo:
            name, act = self._undo.pop()
            try:
                with span(f"undo {name}", operation=self.operation):
                    act()
                self._mark(name, "undone")
            except Exception as error:  # noqa: BLE001  # collected: the operation is in doubt and is tried again
                failures.append((name, error))
        return failures

    def apply(self, commit: Commit) -> None:
        """Apply the noted changes; called inside the final commit."""
        for change in self._finally:
            change(commit)

    def run_after(self) -> None:
        """Do what was asked for after success."""
        for act in self._after:
            act()

    def _mark(self, name: str, state: str) -> None:
        marked = StepRecord(name, state)
        for index, step in enumerate(self.steps):
            if step.name == name:
                self.steps[index] = marked
                break
        else:
            self.steps.append(marked)
        self._changed()
