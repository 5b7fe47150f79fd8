"""The operations that this process works on: by id, by request id, by body."""

from __future__ import annotations

import threading
import time

from volgate.operations.handlers import HANDLERS, lock_keys
from volgate.operations.job import Job
from volgate.operations.repeats import require_same_body
from volgate.operations.requests import Caller

__all__ = ["Jobs"]


class Jobs:
    """Nobody joins or learns of another principal's. `lock` guards it; the methods that say so are called with it held."""

    def __init__(self) -> None:
        """Start with none."""
        self.lock = threading.Lock()
        self.fewer = threading.Condition(self.lock)
        self._jobs: dict[str, Job] = {}
        self._by_request: dict[tuple[str, str], Job] = {}
        self._by_body: dict[tuple[str, str], Job] = {}

    def same(self, caller: Caller, digest: str) -> Job | None:
        """The running job that a call repeats; the lock is held. Raises InvalidRequest (REQUEST_ID_REUSED).

        A request id of its own joins nothing else: the journal keeps one id per operation, and an id that is not kept could
        not answer a late repeat.
        """
        if not caller.request_id:
            return self._by_body.get((caller.principal, digest))
        job = self._by_request.get((caller.principal, caller.request_id))
        if job is not None:
            require_same_body(job.record, digest)
        return job

    def add(self, job: Job) -> None:
        """Take a job in; the lock is held."""
        self._jobs[job.id] = job
        if job.caller.request_id:
            self._by_request[job.caller.principal, job.caller.request_id] = job
        if HANDLERS[job.request.method].joins:
            self._by_body.setdefault((job.caller.principal, job.digest), job)

    def remove(self, job: Job) -> None:
        """Forget a job."""
        with self.lock:
            self._jobs.pop(job.id, None)
            for index, key in ((self._by_request, job.caller.request_id), (self._by_body, job.digest)):
                if index.get((job.caller.principal, key)) is job:
                    del index[job.caller.principal, key]
            self.fewer.notify_all()

    def find(self, identifier: str) -> Job | None:
        """The job of an operation that has not ended here."""
        with self.lock:
            return self._jobs.get(identifier)

    def all(self) -> list[Job]:
        """Every job."""
        with self.lock:
            return list(self._jobs.values())

    def __contains__(self, identifier: str) -> bool:
        """Whether there is such a job; the lock is held."""
        return identifier in self._jobs

    def unfinished(self) -> int:
        """How many there are."""
        return len(self._jobs)

    def behind(self, job: Job, seconds: float) -> list[Job]:
        """Those that wait for an object of a job, and whose callers wait for so many seconds at least."""
        keys = {*lock_keys(job.request)}
        queued = [other for other in self.all() if other is not job and "first" in other.missing and other.ticket.waited() >= seconds]
        return [other for other in queued if keys.intersection(lock_keys(other.request))]

    def wait_idle(self, seconds: float) -> int:
        """Wait until no job runs, at most so long; return how many are left, those that wait included."""
        deadline = time.monotonic() + seconds
        with self.fewer:
            while any(job.active for job in self._jobs.values()) and (left := deadline - time.monotonic()) > 0:
                self.fewer.wait(min(left, 0.5))
            return len(self._jobs)

    def doubtful(self) -> int:
        """Operations in doubt, those included that are being tried again."""
        return sum(job.doubted for job in self.all())

    def oldest(self) -> float:
        """The age of the oldest, seconds by the wall clock; 0 without any."""
        return max(0.0, time.time() - min((job.record.created_at for job in self.all()), default=float("inf")))

    def at_pool(self, name: str) -> list[str]:
        """The operations on a pool, and on what is in it."""
        prefix = f"pools/{name}/"
        return [f"operations/{job.id}" for job in self.all() if any(f"{key}/".startswith(prefix) for key in lock_keys(job.request))]
