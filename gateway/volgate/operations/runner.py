"""The runner: journal first, join duplicates, replay recorded answers, one operation at a time per object, undo or go on after a failure.

The life of an operation: `submit` joins it or queues it; it is recorded; when it is first in the queues of its objects its use
case runs; the answer, the index rows and "done" go into one commit. A crash at any point leaves a row that `recover` runs again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import structlog
from opentelemetry import metrics
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.backend.hooks import FinishedRecord
from volgate.errors import Busy, Cancelled, InDoubt, Unreachable, VolgateError
from volgate.operations import codec
from volgate.operations.admission import admit
from volgate.operations.alarm import Alarm
from volgate.operations.audit import tell_ended
from volgate.operations.context import Context, Parked
from volgate.operations.elsewhere import Elsewhere, answer
from volgate.operations.handlers import HANDLERS, lock_keys
from volgate.operations.job import Job
from volgate.operations.jobs import Jobs
from volgate.operations.order import LocalOrder, Order, SharedOrder
from volgate.operations.pool_lanes import PoolLanes
from volgate.operations.quarantine import WAIT_SECONDS, refuse, waits
from volgate.operations.repeats import answering
from volgate.operations.requests import Caller, Request
from volgate.operations.ticket import Ticket
from volgate.operations.world import World
from volgate.secret import redacted
from volgate.store import journal, turns
from volgate.store.database import Commit
from volgate.store.records import OperationRecord, OperationState
from volgate.tracing import failed, span

__all__ = ["Runner"]

_log = structlog.get_logger()
_seconds = metrics.get_meter("volgate").create_histogram("volgate.operation.duration", unit="s", description="Time of one operation")
_TRIES = (0.2, 1.0, 3.0)
_PATIENT_SECONDS = 20.0  # what took so long is told as it is: its caller has a deadline, and may repeat the call
_DOUBT_SECONDS = 5.0


class Runner:
    """Runs mutations."""

    def __init__(self, world: World, after: Callable[[Request], Request | None] | None = None) -> None:
        """`after` names the internal request that follows a finished one, if any."""
        self._world = world
        self._after = after
        self._most = world.settings.limits.queued_operations
        self.lanes = PoolLanes(world)
        self.order: Order = SharedOrder(world.database) if world.database.shared else LocalOrder()
        self.elsewhere = Elsewhere(world.database)
        self.jobs = Jobs()
        self._alarm = Alarm("operations-alarm")
        self._stopping = False

    def submit(self, request: Request, caller: Caller) -> Ticket:
        """Join the operation that does this already, or begin one. Returns at once. Raises InvalidRequest, Busy, Unreachable (stopping)."""
        digest = codec.body_hash(request)
        with self.jobs.lock:
            if self._stopping:
                raise Unreachable("the gateway is stopping; repeat the call when it is back", reason="STOPPING", retry_after=2.0)
            job = self.jobs.same(caller, digest)
            fresh = job is None
            if job is None:
                if self.jobs.unfinished() >= self._most:
                    raise Busy(f"{self._most} operations are queued; come back later")
                job = Job(request, caller, digest, long=_is_long(request), owner=self._world.database.owner)
                self.jobs.add(job)
                self._enter(job)
            again = not fresh and (job.parked or job.record.state is OperationState.IN_DOUBT) and job.reopen()
            ticket = job.joined()
        if fresh:
            self.lanes.of(job.request.target).submit(self._record, job)
        elif again:
            self.lanes.of(job.request.target).submit(self._run, job)
        return ticket

    def recover(self) -> int:
        """Take up everything that a dead process left, in its order; return how many. Where controllers share it, they are `resume`d."""
        if self._world.database.shared:
            return 0
        with self._world.database.read() as connection:
            left = journal.unfinished(connection)
        for record in left:
            self.resume(record)
        return len(left)

    def resume(self, record: OperationRecord) -> None:
        """Go on with an operation that is ours now, when its turn comes."""
        job = Job.resumed(record, long=_is_long(codec.decode_request(record.method, record.request)))
        with self.jobs.lock:
            self.jobs.add(job)
            self._enter(job)
        self._start_if_ready(job, "recorded")

    def hold(self, target: str, timeout: float) -> Callable[[], None]:
        """Lock one object for a long read (an export); return what lets go. Raises Busy when others keep it for `timeout` seconds."""
        return self.order.hold(target, timeout)

    def hold_if_free(self, target: str) -> Callable[[], None] | None:
        """Lock one object if no operation on it runs or waits; return what lets go, or None."""
        return self.order.hold_if_free(target)

    def find(self, identifier: str) -> Job | None:
        """The job of an operation that has not ended here."""
        return self.jobs.find(identifier)

    def cancel(self, identifier: str) -> None:
        """Ask an operation to stop and undo."""
        if job := self.find(identifier):
            job.cancel = True
            if job.context:
                job.context.cancelled.set()
            if job.parked:
                self.again(job)

    def rouse(self) -> None:
        """Something changed outside: run what is parked."""
        for job in self.jobs.all():
            if job.parked:
                self.again(job)

    def publish(self, identifier: str) -> None:
        """Write down how far an operation is, for whoever watches it elsewhere. Raises VolgateError."""
        if (job := self.find(identifier)) and job.active and job.context:
            self._note(job)

    def begin_stop(self) -> None:
        """Accept nothing more."""
        with self.jobs.lock:
            self._stopping = True

    def stop(self, grace: float) -> int:
        """Accept nothing more and wait up to `grace` seconds for what runs; return how many are left for the next start."""
        self.begin_stop()
        remaining = self.jobs.wait_idle(grace)
        self._alarm.close()
        for lane in self.lanes.all:
            lane.close()
        return remaining

    def _enter(self, job: Job) -> None:
        self.order.enter(job.id, lock_keys(job.request), lambda: self._start_if_ready(job, "first"))

    def _start_if_ready(self, job: Job, condition: str) -> None:
        if job.arrive(condition):
            self.lanes.of(job.request.target).submit(self._run, job)

    def _forget(self, job: Job) -> None:
        self.jobs.remove(job)
        self.order.leave(job.id)

    # -- recording

    def _record(self, job: Job) -> None:
        """Write the first commit; answer from an earlier one where the request id is known."""
        try:
            if (self._world.registry.admits or waits(self._world, job.request)) and not self._known(job):
                refuse(self._world, job.request)
                admit(self._world.registry, job.request, job.caller)
            earlier = self._world.database.write(lambda commit: self._begin(commit, job))
        except VolgateError as error:
            self._refuse(job, error)
        except Exception as error:  # noqa: BLE001  # a plugin's refusal or a bug: the caller must learn of it, nothing was done
            self._refuse(job, _bug(job, error))
        else:
            if earlier is not None:
                self._replay(job, earlier)
                return
            self.order.begun(job.id)
            if job.arrive("recorded"):
                self._run(job)  # in this thread: a hand-over to the next one costs as much as a read of the database

    def _known(self, job: Job) -> bool:
        """Whether the call repeats one that was admitted: what it took then must not be counted against it now."""
        if not job.caller.request_id:
            return False
        with self._world.database.read() as connection:
            return answering(journal.by_request_id(connection, job.caller.principal, job.caller.request_id), job.digest) is not None

    def _begin(self, commit: Commit, job: Job) -> OperationRecord | None:
        """Write the operation and its turns, unless the journal knows one that answers the call."""
        caller = job.caller
        if caller.request_id:
            earlier = answering(journal.by_request_id(commit, caller.principal, caller.request_id), job.digest)
        elif self._world.database.shared and HANDLERS[job.request.method].joins:
            earlier = journal.running_like(commit, lock_keys(job.request)[0], caller.principal, job.digest)
        else:
            earlier = None
        if earlier is None:
            journal.begin(commit, job.record)
            self.order.begin(commit, job.id, lock_keys(job.request))
        return earlier

    def _replay(self, job: Job, earlier: OperationRecord) -> None:
        """Answer with what is recorded, or once it is."""
        self._forget(job)
        self._follow_elsewhere(job, earlier)

    def _follow_elsewhere(self, job: Job, record: OperationRecord) -> None:
        """Let who waits for a job have what becomes of an operation that another controller works on."""
        if record.state is OperationState.IN_DOUBT:  # a repeat lets it be tried again, as it does here
            self._world.database.submit(lambda commit: turns.tell(commit, "again", record.id))
            record = replace(record, state=OperationState.RUNNING)
        if answer(job, record, self._world.database):
            return
        stops: list[Callable[[], None]] = []

        def changed(now: OperationRecord) -> None:
            if answer(job, now, self._world.database):
                for stop in stops:
                    stop()

        stops.append(self.elsewhere.follow(record, changed))

    def _refuse(self, job: Job, error: VolgateError) -> None:
        ticket = job.ticket
        self._forget(job)
        ticket.fail(error)

    # -- running

    def _run(self, job: Job) -> None:
        parent = TraceContextTextMapPropagator().extract({"traceparent": job.caller.trace}) if job.caller.trace else None
        structlog.contextvars.clear_contextvars()  # those of whichever call made this one's turn come
        with (
            span(f"operation {job.request.method}", parent=parent, operation=job.id, target=job.request.target) as current,
            structlog.contextvars.bound_contextvars(**{**job.log, "operation": job.id}),
        ):
            try:
                self._attempt(job)
            except Exception as error:  # noqa: BLE001  # the last line of defence: an operation never vanishes, it is in doubt and tried again
                self._doubt(job, _bug(job, error))
            if job.record.error_reason:
                failed(current, job.record.error_reason)

    def _attempt(self, job: Job) -> None:
        """Run the use case until it ends, or its outcome stays unknown."""
        began = time.monotonic()
        for delay in (*_TRIES, None):
            if waits(self._world, job.request):
                self._park(job, WAIT_SECONDS)
                return
            context = self._context(job)
            try:
                with self._world.lease.working():
                    value = HANDLERS[job.request.method].body(context, job.request)
                self._finish(job, context, value)
            except InDoubt as error:
                if delay is None or time.monotonic() - began > _PATIENT_SECONDS:
                    self._doubt(job, error)
                    return
                time.sleep(delay)
                continue
            except Parked as parked:
                self._park(job, parked.seconds)
            except VolgateError as error:
                if error.reason == "TAKEN_OVER":
                    self._lose(job)
                elif context.resumed and error.retryable:
                    self._doubt(job, error)  # what the earlier attempt did is there: neither finished nor undone yet
                else:
                    self._fail(job, context, error)
            except Exception as error:  # noqa: BLE001  # a bug: undone like any failure, and reported as INTERNAL with an id
                self._fail(job, context, _bug(job, error))
            return

    def _park(self, job: Job, seconds: float) -> None:
        job.park()
        job.tell()
        self._alarm.after(seconds, lambda: self.again(job))

    def _context(self, job: Job) -> Context:
        context = Context(self._world, job.id, job.request.method, job.facts, job.changed, resumed=job.attempted)
        job.attempted = True
        context.on_pending, context.waited = job.ticket.postpone, job.ticket.waited
        context.checkpoint = lambda: self._note(job)
        context.require_ours = lambda commit: journal.require_ours(commit, job.record)
        if job.cancel:
            context.cancelled.set()
        job.context = context
        job.record = replace(job.record, state=OperationState.RUNNING)
        job.tell()
        return context

    def _note(self, job: Job) -> None:
        job.record = replace(job.record, facts=codec.encode(job.facts))
        record = job.record
        self._world.database.write(lambda commit: journal.note(commit, record))

    def _finish(self, job: Job, context: Context, value: object) -> None:
        """Answer, index rows and "done" in one commit. A commit that fails leaves the outcome in doubt: the effect is there."""
        done = replace(
            job.record,
            state=OperationState.DONE,
            result=codec.encode(value),
            finished_at=time.time(),
            uid=context.uid,
            progress=1.0,
            error_reason="",
            error_message="",
        )

        def settle(commit: Commit) -> None:
            context.apply(commit)
            journal.settle(commit, done)
            self.order.end(commit, job.id)

        try:
            self._world.database.write(settle)
        except VolgateError as error:
            if error.reason == "TAKEN_OVER":
                raise
            raise InDoubt(
                f"{job.request.method} took effect but could not be recorded: {error.message}", operation=f"operations/{job.id}"
            ) from error
        self._guarded(job, self._follow)  # before the answer: whoever has that sees what follows among the operations
        self._end(job, done, value, None)
        self._guarded(job, lambda _: context.run_after())

    def _follow(self, job: Job) -> None:
        follow = self._after(job.request) if self._after else None
        if follow is not None and not self._stopping:
            self.submit(follow, Caller(principal="gateway"))

    @staticmethod
    def _guarded(job: Job, act: Callable[[Job], None]) -> None:
        """Do what comes after an operation that is done and recorded: a failure must not undo it; the scan looks for lost merges."""
        try:
            act(job)
        except VolgateError as error:
            _log.info("no follow-up now", method=job.request.method, target=job.request.target, error=error.message)
        except Exception:  # noqa: BLE001  # a bug, but the operation has ended well and its answer is given
            _log.exception("bug after an operation", operation=job.id, method=job.request.method)

    def _fail(self, job: Job, context: Context, error: VolgateError) -> None:
        try:
            with self._world.lease.working():
                failures = context.undo()
        except VolgateError as unleased:
            failures = [("everything", unleased)]
        if failures:
            name, cause = failures[0]
            text = f"{error.message}; and undoing {name} failed: {cause}"
            self._doubt(job, InDoubt(text, operation=f"operations/{job.id}"))
            return
        state = OperationState.CANCELLED if isinstance(error, Cancelled) else OperationState.FAILED
        ended = replace(
            job.record,
            state=state,
            error_reason=error.reason,
            error_message=redacted(error.message),  # no secret reaches the database
            result=codec.encode_failure(error),
            finished_at=time.time(),
            uid=context.uid,
        )

        def settle(commit: Commit) -> None:
            journal.settle(commit, ended)
            self.order.end(commit, job.id)

        try:
            self._world.database.write(settle)
        except VolgateError as unrecorded:
            if unrecorded.reason == "TAKEN_OVER":
                self._lose(job)
                return
            text = f"{error.message}; and that could not be recorded: {unrecorded.message}"
            self._doubt(job, InDoubt(text, operation=f"operations/{job.id}"))
            return
        error.operation = error.operation or f"operations/{job.id}"
        self._end(job, ended, None, error)

    def _doubt(self, job: Job, error: VolgateError) -> None:
        """Keep the object locked, tell the caller the truth, and try again soon."""
        message = redacted(error.message)  # no secret reaches the database
        job.record = replace(job.record, state=OperationState.IN_DOUBT, error_reason=error.reason, error_message=message)
        _log.warning("operation in doubt", operation=job.id, method=job.request.method, target=job.request.target, error=error.message)
        record = job.record
        try:
            self._world.database.write(lambda commit: journal.settle(commit, record))
        except VolgateError as unrecorded:
            if unrecorded.reason == "TAKEN_OVER":
                self._lose(job)
                return
            _log.warning("doubt could not be recorded", operation=job.id, error=unrecorded.message)
        with job.lock:
            job.active, job.doubted = False, True
        told = InDoubt(
            f"{error.message}; the outcome is not known yet, repeat the same call", operation=f"operations/{job.id}", holders=error.holders
        )
        job.ticket.fail(told)
        for other in self.jobs.behind(job, _PATIENT_SECONDS):  # what keeps them is told, too
            told = InDoubt(f"it waits for operations/{job.id}: {told.message}", operation=f"operations/{other.id}", holders=error.holders)
            other.ticket.fail(told)
        job.tell()
        self._alarm.after(_DOUBT_SECONDS, lambda: self.again(job))

    def _lose(self, job: Job) -> None:
        """Another controller has taken an operation over: nothing more is done for it here but to tell what becomes of it."""
        _log.warning("operation was taken over", operation=job.id, method=job.request.method, target=job.request.target)
        with job.lock:
            job.active = False
        self._forget(job)
        self._follow_elsewhere(job, job.record)

    def again(self, job: Job) -> None:
        """Try an operation that is in doubt or parked again."""
        with self.jobs.lock:
            run = not self._stopping and job.id in self.jobs and job.reopen()
        if run:
            self.lanes.of(job.request.target).submit(self._run, job)

    def _end(self, job: Job, record: OperationRecord, value: object, error: VolgateError | None) -> None:
        job.record = record
        seconds = time.monotonic() - job.began
        outcome = error.reason if error else "ok"
        _seconds.record(seconds, {"method": record.method, "outcome": outcome})
        ended = FinishedRecord(f"operations/{job.id}", record.method, record.target, record.uid, record.principal, outcome, seconds)
        tell_ended(self._world.registry, ended)
        self._forget(job)
        if error is None:
            job.ticket.resolve(value)
        else:
            job.ticket.fail(error)
        job.tell()


def _is_long(request: Request) -> bool:
    """Whether the work may outlast any deadline: a clone may be a copy."""
    return HANDLERS[request.method].long or bool(getattr(request, "source", ""))


def _bug(job: Job, error: Exception) -> VolgateError:
    opaque = uuid.uuid4().hex[:12]
    _log.error("bug", operation=job.id, method=job.request.method, id=opaque, exc_info=error)
    return VolgateError(f"{job.request.method} failed by a bug of the gateway; the log has it under id {opaque}", metadata={"id": opaque})
