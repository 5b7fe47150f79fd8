"""The array's simulated clients: who has a volume open by the word of the control command, and which addresses are refused."""

from __future__ import annotations

import ipaddress
import threading

from volgate.backend import Holder, VolumeId
from volgate.errors import Denied, InvalidRequest, Precondition
from volgate_plugins.memory.table import Table

__all__ = ["Clients"]


class Clients:
    """Verbs on a table; what they know is forgotten with the array."""

    def __init__(self, table: Table) -> None:
        """Nobody has anything open."""
        self._table = table
        self._lock = threading.Lock()
        self._open: dict[str, list[Holder]] = {}  # by the volume's uid
        self._refused: set[str] = set()

    def open_volume(self, volume: str, address: str, locks: bool) -> str:
        """Let a client at an address open a volume; return the client's name. Raises Denied if it is fenced."""
        uid, at = self._table.find(VolumeId(volume, "")).tag.uid, _address(address)
        with self._lock:
            if at in self._refused:
                raise Denied(f"{at} is fenced")
            held = self._open.setdefault(uid, [])
            made = Holder(f"client.{len(held) + 1}", at, locks)
            held.append(made)
            return made.client

    def holders(self, volume: VolumeId) -> list[Holder]:
        """Who has a volume open."""
        uid = self._table.find(volume).tag.uid
        with self._lock:
            return list(self._open.get(uid, ()))

    def fence(self, addresses: list[str], volumes: list[VolumeId]) -> None:
        """Refuse addresses; what clients there have open they lose, of whichever volume."""
        del volumes
        found = {_address(address) for address in addresses}
        if not found:
            raise InvalidRequest("addresses: name those that are to be fenced", field="addresses")
        if own := sorted(address for address in found if ipaddress.ip_address(address).is_loopback):
            raise Precondition(
                f"{own[0]} is where the gateway itself reaches the array from; name the host's addresses", reason="FENCE_SELF"
            )
        with self._lock:
            self._refused |= found
            self._open = {uid: [one for one in held if one.address not in found] for uid, held in self._open.items()}

    def unfence(self, addresses: list[str]) -> None:
        """Take them again."""
        with self._lock:
            self._refused -= {_address(address) for address in addresses}

    def refused(self) -> list[str]:
        """All that are refused, in order."""
        with self._lock:
            return sorted(self._refused)

    def fenced(self, addresses: list[str]) -> list[str]:
        """Those that are refused."""
        with self._lock:
            return [address for address in addresses if _address(address) in self._refused]


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise InvalidRequest(f"addresses: {error}", field="addresses") from None
