"""Operations as callers see them: those that run here as they are now, the others as the journal has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from volgate.backend import FinishedRecord
from volgate.errors import NotFound
from volgate.operations.audit import tell_ended
from volgate.operations.requests import Caller
from volgate.operations.runner import Runner
from volgate.operations.scope import EVERYTHING, Scope
from volgate.operations.world import World
from volgate.store import journal, turns
from volgate.store.database import Commit
from volgate.store.records import OperationRecord, OperationState

__all__ = ["Ledger"]


class Ledger:
    """Shows, watches and cancels operations, wherever they run."""

    def __init__(self, world: World, runner: Runner) -> None:
        """Take both."""
        self._world, self._runner = world, runner

    def get(self, identifier: str, scope: Scope = EVERYTHING) -> OperationRecord:
        """One operation. Raises NotFound, also for one outside of the scope."""
        if job := self._runner.find(identifier):
            found: OperationRecord | None = job.record
        else:
            with self._world.database.read() as connection:
                found = journal.find(connection, identifier)
                if found is not None:
                    (found,) = self._as_it_is(connection, [found])
        if found is None or not scope.has_operation(found.principal):
            raise NotFound(f"operations/{identifier} does not exist, or ended longer ago than operations are kept")
        return found

    def page(self, after: str, limit: int, scope: Scope = EVERYTHING, *, unfinished: bool) -> list[OperationRecord]:
        """A page, newest first; `after` is `created_at:id` of the last row seen."""
        at, _, identifier = after.partition(":")
        before = (float(at), identifier) if after else None
        with self._world.database.read() as connection:
            found = self._as_it_is(connection, journal.page(connection, before, limit, only_unfinished=unfinished, principal=scope.owner))
        return [job.record if (job := self._runner.find(record.id)) else record for record in found]

    def _as_it_is(self, connection: Commit, records: list[OperationRecord]) -> list[OperationRecord]:
        """The journal has no commit for the moment in which an operation begins to run: elsewhere that is told by its turn."""
        if not (self._world.database.shared and any(record.state is OperationState.QUEUED for record in records)):
            return records
        first = turns.ready(connection, "")
        return [
            replace(record, state=OperationState.RUNNING) if record.state is OperationState.QUEUED and record.id in first else record
            for record in records
        ]

    def watch(self, identifier: str, listener: Callable[[OperationRecord], None], scope: Scope = EVERYTHING) -> Callable[[], None]:
        """Call `listener` now and at each change until it ends; return what stops that. Raises NotFound."""
        job, now = self._runner.find(identifier), self.get(identifier, scope)
        if job is None and self._world.database.shared and not now.state.final:
            return self._runner.elsewhere.follow(now, listener)
        if job is None:
            listener(now)
            return lambda: None
        job.listeners.append(listener)
        listener(job.record)
        return lambda: job.listeners.remove(listener) if listener in job.listeners else None

    def cancel(self, identifier: str, caller: Caller) -> OperationRecord:
        """Ask an operation to stop and undo. Raises NotFound."""
        record, began = self.get(identifier, caller.scope), time.monotonic()
        if not record.state.final:
            self._runner.cancel(identifier)
            if self._world.database.shared and self._runner.find(identifier) is None:
                self._world.database.write(partial(_ask_to_cancel, identifier=identifier))
            seconds, name = time.monotonic() - began, f"operations/{identifier}"
            ended = FinishedRecord(name, "CancelOperation", record.target, record.uid, caller.principal, "ok", seconds)
            tell_ended(self._world.registry, ended)
        return self.get(identifier)


def _ask_to_cancel(commit: Commit, *, identifier: str) -> None:
    journal.ask_to_cancel(commit, identifier)
    turns.tell(commit, "cancel", identifier)
