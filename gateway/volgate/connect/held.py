"""The LUNs that this host has connected, each in a file below /run: they end with the host's boot, as its devices do.

What is let go of is let go of by this record: its pool may be down by then, and its volume gone.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from volgate.connection import IscsiLun
from volgate.errors import NotFound, translate

__all__ = ["Held"]

_FOLDER = Path("/run/volgate/luns")
_luns = msgspec.json.Decoder(IscsiLun)


class Held:
    """No secret is in it: a connection has references alone. One call at a time for each LUN is the caller's to keep."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        """Nothing is read yet."""
        self._folder = folder

    def note(self, lun: IscsiLun) -> None:
        """Before its first login; portals by which it was connected earlier stay noted. Raises VolgateError."""
        if (before := self.find(lun.source)) is not None:
            lun = replace(lun, portals=tuple(dict.fromkeys((*lun.portals, *before.portals))))
        file = self._file(lun.source)
        with translate(f"note {lun.source}"):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = file.with_suffix(".fresh")
            fresh.write_bytes(msgspec.json.encode(lun))
            fresh.replace(file)

    def find(self, source: str) -> IscsiLun | None:
        """The LUN that libvirt names so, None if it is not connected by us."""
        return _read(self._file(source))

    def sources(self) -> list[str]:
        """All of them, as libvirt names them."""
        return sorted(lun.source for file in self._folder.glob("*.json") if (lun := _read(file)) is not None)

    def noted(self) -> list[tuple[IscsiLun, float]]:
        """All of them, and when each was noted last (UTC seconds)."""
        found = []
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if (lun := _read(file)) is not None:
                    found.append((lun, file.stat().st_mtime))
        return found

    def forget(self, source: str) -> None:
        """Nothing of it is left."""
        self._file(source).unlink(missing_ok=True)

    def _file(self, source: str) -> Path:
        return self._folder / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> IscsiLun | None:
    with contextlib.suppress(NotFound), translate(f"read {file}"):
        return _luns.decode(file.read_bytes())
    return None
