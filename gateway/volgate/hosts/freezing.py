"""Guests that hold their file systems still while a storage cuts a snapshot; whatever happens, each goes on after ten seconds."""

from __future__ import annotations

import threading
import time
from functools import partial

import structlog

from volgate.errors import VolgateError
from volgate.hypervisor import block_jobs, domains
from volgate.hypervisor.calls import Calls, Libvirt

__all__ = ["Freezes"]

_log = structlog.get_logger()
_SECONDS = 10.0
_THAW_SECONDS = 5.0


class Freezes:
    """The frozen guests of one host, by uuid. Any thread."""

    def __init__(self, calls: Calls) -> None:
        """None is frozen."""
        self._calls = calls
        self._lock = threading.Lock()
        self._timers: dict[str, threading.Timer] = {}

    def freeze(self, domain: str, deadline: float) -> None:
        """Freeze a guest. Raises Precondition (NO_AGENT), and as `Calls.change`; `deadline` in monotonic seconds."""
        self._calls.change(domain, "freeze", deadline, partial(self._freeze, domain))

    def thaw(self, domain: str, deadline: float) -> bool:
        """Let a guest go on; say whether it was frozen until now. Raises as `Calls.look`."""
        held = self._disarm(domain)
        self._calls.look(domain, "thaw", deadline, lambda connection: block_jobs.thaw(domains.lookup(connection, domain)))
        return held

    def rescue(self, domain: str) -> None:
        """Let a guest go on, by a connection that does not hang; never raises."""
        try:
            self.thaw(domain, time.monotonic() + _THAW_SECONDS)
        except VolgateError as error:
            _log.warning("the guest may still be frozen", domain=domain, error=error.message)

    def close(self) -> None:
        """Let every guest go on."""
        for domain in tuple(self._timers):
            self.rescue(domain)

    def _freeze(self, domain: str, connection: Libvirt) -> None:
        block_jobs.freeze(domains.lookup(connection, domain))
        timer = threading.Timer(_SECONDS, self.rescue, [domain])
        timer.daemon = True
        with self._lock:
            self._timers[domain] = timer
        timer.start()

    def _disarm(self, domain: str) -> bool:
        with self._lock:
            timer = self._timers.pop(domain, None)
        if timer is not None:
            timer.cancel()
        return timer is not None
