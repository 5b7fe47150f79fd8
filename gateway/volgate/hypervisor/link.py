"""The way to libvirt, kept open by a thread of its own: however libvirtd hangs, a caller waits for its own deadline only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import libvirt
import structlog

from volgate.errors import Unreachable
from volgate.hypervisor.session import Session, connect, unreachable

__all__ = ["Link"]

_log = structlog.get_logger()
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None
_LOOK_SECONDS = 0.5  # how soon a broken connection is noticed when nobody calls
_PAUSES = (0.05, 2.0)  # between attempts: the first, the longest
_CLOSE_SECONDS = 2.0


class Link:
    """One libvirt: connected at first use, and again in the background whenever it breaks."""

    def __init__(self, uri: str, on_connect: Callable[[libvirt.virConnect], None]) -> None:
        """`on_connect` is called with the connection of each new session before anybody else has it, to register for events."""
        self.uri = uri
        self._on_connect = on_connect
        self._changed = threading.Condition()
        self._keeper: threading.Thread | None = None
        self._session: Session | None = None
        self._retired: list[Session] = []
        self._failures = 0
        self._problem = Unreachable(f"libvirt at {uri} was not tried yet", reason="LIBVIRT_LOST")
        self._urgent = False
        self._closed = False

    def start(self) -> None:
        """Begin to connect in the background."""
        with self._changed:
            if self._keeper is None and not self._closed:
                self._keeper = threading.Thread(target=self._keep, name="libvirt-link", daemon=True)
                self._keeper.start()

    def acquire(self, deadline: float) -> Session:
        """Return the live session, waiting for an attempt to make one until `deadline` (monotonic seconds); `release` it.

        Raises Unreachable: the attempt failed, or takes longer.
        """
        self.start()
        with self._changed:
            failures = self._failures
            while not self._closed:
                if self._session is not None and self._session.alive:
                    self._session.users += 1
                    return self._session
                if self._failures != failures:
                    raise Unreachable(self._problem.message, reason=self._problem.reason, retry_after=1.0)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Unreachable(
                        f"libvirt at {self.uri} does not answer; is libvirtd hanging?", reason="LIBVIRT_LOST", retry_after=1.0
                    )
                self._urgent = True
                self._changed.notify_all()
                self._changed.wait(left)
        raise Unreachable("the connection to libvirt is closed: the gateway stops", reason="STOPPING")

    def release(self, session: Session) -> None:
        """Give a session back."""
        with self._changed:
            session.users -= 1
            if not session.users:
                self._changed.notify_all()

    def close(self) -> None:
        """Let go of libvirt; calls end first, or are left to themselves after two seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            keeper = self._keeper
        if keeper is not None:
            keeper.join(_CLOSE_SECONDS)

    def _keep(self) -> None:
        """Connect, watch, connect again: the only thread that opens and closes, so one hung attempt is all there ever is."""
        _start_loop()
        pause = _PAUSES[0]
        while self._tidy():
            if self._session is not None or self._closed:
                with self._changed:
                    self._changed.wait_for(self._to_do, _LOOK_SECONDS)
                continue
            try:
                fresh = self._open()
            except libvirt.libvirtError as error:
                self._fail(error, pause)
                pause = min(2 * pause, _PAUSES[1])
                continue
            pause = _PAUSES[0]
            with self._changed:
                self._session = fresh
                self._changed.notify_all()
            _log.info("connected to libvirt", uri=self.uri)

    def _tidy(self) -> bool:
        """Retire a broken connection, close those that nobody uses; False when all is closed."""
        with self._changed:
            if self._session is not None and (self._closed or not self._session.alive):
                self._retired.append(self._session)
                self._session = None
            unused = [session for session in self._retired if not session.users]
            self._retired = [session for session in self._retired if session.users]
            going_on = not self._closed or bool(self._retired)
        for session in unused:
            session.close()
        return going_on

    def _to_do(self) -> bool:
        """Whether there is something to retire or to close."""
        if any(not session.users for session in self._retired):
            return True
        return self._session is not None and (self._closed or not self._session.alive)

    def _open(self) -> Session:
        connection = connect(self.uri)
        self._on_connect(connection)
        return Session(self.uri, connection)

    def _fail(self, error: libvirt.libvirtError, pause: float) -> None:
        with self._changed:
            self._problem = unreachable(self.uri, error)
            self._failures += 1
            self._urgent = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._urgent or self._closed, pause)


def _start_loop() -> None:
    """Run libvirt's event loop in one thread for the whole process; it must exist before the first connection."""
    global _loop  # noqa: PLW0603  # libvirt's default event loop is one per process
    with _loop_lock:
        if _loop is None:
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _loop = threading.Thread(target=_run_loop, name="libvirt-events", daemon=True)
            _loop.start()


def _run_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            _log.warning("libvirt's event loop", error=str(error))
            time.sleep(0.1)  # never spin on a loop that keeps failing
