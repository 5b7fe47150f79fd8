"""The array as a process: `python -m volgate_plugins.memory.array --socket PATH`. What it knows lives as long as it does."""

# descriptors, locks and process ids are the subject here; paths stay plain strings
# ruff: noqa: PTH100, PTH101, PTH108, PTH112, PTH116, PTH119, PTH120, PTH208

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence

from volgate.backend.files import remove_tree
from volgate_plugins.memory.media import Media
from volgate_plugins.memory.server import Server
from volgate_plugins.memory.table import Limits

__all__ = ["TAKEN", "main", "shared_memory", "sweep"]

TAKEN = 3
"""The exit code if another array listens at the socket."""

_BACKLOG = 128
_PREFIX = "volgate-memory-"


def shared_memory() -> str:
    """Where files lie in memory and other programs can open them."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()  # noqa: S108  # only folders of our own below it


def main(arguments: Sequence[str] | None = None) -> int:
    """Be an array until a signal, `control stop`, or the end of the process that it is for; return the exit code."""
    given = _parse(arguments)
    os.umask(0o022)
    if given.detach:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # it outlives its starter, whose files it does not hold
    media, parent = None, False
    try:
        lock = _lock(f"{given.socket}.lock")
        if lock is None:
            sys.stderr.write(f"another array listens at {given.socket}\n")
            return TAKEN
        owner = os.pidfd_open(given.until_gone) if given.until_gone else -1
        media = Media(given.directory or _own_root(lock))
        listener = _listen(given.socket)
        parent = given.detach and _become_daemon(f"{given.socket}.log")
        if not parent:
            _Program(given, media, listener, owner).run()
    except OSError as error:
        sys.stderr.write(f"no array at {given.socket}: {error}\n")
        return 1
    finally:
        if media is not None and not parent:
            _tidy(given.socket, media, own=not given.directory)
    return 0


def sweep(folder: str) -> None:
    """Free what killed arrays left in memory whose sockets were in this folder."""
    for name in os.listdir(folder):
        if name.endswith(".lock") and (lock := _lock(f"{folder}/{name}")) is not None:
            _remove_own_root(lock)
            _remove_files(f"{folder}/{name}".removesuffix(".lock"))
            os.close(lock)


class _Program:
    """The loop that accepts connections and waits for the end."""

    def __init__(self, given: argparse.Namespace, media: Media, listener: socket.socket, owner: int) -> None:
        """Take what was made before the fork."""
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        if owner >= 0:
            self._selector.register(owner, selectors.EVENT_READ)
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake)
        limits = Limits(given.capacity, given.oversubscription, given.independent_clones)
        self._server = Server(given.socket, media, limits, owner=given.until_gone, stop=lambda: _write(wake))

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._listener:
                    return
                end, _ = self._listener.accept()
                threading.Thread(target=self._server.talk, args=(end,), daemon=True).start()


def _write(descriptor: int) -> None:
    os.write(descriptor, b"s")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m volgate_plugins.memory.array", description=__doc__)
    parser.add_argument("--socket", required=True, help="where it listens; only its own user may connect")
    parser.add_argument("--directory", default="", help="where the bytes are; a new one in memory by default")
    parser.add_argument("--capacity", type=int, default=Limits().capacity, help="bytes")
    parser.add_argument("--oversubscription", type=float, default=Limits().oversubscription, help="times the capacity; 0: any")
    parser.add_argument("--independent-clones", action="store_true", help="children survive their parents")
    parser.add_argument("--until-gone", type=int, default=0, metavar="PID", help="end with this process")
    parser.add_argument("--detach", action="store_true", help="go on in the background once it listens")
    given = parser.parse_args(arguments)
    if given.capacity <= 0 or given.oversubscription < 0:
        parser.error("capacity must be more than 0, oversubscription not less")
    given.socket = os.path.abspath(given.socket)
    return given


def _lock(path: str) -> int | None:
    """Hold the lock file until the end of the process; None if another has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # the one before us removed the file as it ended


def _own_root(lock: int) -> str:
    """Make a directory in memory and note it in the lock file; the one noted there is of an array that was killed."""
    _remove_own_root(lock)
    root = tempfile.mkdtemp(prefix=_PREFIX, dir=shared_memory())
    os.ftruncate(lock, 0)
    os.pwrite(lock, root.encode(), 0)
    os.chmod(root, 0o711)  # noqa: S103 - QEMU's user must pass through
    return root


def _remove_own_root(lock: int) -> None:
    old = os.pread(lock, 4096, 0).decode(errors="replace")
    if os.path.dirname(old) == shared_memory() and os.path.basename(old).startswith(_PREFIX):
        remove_tree(old)


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _become_daemon(log: str) -> bool:
    """Go on in a child in a session of its own; return True in the parent, once the child is there."""
    ready, there = os.pipe()
    if os.fork():
        os.close(there)
        os.read(ready, 1)  # its end comes too
        return True
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for target, source in ((0, nothing), (1, nothing), (2, told)):
        os.dup2(source, target)
    for descriptor in (nothing, told, ready, there):
        os.close(descriptor)
    return False


def _tidy(path: str, media: Media, *, own: bool) -> None:
    """Remove what belongs to this array alone, the lock last; the note of lost volumes stays."""
    media.erase()
    if own:
        remove_tree(media.root)
    _remove_files(path)


def _remove_files(path: str) -> None:
    """Remove what lies beside a socket, a log with something in it excepted; its lock is held and goes last."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        if not os.stat(f"{path}.log").st_size:
            os.unlink(f"{path}.log")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.lock")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # threads that still serve end with the process
