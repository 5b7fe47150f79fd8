"""libvirt's events as plain values, handed on from a thread of ours so that libvirt's loop never waits for a listener."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libvirt
import structlog

__all__ = ["Event", "Events"]

_log = structlog.get_logger()
_STARTED = (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED)
_STOPPED = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED)


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `device-removed`, `domain-started`, `domain-stopped`, `domain-halted`, `io-error` or `reconnected`."""

    kind: str
    domain: str = ""
    alias: str = ""


class Events:
    """Registers with every new connection, wakes who waits for a domain, and tells the listeners."""

    def __init__(self) -> None:
        """Start the thread that tells."""
        self._listeners: list[Callable[[Event], None]] = []
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._counts: Counter[str] = Counter()
        threading.Thread(target=self._tell, name="libvirt-listeners", daemon=True).start()

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener`, from a thread of ours, with every event from now on."""
        self._listeners.append(listener)

    def register(self, connection: libvirt.virConnect) -> None:
        """Ask a new connection for its events; a driver without one of them is left as it is."""
        wanted: list[tuple[int, Any]] = [
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error),
        ]
        for identifier, callback in wanted:
            try:
                connection.domainEventRegisterAny(None, identifier, callback, None)
            except libvirt.libvirtError as error:
                if not connection.isAlive():
                    raise
                _log.info("libvirt has no such event", event=identifier, error=str(error))
        self._put(Event("reconnected"))

    def mark(self, domain: str) -> int:
        """How many events of a domain (uuid), and new connections, there were: what `wait` is to look beyond."""
        with self._news:
            return self._counts[domain] + self._counts[""]

    def wait(self, domain: str, mark: int, seconds: float) -> None:
        """Sleep until there is an event of the domain, or a new connection, after `mark`, at most so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._counts[domain] + self._counts[""] != mark, seconds)

    def close(self) -> None:
        """End the thread that tells."""
        self._queue.put(None)

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR:
            self._put(Event("domain-halted", domain.UUIDString()))
        elif event in _STARTED:
            self._put(Event("domain-started", domain.UUIDString()))
        elif event in _STOPPED:
            self._put(Event("domain-stopped", domain.UUIDString()))

    def _removed(self, _connection: Any, domain: Any, alias: str, _opaque: Any) -> None:
        self._put(Event("device-removed", domain.UUIDString(), alias))

    def _io_error(self, _connection: Any, domain: Any, _path: str, alias: str, _action: int, _reason: str, _opaque: Any) -> None:
        self._put(Event("io-error", domain.UUIDString(), alias))

    def _put(self, event: Event) -> None:
        with self._news:
            self._counts[event.domain] += 1
            self._news.notify_all()
        self._queue.put(event)

    def _tell(self) -> None:
        while (event := self._queue.get()) is not None:
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception:  # noqa: BLE001  # one listener's bug must not silence the others
                    _log.exception("listener failed", kind=event.kind)
