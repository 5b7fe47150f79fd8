"""Opens, checks, drains and closes pools: settings become a Backend and a Lane; their health is kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import structlog

from volgate.backend import Backend, Measures, PoolContext, Traits, capabilities
from volgate.backend import run as commands
from volgate.errors import InvalidRequest, NotFound, Precondition, Unreachable, Unsupported, VolgateError
from volgate.lanes import Lane
from volgate.model import Capacity, Health
from volgate.names import check_identifier
from volgate.occupancy import Occupancy
from volgate.registry import Kind, Registry
from volgate.settings import convert_strictly
from volgate.tracing import span
from volgate.worker.link import Start
from volgate.worker.offers import PoolOf
from volgate.worker.proxy import proxy
from volgate.worker.supervisor import Supervisor, moving_bytes

__all__ = ["Pool", "PoolStatus", "Pools"]

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B", bound=Backend)
_log = structlog.get_logger()
_MEASURE_SECONDS = 10.0
_PATIENCE = 2.0  # a killed gateway's children end within this, seconds, unless the kernel keeps them
_WORKER_SECONDS = 10.0  # a worker is killed at its time limit; the lane waits a little longer for what that comes to


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool as ListPools shows it; `capacity` is the last that is known, None if it never told; `traits` are None until it opened."""

    name: str
    kind: str
    capabilities: tuple[str, ...]
    health: Health
    problem: str
    capacity: Capacity | None
    traits: Traits | None
    draining: bool
    lane_running: int
    lane_queued: int
    quarantine: str = ""


class Pool:
    """One configured pool: opened when it can be, tried again while it cannot."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        start: Start,
        table: Mapping[str, Any],
        instance: str,
        timeout: float,
        occupancy: Occupancy | None = None,
    ) -> None:
        """`table` is what the configuration says; `leaving`, once set, is why the pool takes no new volumes any more.

        `quarantine`, once set, is why nothing is done in it.

        `start` is how a worker for it begins, `timeout` bounds each native call, seconds. A plugin of this process reads its table now.

        A pool whose plugin was left out is down, with its problem in `unserved`; `awaited`: the plugin may come yet.
        Nothing is done to the pool before `occupancy` is ours.
        Raises InvalidRequest.
        """
        self.name = name
        self.kind = kind.kind
        self.draining = False
        self.quarantine = ""
        self.health = Health.DOWN
        self.problem = "not opened yet"
        self._told = ""  # the newest that the log says of why it does not open
        self.lane = Lane(name, kind.width, kind.depth)
        self._probe = Lane(f"{name}-check", 1, 1)
        self._occupancy = occupancy
        own, where = {k: v for k, v in table.items() if k != "kind"}, f"pools.{name}"
        self.table = dict(table)
        self.leaving = ""
        self.unserved = kind.problem
        self.awaited = kind.passing
        self.machine_bound = kind.machine_bound
        self.elsewhere = ""
        self.workers: Supervisor | None = None
        if kind.problem:
            self._begin: Callable[[], Backend] = self._refuse_to_open
        elif kind.local is None:
            if occupancy:
                with contextlib.suppress(Unreachable):  # it is tried again before the pool is opened
                    occupancy.take()
            self.workers = Supervisor(PoolOf(kind.kind, own, where, name, instance), start, timeout=timeout, occupancy=occupancy)
            self._begin = partial(proxy, self.workers)
            timeout += _WORKER_SECONDS
        else:
            settings = convert_strictly(own, kind.local.settings, where)
            self._begin = partial(kind.local.open, settings, PoolContext(pool=name, instance=instance))
        self._timeout = timeout
        self._backend: Backend | None = None
        self._opening = threading.Lock()
        self._capacity: Capacity | None = None
        self._overdue: Future[Capacity] | None = None

    def _refuse_to_open(self) -> NoReturn:
        advice = "it is tried again" if self.awaited else "mend or replace it, and restart the gateway"
        raise Unreachable(f"{self.unserved}; {advice}", reason="POOL_DOWN", retry_after=60.0)

    def stand_aside(self, told: str) -> None:
        """Do nothing here, for another machine has the storage, as is `told`; with "" be served here. Set once more, it changes nothing."""
        if told:
            self.unserved = self.elsewhere = self.problem = told
            self.health = Health.DOWN
        elif self.elsewhere:
            self.unserved, self.elsewhere, self.problem = "", "", "not opened yet"

    def backend(self) -> Backend:
        """The open backend. Raises Unreachable with why it is down, Precondition (POOL_ELSEWHERE)."""
        if self.elsewhere:
            raise Precondition(self.elsewhere, reason="POOL_ELSEWHERE")
        if self._backend is None:
            raise Unreachable(f"pool {self.name} is down: {self.problem}", reason="POOL_DOWN", retry_after=5.0)
        return self._backend

    def facet(self, kind: type[B]) -> B:
        """The backend as one facet. Raises Unsupported if it lacks it."""
        backend = self.backend()
        if not isinstance(backend, kind):
            raise Unsupported(f"pool {self.name} ({self.kind}) cannot do this: it lacks {kind.__name__}")
        return backend

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one backend call in the pool's lane, under a span. Raises Busy, Unreachable (timeout) and what the call raises."""
        with span(f"plugin {getattr(function, '__name__', 'call')}", pool=self.name), self._occupying():
            return self.lane.call_within(self._timeout, function, *args, **kwargs)

    def call_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `call`, for what moves the bytes of a whole volume: no limit of time, for it may rightly take hours."""
        with span(f"plugin {getattr(function, '__name__', 'call')}", pool=self.name), self._occupying(), moving_bytes():
            return self.lane.call(function, *args, **kwargs)

    def _occupying(self) -> contextlib.AbstractContextManager[None]:
        return commands.occupying(self._occupancy.descriptor if self._occupancy else None)

    def check(self, timeout: float = 5.0) -> None:
        """Open if needed and look how the pool is, but for one in quarantine; never raises."""
        if self.left_alone:
            return
        try:
            self._probe.call_within(timeout, self._check)
        except VolgateError as error:
            self.health, self.problem = Health.DOWN, error.message

    def _check(self) -> None:
        with self._opening:
            if self._backend is None:
                self._open()
            if self._backend is not None:
                found = self._backend.check()
                self.health, self.problem = found.health, found.message

    def _open(self) -> None:
        try:
            if self._occupancy is not None:
                self._occupancy.take(_PATIENCE)
            with self._occupying():
                self._backend = self._begin()
            self._told = ""
        except VolgateError as error:
            self.health, self.problem = Health.DOWN, error.message
            (_log.debug if error.message == self._told else _log.warning)(
                "pool does not open", pool=self.name, reason=error.reason, error=error.message
            )
            self._told = error.message
        except Exception as error:  # noqa: BLE001  # a plugin is foreign code: one that crashes at open leaves its own pool down, nothing else
            self.health, self.problem = Health.DOWN, f"plugin {self.kind} failed: {type(error).__name__}: {error}"
            _log.exception("plugin failed to open its pool", pool=self.name)

    @property
    def left_alone(self) -> bool:
        """Whether an operator, or the machine that has its storage, says that nothing is to be done with it here."""
        return bool(self.quarantine or self.elsewhere)

    @property
    def occupied(self) -> bool:
        """Whether its lock is ours: nothing of an earlier gateway in this state directory works on it."""
        return self._occupancy is not None and self._occupancy.descriptor is not None

    @property
    def known_capacity(self) -> Capacity | None:
        """The capacity that the storage told last, None if it never did; nobody is asked."""
        return self._capacity

    @property
    def stuck(self) -> int:
        """How many of its workers were killed and are kept by the kernel."""
        return len(self.workers.stuck) if self.workers else 0

    def status(self) -> PoolStatus:
        """Describe the pool; its capacity is read now, within 10 seconds."""
        return _measured([self])[0]

    def measure(self) -> Future[Capacity] | VolgateError | None:
        """Begin to read the capacity for `describe`; None where there is none to read now.

        A measurement that was given up and still runs stands for a new one: a storage that hangs would fill its lane with them.
        """
        backend = self._backend
        if self.quarantine or self.health is Health.DOWN or not isinstance(backend, Measures):
            return None
        if self._overdue is not None and not self._overdue.done():
            return Unreachable(f"{self.name}: the storage was asked for its capacity and has not answered yet", reason="LANE_TIMEOUT")
        try:
            return self.lane.submit(backend.capacity)
        except VolgateError as error:
            return error

    def describe(self, begun: Future[Capacity] | VolgateError | None) -> PoolStatus:
        """Describe the pool with what became of its measurement; without a new one it is degraded, with what was known before."""
        quarantine = f"in quarantine: {self.quarantine}" if self.quarantine else ""
        problems = [problem for problem in (quarantine, self.problem, self.leaving) if problem]
        if isinstance(begun, VolgateError):
            problems.append(begun.message)
        elif begun is not None and not begun.done():
            begun.cancel()
            self._overdue = begun
            problems.append(f"{self.name}: the storage did not tell its capacity within {_MEASURE_SECONDS:g} s")
        elif begun is not None:
            try:
                self._capacity = begun.result()
                begun = None
            except VolgateError as error:
                problems.append(error.message)
        backend = self._backend
        return PoolStatus(
            name=self.name,
            kind=self.kind,
            capabilities=capabilities(backend) if backend else (),
            health=Health.DOWN if quarantine else Health.DEGRADED if begun is not None and self.health is Health.OK else self.health,
            problem="; ".join(problems),
            capacity=self._capacity,
            traits=backend.traits if backend else None,
            draining=self.draining,
            lane_running=self.lane.running,
            lane_queued=self.lane.queued,
            quarantine=self.quarantine,
        )

    @property
    def untouched(self) -> bool:
        """Whether its storage is to be left alone, or does not answer."""
        return bool(self.quarantine) or self.health is Health.DOWN

    def require_served(self) -> None:
        """Raise Precondition (POOL_QUARANTINED) while nothing is to be done in it."""
        if self.quarantine:
            told = f"pool {self.name} is in quarantine: {self.quarantine}; nothing is done in it until `volgate pool release {self.name}`"
            raise Precondition(told, reason="POOL_QUARANTINED")

    def require_accepting(self) -> None:
        """Raise Precondition while the pool is draining."""
        if self.leaving:
            raise Precondition(f"pool {self.name} takes no new volumes: {self.leaving}")
        if self.draining:
            raise Precondition(f"pool {self.name} is draining: it takes no new volumes; resume it with DrainPool")

    def close(self) -> None:
        """Close the backend and the lanes."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
        elif self.workers is not None:
            self.workers.close()
        self.lane.close()
        self._probe.close()
        if self._occupancy is not None:
            self._occupancy.release()


class Pools:
    """All configured pools, by name."""

    def __init__(
        self, registry: Registry, tables: Mapping[str, Mapping[str, Any]], instance: str, timeout: float, locks: Path | None = None
    ) -> None:
        """Read every table; nothing is opened yet. `locks`: the folder of the pools' lock files. Raises InvalidRequest naming the key."""
        self._registry, self._instance, self._timeout, self._locks = registry, instance, timeout, locks
        self._pools: dict[str, Pool] = {}  # replaced when pools come and go: whoever goes through it keeps the one that he has
        self._pools = {name: self.make(name, table) for name, table in sorted(tables.items())}
        _validate(list(self._pools.values()))

    def make(self, name: str, table: Mapping[str, Any]) -> Pool:
        """Read a table; nothing is opened, and nobody knows of the pool yet. Raises InvalidRequest naming the key."""
        kind = table.get("kind")
        if not isinstance(kind, str):
            raise InvalidRequest(f'configuration: [pools.{name}] needs a kind, such as kind = "directory"', field=f"pools.{name}.kind")
        try:
            offered = self._registry.backend_type(kind)
        except NotFound as error:
            raise InvalidRequest(f"configuration: [pools.{name}] kind: {error.message}", field=f"pools.{name}.kind") from error
        check_identifier(name, f"pools.{name}")
        occupancy = Occupancy(self._locks / f"{name}.lock") if self._locks else None
        start = self._registry.start_of(offered, name)
        return Pool(name, offered, start, table, self._instance, self._timeout, occupancy)

    def try_out(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Let the plugins read tables, and serve none of them. Raises InvalidRequest naming the key."""
        made = list[Pool]()
        try:
            for name, table in tables.items():
                made.append(self.make(name, table))
            _validate(made)
        finally:
            for pool in made:
                pool.close()

    def add(self, name: str, table: Mapping[str, Any]) -> Pool:
        """Serve one more pool, or one in the place of another; it is opened by its first check. Raises InvalidRequest naming the key."""
        pool, old = self.make(name, table), self._pools.get(name)
        try:
            _validate([pool])
        except InvalidRequest:
            pool.close()
            raise
        self._pools = dict(sorted({**self._pools, name: pool}.items()))
        if old is not None:
            old.close()
        return pool

    def remove(self, name: str) -> None:
        """Serve a pool no more, and close it. What is on its storage stays."""
        pool = self._pools[name]
        self._pools = {other: kept for other, kept in self._pools.items() if other != name}
        pool.close()

    def __contains__(self, name: str) -> bool:
        """Whether a pool of that name is served."""
        return name in self._pools

    def __iter__(self) -> Iterator[Pool]:
        """Yield the pools by name."""
        return iter(self._pools.values())

    def get(self, name: str) -> Pool:
        """The pool. Raises NotFound."""
        if name not in self._pools:
            raise NotFound(f"pool {name!r} is not configured; there are: {', '.join(self._pools) or 'none'}")
        return self._pools[name]

    def statuses(self) -> list[PoolStatus]:
        """Describe every pool by name, measured now, side by side: within 10 seconds, however many hang."""
        return _measured(list(self._pools.values()))

    def check(self) -> None:
        """Open or check every pool, each bounded by itself."""
        for pool in self._pools.values():
            pool.check()

    def close(self) -> None:
        """Close every pool."""
        for pool in self._pools.values():
            pool.close()


def _validate(pools: Sequence[Pool]) -> None:
    """Let workers read the tables of their pools, side by side. One that cannot is a pool that is down, no wrong configuration."""
    workers = [pool.workers for pool in pools if pool.workers]
    if workers:
        with ThreadPoolExecutor(len(workers)) as threads:
            list(threads.map(Supervisor.validate, workers))


def _measured(pools: Sequence[Pool]) -> list[PoolStatus]:
    begun = [(pool, pool.measure()) for pool in pools]
    wait([future for _, future in begun if isinstance(future, Future)], _MEASURE_SECONDS)
    return [pool.describe(measurement) for pool, measurement in begun]
