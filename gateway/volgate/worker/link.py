"""The gateway's end of one worker process: calls travel and are answered, a silent process is found, a dead one is told of."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.backend import run as commands
from volgate.errors import Unreachable, VolgateError
from volgate.secret import Secret
from volgate.spawner import Limits
from volgate.worker.frames import Answer, Ask, Call, Cancel, Channel, Failure, Part, Ping, Progress, Reply

__all__ = ["Link", "Lost", "Start"]

_log = structlog.get_logger()
_PULSE = 2.0
_STARTING = 30.0  # for the first one: an emulated or overloaded machine takes so long to import
_DYING = 5.0  # until a killed process that the kernel does not let go is given up
_TICK = 0.5
_STDERR = 2
_INHERITED = ("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TMPDIR")


class Lost(Exception):
    """The worker ended, or was given up, in the middle of a call: how much of it was done is not known."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker is started with: the plugin's entry point, the log level, most bytes of address space (0: any).

    `silent`: seconds without a sign of life, from a thread of it that makes no native call, after which it is taken for hung.
    """

    plugin: str
    log_level: str = "info"
    memory: int = 0
    silent: float = 10.0
    secret: Callable[[str], Secret] | None = None


@dataclass(slots=True)
class _Waiting:
    """One call under way; what comes for it is handed to its caller's own thread."""

    objects: frozenset[str]
    came: queue.SimpleQueue[Part | Answer | Failure | Progress | None] = field(default_factory=queue.SimpleQueue)


class Link:
    """One worker. `lost` says why it serves no more; `gone` is set when the process is, `stuck` if the kernel keeps it longer."""

    def __init__(self, start: Start, occupancy: int | None = None) -> None:
        """Start the process; `occupancy` is the lock of the pool that it works on. Raises Unreachable (it cannot start)."""
        self._start = start
        self.occupies = occupancy is not None
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = itertools.count()
        self._heard = time.monotonic() + max(0.0, _STARTING - start.silent)
        self.lost = ""
        self.stuck = threading.Event()
        self.gone = threading.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(_PULSE)
        self._channel = Channel(ours)
        try:
            with theirs, open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a descriptor is what is wanted
                descriptors = [nothing.fileno(), _STDERR, _STDERR, theirs.fileno()]
                descriptors += [] if occupancy is None else [occupancy]
                self._child = commands.spawner().spawn(
                    [sys.executable, "-m", "volgate.worker.process", start.plugin, start.log_level, str(len(descriptors))],
                    descriptors=descriptors,
                    env={key: os.environ[key] for key in _INHERITED if key in os.environ},
                    limits=Limits(memory=start.memory, isolated=False),
                )
        except VolgateError as error:
            ours.close()
            raise Unreachable(
                f"a worker for {start.plugin} cannot start: {error.message}", reason="WORKER_LOST", retry_after=1.0
            ) from error
        self.pid = self._child.pid
        self._process = _watched(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"worker-{self.pid}", daemon=True)
        self._reader.start()

    @property
    def busy(self) -> frozenset[str]:
        """The volumes that calls under way are about."""
        with self._lock:
            return frozenset().union(*(waiting.objects for waiting in self._waiting.values()))

    def call(
        self,
        method: str,
        arguments: dict[str, msgspec.Raw],
        *,
        timeout: float | None,
        objects: frozenset[str] = frozenset(),
        progress: Callable[[float], None] | None = None,
    ) -> list[msgspec.Raw]:
        """Make a call and return what came, its pieces in order. At `timeout` (seconds) the worker is killed.

        Raises what the plugin raised, Lost, and what `progress` raises: the worker is told, and its answer awaited, first.
        """
        number, waiting = next(self._numbers), _Waiting(objects)
        with self._lock:
            if self.lost:
                raise Lost(self.lost)
            self._waiting[number] = waiting
        try:
            try:
                self._channel.send(Call(number, method, arguments, _trace()))
            except OSError as error:
                self.end(f"it does not take calls: {error}")
                raise Lost(self.lost) from error
            return self._await(number, method, waiting, timeout, progress)
        finally:
            with self._lock:
                if not self.lost:
                    del self._waiting[number]

    def _await(
        self, number: int, method: str, waiting: _Waiting, timeout: float | None, progress: Callable[[float], None] | None
    ) -> list[msgspec.Raw]:
        deadline = None if timeout is None else time.monotonic() + timeout
        parts: list[msgspec.Raw] = []
        refusal: BaseException | None = None
        while True:
            try:
                frame = waiting.came.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.end(f"{method} did not end within {timeout:g} s")
                raise Lost(self.lost) from None
            match frame:
                case Part(value=value):
                    parts.append(value)
                case Answer(value=value):
                    return [*parts, value]
                case Failure():
                    raise refusal or frame.error()
                case Progress(fraction=fraction) if progress is not None and refusal is None:
                    try:
                        progress(fraction)
                    except BaseException as error:  # noqa: BLE001  # raised above, when the worker has let go of the volume
                        refusal = error
                        with contextlib.suppress(OSError):  # its end is told as such
                            self._channel.send(Cancel(number))
                case None:
                    raise Lost(self.lost)

    def end(self, why: str) -> None:
        """Kill the worker; whoever waits for it is told why. Done already is fine."""
        with self._lock:
            if self.lost:
                return
            self.lost = why
            waiting = list(self._waiting.values())
        self._child.kill()
        self._channel.shut()
        for one in waiting:
            one.came.put(None)

    def _read(self) -> None:
        asked = time.monotonic()
        while not self.lost:
            try:
                frame = self._channel.receive()
            except TimeoutError:
                pass
            except ConnectionResetError:
                break  # it died with something unread
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                self.end(f"it cannot be understood: {error}")
                break
            else:
                if frame is None:
                    break
                self._heard = time.monotonic()
                self._hand(frame)
            now = time.monotonic()
            if now - self._heard > self._start.silent:
                self.end(f"it gave no sign of life for {self._start.silent:g} s")
            elif now - asked > _PULSE:
                asked = now
                with contextlib.suppress(OSError):
                    self._channel.send(Ping())
        self._bury()

    def _hand(self, frame: object) -> None:
        if isinstance(frame, Part | Answer | Failure | Progress):
            with self._lock:
                waiting = self._waiting.get(frame.id)
            if waiting is not None:
                waiting.came.put(frame)
        elif isinstance(frame, Ask):
            threading.Thread(target=self._reply, args=(frame,), name=f"worker-{self.pid}-secret", daemon=True).start()

    def _reply(self, ask: Ask) -> None:
        try:
            if self._start.secret is None:
                reply = Reply(ask.id, failure=f"no plugin knows the scheme of secret {ask.reference}")
            else:
                reply = Reply(ask.id, self._start.secret(ask.reference).reveal())
        except VolgateError as error:
            reply = Reply(ask.id, failure=error.message)
        with contextlib.suppress(OSError):
            self._channel.send(reply)

    def _bury(self) -> None:
        """Wait for the process, however long the kernel keeps it; only then may others touch what it was at."""
        self.end(f"it ended{self._how()}")
        if self._process is not None:
            if not select.select([self._process], [], [], _DYING)[0]:
                self.stuck.set()
                _log.error("a worker was killed and does not go: it hangs in the kernel", pid=self.pid, volumes=sorted(self.busy))
                select.select([self._process], [], [])
            os.close(self._process)
        self._child.close()
        self._channel.close()
        self.gone.set()

    def _how(self) -> str:
        """How it ended by itself, if it did."""
        try:
            code = self._child.wait(_TICK)
        except (TimeoutError, VolgateError):
            return ""
        return f" by signal {-code}" if code < 0 else f" with status {code}"


def _watched(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, whoever is its parent; None if it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _trace() -> str:
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")
