"""Who calls: a role, a name and perhaps a scope, as one URI of the client's certificate says them.

`volgate:ROLE:NAME`, and for an orchestrator what it may touch: `volgate:orchestrator:nova?pool=fast&pool=slow&host=node1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from volgate.errors import InvalidRequest, Unauthenticated
from volgate.names import check_identifier
from volgate.operations.scope import EVERYTHING, Scope

__all__ = ["CALLER", "LOCAL", "Principal", "Role", "of_uris"]

SCHEME = "volgate:"
_URI = re.compile(r"volgate:([a-z]+):([^?]+)(?:\?(.+))?")


class Role(StrEnum):
    """What a caller may be; what each may do stands in :mod:`volgate.edge.policy`."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    ORCHESTRATOR = "orchestrator"
    HOST = "host"
    CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `pools` and `hosts` are an orchestrator's; a host has itself, every other role all of them."""

    role: Role
    name: str
    pools: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.role}:{self.name}" if self.name else "local"

    @property
    def scope(self) -> Scope:
        """What it may see and touch: a host nothing but itself."""
        if self.role is Role.HOST:
            return Scope(frozenset(), frozenset({self.name}), str(self))
        return Scope(self.pools, self.hosts, str(self)) if self.role is Role.ORCHESTRATOR else EVERYTHING

    @property
    def uri(self) -> str:
        """As it stands in a certificate."""
        words = [f"pool={name}" for name in sorted(self.pools)] + [f"host={name}" for name in sorted(self.hosts)]
        return f"{SCHEME}{self.role}:{self.name}" + (f"?{'&'.join(words)}" if words else "")

    @classmethod
    def parse(cls, uri: str) -> Principal:
        """Read a URI. Raises InvalidRequest: another form, an unknown role or word, no name, a scope that the role has not or lacks."""
        found = _URI.fullmatch(uri)
        if not found:
            raise InvalidRequest(f"role: {uri[:200]!r} is not volgate:ROLE:NAME, for an orchestrator with ?pool=NAME&host=NAME")
        scope: dict[str, list[str]] = {"pool": [], "host": []}
        for word in found[3].split("&") if found[3] else ():
            kind, _, name = word.partition("=")
            if kind not in scope:
                raise InvalidRequest(f"role: {word[:80]!r} is neither pool=NAME nor host=NAME")
            scope[kind].append(name)
        return cls.made(found[1], found[2], scope["pool"], scope["host"])

    @classmethod
    def made(cls, role: str, name: str, pools: Iterable[str], hosts: Iterable[str]) -> Principal:
        """Check the parts. Raises InvalidRequest as `parse` does."""
        if role not in list(Role):
            raise InvalidRequest(f"role: {role[:80]!r} is none of {', '.join(Role)}", field="role")
        within = [frozenset(check_identifier(item, kind) for item in items) for kind, items in (("pool", pools), ("host", hosts))]
        orchestrator = role == Role.ORCHESTRATOR
        if orchestrator != bool(within[0]) or (within[1] and not orchestrator):
            raise InvalidRequest("role: an orchestrator has at least one pool, and nobody else has pools or hosts", field="role")
        return cls(Role(role), check_identifier(name, "name"), *within)


LOCAL = Principal(Role.ADMIN, "")
"""Whoever may open the unix socket: its mode and group let nobody else in."""

CALLER: ContextVar[Principal] = ContextVar("caller")
"""Who makes the call that runs now; without one nothing is done."""


def of_uris(uris: Iterable[bytes]) -> Principal:
    """Who the URIs of a verified certificate name; those of other schemes are no concern. Raises Unauthenticated."""
    ours = [uri.decode("ascii", "backslashreplace") for uri in uris if uri.lower().startswith(SCHEME.encode())]
    if len(ours) != 1:
        told = f"the client's certificate names {len(ours)} roles of Volgate where one is needed; issue it with a URI volgate:ROLE:NAME"
        raise Unauthenticated(told)
    try:
        return Principal.parse(ours[0])
    except InvalidRequest as error:
        raise Unauthenticated(f"the client's certificate has an unusable role: {error.message}; issue another") from None
