"""A private network of guests: taps on the bridge of a namespace. A cable is cut and healed at the switch."""

from __future__ import annotations

from tests.labs.network import SUBNET, Network, ip

__all__ = ["Cable"]


class Cable:
    """One guest's way to a `Network`; what is in its namespaces is reached by it too."""

    def __init__(self, network: Network, number: int) -> None:
        """Plug it in. `number` ends the address, and is no other's on this network: 101 and above."""
        self.address = f"{SUBNET}.{number}"
        self.device = f"tap{number}"
        self._switch = network.switch
        ip("-n", self._switch, "tuntap", "add", "mode", "tap", "name", self.device)
        ip("-n", self._switch, "link", "set", self.device, "master", "br0", "up")

    def inside(self) -> list[str]:
        """What a command begins with that is to open its device."""
        return ["nsenter", f"--net=/run/netns/{self._switch}", "--"]

    def cut(self) -> None:
        """Pull it."""
        ip("-n", self._switch, "link", "set", self.device, "nomaster")

    def heal(self) -> None:
        """Plug it in again."""
        ip("-n", self._switch, "link", "set", self.device, "master", "br0")
