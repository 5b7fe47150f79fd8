"""Pools on a simulated array: every facet, latency and faults on demand, for tests, demos and developers without storage."""

from __future__ import annotations

from volgate.backend import BackendType, hookimpl
from volgate_plugins.memory.backend import Memory
from volgate_plugins.memory.faults import Fault
from volgate_plugins.memory.settings import MemorySettings

__all__ = ["Fault", "Memory", "MemorySettings", "volgate_backends"]


@hookimpl
def volgate_backends() -> list[BackendType]:
    """Offer the kind `memory`."""
    return [
        BackendType(
            kind="memory",
            settings=MemorySettings,
            open=Memory.open,
            summary="A simulated array that forgets everything when it ends: for tests and demos",
            width=16,
        )
    ]
