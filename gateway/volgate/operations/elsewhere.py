"""Operations that another controller works on: looked at in the journal, for those here who wait for them or watch them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from volgate.errors import InDoubt, VolgateError
from volgate.operations import codec
from volgate.operations.handlers import HANDLERS
from volgate.operations.job import Job
from volgate.operations.requests import DetachVolume
from volgate.store import attachments, journal, turns
from volgate.store.database import Commit, Database
from volgate.store.records import AttachmentState, OperationRecord, OperationState

__all__ = ["Elsewhere", "answer"]

Changed = Callable[[OperationRecord], None]


class Elsewhere:
    """Who is told of which operation. Nothing is asked while nobody waits."""

    def __init__(self, database: Database) -> None:
        """Nobody waits yet."""
        self._database = database
        self._lock = threading.Lock()
        self._told: dict[str, list[Changed]] = {}
        self._seen: dict[str, OperationRecord] = {}

    def follow(self, record: OperationRecord, changed: Changed) -> Callable[[], None]:
        """Tell `changed` now and at each change that is seen until the operation ends; return what stops that."""
        with self._lock:
            self._told.setdefault(record.id, []).append(changed)
            self._seen.setdefault(record.id, record)
        changed(record)

        def stop() -> None:
            with self._lock:
                told = self._told.get(record.id, [])
                if changed in told:
                    told.remove(changed)
                if not told:
                    self._told.pop(record.id, None)
                    self._seen.pop(record.id, None)

        return stop

    def wanted(self, identifier: str = "") -> bool:
        """Whether somebody here waits for an operation, or for any."""
        with self._lock:
            return identifier in self._told if identifier else bool(self._told)

    def poll(self) -> None:
        """Look at all that somebody waits for. Raises VolgateError."""
        with self._lock:
            wanted = list(self._told)
        if not wanted:
            return
        with self._database.read() as connection:
            found = {record.id: record for record in journal.several(connection, wanted)}
        for record in found.values():
            self._tell(record)

    def nudge(self) -> None:
        """Let the owners write down how far they are. Raises VolgateError."""
        with self._lock:
            wanted = list(self._told)
        if wanted:
            self._database.write(partial(_ask, wanted=wanted))

    def _tell(self, record: OperationRecord) -> None:
        with self._lock:
            if self._seen.get(record.id) == record:
                return
            told = tuple(self._told.get(record.id, ()))
            if record.state.final:
                self._told.pop(record.id, None)
                self._seen.pop(record.id, None)
            elif told:
                self._seen[record.id] = record
        for changed in told:
            changed(record)


def _ask(commit: Commit, *, wanted: list[str]) -> None:
    for identifier in wanted:
        turns.tell(commit, "look", identifier)


def answer(job: Job, record: OperationRecord, database: Database) -> bool:
    """Give what is known of an operation elsewhere to whoever waits for `job`, which joined it; say whether the wait is over."""
    job.record, ticket = record, job.ticket
    ticket.operation = record.id
    if record.state is OperationState.DONE:
        ticket.resolve(codec.decode_answer(record, HANDLERS[record.method].answer))
    elif record.state.final:
        ticket.fail(codec.decode_failure(record))
    elif record.state is OperationState.IN_DOUBT:
        told = f"{record.error_message}; the outcome is not known yet, repeat the same call"
        ticket.fail(InDoubt(told, operation=f"operations/{record.id}"))
    else:
        _postpone(job, database)
        return False
    job.tell()
    return True


def _postpone(job: Job, database: Database) -> None:
    """Tell of a guest that has not released its disk in the time that this caller gives it."""
    request = job.request
    if not isinstance(request, DetachVolume) or job.ticket.waited() < request.wait_seconds:
        return
    try:
        with database.read() as connection:
            leaving = attachments.find(connection, request.attachment)
    except VolgateError:  # the next look asks again
        return
    if leaving is not None and leaving.state is AttachmentState.DETACHING:
        job.ticket.postpone(leaving)
