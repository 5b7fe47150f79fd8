"""The maps of dm-multipath, through multipathd's own socket: no command is run, and no map is ever touched but by its WWID.

The protocol is that of libmpathcmd: a length in eight bytes of this machine's order, the command, a zero byte; the answer likewise.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from volgate.connect.openers import openers
from volgate.errors import InUse, Precondition, Unreachable

__all__ = ["Map", "Multipathd", "Way"]

_PLACES = ("/run/multipathd.socket", "\0/org/kernel/linux/storage/multipathd")
_LENGTH = struct.Struct("@Q")
_MOST = 32 << 20
_LOOK_SECONDS = 0.1
_LEAST_SECONDS = 2.0  # whoever is late already still hears what the daemon says
_BUSY = ("timeout", "in use", "busy", "fail")  # the last: the paths' own events are on their way to it


@dataclass(frozen=True, slots=True)
class Way:
    """One path of a map. `usable`: device mapper uses it; `checker` is what multipathd's last look said; `group` is its priority group."""

    device: str
    usable: bool
    checker: str
    priority: int
    group: int
    group_active: bool


@dataclass(frozen=True, slots=True)
class Map:
    """One map. `device` is its `dm-N`; `queueing`: I/O waits while no way is usable."""

    wwid: str
    name: str
    device: str
    queueing: bool
    read_only: bool
    ways: tuple[Way, ...]

    @property
    def usable(self) -> bool:
        """Whether device mapper has a way to use."""
        return any(way.usable for way in self.ways)


class Multipathd:
    """The daemon of this host. Each method raises Precondition (NO_MULTIPATHD) if it does not run, Unreachable if it does not answer."""

    def maps(self, deadline: float) -> list[Map]:
        """Every map. `deadline` in monotonic seconds, here and below."""
        return [_map(found) for found in json.loads(self._told("show maps json", deadline))["maps"]]

    def find(self, wwid: str, deadline: float) -> Map | None:
        """The map of a WWID."""
        return next((found for found in self.maps(deadline) if found.wwid == wwid), None)

    def paths(self, deadline: float) -> dict[str, str]:
        """The devices that it knows as paths, with the WWID that it has of each."""
        rows = (line.split() for line in self._told('show paths raw format "%d %w"', deadline).splitlines())
        return {row[0]: row[1] if len(row) > 1 else "" for row in rows if row}

    def add(self, device: str, deadline: float) -> None:
        """Have a disk (`sda`) taken as a path, also where only what is configured is. A daemon that has it already says so."""
        self._ask(f"add path {device}", deadline)

    def resize(self, wwid: str, deadline: float) -> None:
        """Take the size that every path has now; its "ok" is no proof, look at the size. Raises Unreachable while it is busy."""
        while (said := self._ask(f"resize map {wwid}", deadline)) != "ok":
            if not any(word in said for word in _BUSY) or time.monotonic() > deadline:
                raise Unreachable(f"multipathd does not resize {wwid}: {said}", reason="MULTIPATH_REFUSED", retry_after=1.0)
            time.sleep(_LOOK_SECONDS)

    def stop_queueing(self, wwid: str, deadline: float) -> None:
        """Let what waits in a map without ways fail at once."""
        self._ask(f"disablequeueing map {wwid}", deadline)

    def restore_queueing(self, wwid: str, deadline: float) -> None:
        """Let a map without ways do as it is configured."""
        self._ask(f"restorequeueing map {wwid}", deadline)

    def remove(self, wwid: str, deadline: float) -> None:
        """Remove a map, flushed; success if there is none. Raises InUse (somebody has it open).

        One that queues without a way, and that nobody has open, is told to fail before: udev looks at what is new, and would wait for ever.
        """
        while (found := self.find(wwid, deadline)) is not None:
            if found.queueing and not found.usable and not openers(found.device):
                self.stop_queueing(wwid, deadline)
            said = self._ask(f"del map {wwid}", deadline)
            if said == "ok" and self.find(wwid, deadline) is None:
                return
            if time.monotonic() > deadline:
                raise InUse(f"the map {wwid} is open, or multipathd is busy ({said}); see who has it by `lsof /dev/mapper/{wwid}`")
            time.sleep(_LOOK_SECONDS)

    def forgets(self, device: str, deadline: float) -> bool:
        """Wait until it lists a device no more: its late removal would else meet the next device of that name."""
        while device in self.paths(deadline):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _told(self, command: str, deadline: float) -> str:
        """As `_ask`, for what has an answer: it says "timeout" while it looks at ways that are dead, and is asked again."""
        while (said := self._ask(command, deadline)) in ("timeout", "fail"):
            if time.monotonic() > deadline:
                told = f"multipathd does not answer {command!r}: it is busy with ways that are dead; see `multipathd show daemon`"
                raise Unreachable(told, reason="MULTIPATH_REFUSED", retry_after=1.0)
            time.sleep(_LOOK_SECONDS)
        return said

    def _ask(self, command: str, deadline: float) -> str:
        with _connected(deadline) as link:
            try:
                data = command.encode() + b"\0"
                link.sendall(_LENGTH.pack(len(data)) + data)
                (length,) = _LENGTH.unpack(_received(link, _LENGTH.size))
                if length > _MOST:
                    raise Unreachable(f"multipathd answers {command!r} with {length} bytes", reason="MULTIPATH_REFUSED")
                return _received(link, length).rstrip(b"\0").decode(errors="replace").strip()
            except OSError as error:
                raise Unreachable(
                    f"multipathd does not answer {command!r}: {error}; look at its log", reason="MULTIPATH_REFUSED", retry_after=1.0
                ) from error


@contextlib.contextmanager
def _connected(deadline: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        for place in _PLACES:
            link.settimeout(max(_LEAST_SECONDS, deadline - time.monotonic()))
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                link.connect(place)
                yield link
                return
        raise Precondition(
            "multipathd does not run on this host; start it (`systemctl start multipathd`), or attach without multipath",
            reason="NO_MULTIPATHD",
        )


def _received(link: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = link.recv(min(1 << 16, length - len(data)))
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data


def _map(found: dict[str, Any]) -> Map:
    ways = tuple(
        Way(
            device=str(path["dev"]),
            usable=path["dm_st"] == "active",
            checker=str(path["chk_st"]),
            priority=int(path["pri"]),
            group=int(group["group"]),
            group_active=group["dm_st"] == "active",
        )
        for group in found["path_groups"]
        for path in group["paths"]
    )
    queueing = str(found["queueing"]) == "on" or str(found["queueing"]).endswith(("chk", "sec"))
    return Map(str(found["uuid"]), str(found["name"]), str(found["sysfs"]), queueing, str(found["write_prot"]) == "ro", ways)
