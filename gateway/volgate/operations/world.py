"""What use cases work on: the store, the pools, the hosts, the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from volgate.errors import InvalidRequest, NotFound
from volgate.hosts.interface import Host
from volgate.operations.fleet import Fleet
from volgate.operations.lease import Lease
from volgate.pools import Pools
from volgate.registry import Registry
from volgate.settings import Settings
from volgate.store.database import Database

__all__ = ["World"]

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class World:
    """Everything a use case may touch."""

    settings: Settings
    registry: Registry
    database: Database
    pools: Pools
    hosts: Fleet
    lease: Lease = field(default_factory=Lease)
    """Until when work may go on; without end unless other controllers share the database."""
    attachments_known: set[str] = field(default_factory=set)
    """Pools of whose volumes every disk that a host has is on record: not yet after the database was lost. One that goes is taken out."""

    def host(self, name: str) -> tuple[str, Host]:
        """The host of a name, or the only one. Raises NotFound, InvalidRequest (none named although there are several)."""
        if not name:
            if len(self.hosts) != 1:
                raise InvalidRequest(f"host: name one of {', '.join(sorted(self.hosts)[:_SHOWN]) or 'none'}", field="host")
            return next(iter(self.hosts.items()))
        found = self.hosts.get(name)  # once: hosts come and go
        if found is None:
            raise NotFound(f"host {name!r} is not known; there are: {', '.join(sorted(self.hosts)[:_SHOWN]) or 'none'}")
        return name, found
