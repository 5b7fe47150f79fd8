"""Keeps the workers of one pool: starts them, replaces those that end, and refuses calls at once while that does not help.

A worker that ends in the middle of a call leaves its outcome open; its operation repeats the call, which finds what the dead one
left. A worker that the kernel does not let go is abandoned: the volumes that it was at stay closed until it is gone, so that its
last write cannot land beside a newer one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog
from opentelemetry import metrics

from volgate.errors import Busy, InvalidRequest, Unreachable, VolgateError
from volgate.occupancy import Occupancy
from volgate.worker.facet_calls import FacetCall, objects_of
from volgate.worker.link import Link, Lost, Start
from volgate.worker.offers import Opened, PoolOf

__all__ = ["Supervisor", "moving_bytes"]

_log = structlog.get_logger()
_opened = msgspec.msgpack.Decoder(Opened)
_meter = metrics.get_meter("volgate")
_starts = _meter.create_counter("volgate.worker.starts", description="Worker processes started")
_losses = _meter.create_counter("volgate.worker.losses", description="Worker processes that ended, or were killed, while they were needed")
_OPEN_SECONDS = (30.0, 120.0)  # at first, and at most: twice as long after each open that was cut short
_TURN_SECONDS = 5.0  # a call waits so long for another that starts the worker, or for a killed one to be gone
_PAUSES = (0.2, 30.0)  # after the second loss in a row: the first, the longest
_CALM = 60.0  # a worker that lived so long begins the row anew
_MOST_STUCK = 4
_MOST_COPIES = 8
_IDLE_SECONDS = 30.0
_moving: ContextVar[bool] = ContextVar("moving", default=False)


@contextlib.contextmanager
def moving_bytes() -> Iterator[None]:
    """Within this block a call moves a volume's bytes: it may take hours, and has a worker of its own."""
    token = _moving.set(True)
    try:
        yield
    finally:
        _moving.reset(token)


class Supervisor:
    """The workers of one pool. Every method is thread-safe."""

    def __init__(self, pool: PoolOf, start: Start, *, timeout: float, occupancy: Occupancy | None = None) -> None:
        """`timeout` bounds each call that moves no bytes, seconds. Nothing is started yet. A worker opens the pool under its lock."""
        self._pool = pool
        self._start = start
        self._timeout = timeout
        self._occupancy = occupancy
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._link: Link | None = None
        self._born = 0.0
        self._opened: Opened | None = None
        self._validated: Link | None = None
        self._pause = 0.0
        self._patience = _OPEN_SECONDS[0]
        self._until = 0.0
        self._problem = ""
        self._dying: list[Link] = []
        self._copies = 0
        self._idle: list[tuple[Link, float]] = []
        self._closed = False

    @property
    def pid(self) -> int:
        """The process id of the worker now, 0 if there is none."""
        link = self._link
        return link.pid if link and not link.lost else 0

    @property
    def stuck(self) -> list[int]:
        """Process ids of workers that were killed and that the kernel does not let go."""
        return [link.pid for link in self._left() if link.stuck.is_set()]

    def validate(self) -> None:
        """Start a worker and let it read the pool's table. Raises InvalidRequest naming the key; other trouble is for `open` to tell."""
        pool = self._pool
        try:
            link = Link(self._start, self._occupies())
            link.call("validate", _packed(kind=pool.kind, table=pool.table, where=pool.where), timeout=_OPEN_SECONDS[0])
        except InvalidRequest:
            link.end("its table is wrong")
            raise
        except (VolgateError, RuntimeError, Lost) as error:  # a plugin that cannot be imported is a pool that is down
            _log.warning("a pool's table cannot be read by its plugin", pool=pool.pool, error=str(error))
        else:
            self._validated = link

    def _occupies(self) -> int | None:
        return self._occupancy.descriptor if self._occupancy else None

    def open(self) -> Opened:
        """Open the pool in a worker, or say what the open one is. Raises what the plugin raises, Unreachable (POOL_DOWN)."""
        self._live()
        if self._opened is None:
            raise self._down(0.0)
        return self._opened

    def call(self, method: FacetCall, arguments: dict[str, Any]) -> Any:
        """Make one call of a facet.

        Raises what the plugin raises, and Unreachable: POOL_DOWN and WORKER_STUCK (nothing was begun), WORKER_LOST (perhaps it was).
        """
        objects = objects_of(arguments)
        self._require_free(objects)
        moving = _moving.get()
        link = self._borrow_copy() if moving else self._live()
        progress: Callable[[float], None] | None = arguments.get(method.progress) if method.progress else None
        limit = None if moving else self._timeout
        try:
            parts = link.call(method.name, method.pack(arguments), timeout=limit, objects=objects, progress=progress)
        except Lost as error:
            told = f"pool {self._pool.pool}: its worker was lost during {method.name}: {error}; repeat the call, it goes on from there"
            raise Unreachable(told, reason="WORKER_LOST", retry_after=1.0) from error
        finally:
            if moving:
                self._give_back(link)
        if method.yields:
            return iter([value for part in parts for value in method.unpack_answer(part)])
        return method.unpack_answer(parts[-1])

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
            links = [link for link in (self._link, self._validated, *(link for link, _ in self._idle)) if link]
            self._link, self._validated, self._idle = None, None, []
        for link in links:
            link.end("the pool is closed")

    # -- those that were killed

    def _left(self) -> list[Link]:
        """The workers that were lost and are not gone yet."""
        with self._lock:
            self._dying = [link for link in self._dying if not link.gone.is_set()]
            return list(self._dying)

    def _require_free(self, objects: frozenset[str]) -> None:
        """Wait until no lost worker is at one of these volumes any more. Raises Unreachable (WORKER_STUCK)."""
        for link in self._left():
            held = sorted(objects & link.busy)
            if held and not link.gone.wait(_TURN_SECONDS):
                raise Unreachable(
                    f"pool {self._pool.pool}: process {link.pid} was killed and hangs in the kernel with {', '.join(held)}; look at the"
                    " storage below it, nothing is done with them until it is gone",
                    reason="WORKER_STUCK",
                    retry_after=5.0,
                )

    def _mourn(self, link: Link) -> None:
        """Note a loss, and how long to wait before the next start."""
        with self._lock:
            self._dying.append(link)
        _losses.add(1, {"pool": self._pool.pool})
        _log.warning("a worker was lost", pool=self._pool.pool, pid=link.pid, why=link.lost)
        self._wait_longer(link.lost, first=time.monotonic() - self._born > _CALM)

    def _wait_longer(self, problem: str, *, first: bool = False) -> None:
        self._problem = problem
        self._until = time.monotonic() + (0.0 if first else self._pause)
        self._pause = _PAUSES[0] if first else min(_PAUSES[1], max(_PAUSES[0], 2 * self._pause))

    # -- the one that serves

    def _live(self) -> Link:
        """The worker that serves, a new one if need be. Raises Unreachable (POOL_DOWN) at once while a new one is not due."""
        link = self._link
        if link is not None and not link.lost:
            return link
        if not self._starting.acquire(timeout=_TURN_SECONDS):
            raise self._down(1.0, "its worker is being started")
        try:
            link = self._link
            if link is not None and not link.lost:
                return link
            if link is not None:
                self._link = None
                self._mourn(link)
            if (left := self._until - time.monotonic()) > 0:
                raise self._down(left)
            fresh = self._begin()
            with self._lock:
                if self._closed:
                    fresh.end("the pool is closed")
                self._link, self._born = fresh, time.monotonic()
            return fresh
        finally:
            self._starting.release()

    def _down(self, left: float, problem: str = "") -> Unreachable:
        told = f"pool {self._pool.pool} is down: {problem or self._problem}"
        return Unreachable(told, reason="POOL_DOWN", retry_after=max(0.1, round(left, 1)))

    def _begin(self) -> Link:
        """Start a process and open the pool in it."""
        if self._closed:
            raise Unreachable(f"pool {self._pool.pool} is closed", reason="STOPPING")
        if len(stuck := self.stuck) >= _MOST_STUCK:
            raise self._down(5.0, f"processes {', '.join(map(str, stuck))} were killed and hang in the kernel; look at its storage")
        link, self._validated = self._validated, None
        if link is not None and not link.occupies and self._occupies() is not None:
            link.end("it began before the pool was ours")
            link = None
        link = link or Link(self._start, self._occupies())
        _starts.add(1, {"pool": self._pool.pool})
        try:
            raw = link.call("open", _packed(**msgspec.structs.asdict(self._pool)), timeout=self._patience)[-1]
        except Lost as error:
            with self._lock:
                self._dying.append(link)
            _losses.add(1, {"pool": self._pool.pool})
            self._patience = min(_OPEN_SECONDS[1], 2 * self._patience)
            self._wait_longer(f"its worker was lost while it opened: {error}")
            raise self._down(self._until - time.monotonic()) from error
        except BaseException as error:  # whatever the plugin raised: a worker without a pool does not stay
            link.end("the pool does not open")
            self._wait_longer(str(error))
            raise
        self._opened, self._patience = _opened.decode(raw), _OPEN_SECONDS[0]
        return link

    # -- those that move bytes

    def _borrow_copy(self) -> Link:
        with self._lock:
            while self._idle:
                link, _ = self._idle.pop()
                if not link.lost:
                    self._copies += 1
                    return link
            if self._copies >= _MOST_COPIES:
                raise Busy(f"pool {self._pool.pool}: {_MOST_COPIES} copies run; come back later", retry_after=5.0)
            self._copies += 1
        try:
            return self._begin()
        except BaseException:  # whatever it was, the place is given back
            with self._lock:
                self._copies -= 1
            raise

    def _give_back(self, link: Link) -> None:
        with self._lock:
            self._copies -= 1
            if link.lost:
                self._dying.append(link)
                return
            if not self._closed:
                self._idle.append((link, time.monotonic()))
        if self._closed:
            link.end("the pool is closed")
            return
        timer = threading.Timer(_IDLE_SECONDS, self._retire)
        timer.daemon = True
        timer.start()

    def _retire(self) -> None:
        """End the copies that nobody needed for a while."""
        limit = time.monotonic() - _IDLE_SECONDS
        with self._lock:
            old = [link for link, since in self._idle if since <= limit]
            self._idle = [(link, since) for link, since in self._idle if since > limit]
        for link in old:
            link.end("it is needed no more")


def _packed(**arguments: Any) -> dict[str, msgspec.Raw]:
    return {key: msgspec.Raw(msgspec.msgpack.encode(value)) for key, value in arguments.items()}
