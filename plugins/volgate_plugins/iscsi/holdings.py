"""Who has which LUN of an inventory: a file for each LUN that was ever handed out, named by its WWID, with the owner tag sealed in it.

A LUN without a file holds nobody knows what: it is wiped before it is anybody's. One that is returned is wiped then, and its file says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import msgspec

from volgate.backend import OwnerTag, PoolContext, TagSpec, seal, unseal, volume_of
from volgate.backend.files import write_durably
from volgate.errors import DataLoss, NotFound
from volgate.model import Format, Provisioning, Volume, VolumeState
from volgate_plugins.iscsi.records import Records
from volgate_plugins.iscsi.settings import LunSettings

__all__ = ["Content", "Holding", "Holdings"]


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """`clean`: it is free, and reads as zeroes.

    `making`, `returning`: it is wiped for its first owner, or after its last, and is so up to `wiped` bytes. `incomplete`: an import
    fills it.
    """

    clean: bool = False
    making: bool = False
    returning: bool = False
    wiped: int = 0
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """A LUN and what is known of it; `tag` None: it has no file, or a damaged one (`problem`)."""

    lun: LunSettings
    tag: OwnerTag | None
    content: Content
    problem: str = ""

    @property
    def free(self) -> bool:
        """It is nobody's."""
        return not self.problem and (self.tag is None or self.content.clean)

    @property
    def since(self) -> float:
        """When it was returned, UTC seconds: who had it last may still have its device."""
        return self.tag.created if self.tag else 0.0

    @property
    def shown(self) -> bool:
        """It is a volume, perhaps a damaged one."""
        return not (self.free or self.content.making)

    def volume(self) -> Volume:
        """As a volume: all of the LUN."""
        size, name = self.lun.size, self.lun.wwid
        if self.tag is None:
            return Volume(name, "", name, size, size, Format.RAW, Provisioning.THICK, VolumeState.FAILED, size, problem=self.problem)
        state = VolumeState.CREATING if self.content.incomplete else VolumeState.READY
        found = replace(volume_of(self.tag, f"{name}.{self.tag.uid[:8]}", size, state), allocated=size)
        if self.content.returning:
            return replace(found, state=VolumeState.DELETING, problem="it is not wiped yet; if no deletion runs, delete it again")
        return found


class Holdings:
    """The files. Any thread, any process that has the pool open."""

    def __init__(self, records: Records, luns: tuple[LunSettings, ...], context: PoolContext) -> None:
        """Keep them beside `records`."""
        self._records, self._folder, self._luns, self._instance = records, records.folder, luns, context.instance

    def all(self) -> list[Holding]:
        """Every LUN of the inventory, the smallest first. Raises as `Records.prove`."""
        self._records.prove()
        return [self._read(lun) for lun in sorted(self._luns, key=lambda lun: (lun.size, lun.wwid))]

    def of(self, uid: str) -> Holding | None:
        """The LUN that a uid has, or was about to get, or return."""
        return next((found for found in self.all() if found.tag is not None and found.tag.uid == uid and not found.content.clean), None)

    def named(self, name: str) -> Holding:
        """The LUN that is the volume of a name. Raises NotFound."""
        for found in self.all():
            if found.shown and found.volume().name == name:
                return found
        raise NotFound(f"no LUN of the inventory is volume {name}")

    def put(self, lun: LunSettings, tag: OwnerTag, content: Content) -> Holding:
        """Write, durably."""
        write_durably(str(self._folder / lun.wwid), seal(tag, content))
        return Holding(lun, tag, content)

    def release(self, held: Holding) -> None:
        """It is nobody's, and reads as zeroes."""
        asked = TagSpec(requested_size=0, format=Format.RAW, provisioning=Provisioning.THICK)
        nobody = OwnerTag(instance=self._instance, uid="", name="", spec=asked, created=time.time())
        self.put(held.lun, nobody, Content(clean=True))

    def lost(self) -> list[str]:
        """The files whose LUN is not in the settings any more."""
        known = {lun.wwid for lun in self._luns}
        return sorted(entry.name for entry in self._folder.iterdir() if not entry.name.startswith(".") and entry.name not in known)

    def _read(self, lun: LunSettings) -> Holding:
        try:
            tag, content = unseal((self._folder / lun.wwid).read_bytes(), Content)
        except FileNotFoundError:
            return Holding(lun, None, Content())
        except DataLoss as error:
            return Holding(lun, None, Content(), f"{self._folder / lun.wwid}: {error.message}")
        return Holding(lun, tag, content)
