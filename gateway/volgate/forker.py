"""The helper process of the spawner: one thread, one loop, started before the gateway has threads; it forks and reaps.

It also ends a gateway whose lease has run out. See :mod:`volgate.spawner` for the protocol. Nothing here runs in the gateway.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import selectors
import signal
import socket
import sys
import time
from typing import NoReturn

import msgspec

__all__ = ["FRAME", "MOST_DESCRIPTORS", "Lease", "Limits", "Request", "Status", "clock", "serve"]

FRAME = 128 << 10
MOST_DESCRIPTORS = 250
_HIGH = 512  # received descriptors are moved above this number while 0, 1, 2, ... are laid out
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_TICK = 0.25  # seconds between two looks at a lease: a machine that slept must not sleep on
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one child; 0 means none. Bytes and seconds of processor time. `isolated`: no capabilities, no core dump."""

    memory: int = 0
    cpu: int = 0
    file_size: int = 0
    isolated: bool = True


class Lease(msgspec.Struct, frozen=True, tag="lease"):
    """Until when the gateway may work, by `clock`; 0: it is at nothing that somebody else could take over."""

    until: float


class Request(msgspec.Struct, frozen=True, tag="start"):
    """What to start; the first descriptor beside it is the status socket, the others become 0, 1, 2, ... of the child."""

    argv: list[str]
    environment: dict[str, str]
    folder: str | None
    user: int | None
    limits: Limits | None


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the forker says of a child: its pid, then its exit code, or the errno that kept it from starting."""

    pid: int = 0
    code: int | None = None
    error: int = 0


def clock() -> float:
    """Seconds since the boot, those included that the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Helper:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._until = 0.0
        self._gateway = os.pidfd_open(os.getppid())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._accept)
        self._running: dict[int, tuple[socket.socket, int]] = {}
        self._ended = False

    def loop(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(_TICK if self._until else None):
                key.data()
            if self._until and clock() >= self._until:
                self._expire()
        for pid in self._running:
            _kill_group(pid)

    def _expire(self) -> None:
        """Others may take over soon: nothing of the gateway works any more by then, however stopped or cut off it is."""
        for pid in self._running:
            _kill_group(pid)
        self._until, self._ended = 0.0, True
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._gateway, signal.SIGKILL)

    def _accept(self) -> None:
        frame, descriptors, _, _ = socket.recv_fds(self._control, FRAME, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not frame:
            self._ended = True
            return
        request = msgspec.msgpack.decode(frame, type=Request | Lease)
        if isinstance(request, Lease):
            self._until = request.until
            return
        status = socket.socket(fileno=descriptors[0])
        try:
            pid = os.fork()
            if pid == 0:
                _become(request, descriptors[1:], status)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            self._watch(pid, status)
        except OSError as error:
            _tell(status, Status(error=error.errno or 1))
            status.close()
        finally:
            for descriptor in descriptors[1:]:
                os.close(descriptor)

    def _watch(self, pid: int, status: socket.socket) -> None:
        handle = os.pidfd_open(pid)
        self._running[pid] = (status, handle)
        self._selector.register(handle, selectors.EVENT_READ, lambda: self._reap(pid))
        self._selector.register(status, selectors.EVENT_READ, lambda: self._kill(pid))
        _tell(status, Status(pid=pid))

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
        _tell(status, Status(pid=pid, code=os.waitstatus_to_exitcode(code)))
        for source in (status, handle):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(source)
        status.close()
        os.close(handle)


def _tell(status: socket.socket, frame: Status) -> None:
    with contextlib.suppress(OSError):
        status.send(msgspec.msgpack.encode(frame), socket.MSG_DONTWAIT)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _become(request: Request, descriptors: list[int], status: socket.socket) -> NoReturn:
    try:
        os.setpgid(0, 0)
        if request.folder is not None:
            os.chdir(request.folder)
        _lay_out(descriptors, status)
        _restrict(request)
        os.execvpe(request.argv[0], request.argv, request.environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        _tell(status, Status(error=error.errno or 1))
    finally:
        os._exit(127)


def _lay_out(descriptors: list[int], status: socket.socket) -> None:
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in (*descriptors, status.fileno())]
    for number, descriptor in enumerate(high[:-1]):
        os.dup2(descriptor, number, inheritable=True)
    os.closerange(len(descriptors), _HIGH)
    status.detach()
    status.__init__(fileno=high[-1])  # type: ignore[misc]  # the child's only handle to the caller moved up


def _restrict(request: Request) -> None:
    libc = ctypes.CDLL(None)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    limits = request.limits or Limits(isolated=False)
    if request.user is not None:
        os.setgroups([])
        os.setresgid(request.user, request.user, request.user)
        os.setresuid(request.user, request.user, request.user)
    if limits.isolated:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)  # those of a service's user outlive exec
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.cpu:
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))  # SIGXCPU a second before SIGKILL: the cause is told
    for kind, most in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_FSIZE, limits.file_size)):
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
