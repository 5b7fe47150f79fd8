"""The gates: who calls, and whether there is a place for one more call of theirs. The one of TLS is in `clients`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from volgate.edge.identity import LOCAL, Principal
from volgate.edge.types import Context

__all__ = ["Gate", "LocalGate"]


class Gate(Protocol):
    """Lets callers in."""

    def identify(self, context: Context) -> Principal:
        """Who calls. Raises Unauthenticated."""

    def admitted(self, caller: Principal, *, stream: bool) -> AbstractContextManager[None]:
        """A place for one call, for as long as it lasts. Raises Busy (TOO_MANY_CALLS)."""


class LocalGate:
    """The unix socket: whoever may open it is an administrator of this machine's gateway, and has no limits."""

    def identify(self, context: Context) -> Principal:  # noqa: ARG002  # gRPC tells nothing of the peer of a unix socket
        """The local administrator."""
        return LOCAL

    def admitted(self, caller: Principal, *, stream: bool) -> AbstractContextManager[None]:  # noqa: ARG002  # there are no limits
        """Always."""
        return nullcontext()
