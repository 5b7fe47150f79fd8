"""What is in the volume group: read by one report for every call, for nothing that a process remembers is the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from volgate.backend import OwnerTag, PoolContext, VolumeId, volume_of
from volgate.errors import AlreadyExists, DataLoss, NotFound, Precondition
from volgate.model import Format, Provisioning, Snapshot, Volume, VolumeState
from volgate_plugins.lvm import tags
from volgate_plugins.lvm.command import Commands
from volgate_plugins.lvm.settings import LvmSettings
from volgate_plugins.lvm.tags import Content

__all__ = ["Catalog", "Logical", "Stock"]

_FIELDS = (
    *("lv_name", "lv_uuid", "lv_size", "lv_tags", "lv_active", "lv_suspended"),
    *("pool_lv", "data_percent", "metadata_percent", "chunk_size", "transaction_id"),
)
_GROUP = ("vg_uuid", "vg_tags", "vg_extent_size", "vg_size", "vg_free")


@dataclass(frozen=True, slots=True)
class Logical:
    """A logical volume of ours. Sizes in bytes; `transaction`: the thin pool's, by which it was made."""

    name: str
    dm_uuid: str
    size: int
    active: bool
    thin: bool
    taken: int
    words: tuple[str, ...]
    tag: OwnerTag | None
    content: Content
    problem: str = ""
    transaction: int = -1

    @property
    def whole(self) -> OwnerTag:
        """The tag of one that is not damaged. Raises DataLoss (TAG_DAMAGED)."""
        if self.tag is None:
            raise DataLoss(f"{self.name}: {self.problem}; nothing was done", reason="TAG_DAMAGED")
        return self.tag

    def volume(self) -> Volume:
        """As a volume."""
        if self.tag is None:
            name = self.name.removeprefix("v.").rpartition(".")[0].replace("+", "_")
            lost = Volume(name, "", self.name, self.size, self.size, Format.RAW, Provisioning.THIN, VolumeState.FAILED, self.taken)
            return replace(lost, problem=self.problem)
        state = VolumeState.CREATING if self.content.incomplete else VolumeState.READY
        size = self.size if self.thin else min(self.size, self.content.zeroed)
        return replace(volume_of(self.tag, self.name, size, state), allocated=self.taken)

    def snapshot(self) -> Snapshot:
        """As a snapshot."""
        tag = self.whole
        labels = dict(tag.labels)
        return Snapshot(tag.name, tag.uid, self.content.volume, tag.parent_uid, self.size, labels, tag.created, self.content.quiesced)


@dataclass(frozen=True, slots=True)
class Stock:
    """The thin pool: bytes, and percent of data and metadata that are taken; `transaction`: how many LVM's metadata have of it."""

    dm_uuid: str
    transaction: int
    size: int
    data_percent: float
    metadata_percent: float

    @property
    def fullest(self) -> float:
        """Percent of what is fuller."""
        return max(self.data_percent, self.metadata_percent)

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        return int(self.size * max(0.0, 100 - self.data_percent) / 100)


@dataclass(frozen=True, slots=True)
class Catalog:
    """One look. `logicals` are ours, in no order; `suspended` are the names of those, and of the thin pool, whose I/O waits."""

    vg: str
    instance: str
    owner: str
    extent: int
    group_free: int
    stock: Stock
    logicals: tuple[Logical, ...]
    suspended: tuple[str, ...]

    @classmethod
    def look(cls, commands: Commands, settings: LvmSettings, context: PoolContext, doing: str) -> Catalog:
        """Read the group. Raises Precondition (LVM_GROUP_MISSING, LVM_POOL_MISSING), and as `Commands.report`."""
        rows = commands.report(doing, "lvs", "lv", (*_FIELDS, *_GROUP))
        pool = next((row for row in rows if row["lv_name"] == settings.thin_pool and row["metadata_percent"]), None)
        if pool is None:
            told = f"{doing}: volume group {settings.vg} has no active thin pool {settings.thin_pool}"
            raise Precondition(f"{told}; activate it (lvchange -ay), or make it (lvcreate --type thin-pool)", reason="LVM_POOL_MISSING")
        stock = Stock(
            _dm_uuid(pool),
            int(pool["transaction_id"]),
            int(pool["lv_size"]),
            float(pool["data_percent"] or 0),
            float(pool["metadata_percent"] or 0),
        )
        marks = [tag.partition("=")[2] for tag in pool["vg_tags"].split(",") if tag.startswith(tags.owner_mark(""))]
        chunk = int(pool["chunk_size"])
        ours = [row for row in rows if tags.OWN in row["lv_tags"].split(",") and row["pool_lv"] in ("", settings.thin_pool)]
        waiting = tuple(row["lv_name"] for row in (pool, *ours) if row["lv_suspended"] == "suspended")
        found = tuple(_logical(row, chunk) for row in ours)
        owner = marks[0] if marks else ""
        return cls(settings.vg, context.instance, owner, int(pool["vg_extent_size"]), int(pool["vg_free"]), stock, found, waiting)

    def proven(self, doing: str) -> Catalog:
        """This, if the group is ours. Raises Precondition (POOL_MARKER_MISSING, POOL_FOREIGN)."""
        if not self.owner:
            told = f"{doing}: volume group {self.vg} does not say whose it is any more; was it made anew?"
            raise Precondition(
                f"{told} An administrator gives it back by vgchange --addtag {tags.owner_mark(self.instance)}", reason="POOL_MARKER_MISSING"
            )
        if self.owner != self.instance:
            told = f"{doing}: volume group {self.vg} belongs to gateway {self.owner}, this one is {self.instance}"
            raise Precondition(f"{told}; give the pool a group of its own", reason="POOL_FOREIGN")
        return self

    # -- volumes

    def of(self, uid: str) -> list[Logical]:
        """All that were ever the volume of this uid and are still there, the present one last."""
        found = [one for one in self.logicals if one.tag is not None and not one.content.volume and one.tag.uid == uid]
        return sorted(found, key=lambda one: one.content.epoch)

    def find(self, volume: VolumeId) -> Logical:
        """The volume. Raises NotFound."""
        found = self.of(volume.uid)
        if not found or found[-1].content.making or found[-1].whole.name != volume.name:
            raise NotFound(f"volume {volume.name} of uid {volume.uid} does not exist in volume group {self.vg}")
        return found[-1]

    def named(self, name: str) -> Logical:
        """The volume that has a name now. Raises NotFound."""
        if found := next((one for one in self.volumes() if one.volume().name == name), None):
            return found
        raise NotFound(f"volume {name} does not exist in volume group {self.vg}")

    def free_name(self, name: str, uid: str) -> None:
        """Raises AlreadyExists if another volume has the name."""
        for one in self.logicals:
            if one.tag is not None and not one.content.volume and one.tag.name == name and one.tag.uid != uid and not one.content.making:
                raise AlreadyExists(f"volume {name} exists with uid {one.tag.uid}, asked was {uid}")

    def volumes(self) -> Iterator[Logical]:
        """The volumes, each once, in order of name; of those that are being made none."""
        present: dict[str, Logical] = {}
        for one in sorted(self.logicals, key=lambda one: one.content.epoch):
            if not one.content.volume and not one.content.making and not one.name.startswith("s."):
                present[one.tag.uid if one.tag else one.name] = one
        yield from sorted(present.values(), key=lambda one: one.volume().name)

    # -- snapshots

    def snapshots(self, uid: str) -> list[Logical]:
        """The snapshots of a volume, oldest first."""
        found = [one for one in self.logicals if one.content.volume and one.whole.parent_uid == uid]
        return sorted(found, key=lambda one: (one.whole.created, one.name))

    def cut(self, volume: VolumeId, snapshot_uid: str) -> Logical:
        """A snapshot. Raises NotFound."""
        if found := next((one for one in self.snapshots(volume.uid) if one.whole.uid == snapshot_uid), None):
            return found
        raise NotFound(f"volume {volume.name} has no snapshot of uid {snapshot_uid}")

    def promised(self) -> int:
        """Bytes of all thin volumes."""
        return sum(one.size for one in self.volumes() if one.thin)


def _logical(row: dict[str, str], chunk: int) -> Logical:
    words = tuple(sorted(tag for tag in row["lv_tags"].split(",") if tag == tags.OWN or tag.startswith(f"{tags.OWN}.")))
    try:
        tag, content, problem = *tags.read(words), ""
    except DataLoss as error:
        tag, content, problem = None, Content(), error.message
    active, thin = row["lv_active"] == "active", bool(row["pool_lv"])
    size = int(row["lv_size"])
    taken = _taken(size, float(row["data_percent"] or 0), chunk) if thin else size
    transaction = int(row["transaction_id"] or -1)
    return Logical(row["lv_name"], _dm_uuid(row), size, active, thin, taken, words, tag, content, problem, transaction)


def _dm_uuid(row: dict[str, str]) -> str:
    return "LVM-" + (row["vg_uuid"] + row["lv_uuid"]).replace("-", "")


def _taken(size: int, percent: float, chunk: int) -> int:
    """Bytes that a thin volume takes: whole chunks, of which LVM tells a hundredth of a percent, rounded. The most that it may mean."""
    hundredths = round(percent * 100)
    return min(size, size * (2 * hundredths + 1) // 20000 // chunk * chunk) if hundredths else 0
