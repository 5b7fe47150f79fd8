"""Verbs for volumes. One is there when a commit of LVM's metadata says so; what that cannot hold is done before, marked `making`."""

from __future__ import annotations

import time
from contextlib import nullcontext

import msgspec

from volgate.backend import OwnerTag, PoolContext, SnapshotSpec, Traits, VolumeId, tag_of
from volgate.backend.owner_tag import TagSpec
from volgate.errors import AlreadyExists, Holder, InUse, NotFound, OutOfRange, OutOfSpace, Precondition, Unsupported
from volgate.model import Format, Labels, Provisioning, Snapshot, Source, SourceKind, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.lvm import media, tags
from volgate_plugins.lvm.catalog import Catalog, Logical
from volgate_plugins.lvm.command import Commands
from volgate_plugins.lvm.mending import mend, told
from volgate_plugins.lvm.settings import LvmSettings
from volgate_plugins.lvm.tags import Content
from volgate_plugins.lvm.turns import turn

__all__ = ["Volumes"]

_REVERTS = 64  # tokens that are remembered


class Volumes:
    """The verbs on one thin pool."""

    def __init__(self, settings: LvmSettings, context: PoolContext, commands: Commands) -> None:
        """Work by these commands."""
        self._settings, self._context, self._commands = settings, context, commands

    def look(self, doing: str) -> Catalog:
        """What is there now, proven to be ours.

        What a command that died left suspended goes on: LVM reports under the group's lock, so that no living one is in the middle of it.
        """
        seen = self._seen(doing)
        for name in seen.suspended:
            self._change(doing, "lvchange", "--refresh", self._path(name))
        return self._seen(doing) if seen.suspended else seen

    def _seen(self, doing: str) -> Catalog:
        return Catalog.look(self._commands, self._settings, self._context, doing).proven(doing)

    def traits(self, extent: int) -> Traits:
        """Facts; `extent` is the group's, bytes."""
        return Traits(
            formats=(Format.RAW,),
            grain=extent,
            minimum=extent,
            maximum=1 << 44,
            independent_clones=True,
            online_snapshots="native",
            long_makings=(Provisioning.THICK,),
            carrier="lvm-tags",
        )

    # -- volumes

    def create(self, spec: VolumeSpec, traits: Traits) -> Volume:
        """Make a volume, or finish one of the same uid."""
        doing = f"create volume {spec.name}"
        thick = spec.provisioning is Provisioning.THICK  # takes nothing of the thin pool, and long
        with nullcontext() if thick else turn(self._settings, doing):
            return self._create(spec, traits, doing)

    def _create(self, spec: VolumeSpec, traits: Traits, doing: str) -> Volume:
        seen = self.look(doing)
        found = seen.of(spec.uid)
        if found and not found[-1].content.making and self._is_made(seen, found[-1], doing):
            return found[-1].volume()
        seen.free_name(spec.name, spec.uid)
        if spec.format is not Format.RAW:
            raise Unsupported(f"{doing}: format {spec.format} cannot be made here; use raw", field="format")
        size, thick = traits.rounded(spec.size), spec.provisioning is Provisioning.THICK
        origin = self._origin(seen, spec.source, size, doing) if spec.source and spec.source.kind is not SourceKind.EMPTY else None
        if thick and origin:
            raise Unsupported(f"{doing}: a clone shares its blocks with its source and is thin", field="provisioning")
        if not thick:
            self._room(seen, size, doing)
        for one in found:
            self._remove(one, doing)
        return self._make(spec, size, origin, doing)

    def _make(self, spec: VolumeSpec, size: int, origin: Logical | None, doing: str) -> Volume:
        thick, name = spec.provisioning is Provisioning.THICK, _lv_name(spec.name, spec.uid)
        tag = tag_of(spec, self._context.instance, time.time())
        whole = Content(incomplete=spec.incomplete, zeroed=size if thick else 0)
        making = thick or (origin is not None and origin.size < size)
        words = self._tagged(tag, msgspec.structs.replace(whole, making=making, zeroed=0 if making else whole.zeroed))
        if origin is not None:
            self._change(doing, "lvcreate", "-y", "-s", self._path(origin.name), "-n", name, "-kn", "-ay", *words)
        elif thick:
            self._change(doing, "lvcreate", "-y", "-Wn", "-Zn", "-L", f"{size}b", "-n", name, *words, self._settings.vg)
        else:
            pool = self._path(self._settings.thin_pool)
            self._change(doing, "lvcreate", "-y", "-Wn", "-V", f"{size}b", "-T", pool, "-n", name, *words)
        made = self.look(doing).of(spec.uid)[-1]
        if making:
            if origin is not None:
                self._change(doing, "lvextend", "-L", f"{size}b", self._path(name))
            else:
                media.zero(made.dm_uuid, 0, size, doing)
            self._retag(made, tag, whole, doing)
            made = self.look(doing).of(spec.uid)[-1]
        return made.volume()

    def delete(self, volume: VolumeId) -> None:
        """Delete a volume, and whatever a call that died left of its uid."""
        doing = f"delete volume {volume.name}"
        seen = self.look(doing)
        found = seen.of(volume.uid)
        if cuts := seen.snapshots(volume.uid) if found else []:
            names = ", ".join(cut.whole.name for cut in cuts)
            holders = tuple(Holder("snapshot", cut.whole.name, cut.whole.uid) for cut in cuts)
            raise InUse(f"volume {volume.name} has snapshots: {names}; delete them first", holders=holders)
        for one in found:
            self._remove(one, doing)

    def expand(self, volume: VolumeId, size: int, traits: Traits) -> Volume:
        """Grow a volume, attached or not: the device grows, and whoever has it open is told by the host."""
        doing = f"expand volume {volume.name}"
        with turn(self._settings, doing):
            seen = self.look(doing)
            found, wanted = seen.find(volume), traits.rounded(size)
            if wanted > found.size:
                if found.thin:
                    self._room(seen, wanted - found.size, doing)
                self._change(doing, "lvextend", "-L", f"{wanted}b", self._path(found.name))
        if not found.thin and found.content.zeroed < max(wanted, found.size):
            wanted = max(wanted, found.size)
            media.zero(found.dm_uuid, found.content.zeroed, wanted, doing)
            self._retag(found, found.whole, msgspec.structs.replace(found.content, zeroed=wanted), doing)
        return self.look(doing).find(volume).volume()

    def relabel(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        doing = f"label volume {volume.name}"
        found = self.look(doing).find(volume)
        if found.whole.labels != labels:
            self._retag(found, msgspec.structs.replace(found.whole, labels=dict(labels)), found.content, doing)
        return self.look(doing).find(volume).volume()

    def complete(self, volume: VolumeId) -> Volume:
        """An import is done."""
        doing = f"complete volume {volume.name}"
        found = self.look(doing).find(volume)
        if found.content.incomplete:
            self._retag(found, found.whole, msgspec.structs.replace(found.content, incomplete=False), doing)
        return self.look(doing).find(volume).volume()

    def opened(self, volume: VolumeId, snapshot_uid: str, doing: str) -> Logical:
        """A volume or a snapshot whose device is there."""
        seen = self.look(doing)
        found = seen.find(volume)
        return self._active(seen.cut(volume, snapshot_uid) if snapshot_uid else found, doing)

    # -- snapshots

    def snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut one: a thin volume that shares its blocks, under a running guest as well."""
        doing = f"snapshot {spec.name} of volume {volume.name}"
        seen = self.look(doing)
        found = seen.find(volume)
        for cut in seen.snapshots(volume.uid):
            if cut.whole.uid == spec.uid and self._is_made(seen, cut, doing):
                return cut.snapshot()
            if cut.whole.uid == spec.uid:
                self._remove(cut, doing)
            elif cut.whole.name == spec.name:
                raise AlreadyExists(f"volume {volume.name} has a snapshot {spec.name}, of uid {cut.whole.uid}")
        if not found.thin:
            raise Unsupported(f"{doing}: a thick volume has no snapshots; make it thin")
        self._room(seen, 0, doing)
        asked = TagSpec(requested_size=found.size, format=Format.RAW, provisioning=Provisioning.THIN)
        tag = OwnerTag(
            instance=self._context.instance,
            uid=spec.uid,
            name=spec.name,
            spec=asked,
            parent_uid=volume.uid,
            labels=dict(spec.labels),
            created=time.time(),
        )
        words = self._tagged(tag, Content(volume=volume.name, quiesced=spec.quiesced))
        self._change(doing, "lvcreate", "-y", "-s", self._path(found.name), "-n", f"s.{spec.uid}", "-ky", *words)
        return self.look(doing).cut(volume, spec.uid).snapshot()

    def unsnapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete a snapshot; success if there is none."""
        doing = f"delete a snapshot of volume {volume.name}"
        for cut in self.look(doing).snapshots(volume.uid):
            if cut.whole.uid == snapshot_uid:
                self._remove(cut, doing)

    def revert(self, volume: VolumeId, snapshot_uid: str, token: str) -> Volume:
        """A new logical volume of the snapshot becomes the volume by the commit that makes it; then the old one goes."""
        doing = f"revert volume {volume.name}"
        seen = self.look(doing)
        found = seen.find(volume)
        if token in found.content.reverts and not self._is_made(seen, found, doing):
            self._remove(found, doing)
            seen = self.look(doing)
            found = seen.find(volume)
        if token not in found.content.reverts:
            cut = seen.cut(volume, snapshot_uid)
            epoch = found.content.epoch + 1
            content = msgspec.structs.replace(found.content, epoch=epoch, reverts=(*found.content.reverts, token)[-_REVERTS:])
            tag = msgspec.structs.replace(found.whole, generation=found.whole.generation + 1)
            name = f"{_lv_name(volume.name, volume.uid)}.{epoch}"
            self._change(doing, "lvcreate", "-y", "-s", self._path(cut.name), "-n", name, "-kn", "-ay", *self._tagged(tag, content))
            seen = self.look(doing)
        *old, now = seen.of(volume.uid)
        self._active(now, doing)
        for one in old:
            self._remove(one, doing)
        return now.volume()

    # -- steps

    def _origin(self, seen: Catalog, source: Source, size: int, doing: str) -> Logical:
        parent = VolumeId(source.volume, source.volume_uid)
        found = seen.find(parent) if source.kind is SourceKind.VOLUME else seen.cut(parent, source.snapshot_uid)
        if not found.thin:
            raise Unsupported(f"{doing}: a thick volume cannot be cloned; export it, and import it")
        if found.content.incomplete:
            raise Precondition(f"{doing}: volume {source.volume} is still being filled", reason="NOT_READY")
        if size < found.size:
            raise OutOfRange(f"{doing}: the clone's size, {size}, is less than its source's, {found.size}", field="size")
        return found

    def _room(self, seen: Catalog, more: int, doing: str) -> None:
        """Raises OutOfSpace: the pool is nearly full, or more than its limit would be promised."""
        stock, limit = seen.stock, int(self._settings.oversubscription * seen.stock.size)
        if stock.fullest >= self._settings.refuse_percent:
            full = f"is full to {stock.data_percent} % (metadata {stock.metadata_percent} %)"
            told = f"{doing}: thin pool {self._path(self._settings.thin_pool)} {full}"
            raise OutOfSpace(
                f"{told}; nothing is made from {self._settings.refuse_percent} % on: extend it (lvextend, --poolmetadatasize), or delete",
                reason="LVM_POOL_FULL",
            )
        if limit and more and seen.promised() + more > limit:
            raise OutOfSpace(
                f"{doing}: {more} bytes more would be promised than the limit of {limit}; delete volumes, or raise oversubscription"
            )

    def _active(self, one: Logical, doing: str) -> Logical:
        """See that its device is there: a host that started anew may have left it alone."""
        if not one.active:
            self._change(doing, "lvchange", "-y", "-ay", "-K", self._path(one.name))
        return one

    def _is_made(self, seen: Catalog, one: Logical, doing: str) -> bool:
        """Whether the thin pool was told of it: the last command may have died before that. What it was told of has its device then."""
        stock = seen.stock
        if one.thin and one.transaction == stock.transaction - 1 and told(self._commands, stock.dm_uuid, doing) != stock.transaction:
            return False
        self._active(one, doing)
        return True

    def _change(self, doing: str, command: str, *words: str) -> None:
        """Let LVM make a change; what it stumbles over because another command died is taken away first."""
        try:
            self._commands.change(doing, command, *words)
        except Precondition as error:
            if error.reason != "LVM_HALF_MADE":
                raise
            mend(self._commands, self._settings, doing, int(error.metadata["device"]))
            self._commands.change(doing, command, *words)

    def _retag(self, one: Logical, tag: OwnerTag, content: Content, doing: str) -> None:
        """Replace the tag in one commit."""
        new, old = tags.words(tag, content), list(one.words)
        changes = [part for word in old if word not in new for part in ("--deltag", word)]
        changes += [part for word in new if word not in old for part in ("--addtag", word)]
        if changes:
            self._change(doing, "lvchange", *changes, self._path(one.name))

    def _remove(self, one: Logical, doing: str) -> None:
        try:
            self._change(doing, "lvremove", "-y", "-f", self._path(one.name))
        except NotFound:
            return

    def _tagged(self, tag: OwnerTag, content: Content) -> list[str]:
        return [part for word in tags.words(tag, content) for part in ("--addtag", word)]

    def _path(self, name: str) -> str:
        return f"{self._settings.vg}/{name}"


def _lv_name(name: str, uid: str) -> str:
    """Names of LVM's may not have `_tdata` and the like in them, and not begin with `snapshot`: ours have neither `_` nor that."""
    return f"v.{object_name(name, uid)}".replace("_", "+")
