"""Snapshots: RBD's own, each described by a row of the image's metadata that is written before it and removed after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, NotFound, OutOfSpace
from volgate.model import Labels, Snapshot
from volgate.names import object_name
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["CLONING", "ROW", "Cut", "Snapshotting", "cuts_of", "row_of"]

ROW = "volgate.snapshot."
CLONING = ".volgate-clone."
"""Begins the names of snapshots that are there for the moment of a clone."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What a row says; `stored_as` is the snapshot's name in the image."""

    uid: str
    name: str
    stored_as: str
    created: float
    labels: Labels = {}
    quiesced: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that exists: its row, and what librbd says of it."""

    cut: Cut
    id: int
    size: int


def row_of(spec: SnapshotSpec, stored_as: str = "") -> Cut:
    """The row of a new snapshot."""
    stored_as = stored_as or object_name(spec.name, spec.uid)
    return Cut(uid=spec.uid, name=spec.name, stored_as=stored_as, created=time.time(), labels=dict(spec.labels), quiesced=spec.quiesced)


def cuts_of(header: Header) -> dict[str, Cut]:
    """The rows of an image by uid, those of snapshots that are not there (any more, or yet) among them."""
    rows = (value for key, value in header.metadata.items() if key.startswith(ROW))
    return {cut.uid: cut for cut in (msgspec.json.decode(row, type=Cut) for row in rows)}


def taken(header: Header) -> list[Taken]:
    """The snapshots that exist, oldest first; those of others, and those that only clones still need, have other names."""
    rows = {cut.stored_as: cut for cut in cuts_of(header).values()}
    found = [Taken(rows[name], *facts) for name, facts in header.snapshots.items() if name in rows]
    return sorted(found, key=lambda one: one.id)


class Snapshotting:
    """The snapshots of one pool's volumes."""

    def __init__(self, store: Store) -> None:
        """Use the pool's store."""
        self._store = store

    def create(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Cut one, or tell the one of the same uid."""
        store, doing = self._store, f"cut snapshot {spec.name} of volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            for other in taken(found.header):
                if other.cut.uid == spec.uid:
                    return _told(found, other)
                if other.cut.name == spec.name:
                    raise AlreadyExists(f"volume {volume.name} has a snapshot {spec.name} of uid {other.cut.uid}, asked was {spec.uid}")
            self._refuse_many(found, doing)
            cut = cuts_of(found.header).get(spec.uid) or row_of(spec)  # a row without its snapshot: the call that wrote it died
            store.rewrite(link, doing, found.header, {ROW + cut.uid: msgspec.json.encode(cut)})
            with store.image(link, found.header.id, doing) as image:
                with changing(doing):
                    image.create_snap(cut.stored_as)
                with reading(doing):
                    made = next(one for one in image.list_snaps() if one["name"] == cut.stored_as)
                return _told(found, Taken(cut, made["id"], made["size"]))

    def delete(self, volume: VolumeId, uid: str) -> None:
        """Remove one; clones of it go on: what they need moves to the image's trash."""
        store, doing = self._store, f"delete snapshot {uid} of volume {volume.name}"
        with store.use() as link:
            found = store.lookup(link, volume.name)
            if found is None or found.tag.uid != volume.uid or uid not in cuts_of(found.header):
                return
            stored_as = cuts_of(found.header)[uid].stored_as
            if stored_as in found.header.snapshots:
                with store.image(link, found.header.id, doing) as image, changing(doing):
                    image.remove_snap(stored_as)
            store.rewrite(link, doing, found.header, {}, [ROW + uid])

    def every(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Tell them, oldest first."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            return [_told(found, one) for one in taken(found.header)]

    @staticmethod
    def one(found: Found, uid: str) -> Taken:
        """A snapshot by its uid. Raises NotFound."""
        for one in taken(found.header):
            if one.cut.uid == uid:
                return one
        raise NotFound(f"volume {found.tag.name} has no snapshot of uid {uid}")

    def _refuse_many(self, found: Found, doing: str) -> None:
        most = self._store.settings.max_snapshots
        if len(found.header.snapshots) >= most:
            raise OutOfSpace(
                f"{doing}: the image has {len(found.header.snapshots)} snapshots, those of clones among them, and `max_snapshots`"
                f" is {most}; delete some, or clones",
                reason="SNAPSHOT_LIMIT",
            )


def _told(found: Found, one: Taken) -> Snapshot:
    cut = one.cut
    return Snapshot(cut.name, cut.uid, found.tag.name, found.tag.uid, one.size, dict(cut.labels), cut.created, cut.quiesced)
