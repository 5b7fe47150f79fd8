"""The spawner: a small single-threaded process, older than gRPC's threads, that starts commands and workers for the gateway.

The gateway never forks. A request travels as one msgpack frame with the child's descriptors (SCM_RIGHTS) over a socket pair; the
child's output flows through pipes that the caller made, so the spawner moves no bytes. Each child has a `status` socket of its own
to the caller: `started` and `exited` come back on it, any byte sent to it kills the child's whole process group, and so does its
closing. Children die with the spawner (pdeathsig), the spawner dies with the gateway (end of file on the control socket).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

import msgspec

from volgate.errors import Busy, Cancelled, InDoubt, Unreachable, from_os_error

__all__ = ["Child", "Completed", "Limits", "Spawner"]

CLEAN_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_FRAME = 128 << 10
_MOST_DESCRIPTORS = 250
_MOST_OUTPUT = 32 << 20
_HIGH = 512  # received descriptors are moved above this number while 0, 1, 2, ... are laid out
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_TICK = 0.1
_GRACE = 5.0
_KILLED = -int(signal.SIGKILL)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one child; 0 means none. Bytes and seconds of processor time. `isolated`: no new privileges, no core dump."""

    memory: int = 0
    cpu: int = 0
    file_size: int = 0
    isolated: bool = True


class _Request(msgspec.Struct, frozen=True):
    argv: list[str]
    environment: dict[str, str]
    folder: str | None
    user: int | None
    limits: Limits | None


class _Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pid: int = 0
    code: int | None = None
    error: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended; a negative `returncode` is the signal that killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


class Child:
    """A started child, seen by the gateway."""

    def __init__(self, status: socket.socket, program: str) -> None:
        """Wait until the child runs. Raises NotFound (no such program), Denied, InDoubt (the spawner was lost)."""
        self._status = status
        self._program = program
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
        """Return the exit code. Raises TimeoutError, or InDoubt if the spawner died with the child."""
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
        frame = self._status.recv(4096)
        if not frame:
            self._lost()
        status = msgspec.msgpack.decode(frame, type=_Status)
        if status.error:
            failure = OSError(status.error, os.strerror(status.error), self._program)
            raise from_os_error(failure, f"start {self._program}")
        self.pid = status.pid or self.pid
        self.returncode = status.code

    def _lost(self) -> NoReturn:
        if self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        raise InDoubt(f"{self._program}: the spawner died and took the command with it; repeat the call", reason="SPAWNER_LOST")


class Spawner:
    """The gateway's end: starts the helper process, and a new one whenever it is gone."""

    def __init__(self) -> None:
        """Start the helper; do it before anything makes threads."""
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False
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
        request = _Request(list(argv), {**CLEAN_ENVIRONMENT, **(env or {})}, cwd, user, limits)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._send(msgspec.msgpack.encode(request), [theirs.fileno(), *descriptors])
        except BaseException:  # the socket must not leak, whatever happened
            ours.close()
            raise
        finally:
            theirs.close()
        return Child(ours, argv[0])

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
            source = _memory(stdin, stack)
            out, out_end = _pipe(stack)
            err, err_end = _pipe(stack)
            with out_end, err_end:
                ends = [source, out_end.fileno(), err_end.fileno(), *fds]
                child = self.spawn(argv, descriptors=ends, cwd=cwd, env=env, user=user, limits=limits)
            stack.callback(child.close)
            return _Watch(child, out, err, on_line).until(time.monotonic() + timeout, cancelled)

    def _send(self, frame: bytes, descriptors: list[int]) -> None:
        if len(frame) > _FRAME or len(descriptors) > _MOST_DESCRIPTORS:
            raise ValueError(f"a command of {len(frame)} bytes with {len(descriptors)} descriptors is too large")
        with self._lock:
            try:
                socket.send_fds(self._live(), [frame], descriptors)
            except (BrokenPipeError, ConnectionResetError):
                self._drop()
                socket.send_fds(self._live(), [frame], descriptors)

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
        argv = [sys.executable, "-c", "from volgate.spawner import serve; serve()", str(theirs.fileno())]
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

    def __enter__(self) -> _Pipe:
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
            timed_out = not self._pump(deadline, cancelled)
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
                self._child.kill()
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
            self._child.kill()
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


# The helper's side: one thread, one loop; nothing below runs in the gateway.


class _Helper:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._accept)
        self._running: dict[int, tuple[socket.socket, int]] = {}
        self._ended = False

    def loop(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                key.data()
        for pid in self._running:
            _kill_group(pid)

    def _accept(self) -> None:
        frame, descriptors, _, _ = socket.recv_fds(self._control, _FRAME, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not frame:
            self._ended = True
            return
        request = msgspec.msgpack.decode(frame, type=_Request)
        status = socket.socket(fileno=descriptors[0])
        try:
            pid = os.fork()
            if pid == 0:
                _become(request, descriptors[1:], status)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            self._watch(pid, status)
        except OSError as error:
            _tell(status, _Status(error=error.errno or 1))
            status.close()
        finally:
            for descriptor in descriptors[1:]:
                os.close(descriptor)

    def _watch(self, pid: int, status: socket.socket) -> None:
        handle = os.pidfd_open(pid)
        self._running[pid] = (status, handle)
        self._selector.register(handle, selectors.EVENT_READ, lambda: self._reap(pid))
        self._selector.register(status, selectors.EVENT_READ, lambda: self._kill(pid))
        _tell(status, _Status(pid=pid))

    def _kill(self, pid: int) -> None:
        if pid not in self._running:
            return  # an earlier event of this round was its end
        status, _ = self._running[pid]
        _kill_group(pid)
        with contextlib.suppress(OSError):
            if status.recv(64):
                return
        self._selector.unregister(status)

    def _reap(self, pid: int) -> None:
        status, handle = self._running.pop(pid)
        _kill_group(pid)  # what it left in its group goes with it
        _, code = os.waitpid(pid, 0)
        _tell(status, _Status(pid=pid, code=os.waitstatus_to_exitcode(code)))
        for source in (status, handle):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(source)
        status.close()
        os.close(handle)


def _tell(status: socket.socket, frame: _Status) -> None:
    with contextlib.suppress(OSError):
        status.send(msgspec.msgpack.encode(frame), socket.MSG_DONTWAIT)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _become(request: _Request, descriptors: list[int], status: socket.socket) -> NoReturn:
    try:
        os.setpgid(0, 0)
        if request.folder is not None:
            os.chdir(request.folder)
        _lay_out(descriptors, status)
        _restrict(request)
        os.execvpe(request.argv[0], request.argv, request.environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        _tell(status, _Status(error=error.errno or 1))
    finally:
        os._exit(127)


def _lay_out(descriptors: list[int], status: socket.socket) -> None:
    import fcntl

    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in (*descriptors, status.fileno())]
    for number, descriptor in enumerate(high[:-1]):
        os.dup2(descriptor, number, inheritable=True)
    os.closerange(len(descriptors), _HIGH)
    status.detach()
    status.__init__(fileno=high[-1])  # type: ignore[misc]  # the child's only handle to the caller moved up


def _restrict(request: _Request) -> None:
    libc = ctypes.CDLL(None)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    limits = request.limits or Limits(isolated=False)
    if request.user is not None:
        os.setgroups([])
        os.setresgid(request.user, request.user, request.user)
        os.setresuid(request.user, request.user, request.user)
    if limits.isolated:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, limits.cpu), (resource.RLIMIT_FSIZE, limits.file_size)):
        if most:
            resource.setrlimit(kind, (most, most))
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os._exit(127)


def serve() -> None:
    """Be the helper: the control socket's number is the last argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[-1]))
    control.set_inheritable(False)
    _Helper(control).loop()


if __name__ == "__main__":
    serve()
