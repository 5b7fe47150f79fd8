"""New images: empty, or clones of a snapshot or of a volume, which become copies where a family would grow too deep."""

from __future__ import annotations

import contextlib

import rbd

from volgate.backend import VolumeId
from volgate.errors import NotFound, OutOfRange, Precondition
from volgate.model import SourceKind, VolumeSpec
from volgate.names import object_name
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.images import create, header_of
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.pool import Note
from volgate_plugins.ceph_rbd.snapshots import CLONING, Snapshotting, Taken
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["Sources"]


class Sources:
    """What new images are made of."""

    def __init__(self, store: Store, snapshots: Snapshotting) -> None:
        """Use the pool's store."""
        self._store, self._snapshots = store, snapshots

    def make(self, link: Link, spec: VolumeSpec, size: int) -> tuple[Header, Note]:
        """Make the image of a new volume, without its tag; return what is noted of it too.

        Raises NotFound (source), OutOfRange, OutOfSpace, Precondition.
        """
        if spec.source is None:
            return self._empty(link, spec, size)
        origin = self.origin(link, spec)
        return self._clone(link, spec, size, origin)

    def finish(self, link: Link, note: Note, uid: str) -> None:
        """Take away what a clone left in its source."""
        if not note.source:
            return
        with contextlib.suppress(NotFound), changing("finish a clone"), self._store.image(link, note.source, "finish a clone") as image:
            if any(found["name"] == CLONING + uid for found in image.list_snaps()):
                image.remove_snap(CLONING + uid)

    def origin(self, link: Link, spec: VolumeSpec) -> Found:
        """The volume that a clone is made of. Raises NotFound, Precondition (an import fills it)."""
        assert spec.source is not None
        found = self._store.find(link, VolumeId(spec.source.volume, spec.source.volume_uid))
        if found.content.incomplete:
            raise Precondition(f"volume {found.tag.name} is still being filled", reason="NOT_READY")
        return found

    def copies(self, link: Link, spec: VolumeSpec, origin: Found) -> bool:
        """Whether a clone has to be a copy: of a snapshot of a group, or since its family is too deep, or has too many snapshots."""
        return self._grouped(link, spec, origin) is not None or self._flattens(link, origin)

    def _flattens(self, link: Link, origin: Found) -> bool:
        settings = self._store.settings
        with reading(f"look at volume {origin.tag.name}"):
            depth = self._store.depth(link, origin.header)
        return depth >= settings.max_depth or len(origin.header.snapshots) >= settings.max_snapshots

    def _empty(self, link: Link, spec: VolumeSpec, size: int) -> tuple[Header, Note]:
        settings, image, note = self._store.settings, object_name(spec.name, spec.uid), Note(uid=spec.uid)

        def make() -> None:
            rbd.RBD().create(
                link.ioctx,
                image,
                size,
                **settings.image_options,
            )

        return create(self._store, link, image, note, make), note

    def _clone(self, link: Link, spec: VolumeSpec, size: int, origin: Found) -> tuple[Header, Note]:
        image = object_name(spec.name, spec.uid)
        moment, source_size = self._moment(link, spec, origin)
        if size < source_size:
            raise OutOfRange(f"a clone of {source_size} bytes cannot have {size}", field="size")
        grouped = self._grouped(link, spec, origin)
        note = Note(uid=spec.uid, source=origin.header.id if moment.startswith(CLONING) else "")

        def make() -> None:
            if grouped is not None:
                self._copy(link, origin, grouped, image)
                return
            try:
                self._clone_at(link, origin, moment, image, cut=bool(note.source))
            except rbd.ImageNotFound:  # said too of a moment whose maker died in the middle: it has no object map
                if not note.source:
                    raise
                with self._store.image(link, origin.header.id, f"clone volume {origin.tag.name}") as opened:
                    opened.remove_snap(moment)
                self._clone_at(link, origin, moment, image, cut=True)

        made = create(self._store, link, image, note, make)
        copied = grouped is None and self._flattens(link, origin)
        if size > source_size or copied:
            with self._store.image(link, made.id, f"create volume {spec.name}") as opened, changing(f"create volume {spec.name}"):
                if copied:
                    opened.flatten()
                if size > source_size:
                    opened.resize(size)
            made = header_of(link, image)
        return made, note

    def _clone_at(self, link: Link, origin: Found, moment: str, image: str, *, cut: bool) -> None:
        """Clone a snapshot; `cut`: one that is made for this."""
        settings = self._store.settings
        if cut:
            self._cut_moment(link, origin, moment)
        rbd.RBD().clone(
            link.ioctx,
            origin.image,
            moment,
            link.ioctx,
            image,
            **settings.image_options,
        )

    def _grouped(self, link: Link, spec: VolumeSpec, origin: Found) -> Taken | None:
        """The snapshot that is cloned, if it is one of a group: it has no name to clone from, and is copied."""
        if spec.source is None or spec.source.kind is not SourceKind.SNAPSHOT:
            return None
        one = self._snapshots.one(link, origin, spec.source.snapshot_uid)
        return one if one.cut.group else None

    def _copy(self, link: Link, origin: Found, one: Taken, image: str) -> None:
        settings, doing = self._store.settings, f"copy snapshot {one.cut.name} of volume {origin.tag.name}"
        with self._store.image(link, origin.header.id, doing, snapshot_id=one.id, read_only=True) as opened:
            opened.copy(
                link.ioctx,
                image,
                **settings.image_options,
            )

    def _moment(self, link: Link, spec: VolumeSpec, origin: Found) -> tuple[str, int]:
        """The snapshot that is cloned: its name in the image, and its size."""
        assert spec.source is not None
        if spec.source.kind is SourceKind.SNAPSHOT:
            one = self._snapshots.one(link, origin, spec.source.snapshot_uid)
            return one.cut.stored_as, one.size
        return CLONING + spec.uid, origin.header.size

    def _cut_moment(self, link: Link, origin: Found, moment: str) -> None:
        with self._store.image(link, origin.header.id, f"clone volume {origin.tag.name}") as image, contextlib.suppress(rbd.ImageExists):
            image.create_snap(moment)
