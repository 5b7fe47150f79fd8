"""A private network: namespaces joined by a bridge, each with one address; links are cut and healed. It needs root."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from pathlib import Path

__all__ = ["SUBNET", "Network", "Port", "ip"]

SUBNET = "10.77.0"
SWITCH = "switch"


class Port:
    """One namespace on the bridge."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        """Made by `Network.add`."""
        self.address = f"{SUBNET}.{number}"
        self.namespace = f"{network.prefix}-{name}"
        self._switch, self._link = network.switch, f"to{number}"
        ip("netns", "add", self.namespace)
        ip("-n", self._switch, "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("-n", self._switch, "link", "set", self._link, "master", "br0", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self._switch, "link", "set", self._link, "down")

    def heal(self) -> None:
        """Plug it in again."""
        ip("-n", self._switch, "link", "set", self._link, "up")

    def inside(self, *argv: str) -> list[str]:
        """Return a command that runs in this namespace, under the same pid."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *argv]


class Network:
    """The bridge, in a namespace of its own, and what is joined to it; `close()` leaves nothing."""

    def __init__(self) -> None:
        """Make the bridge."""
        if os.geteuid() != 0:
            raise RuntimeError("a network of namespaces needs root")
        self.prefix = f"vg{secrets.token_hex(3)}"
        self.switch = f"{self.prefix}-{SWITCH}"
        self._ports: list[Port] = []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")

    def add(self, name: str) -> Port:
        """Join a namespace."""
        port = Port(self, name, len(self._ports) + 1)
        self._ports.append(port)
        return port

    def close(self) -> None:
        """Remove the namespaces; what still runs in one keeps it alive without a name."""
        for path in sorted(Path("/run/netns").glob(f"{self.prefix}-*")):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", path.name)


def ip(*argv: str) -> None:
    """Run `ip`. Raises CalledProcessError."""
    subprocess.run(["ip", *argv], check=True, capture_output=True, timeout=30)
