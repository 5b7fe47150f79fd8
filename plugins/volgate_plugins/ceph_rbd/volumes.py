"""Volumes: made, read, grown, labelled and deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import rbd

from volgate.backend import VolumeId, tag_of
from volgate.connection import RbdImage
from volgate.errors import AlreadyExists, Holder, InUse, NotFound, Unsupported
from volgate.model import Format, Labels, Provisioning, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.ceph_rbd import images
from volgate_plugins.ceph_rbd.adoption import give_back
from volgate_plugins.ceph_rbd.changes import write_back
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.holding import refuse_open
from volgate_plugins.ceph_rbd.pool import Note
from volgate_plugins.ceph_rbd.snapshots import ROW, Taken, taken
from volgate_plugins.ceph_rbd.sources import Sources
from volgate_plugins.ceph_rbd.space import Space
from volgate_plugins.ceph_rbd.store import Content, Found, Store

__all__ = ["Volumes", "connected"]


class Volumes:
    """The volumes of one pool."""

    def __init__(self, store: Store, sources: Sources, space: Space) -> None:
        """Use the pool's store."""
        self._store, self._sources, self._space = store, sources, space

    def create(self, spec: VolumeSpec, size: int) -> Volume:
        """Make a volume of `size` bytes, or tell the one of the same uid."""
        store, image = self._store, object_name(spec.name, spec.uid)
        with store.use() as link:
            found = store.lookup(link, spec.name, prove=False)  # what is noted before the image is made proves it
            if found is not None:
                if found.tag.uid != spec.uid:
                    raise AlreadyExists(f"volume {spec.name} exists with uid {found.tag.uid}, asked was {spec.uid}")
                self._finish(link, image, spec.uid)
                return store.volume(link, found)
            _require_possible(spec)
            with self._space.promising(link, size, f"create volume {spec.name}"):
                header, note = self._sources.make(link, spec, size)
                copied = [key for key in header.metadata if key.startswith(ROW)]  # librbd gives a clone all metadata of its source
                content = Content(place=store.place(link, header.id), incomplete=spec.incomplete)
                made = store.tag(link, image, header, tag_of(spec, store.pool.instance, time.time()), content, copied)
            self._sources.finish(link, note, spec.uid)
            store.pool.made(link, image)
            return store.volume(link, made, empty=spec.source is None)

    def delete(self, volume: VolumeId) -> None:
        """Move the image to the trash, unless somebody uses it."""
        store, image = self._store, object_name(volume.name, volume.uid)
        with store.use() as link:
            found = store.lookup(link, volume.name)
            if found is not None and found.tag.uid == volume.uid:
                self._refuse_held(link, found)
                images.take_away(store, link, found.image, found.header.id, store.settings.trash_seconds)
            if (note := store.pool.making(link, image)) is not None:
                self._undo(link, image, volume.uid, note)

    def get(self, name: str) -> Volume:
        """Read a volume."""
        with self._store.use() as link:
            found = self._store.lookup(link, name)
            if found is None:
                raise NotFound(f"volume {name} does not exist")
            return self._store.volume(link, found)

    def every(self) -> Iterator[Volume]:
        """Every volume by name."""
        with self._store.use() as link:
            volumes = self._store.every(link)[1]
            self._store.pool.prove(link)
        yield from volumes

    def expand(self, volume: VolumeId, size: int) -> Volume:
        """Grow to `size` bytes, under a guest too: librbd tells whoever has the image open."""
        store, doing = self._store, f"expand volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            if size > found.header.size:
                more = size - found.header.size
                with self._space.promising(link, more, doing), store.image(link, found.header.id, doing) as image, changing(doing):
                    image.resize(size)
                found = store.find(link, volume)
            return store.volume(link, found)

    def relabel(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace the labels in the tag."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if found.tag.labels != labels:
                tag = msgspec.structs.replace(found.tag, labels=dict(labels), generation=found.tag.generation + 1)
                found = self._store.save(link, found, tag, found.content)
            return self._store.volume(link, found)

    def complete(self, volume: VolumeId) -> Volume:
        """Mark a volume that was filled as ready."""
        with self._store.use() as link:
            found = self._store.find(link, volume)
            if found.content.incomplete:
                found = self._store.save(link, found, found.tag, msgspec.structs.replace(found.content, incomplete=False))
            return self._store.volume(link, found)

    def revert(self, volume: VolumeId, one: Taken, token: str) -> Volume:
        """Roll back to a snapshot, and note the token."""
        store, doing = self._store, f"revert volume {volume.name}"
        with store.use() as link:
            found = store.find(link, volume)
            if token not in found.content.reverts:
                with store.image(link, found.header.id, doing) as image:
                    refuse_open(store, link, found, image, doing)
                    if one.cut.group:
                        write_back(store, link, found, image, one, doing)
                    else:
                        with changing(doing):
                            image.rollback_to_snap(one.cut.stored_as)
                content = msgspec.structs.replace(found.content, reverts=(*found.content.reverts, token)[-64:])
                tag = msgspec.structs.replace(found.tag, generation=found.tag.generation + 1)
                store.save(link, found, tag, content)
                found = store.find(link, volume)
            return store.volume(link, found)

    def _finish(self, link: Link, image: str, uid: str) -> None:
        """A made volume: what is noted of its making goes."""
        note = self._store.pool.making(link, image)
        if note is not None:
            self._sources.finish(link, note, uid)
            self._store.pool.made(link, image)

    def _undo(self, link: Link, image: str, uid: str, note: Note) -> None:
        """A volume that was never made, or is deleted: what its making left goes."""
        if note.adopted:
            give_back(self._store, link, image, note.adopted)
        else:
            images.discard(self._store, link, image)
        self._sources.finish(link, note, uid)
        self._store.pool.made(link, image)

    def _refuse_held(self, link: Link, found: Found) -> None:
        doing = f"delete volume {found.tag.name}"
        with self._store.image(link, found.header.id, doing, read_only=True) as image:
            with reading(doing):
                named = {one.id: one.cut for one in taken(image, found.header)}
                kept = [one for one in image.list_snaps() if one["namespace"] != rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH]
            refuse_open(self._store, link, found, image, doing)
        if kept:
            cuts = [
                (named[one["id"]].name, named[one["id"]].uid) if one["id"] in named else (one["name"], "made by others") for one in kept
            ]
            holders = tuple(Holder("snapshot", *cut) for cut in cuts)
            told = ", ".join(holder.name for holder in holders)
            raise InUse(f"volume {found.tag.name} is held by its snapshots {told}; delete them first", holders=holders)


def connected(store: Store, link: Link, found: Found, *, snapshot: str = "") -> RbdImage:
    """How an image is reached; a snapshot of it is named behind an @, as QEMU does."""
    settings = store.settings
    return RbdImage(
        fsid=link.fsid,
        pool_id=link.pool_id,
        pool=settings.pool,
        namespace=settings.namespace,
        image=f"{found.image}@{snapshot}" if snapshot else found.image,
        image_id=found.header.id,
        uid=found.tag.uid,
        monitors=settings.monitors,
        user=settings.user,
        key=settings.key,
        size=found.header.size,
    )


def _require_possible(spec: VolumeSpec) -> None:
    if spec.format is not Format.RAW:
        raise Unsupported(f"format {spec.format} cannot be created here; an RBD image is raw", field="format")
    if spec.provisioning is not Provisioning.THIN:
        raise Unsupported("an RBD image takes its space when it is written; thick volumes are not made", field="provisioning")
