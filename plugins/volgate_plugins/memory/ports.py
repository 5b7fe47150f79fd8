"""The two simulated ways to the array: they are seen, can be failed and come back; no byte travels on them."""

from __future__ import annotations

import threading

import msgspec

from volgate.backend import PoolCheck
from volgate.errors import InvalidRequest, Unreachable
from volgate.model import Health, Path, PathState

__all__ = ["NAMES", "Port", "Ports"]

NAMES = ("a", "b")


class Port(msgspec.Struct, frozen=True):
    """One port of the array: why it failed ("": it has not), and how often it did."""

    name: str
    problem: str = ""
    errors: int = 0


class Ports:
    """The ports. Every method is thread-safe."""

    def __init__(self) -> None:
        """All well."""
        self._lock = threading.Lock()
        self._ports = {name: Port(name) for name in NAMES}

    def listed(self) -> list[Port]:
        """The ports as they are now."""
        with self._lock:
            return list(self._ports.values())

    def fail(self, name: str, problem: str) -> None:
        """Let a port fail. Raises InvalidRequest."""
        self._set(name, problem or "failed as it was told to")

    def restore(self, name: str) -> None:
        """Let a port come back. Raises InvalidRequest."""
        self._set(name, "")

    def require_one(self) -> None:
        """Raise Unreachable if every port has failed."""
        ports = self.listed()
        if all(port.problem for port in ports):
            told = "; ".join(f"{port.name}: {port.problem}" for port in ports)
            raise Unreachable(f"every port of the array has failed ({told}); restore one")

    def paths(self, device: str) -> list[Path]:
        """The ways to a device, the better one first."""
        found = []
        for group, port in enumerate(self.listed()):
            well = PathState.ACTIVE if group else PathState.ACTIVE_OPTIMIZED
            state = PathState.FAILED if port.problem else well
            target = f"port {port.name}"
            found.append(Path("simulated", "host", target, device, state, group, port.problem, port.errors, {"port": port.name}))
        return found

    def check(self) -> PoolCheck:
        """Down without a port, degraded with one."""
        failed = [port for port in self.listed() if port.problem]
        told = "; ".join(f"port {port.name} of the array: {port.problem}" for port in failed)
        if len(failed) == len(NAMES):
            return PoolCheck(Health.DOWN, f"{told}; restore one")
        return PoolCheck(Health.DEGRADED, told) if failed else PoolCheck(Health.OK)

    def _set(self, name: str, problem: str) -> None:
        if name not in self._ports:
            raise InvalidRequest(f"the array has no port {name!r}; there are: {', '.join(NAMES)}", field="name")
        with self._lock:
            old = self._ports[name]
            self._ports[name] = Port(name, problem, old.errors + bool(problem and not old.problem))
