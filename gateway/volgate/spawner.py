"""The spawner: a small single-threaded process, older than gRPC's threads, that starts commands and workers for the gateway.

The gateway never forks. A request travels as one msgpack frame with the child's descriptors (SCM_RIGHTS) over a socket pair; the
child's output flows through pipes that the caller made, so the spawner moves no bytes. Each child has a `status` socket of its own
to the caller: `started` and `exited` come back on it, any byte sent to it kills the child's whole process group, and so does its
closing. Children die with the spawner (pdeathsig), the spawner dies with the gateway (end of file on the control socket).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, Self, cast

import msgspec

from volgate.errors import Busy, Cancelled, InDoubt, Unreachable, VolgateError, from_os_error, translate
from volgate.forker import FRAME, MOST_DESCRIPTORS, Lease, Limits, Request, Status

__all__ = ["Child", "Completed", "Limits", "Spawner"]

CLEAN_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MOST_OUTPUT = 32 << 20
_TICK = 0.1
_GRACE = 5.0
_KILLED = -int(signal.SIGKILL)
_statuses = msgspec.msgpack.Decoder(Status)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended; a negative `returncode` is the signal that killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


class Child:
    """A started child, seen by the gateway."""

    def __init__(self, status: socket.socket, program: str, lost: Callable[[], None]) -> None:
        """Wait until the child runs. `lost` is told when the spawner turns out to be gone.

        Raises NotFound (no such program), Denied, InDoubt (the spawner was lost).
        """
        self._status = status
        self._program = program
        self._tell_lost = lost
        self._failure: VolgateError | None = None
        self.returncode: int | None = None
        self.pid = 0
        status.settimeout(60.0)
        try:
            self._read()
        except BaseException:  # the socket must not leak, whatever happened
            status.close()
            raise

    def fileno(self) -> int:
        """The descriptor that becomes readable when the child ended."""
        return self._status.fileno()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises TimeoutError, InDoubt if the spawner died with the child, and why it did not start."""
        if self._failure is not None:
            raise self._failure
        self._status.settimeout(timeout)
        while self.returncode is None:
            self._read()
        return self.returncode

    def kill(self) -> None:
        """Kill the child's whole process group."""
        with contextlib.suppress(OSError):
            self._status.send(b"k")

    def close(self) -> None:
        """Forget the child; it is killed if it still runs."""
        self._status.close()

    def _read(self) -> None:
        try:
            frame = self._status.recv(4096)
        except ConnectionResetError:  # closed with a wish to kill unread: what was said before is still there
            frame = self._status.recv(4096)
        if not frame:
            self._lost()
        status = _statuses.decode(frame)
        if status.error:
            failure = OSError(status.error, os.strerror(status.error), self._program)
            self._failure = from_os_error(failure, f"start {self._program}")
            raise self._failure
        self.pid = status.pid or self.pid
        self.returncode = status.code

    def _lost(self) -> NoReturn:
        if self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        self._tell_lost()
        raise InDoubt(f"{self._program}: the spawner died and took the command with it; repeat the call", reason="SPAWNER_LOST")


class Spawner:
    """The gateway's end: starts the helper process, and a new one whenever it is gone."""

    def __init__(self) -> None:
        """Start the helper; do it before anything makes threads."""
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False
        self._until = 0.0
        with self._lock:
            self._launch()

    @property
    def pid(self) -> int:
        """The helper's process id now."""
        helper = self._helper
        return helper.pid if helper else 0

    def close(self) -> None:
        """End the helper and, with it, every child."""
        with self._lock:
            self._closed = True
            self._drop()

    @classmethod
    def start(cls) -> Spawner:
        """Start a helper; do it before anything makes threads."""
        return cls()

    def lease(self, until: float) -> None:
        """Let the helper end every child, and then this process, at `until` (`forker.clock`) unless told otherwise before; 0: never."""
        with self._lock, contextlib.suppress(Unreachable):  # closed: the children are gone already
            self._until = until
            self._deliver(msgspec.msgpack.encode(Lease(until)), [])

    def spawn(
        self,
        argv: Sequence[str],
        *,
        descriptors: Sequence[int],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        limits: Limits | None = None,
    ) -> Child:
        """Start a child whose descriptors 0, 1, 2, ... are those given; the caller closes its own copies afterwards."""
        request = Request(list(argv), {**CLEAN_ENVIRONMENT, **(env or {})}, cwd, user, limits)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control = self._send(msgspec.msgpack.encode(request), [theirs.fileno(), *descriptors])
        except BaseException:  # the socket must not leak, whatever happened
            ours.close()
            raise
        finally:
            theirs.close()
        return Child(ours, argv[0], partial(self._lost, control))

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        user: int | None = None,
        limits: Limits | None = None,
        on_line: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Completed:
        """Run a command to its end; `fds` become the child's descriptors 3, 4, ... Its environment is clean but for `env`.

        At `timeout` (seconds) the whole process group is killed and `timed_out` is set. `on_line` gets each line of the standard output
        as it comes (a carriage return ends one too); what it raises kills the command and comes through. Raises Cancelled once
        `cancelled()` says so, InDoubt if the spawner was killed meanwhile, NotFound and Denied if the program cannot start.
        """
        with contextlib.ExitStack() as stack:
            with translate(f"prepare {argv[0]}"):
                source = _memory(stdin, stack)
                out, out_end = _pipe(stack)
                err, err_end = _pipe(stack)
            with out_end, err_end:
                ends = [source, out_end.fileno(), err_end.fileno(), *fds]
                child = self.spawn(argv, descriptors=ends, cwd=cwd, env=env, user=user, limits=limits)
            stack.callback(child.close)
            return _Watch(child, out, err, on_line).until(time.monotonic() + timeout, cancelled)

    def _send(self, frame: bytes, descriptors: list[int]) -> socket.socket:
        """Send a request, to a new helper if this one is gone; return the socket that it went through."""
        if len(frame) > FRAME or len(descriptors) > MOST_DESCRIPTORS:
            raise ValueError(f"a command of {len(frame)} bytes with {len(descriptors)} descriptors is too large")
        with self._lock:
            return self._deliver(frame, descriptors)

    def _deliver(self, frame: bytes, descriptors: list[int]) -> socket.socket:
        control = self._live()
        try:
            socket.send_fds(control, [frame], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._drop()
            control = self._live()
            socket.send_fds(control, [frame], descriptors)
        return control

    def _lost(self, control: socket.socket) -> None:
        """A child's end shows that the helper behind `control` dies: it takes descriptors for a moment longer, and must get none."""
        with self._lock, contextlib.suppress(subprocess.TimeoutExpired):  # one that lives on keeps its other children
            if self._control is control and self._helper is not None:
                self._helper.wait(_GRACE)
                self._drop()

    def _live(self) -> socket.socket:
        if self._closed:
            raise Unreachable("the spawner is closed", reason="SPAWNER_CLOSED")
        if self._control is None or self._helper is None or self._helper.poll() is not None:
            self._drop()
            self._launch()
        return cast(socket.socket, self._control)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = {key: value for key, value in os.environ.items() if key in ("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")}
        argv = [sys.executable, "-m", "volgate.forker", str(theirs.fileno())]
        with theirs:
            self._helper = subprocess.Popen(  # noqa: S603 - our own interpreter
                argv,
                pass_fds=[theirs.fileno()],
                env={**CLEAN_ENVIRONMENT, **keep},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        if self._until:
            ours.send(msgspec.msgpack.encode(Lease(self._until)))

    def _drop(self) -> None:
        control, helper, self._control, self._helper = self._control, self._helper, None, None
        if control:
            control.close()
        if helper:
            try:
                helper.wait(_GRACE)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()


class _Pipe:
    """One end of a pipe that closes with its block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _pipe(stack: contextlib.ExitStack) -> tuple[int, _Pipe]:
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise Busy("no descriptors left to start a command", reason="TOO_MANY_FILES") from error
    stack.callback(os.close, reader)
    return reader, _Pipe(writer)


def _memory(data: bytes, stack: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC) if data else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    if data:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class _Watch:
    """Collects the output of one child until its end, its deadline or its cancellation."""

    def __init__(self, child: Child, out: int, err: int, on_line: Callable[[str], None] | None) -> None:
        self._child = child
        self._kept: dict[int, bytearray] = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        self._on_line = on_line
        self._line = bytearray()
        self._selector = selectors.DefaultSelector()
        for source in (out, err, child.fileno()):
            self._selector.register(source, selectors.EVENT_READ)

    def until(self, deadline: float, cancelled: Callable[[], bool] | None) -> Completed:
        with self._selector:
            try:
                timed_out = not self._pump(deadline, cancelled)
            except BaseException:  # whoever is told that it ended finds it gone: it writes nothing afterwards
                self._child.kill()
                with contextlib.suppress(TimeoutError, VolgateError):
                    self._child.wait(_GRACE)
                raise
            if timed_out:
                self._child.kill()
                self._pump(time.monotonic() + _GRACE, None)
        code = self._child.returncode
        return Completed(_KILLED if code is None else code, bytes(self._kept[self._out]), bytes(self._kept[self._err]), timed_out)

    def _pump(self, deadline: float, cancelled: Callable[[], bool] | None) -> bool:
        while self._selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if cancelled and cancelled():
                raise Cancelled("the command was cancelled")
            for key, _ in self._selector.select(min(left, _TICK) if cancelled else left):
                self._take(key.fd)
        return True

    def _take(self, source: int) -> None:
        if source == self._child.fileno():
            self._child.wait()
            self._selector.unregister(source)
            return
        data = os.read(source, 1 << 16)
        if not data:
            self._selector.unregister(source)
        self._kept[source] += data
        if len(self._kept[source]) > _MOST_OUTPUT:
            raise Unreachable(f"the command wrote more than {_MOST_OUTPUT} bytes and was killed", reason="OUTPUT_TOO_LARGE")
        if source == self._out and self._on_line:
            self._lines(data, self._on_line)

    def _lines(self, data: bytes, on_line: Callable[[str], None]) -> None:
        self._line += data.replace(b"\r", b"\n")
        *whole, rest = self._line.split(b"\n")
        self._line = rest if data else bytearray()
        for line in whole if data else [*whole, rest]:
            if line.strip():
                on_line(line.decode(errors="replace"))
