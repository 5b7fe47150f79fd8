"""One operation while this process works on it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from volgate.operations import codec
from volgate.operations.context import Context
from volgate.operations.requests import Caller, Request
from volgate.operations.ticket import Ticket
from volgate.store.records import OperationRecord, OperationState

__all__ = ["Job"]


class Job:
    """An operation, its newest record, its ticket and who watches it."""

    def __init__(self, request: Request, caller: Caller, digest: str, *, long: bool, owner: str = "") -> None:
        """Draw what the first commit will hold: the id, the uid of what is made, a nonce. `owner`: this controller, if there are others."""
        now = time.time()
        self.request = request
        self.caller = caller
        self.long = long
        self.digest = digest
        self.facts: dict[str, Any] = {"uid": str(uuid.uuid4()), "nonce": uuid.uuid4().hex[:8]}
        self.began = time.monotonic()
        self.record = OperationRecord(
            id=uuid.uuid4().hex,
            method=request.method,
            target=request.target,
            request_id=caller.request_id,
            body_hash=digest,
            principal=caller.principal,
            state=OperationState.QUEUED,
            request=codec.encode(request),
            facts=codec.encode(self.facts),
            created_at=now,
            trace=caller.trace,
            owner=owner,
            claim=1 if owner else 0,
        )
        self._prepare()

    @classmethod
    def resumed(cls, record: OperationRecord, *, long: bool) -> Job:
        """Take over what a dead process left."""
        job = cls.__new__(cls)
        job.request = codec.decode_request(record.method, record.request)
        job.caller = Caller(record.request_id, record.principal, record.trace)
        job.long = long
        job.digest = record.body_hash
        job.facts = msgspec.json.decode(record.facts)
        job.began = time.monotonic()
        job.record = record
        job._prepare()  # noqa: SLF001  # its own class
        job.attempted = True  # perhaps: "running" is not worth a commit of its own
        return job

    def _prepare(self) -> None:
        self.lock = threading.Lock()
        self.missing = {"recorded", "first"}
        self.active = False
        self.attempted = False
        self.parked = False
        self.doubted = self.record.state is OperationState.IN_DOUBT  # and still is while it is tried again
        self.cancel = False
        self.context: Context | None = None
        self.log: dict[str, Any] = structlog.contextvars.get_contextvars()
        self.listeners: list[Callable[[OperationRecord], None]] = []
        self.ticket = Ticket(self.record.id, lambda: self.record, long=self.long)

    @property
    def id(self) -> str:
        """The operation's id."""
        return self.record.id

    def arrive(self, condition: str) -> bool:
        """Note that the job is recorded, or first in its queues; True for the one call that makes it runnable."""
        with self.lock:
            self.missing.discard(condition)
            if self.missing or self.active:
                return False
            self.active = True
            return True

    def joined(self) -> Ticket:
        """The ticket of who joins a job; a new one if those before were told what it waits for."""
        with self.lock:
            if (self.missing or self.active) and self.ticket.future.done():
                self.ticket = Ticket(self.record.id, lambda: self.record, long=self.long)
            return self.ticket

    def reopen(self) -> bool:
        """Run a job that is in doubt or parked again, if nobody does yet; callers that were answered leave their ticket behind."""
        with self.lock:
            if self.active or self.missing:
                return False
            if self.ticket.future.done() or self.ticket.pending.done():
                self.ticket = Ticket(self.record.id, lambda: self.record, long=self.long)
            self.active, self.parked = True, False
            return True

    def park(self) -> None:
        """Let the thread go; `reopen` goes on."""
        with self.lock:
            self.active, self.parked, self.doubted = False, True, False

    def changed(self) -> None:
        """Bring the record up to date with the running attempt and tell the watchers."""
        if context := self.context:
            self.record = replace(self.record, steps=tuple(context.steps), progress=context.progress, uid=context.uid or self.record.uid)
        self.tell()

    def tell(self) -> None:
        """Tell the watchers."""
        for listener in tuple(self.listeners):
            listener(self.record)
