"""One connection to libvirt: its event loop, its reconnect, its errors in our words, a bounded lane for each domain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import libvirt
import structlog
from opentelemetry import trace

from volgate.errors import InDoubt, NotFound, OutOfSpace, Precondition, Unreachable, Unsupported, VolgateError
from volgate.lanes import Lane

__all__ = ["Link", "translated"]

P = ParamSpec("P")
T = TypeVar("T")
_log = structlog.get_logger()
_tracer = trace.get_tracer("volgate")
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None
_LOST = {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_SYSTEM_ERROR}
_LOST_TEXT = ("client socket is closed", "monitor", "End of file", "Broken pipe", "Connection reset", "keepalive", "connection closed")
_TABLE: dict[int, tuple[type[VolgateError], str]] = {
    libvirt.VIR_ERR_NO_DOMAIN: (NotFound, "DOMAIN_NOT_FOUND"),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (Unreachable, "DOMAIN_BUSY"),
    libvirt.VIR_ERR_RESOURCE_BUSY: (Unreachable, "DOMAIN_BUSY"),
    libvirt.VIR_ERR_OPERATION_INVALID: (Precondition, "DOMAIN_STATE"),
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_NO_SUPPORT: (Unsupported, "UNSUPPORTED"),
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: (Precondition, "NO_AGENT"),
    libvirt.VIR_ERR_AGENT_UNSYNCED: (Precondition, "NO_AGENT"),
    libvirt.VIR_ERR_AUTH_FAILED: (Unreachable, "LIBVIRT_AUTH"),
}


@contextmanager
def translated(doing: str, *, mutation: bool = False) -> Iterator[None]:
    """Turn libvirt's errors into ours; a connection lost during a mutation leaves its outcome in doubt."""
    try:
        yield
    except libvirt.libvirtError as error:
        code, text = error.get_error_code(), str(error.get_error_message() or error)
        lost = code in _LOST and (code != libvirt.VIR_ERR_SYSTEM_ERROR or "onnect" in text or "monitor" in text)
        if lost or (code == libvirt.VIR_ERR_INTERNAL_ERROR and any(mark in text for mark in _LOST_TEXT)):
            kind: type[VolgateError] = InDoubt if mutation else Unreachable
            raise kind(f"{doing}: libvirt went away ({text})", reason="LIBVIRT_LOST") from error
        if "No more available PCI slots" in text:
            raise OutOfSpace(f"{doing}: {text}; use bus virtio-scsi or add PCIe root ports", reason="NO_FREE_SLOT") from error
        if '"write" lock' in text or '"consistent read"' in text:
            raise Precondition(f"{doing}: another process has the image open: {text}", reason="IN_USE") from error
        found, reason = _TABLE.get(code, (Precondition, "LIBVIRT_REFUSED"))
        raise found(f"{doing}: {text}", reason=reason, metadata={"libvirt_code": str(code)}) from error


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
        libvirt.virEventRunDefaultImpl()


class Link:
    """A connection that is made when it is needed and made again when it broke."""

    def __init__(self, uri: str, on_connect: Callable[[libvirt.virConnect], None]) -> None:
        """`on_connect` is called with each new connection, to register for events."""
        self.uri = uri
        self._on_connect = on_connect
        self._lock = threading.Lock()
        self._connection: libvirt.virConnect | None = None
        self._lanes: dict[str, Lane] = {}
        self._general = Lane("libvirt", 8, 256)

    def connection(self) -> libvirt.virConnect:
        """The live connection. Raises Unreachable."""
        with self._lock:
            if self._connection is not None and _alive(self._connection):
                return self._connection
            _start_loop()
            with translated(f"connect to {self.uri}"):
                connection = libvirt.open(self.uri)
                if "embed" not in self.uri and "test:" not in self.uri:
                    connection.setKeepAlive(5, 3)
            self._connection = connection
        self._on_connect(connection)
        return connection

    def call(self, key: str, timeout: float, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking libvirt work in the lane of a domain (`key`, "" for none), under a span.

        Raises Busy, and Unreachable (DOMAIN_BUSY) when it does not end in time: a mutation is observed by its caller's next attempt.
        """
        with self._lock:
            lane = self._lanes.setdefault(key, Lane(f"domain-{key[:8]}", 2, 128)) if key else self._general
        with _tracer.start_as_current_span(f"libvirt {name}", attributes={"libvirt.domain": key}):
            future = lane.submit(function, *args, **kwargs)
            try:
                return future.result(timeout)
            except FutureTimeoutError:
                future.cancel()
                raise InDoubt(
                    f"{name}: libvirt did not answer within {timeout:g} s; the domain is busy or hangs", reason="DOMAIN_BUSY"
                ) from None

    def close(self) -> None:
        """Let go of the connection and the lanes."""
        with self._lock:
            for lane in (*self._lanes.values(), self._general):
                lane.close()
            connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except libvirt.libvirtError as error:
                _log.info("closing libvirt's connection", error=str(error))


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
