"""A command, for plugins: through the one spawner of this process, which the server installs early and others start when needed."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from volgate.errors import DeadlineExceeded, InUse, OutOfSpace, Precondition, Unreachable, VolgateError
from volgate.spawner import Child, Completed, Limits, Spawner

__all__ = [
    "Completed",
    "Limits",
    "always_occupy",
    "gateway_pid",
    "install",
    "occupying",
    "refuse_killed",
    "run",
    "run_checked",
    "spawner",
    "start",
]

_lock = threading.Lock()
_spawner: Spawner | None = None
_occupying: ContextVar[int | None] = ContextVar("occupying", default=None)
_always_occupying: list[int] = []
_BY_TEXT: tuple[tuple[str, type[VolgateError], str], ...] = (
    ("No space left on device", OutOfSpace, "OUT_OF_SPACE"),
    ("Disk quota exceeded", OutOfSpace, "QUOTA_EXCEEDED"),
    (" lock", InUse, "IMAGE_LOCKED"),
)
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT}  # a crash and a limit have signals of their own


def install(spawner: Spawner | None) -> None:
    """Make this spawner the process-wide one (the server does it before it makes threads); None forgets it."""
    global _spawner  # noqa: PLW0603 - one spawner per process is the point
    with _lock:
        _spawner = spawner


@contextlib.contextmanager
def occupying(descriptor: int | None) -> Iterator[None]:
    """Within this block every command holds a pool's lock (:mod:`volgate.occupancy`); the gateway does it, plugins need not."""
    token = _occupying.set(descriptor)
    try:
        yield
    finally:
        _occupying.reset(token)


def always_occupy(descriptor: int) -> None:
    """As `occupying`, for all of this process: a worker serves one pool."""
    _always_occupying[:] = [descriptor]


def _held() -> tuple[int, ...]:
    found = _occupying.get()
    return tuple(_always_occupying) if found is None else (found,)


def run(
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
    """Run a command to its end; see :meth:`volgate.spawner.Spawner.run`."""
    return _started().run(
        argv,
        timeout=timeout,
        stdin=stdin,
        cwd=cwd,
        env=env,
        fds=(*fds, *_held()),
        user=user,
        limits=limits,
        on_line=on_line,
        cancelled=cancelled,
    )


def run_checked(
    argv: Sequence[str],
    *,
    doing: str,
    timeout: float,
    cwd: str | None = None,
    user: int | None = None,
    limits: Limits | None = None,
    on_line: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> bytes:
    """Run a command that must succeed and return its output.

    Raises OutOfSpace, InUse (image lock), DeadlineExceeded, Unreachable (COMMAND_KILLED), Precondition (COMMAND_FAILED).
    """
    done = run(argv, timeout=timeout, cwd=cwd, user=user, limits=limits, on_line=on_line, cancelled=cancelled)
    if done.timed_out:
        raise DeadlineExceeded(f"{doing}: {argv[0]} did not end within {timeout:.0f} s and was killed", reason="COMMAND_TIMEOUT")
    refuse_killed(done, f"{doing}: {argv[0]}")
    if done.returncode:
        raise _failure(done, f"{doing}: {argv[0]} failed with {done.returncode}")
    return done.stdout


def start(
    argv: Sequence[str],
    *,
    descriptors: Sequence[int],
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    limits: Limits | None = None,
) -> Child:
    """Start a command that runs beside the caller, who closes it in the end; see :meth:`volgate.spawner.Spawner.spawn`."""
    return _started().spawn(argv, descriptors=(*descriptors, *_held()), cwd=cwd, env=env, user=user, limits=limits)


def refuse_killed(done: Completed, what: str) -> None:
    """Raise Unreachable (COMMAND_KILLED) if a command was killed by somebody else: that tells nothing of what it worked on."""
    if done.returncode in _FROM_OUTSIDE:
        name = signal.Signals(-done.returncode).name
        raise Unreachable(
            f"{what} was killed from outside ({name}): out of memory, or an operator; repeat the call", reason="COMMAND_KILLED"
        )


def _failure(done: Completed, what: str) -> VolgateError:
    text = done.stderr.decode(errors="replace").strip()
    for piece, kind, reason in _BY_TEXT:
        if piece in text:
            return kind(f"{what}: {text[-400:]}", reason=reason)
    return Precondition(f"{what}: {text[-400:]}", reason="COMMAND_FAILED")


def gateway_pid() -> int:
    """The gateway's process id, in it and in its workers: a program that outlives the worker that started it ends with that process.

    Such a program goes into a session of its own, and watches the gateway by a pidfd.
    """
    pid = os.getpid()
    while _is_forker(parent := _parent(pid)):
        pid = _parent(parent)
    return pid


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])


def _is_forker(pid: int) -> bool:
    try:
        return b"volgate.forker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def spawner() -> Spawner:
    """The process-wide spawner, for what runs longer than a call."""
    return _started()


def _started() -> Spawner:
    global _spawner  # noqa: PLW0603 - as above
    with _lock:
        if _spawner is None:
            _spawner = Spawner()
            atexit.register(_spawner.close)
        return _spawner
