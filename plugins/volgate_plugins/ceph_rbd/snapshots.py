"""Snapshots: RBD's own, each described by a row of the image's metadata that is written before it and removed after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import rbd

from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import AlreadyExists, NotFound, OutOfSpace
from volgate.model import Labels, Snapshot
from volgate.names import object_name
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["CLONING", "ROW", "Cut", "Snapshotting", "Taken", "cuts_of", "row_of", "taken", "told"]

ROW = "volgate.snapshot."
CLONING = ".volgate-clone."
"""Begins the names of snapshots that are there for the moment of a clone."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What a row says; `stored_as` is the snapshot's name in the image; of one of a `group`, it has none of its own."""

    uid: str
    name: str
    stored_as: str
    created: float
    labels: Labels = {}
    quiesced: bool = False
    group: str = ""


_cuts = msgspec.json.Decoder(Cut)


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that exists: its row, and what librbd says of it."""

    cut: Cut
    id: int
    size: int

    @property
    def reached_by(self) -> str:
        """What it is called behind the @ of an image: its name, or `id:` and its id where it has none of its own."""
        return f"id:{self.id}" if self.cut.group else self.cut.stored_as


def row_of(spec: SnapshotSpec, stored_as: str = "") -> Cut:
    """The row of a new snapshot."""
    stored_as = stored_as or object_name(spec.name, spec.uid)
    return Cut(uid=spec.uid, name=spec.name, stored_as=stored_as, created=time.time(), labels=dict(spec.labels), quiesced=spec.quiesced)


def cuts_of(header: Header) -> dict[str, Cut]:
    """The rows of an image by uid, those of snapshots that are not there (any more, or yet) among them."""
    rows = (value for key, value in header.metadata.items() if key.startswith(ROW))
    return {cut.uid: cut for cut in (_cuts.decode(row) for row in rows)}


def taken(image: Any, header: Header) -> list[Taken]:
    """The snapshots that exist, oldest first. Raises rbd.Error."""
    rows = cuts_of(header).values()
    named, grouped = {cut.stored_as: cut for cut in rows if not cut.group}, {cut.group: cut for cut in rows if cut.group}
    there = []
    for found in sorted(image.list_snaps(), key=lambda found: int(found["id"])):
        if found["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP:
            cut = grouped.get(found["group"]["name"])
        else:
            cut = named.get(found["name"]) if found["namespace"] != rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH else None
        if cut is not None:
            there.append(Taken(cut, found["id"], found["size"]))
    return there


def named(header: Header) -> list[Taken] | None:
    """The same, read from a whole header; None if that does not tell, for some were cut in a group.

    Those of others, and those that only clones still need, have other names.
    """
    rows = {cut.stored_as: cut for cut in cuts_of(header).values()}
    if any(cut.group for cut in rows.values()):
        return None
    there = [Taken(rows[name], *facts) for name, facts in header.snapshots.items() if name in rows]
    return sorted(there, key=lambda one: one.id)


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
            for other in self.of(link, found):
                if other.cut.uid == spec.uid:
                    if self._is_whole(link, found, other):
                        return told(found, other)
                    with store.image(link, found.header.id, doing) as image, changing(doing):
                        image.remove_snap(other.cut.stored_as)
                elif other.cut.name == spec.name:
                    raise AlreadyExists(f"volume {volume.name} has a snapshot {spec.name} of uid {other.cut.uid}, asked was {spec.uid}")
            self.refuse_many(found, doing)
            cut = cuts_of(found.header).get(spec.uid) or row_of(spec)  # a row without its snapshot: the call that wrote it died
            store.rewrite(link, doing, found.header, {ROW + cut.uid: msgspec.json.encode(cut)})
            with store.image(link, found.header.id, doing) as image:
                with changing(doing):
                    image.create_snap(cut.stored_as)
                with reading(doing):
                    made = next(one for one in image.list_snaps() if one["name"] == cut.stored_as)
                return told(found, Taken(cut, made["id"], made["size"]))

    def _is_whole(self, link: Link, found: Found, one: Taken) -> bool:
        """Whether a snapshot can be opened: one whose maker died in the middle has no object map, and was promised to nobody."""
        doing = f"look at snapshot {one.cut.name}"
        try:  # by its name: by its id librbd opens one without a map too
            with self._store.image(link, found.header.id, doing, snapshot=one.cut.stored_as, read_only=True):
                return True
        except NotFound:
            return False

    def delete(self, volume: VolumeId, uid: str) -> str:
        """Remove one; clones of it go on: what they need moves to the image's trash. Return the group that it was cut in, "" for none."""
        store, doing = self._store, f"delete snapshot {uid} of volume {volume.name}"
        with store.use() as link:
            found = store.lookup(link, volume.name)
            if found is None or found.tag.uid != volume.uid or uid not in cuts_of(found.header):
                return ""
            there = [one for one in self.of(link, found) if one.cut.uid == uid]
            with store.image(link, found.header.id, doing) as image, changing(doing):
                for one in there:
                    if one.cut.group:
                        image.remove_snap_by_id(one.id)
                    else:
                        image.remove_snap(one.cut.stored_as)
                if not there:
                    _drop_trashed(image)
            store.rewrite(link, doing, found.header, {}, [ROW + uid])
            return cuts_of(found.header)[uid].group

    def every(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Tell them, oldest first."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            return [told(found, one) for one in self.of(link, found)]

    def of(self, link: Link, found: Found) -> list[Taken]:
        """The snapshots of a volume, oldest first; the image is opened only if some were cut in a group."""
        there = named(found.header)
        if there is not None:
            return there
        doing = f"list the snapshots of volume {found.tag.name}"
        with self._store.image(link, found.header.id, doing, read_only=True) as image, reading(doing):
            return taken(image, found.header)

    def one(self, link: Link, found: Found, uid: str) -> Taken:
        """A snapshot by its uid. Raises NotFound."""
        for one in self.of(link, found):
            if one.cut.uid == uid:
                return one
        raise NotFound(f"volume {found.tag.name} has no snapshot of uid {uid}")

    def refuse_many(self, found: Found, doing: str) -> None:
        """Raise OutOfSpace (SNAPSHOT_LIMIT) if the image has as many as it may."""
        most = self._store.settings.max_snapshots
        if len(found.header.snapshots) >= most:
            raise OutOfSpace(
                f"{doing}: the image has {len(found.header.snapshots)} snapshots, those of clones among them, and `max_snapshots`"
                f" is {most}; delete some, or clones",
                reason="SNAPSHOT_LIMIT",
            )


def _drop_trashed(image: Any) -> None:
    """Remove snapshots that an earlier call moved to the image's trash and got no further, as when no monitor answered."""
    for one in list(image.list_snaps()):
        if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH:
            with contextlib.suppress(rbd.ImageBusy):  # a clone needs it: it goes with the last of them
                image.remove_snap_by_id(one["id"])


def told(found: Found, one: Taken) -> Snapshot:
    """Tell a snapshot."""
    cut = one.cut
    return Snapshot(cut.name, cut.uid, found.tag.name, found.tag.uid, one.size, dict(cut.labels), cut.created, cut.quiesced)
