"""What a caller holds while an operation runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from volgate.store.records import AttachmentRecord, OperationRecord

__all__ = ["Ticket"]


class Ticket:
    """One operation, perhaps shared with other callers of the same request. Never cancel its futures.

    `future` holds the answer or the error once the operation has ended. `pending` resolves for a detach that the guest has
    not released in time, while `future` stays open. `long`: the work may outlast any deadline, so a caller should be
    answered with the running operation.
    """

    def __init__(self, operation: str, record: Callable[[], OperationRecord], *, long: bool) -> None:
        """Make the ticket of an operation id."""
        self.operation = operation
        self.long = long
        self.began = time.monotonic()
        self.future: Future[object] = Future()
        self.pending: Future[AttachmentRecord] = Future()
        self._record = record

    def waited(self) -> float:
        """Seconds that callers wait already."""
        return time.monotonic() - self.began

    def record(self) -> OperationRecord:
        """The operation as it is now."""
        return self._record()

    def resolve(self, value: object) -> None:
        """Give the answer; a second one is ignored."""
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Give the error; a second one is ignored."""
        if not self.future.done():
            self.future.set_exception(error)

    def postpone(self, record: AttachmentRecord) -> None:
        """Tell that the guest has not released the disk yet."""
        if not self.pending.done():
            self.pending.set_result(record)
