"""What of the gateway a caller may see and touch: everything, or some pools and hosts and nothing but operations of its own."""

from __future__ import annotations

from dataclasses import dataclass

from volgate.errors import Denied

__all__ = ["EVERYTHING", "Scope"]


@dataclass(frozen=True, slots=True)
class Scope:
    """`pools` and `hosts` are names, None: all. `owner`: only operations of this principal, "": all."""

    pools: frozenset[str] | None = None
    hosts: frozenset[str] | None = None
    owner: str = ""

    def has_pool(self, name: str) -> bool:
        """Whether a pool is in it."""
        return self.pools is None or name in self.pools

    def has_host(self, name: str) -> bool:
        """Whether a host is in it."""
        return self.hosts is None or name in self.hosts

    def has_operation(self, principal: str) -> bool:
        """Whether the operations of a principal are in it."""
        return self.owner in ("", principal)

    def require_host(self, name: str) -> None:
        """Raise Denied (OUT_OF_SCOPE) if a host is not in it."""
        if not self.has_host(name):
            raise Denied(f"hosts/{name} is not among the hosts of your certificate", reason="OUT_OF_SCOPE")


EVERYTHING = Scope()
