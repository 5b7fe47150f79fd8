"""How a host stands with its controller: what it last said of itself, and whether it may be asked."""

from __future__ import annotations

from dataclasses import dataclass

from volgate.errors import Precondition, Unreachable
from volgate.hosts.interface import HostInfo

__all__ = ["Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the controller knows of a host. `silent` is how many seconds ago it was heard."""

    info: HostInfo
    session: str
    silent: float

    def require_live(self) -> None:
        """Raise Unreachable (HOST_DOWN) for a host that sends no heartbeats: nothing is sent to it."""
        if not self.info.live:
            name = self.info.name
            told = (
                f"hosts/{name} has sent no heartbeat for {self.silent:.0f} s; start its volgate, or, if the machine is off or fenced "
                f"for sure, let go of its attachments with ReleaseHost (volgate host release {name} --assume-off)"
            )
            raise Unreachable(told, reason="HOST_DOWN", retry_after=5.0)

    def require_held(self) -> None:
        """Raise Precondition (HOST_RELEASED) for one whose attachments were let go."""
        if self.info.released:
            told = f"hosts/{self.info.name} was released and has not come back; start its volgate, or remove it"
            raise Precondition(told, reason="HOST_RELEASED")
