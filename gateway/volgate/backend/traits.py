"""Facts about a backend that no method can show."""

from __future__ import annotations

from dataclasses import dataclass

from volgate.errors import OutOfRange
from volgate.model import Format, Provisioning

__all__ = ["Traits"]


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about one open pool.

    `formats`: what it can create, its default first. `grain`: sizes round up to a multiple, bytes. `minimum` and `maximum`: sizes, bytes.
    `shared`: reachable from several hosts. `independent_clones`: children survive their parent's deletion.
    `online_snapshots`: how a snapshot of an attached volume is cut: "native" (by the storage; nothing that is told of
    the volume changes by it), "overlay" (a new top layer that the host switches QEMU to) or "" (refused).
    `long_reverts`: one moves the bytes of a volume, and may take hours. `long_makings`: so does the making or growing of a volume of these
    kinds, which is written over. `long_deletions`: so does a deletion. `max_depth`: layers below the writable one, at most.
    `whole`: a volume takes a unit of the storage (a LUN) and all of its space, from the start.
    `carrier`: where the owner tag lives. `notes`: reasons for what is off.
    """

    formats: tuple[Format, ...]
    grain: int = 512
    minimum: int = 512
    maximum: int = 1 << 50
    shared: bool = False
    independent_clones: bool = False
    online_snapshots: str = ""
    long_reverts: bool = False
    long_makings: tuple[Provisioning, ...] = ()
    long_deletions: bool = False
    max_depth: int = 0
    whole: bool = False
    carrier: str = "file"
    notes: tuple[str, ...] = ()

    def rounded(self, size: int) -> int:
        """Return `size` rounded up to the grain, bytes, and at least `minimum`. Raises OutOfRange beyond `maximum`."""
        found = max(self.minimum, -(-size // self.grain) * self.grain)
        if found > self.maximum:
            raise OutOfRange(f"{size} bytes are more than {self.maximum}, the most that this pool makes", field="size")
        return found
