"""The connections to one running libvirtd: one that hears its events, and one for each call under way.

Calls never share a connection: libvirtd reads no further request of a client with five unanswered ones, and a client of libvirt
before version 10 may forget to send a request while another thread waits for its answer. A hung domain would hold up all others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt
import structlog

from volgate.errors import Unreachable

__all__ = ["Session", "connect", "unreachable"]

_log = structlog.get_logger()
_KEEPALIVE = (5, 3)  # seconds between signs of life, how many may be missing: given up after 15 to 20 silent seconds
_IDLE_MOST = 8


def connect(uri: str) -> libvirt.virConnect:
    """Open a connection. Raises libvirt.libvirtError; hangs while libvirtd hangs."""
    connection = libvirt.open(uri)
    if "embed" not in uri and "test:" not in uri:
        connection.setKeepAlive(*_KEEPALIVE)
    return connection


def unreachable(uri: str, error: libvirt.libvirtError) -> Unreachable:
    """What to tell of a connection that cannot be made."""
    reason = "LIBVIRT_AUTH" if error.get_error_code() == libvirt.VIR_ERR_AUTH_FAILED else "LIBVIRT_LOST"
    return Unreachable(f"connect to libvirt at {uri}: {error.get_error_message()}; is libvirtd running?", reason=reason, retry_after=1.0)


class Session:
    """A connection for events and spare ones for calls; `users` counts the calls, closed after the last of them, never under one."""

    def __init__(self, uri: str, connection: libvirt.virConnect) -> None:
        """Take a fresh connection, for events."""
        self.users = 0
        self._uri = uri
        self._connection = connection
        self._lock = threading.Lock()
        self._idle: list[libvirt.virConnect] = []

    @property
    def alive(self) -> bool:
        """Whether libvirtd is there, by the state of a socket: nothing is sent."""
        return _alive(self._connection)

    @contextmanager
    def lent(self) -> Iterator[libvirt.virConnect]:
        """Lend a connection to one call. Raises Unreachable."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None or not _alive(connection):
            try:
                connection = connect(self._uri)
            except libvirt.libvirtError as error:
                raise unreachable(self._uri, error) from error
        try:
            yield connection
        finally:
            with self._lock:
                spare = len(self._idle) < _IDLE_MOST and _alive(connection)
                if spare:
                    self._idle.append(connection)
            if not spare:
                _close(connection)

    def close(self) -> None:
        """Close all connections; nobody uses them any more."""
        for connection in (self._connection, *self._idle):
            _close(connection)


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close(connection: libvirt.virConnect) -> None:
    try:
        connection.close()
    except libvirt.libvirtError as error:
        _log.info("closing libvirt's connection", error=str(error))
