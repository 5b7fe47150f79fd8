"""Where async meets sync: bounded slots and a bounded queue for blocking calls, on daemon threads of our own.

A `ThreadPoolExecutor` is not used because its threads keep a dying process alive until a hung call returns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from volgate.errors import Busy, Unreachable

__all__ = ["Lane"]

P = ParamSpec("P")
T = TypeVar("T")
_IDLE_SECONDS = 30.0


class Lane:
    """At most `width` calls run and `depth` wait; one more is refused at once with Busy.

    The slot of a call whose caller gave up stays taken until the native call ends: no silent pile-up on a hung storage.
    """

    def __init__(self, name: str, width: int, depth: int) -> None:
        """Make a lane; threads start when needed and go after 30 idle seconds."""
        self.name = name
        self.width = width
        self.depth = depth
        self.refused = 0
        self._ready = threading.Condition()
        self._queue: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._running = 0
        self._closed = False

    @property
    def running(self) -> int:
        """Calls that run now."""
        return self._running

    @property
    def queued(self) -> int:
        """Calls that wait now."""
        return len(self._queue)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function` in the lane; the context variables of the caller (trace, log) go with it. Raises Busy, Unreachable (closed)."""
        future: Future[T] = Future()
        context = copy_context()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(function, *args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # handed to the caller through the future
                future.set_exception(error)

        with self._ready:
            if self._closed:
                raise Unreachable(f"lane {self.name} is closed", reason="STOPPING")
            if self._running + len(self._queue) >= self.width + self.depth:
                self.refused += 1
                raise Busy(f"{self.name}: {self._running} calls run and {len(self._queue)} wait; come back later")
            self._queue.append(work)
            if self._idle >= len(self._queue):
                self._ready.notify()
            elif self._threads < self.width:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"lane-{self.name}", daemon=True).start()
        return future

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the lane and wait for it without limit; see :meth:`call_within`."""
        return self.submit(function, *args, **kwargs).result()

    def call_within(self, timeout: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` and wait `timeout` seconds; raise Unreachable (reason LANE_TIMEOUT) after that: the call itself goes on."""
        future = self.submit(function, *args, **kwargs)
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            if future.cancel():
                raise Unreachable(f"{self.name}: no free slot within {timeout:g} s; nothing was started", reason="LANE_TIMEOUT") from None
            if future.done():
                return future.result()
            raise Unreachable(f"{self.name}: the storage did not answer within {timeout:g} s", reason="LANE_TIMEOUT") from None

    def close(self) -> None:
        """Refuse new calls and drop those that wait; running ones end by themselves on their daemon threads."""
        with self._ready:
            self._closed = True
            self._queue.clear()
            self._ready.notify_all()

    def _serve(self) -> None:
        while True:
            with self._ready:
                self._idle += 1
                while not self._queue:
                    if self._closed or not self._ready.wait(_IDLE_SECONDS):
                        if self._queue and not self._closed:
                            continue
                        self._idle -= 1
                        self._threads -= 1
                        return
                work = self._queue.popleft()
                self._idle -= 1
                self._running += 1
            work()
            del work
            with self._ready:
                self._running -= 1
