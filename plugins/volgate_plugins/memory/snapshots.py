"""The array's verbs for snapshots: each is a sparse copy (or shares its blocks), so that newer ones never hold older ones."""

from __future__ import annotations

import contextlib
import time

from volgate.backend import GroupMember, SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, Holder, InUse, NotFound, Precondition, translate
from volgate.model import Snapshot, Volume
from volgate_plugins.memory import media
from volgate_plugins.memory.table import Cut, Record, Table

__all__ = ["Snapshots", "find_cut"]

_TOKENS_KEPT = 16


def find_cut(record: Record, uid: str) -> Cut:
    """The snapshot of a volume. Raises NotFound."""
    cut = record.cut(uid)
    if cut is None:
        raise NotFound(f"snapshot {uid} of volume {record.tag.name} does not exist")
    return cut


class Snapshots:
    """Verbs on a table."""

    def __init__(self, table: Table) -> None:
        """Work on a table."""
        self._table = table

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Copy a detached volume, or return the snapshot of that uid."""
        return self.create_snapshot_group([GroupMember(volume, spec)])[0]

    def create_snapshot_group(self, members: list[GroupMember]) -> list[Snapshot]:
        """Copy several volumes while nobody changes one of them, then let all copies appear at once."""
        table, words = self._table, ", ".join(f"{member.spec.name} of volume {member.volume.name}" for member in members)
        with table.holding(*(member.volume.name for member in members)), translate(f"snapshot {words}"):
            records = [table.find(member.volume) for member in members]
            cuts = [self._cut(record, member.spec) for record, member in zip(records, members, strict=True)]
            made = [(record, cut) for record, cut in zip(records, cuts, strict=True) if cut not in record.snapshots]
            try:
                with contextlib.ExitStack() as promises:
                    for record, cut in made:
                        self._copy(record, cut, promises)
                    if made:
                        table.save(*(record.change(snapshots=(*record.snapshots, cut), number=record.number + 1) for record, cut in made))
            except BaseException:  # whatever it was, the copies that nobody knows of go
                for record, cut in made:
                    table.media.remove_file(record.stored_as, cut.file)
                raise
            return [_snapshot(record, cut) for record, cut in zip(records, cuts, strict=True)]

    def _cut(self, record: Record, spec: SnapshotSpec) -> Cut:
        """The snapshot of that uid, or a new one."""
        table, name = self._table, record.tag.name
        if found := record.cut(spec.uid):
            return found
        if any(cut.name == spec.name for cut in record.snapshots):
            raise AlreadyExists(f"volume {name} has another snapshot {spec.name}")
        if record.incomplete:
            raise Precondition(f"volume {name} is still being filled", reason="NOT_READY")
        return Cut(
            uid=spec.uid,
            name=spec.name,
            file=record.next_file,
            size=table.media.size(record.stored_as, record.file)[0],
            labels=spec.labels,
            created=time.time(),
            quiesced=spec.quiesced,
        )

    def _copy(self, record: Record, cut: Cut, promises: contextlib.ExitStack) -> None:
        table = self._table
        source, target = (table.media.path(record.stored_as, file) for file in (record.file, cut.file))
        size, taken = table.media.size(record.stored_as, record.file)
        promises.enter_context(table.promise(record.tag.name, record.promised, 0 if table.media.shares else taken))
        media.copy(source, target, size, thick=False, shares=table.media.shares, told=lambda _: table.wanted())

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete a snapshot; nothing to do if it is gone."""
        table = self._table
        with table.holding(volume.name), translate(f"delete a snapshot of volume {volume.name}"):
            try:
                record = table.find(volume)
            except NotFound:
                return
            cut = record.cut(snapshot_uid)
            if cut is None:
                return
            if clones := table.children(snapshot_uid):
                holders = tuple(Holder("volume", name, "clone") for name in clones)
                raise InUse(f"snapshot {cut.name} of volume {volume.name} is held by its clones {', '.join(clones)}", holders=holders)
            table.save(record.change(snapshots=tuple(other for other in record.snapshots if other is not cut)))
            table.media.remove_file(record.stored_as, cut.file)

    def list_snapshots(self, volume: VolumeId) -> list[Snapshot]:
        """The snapshots of a volume, oldest first."""
        record = self._table.find(volume)
        return [_snapshot(record, cut) for cut in record.snapshots]

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, token: str) -> Volume:
        """Put a copy of the snapshot in the place of the volume's bytes; a known token changes nothing more."""
        table = self._table
        with table.holding(volume.name), translate(f"revert volume {volume.name}"):
            record = table.find(volume)
            if token in record.reverts:
                return table.volume(record)
            cut = find_cut(record, snapshot_uid)
            changed = record.change(
                file=record.next_file, number=record.number + 1, promised=cut.size, reverts=(*record.reverts, token)[-_TOKENS_KEPT:]
            )
            saved = self._copied(record, cut.file, changed, thick=record.thick)
            table.media.remove_file(record.stored_as, record.file)
            return table.volume(saved)

    def children(self, volume: VolumeId) -> list[str]:
        """The clones that hold a volume or its snapshots."""
        return self._table.children(self._table.find(volume).tag.uid)

    def _copied(self, record: Record, source: str, changed: Record, *, thick: bool) -> Record:
        """Copy a file of a volume to its next one and save what is then known of it."""
        table, path = self._table, self._table.media.path(record.stored_as, record.next_file)
        size, taken = table.media.size(record.stored_as, source)
        space = size if thick else 0 if table.media.shares else taken
        try:
            with table.promise(record.tag.name, changed.promised, space):
                origin = table.media.path(record.stored_as, source)
                media.copy(origin, path, size, thick=thick, shares=table.media.shares, told=lambda _: table.wanted())
                return table.save(changed)
        except BaseException:  # whatever it was, the copy that nobody knows of goes
            table.media.remove_file(record.stored_as, record.next_file)
            raise


def _snapshot(record: Record, cut: Cut) -> Snapshot:
    tag = record.tag
    return Snapshot(cut.name, cut.uid, tag.name, tag.uid, cut.size, dict(cut.labels), cut.created, cut.quiesced)
