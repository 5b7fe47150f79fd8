"""The array's verbs for volumes: create, delete, read, grow, label. Each is done whole or not at all, and again without harm."""

from __future__ import annotations

import time

import msgspec

from volgate.backend import VolumeId, tag_of
from volgate.connection import LocalFile
from volgate.errors import AlreadyExists, Holder, InUse, NotFound, OutOfRange, Precondition, Unsupported, translate
from volgate.model import Capacity, Format, Labels, Provisioning, Source, SourceKind, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.memory import media
from volgate_plugins.memory.table import MAXIMUM, Record, Table, rounded

__all__ = ["Volumes"]

_FIRST = "0000.raw"


class Volumes:
    """Verbs on a table."""

    def __init__(self, table: Table) -> None:
        """Work on a table."""
        self._table = table

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Create a volume, empty or as a copy, or return the one of that uid."""
        sources = (spec.source.volume,) if spec.source and spec.source.volume else ()
        with self._table.holding(spec.name, *sources), translate(f"create volume {spec.name}"):
            return self._table.volume(self.known(spec) or self._create(spec))

    def known(self, spec: VolumeSpec) -> Record | None:
        """The volume of that name, if it is the one that is meant. Raises AlreadyExists."""
        found = self._table.lookup(spec.name)
        if found is not None and found.tag.uid != spec.uid:
            raise AlreadyExists(f"volume {spec.name} exists with uid {found.tag.uid}, asked was {spec.uid}")
        return found

    def delete_volume(self, volume: VolumeId) -> None:
        """Delete a volume; nothing to do if none of that uid exists."""
        table = self._table
        with table.holding(volume.name), translate(f"delete volume {volume.name}"):
            try:
                record = table.find(volume)
            except NotFound:
                return
            holders = [Holder("snapshot", cut.name, cut.uid) for cut in record.snapshots]
            holders += [Holder("volume", name, "clone") for name in table.children(record.tag.uid)]
            if holders:
                held = ", ".join(f"{holder.kind} {holder.name}" for holder in holders)
                raise InUse(f"volume {volume.name} is held by {held}; delete them first", holders=tuple(holders))
            table.drop(record)

    def get_volume(self, name: str) -> Volume:
        """Read a volume."""
        found = self._table.read(name)
        if found is None:
            raise NotFound(f"volume {name} does not exist on the array")
        return found

    def list_volumes(self, after: str, limit: int) -> list[Volume]:
        """Read the volumes whose names follow `after`, at most `limit`."""
        found = list[Volume]()
        while len(found) < limit and (records := self._table.after(after, limit - len(found))):
            after = records[-1].tag.name
            found += [volume for record in records if (volume := self._table.read(record.tag.name)) is not None]
        return found

    def connection(self, volume: VolumeId) -> LocalFile:
        """Where a complete volume's bytes are."""
        record = self._table.find(volume)
        if record.incomplete:
            raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
        return self._table.media.location(record.stored_as, record.file, record.tag.uid)

    def expand_volume(self, volume: VolumeId, size: int, online: bool) -> Volume:
        """Grow a volume; while a guest has it (`online`) only the room is noted, QEMU grows the file."""
        table, wanted = self._table, rounded(size)
        with table.holding(volume.name), translate(f"expand volume {volume.name}"):
            record = table.find(volume)
            if wanted > MAXIMUM:
                raise OutOfRange(f"{size} bytes are more than {MAXIMUM}", field="size")
            now, taken = table.media.size(record.stored_as, record.file)
            if wanted <= now:
                return table.volume(record)
            with table.promise(volume.name, max(wanted, record.promised), max(0, wanted - taken) if record.thick else 0):
                saved = table.save(record.change(promised=max(wanted, record.promised)))
                if not online:
                    self._grow(record, saved, wanted)
                return table.volume(saved)

    def _grow(self, before: Record, saved: Record, size: int) -> None:
        try:
            media.grow(self._table.media.path(saved.stored_as, saved.file), size, thick=saved.thick)
        except OSError:  # no room below: what was promised is given back
            self._table.save(saved.change(promised=before.promised))
            raise

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        with self._table.holding(volume.name), translate(f"label volume {volume.name}"):
            record = self._table.find(volume)
            if record.tag.labels != labels:
                record = self._table.save(record.change(tag=msgspec.structs.replace(record.tag, labels=dict(labels))))
            return self._table.volume(record)

    def capacity(self) -> Capacity:
        """Measure the array."""
        with translate("measure the array"):
            return Capacity(self._table.limits.capacity, self._table.free(), self._table.provisioned(), self._table.limit())

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """How much data a clone copies."""
        if spec.source is None or spec.source.kind is SourceKind.EMPTY:
            return 0
        shared = self._table.media.shares and spec.provisioning is not Provisioning.THICK
        return 0 if shared else self._origin(spec.source, spec.size)[1]

    def _create(self, spec: VolumeSpec) -> Record:
        table, size, stored_as = self._table, rounded(spec.size), object_name(spec.name, spec.uid)
        if spec.format is not Format.RAW:
            raise Unsupported(f"format {spec.format} cannot be created here; use raw", field="format")
        if not 0 < size <= MAXIMUM:
            raise OutOfRange(f"{spec.size} bytes is not between 1 and {MAXIMUM}", field="size")
        origin = self._origin(spec.source, spec.size) if spec.source and spec.source.kind is not SourceKind.EMPTY else None
        thick = spec.provisioning is Provisioning.THICK
        space = size if thick else origin[1] if origin and not table.media.shares else 0
        path = f"{table.media.begin(stored_as)}/{_FIRST}"
        try:
            with table.promise(spec.name, size, space):
                if origin:
                    media.copy(origin[0], path, size, thick=thick, shares=table.media.shares, told=self._told)
                else:
                    media.make(path, size, thick=thick)
                tag = tag_of(spec, self._table.instance, time.time())
                return table.add(Record(tag=tag, stored_as=stored_as, file=_FIRST, promised=size, incomplete=spec.incomplete))
        except BaseException:  # whatever it was, nothing half-made stays
            table.media.abandon(stored_as)
            raise

    def _told(self, _: float) -> None:
        self._table.wanted()

    def _origin(self, source: Source, size: int) -> tuple[str, int]:
        """The file to copy and the space that it takes."""
        record = self._table.find(VolumeId(source.volume, source.volume_uid))
        if record.incomplete:
            raise Precondition(f"volume {source.volume} is still being filled", reason="NOT_READY")
        file = record.file
        if source.kind is SourceKind.SNAPSHOT:
            cut = record.cut(source.snapshot_uid)
            if cut is None:
                raise NotFound(f"snapshot {source.snapshot} ({source.snapshot_uid}) of volume {source.volume} does not exist")
            file = cut.file
        length, taken = self._table.media.size(record.stored_as, file)
        if size < length:
            raise OutOfRange(f"the clone's size, {size}, is less than its source's, {length}", field="size")
        return self._table.media.path(record.stored_as, file), taken
