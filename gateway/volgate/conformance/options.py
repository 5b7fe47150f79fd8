"""How a run of the suite is bounded: how deep it looks, how much it tries, from which seed it draws."""

from __future__ import annotations

from dataclasses import dataclass, field

from volgate.conformance.cases import Level
from volgate_client.target import Files

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """`points`: system calls of each mutation that are tried, 0: all. `examples`: sequences of verbs. `report`: a file for JSON, or ""."""

    level: Level = Level.FAULTS
    points: int = 2
    examples: int = 5
    seed: int = 0
    report: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A pool that a gateway serves: asked once, before its tests are chosen."""

    address: str
    pool: str
    kind: str
    capabilities: tuple[str, ...]
    files: Files = field(default_factory=Files)

    @classmethod
    def ask(cls, address: str, pool: str, files: Files) -> Target:
        """Ask the gateway for the pool; `files` are the client's `certificate`, `key` and `authority`. Raises its VolgateError."""
        from volgate_client import Client

        name = pool if pool.startswith("pools/") else f"pools/{pool}"
        with Client(address, **files) as client:
            told = client.get_pool(name)
        return cls(address, name, told.kind, tuple(told.capabilities), files)

    @classmethod
    def of_this_run(cls) -> Target:
        """The one that this run of pytest is about. Raises LookupError."""
        if not _targets:
            raise LookupError("name the gateway and the pool: --conformance-server ADDR --conformance-pool POOL")
        return _targets[-1]

    def choose(self) -> None:
        """Make it the one that this run of pytest is about."""
        _targets.append(self)


_targets: list[Target] = []
