"""Images that others made, and deleted volumes that are still in the trash: listed, and made volumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec
import rbd

from volgate.backend import Foreign, tag_of, unseal
from volgate.errors import AlreadyExists, DataLoss, InvalidRequest, NotFound, Precondition
from volgate.model import Format, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.ceph_rbd import images, layout
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.holding import bury_at, refuse_open
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.pool import Note
from volgate_plugins.ceph_rbd.store import Content, Found, Store

__all__ = ["Adoption", "give_back"]

_TRASH = "trash:"
_SECTOR = 512


class Adoption:
    """What is in the pool and no volume."""

    def __init__(self, store: Store) -> None:
        """Use the pool's store."""
        self._store = store

    def every(self) -> Iterator[Foreign]:
        """Yield the images without a tag of their own, and the deleted volumes that can come back."""
        with self._store.use() as link:
            there, _ = self._store.every(link)
            making = self._store.pool.all_making(link)
            found = [self._foreign(link, image, header) for image, header in there if image not in making]
            deleted = self._deleted(link)
        yield from (foreign for foreign in found if foreign is not None)
        yield from deleted

    def adopt(self, locator: str, spec: VolumeSpec) -> Volume:
        """Rename the image and tag it; its data stay as they are."""
        store, image = self._store, object_name(spec.name, spec.uid)
        if not locator or "@" in locator or "/" in locator:
            raise InvalidRequest(f"{locator!r} is not the name of an image of the pool", field="locator")
        if spec.format is not Format.RAW:
            raise Precondition(f"an RBD image is raw and cannot be adopted as {spec.format}", reason="NOT_ADOPTABLE")
        with store.use() as link:
            found = store.lookup(link, spec.name)
            if found is not None and found.tag.uid != spec.uid:
                raise AlreadyExists(f"volume {spec.name} exists with uid {found.tag.uid}, asked was {spec.uid}")
            if found is None:
                note = store.pool.making(link, image)
                with reading(f"adopt {locator}"):
                    moved = note is not None and image in layout.directory(link.ioctx, image)
                if not moved:
                    self._move(link, locator, image, spec)
                found = self._tag(link, locator, image, spec)
            store.pool.made(link, image)
            return store.volume(link, found)

    def _move(self, link: Link, locator: str, image: str, spec: VolumeSpec) -> None:
        if locator.startswith(_TRASH):
            self._restore(link, locator, image, spec)
            return
        store, doing = self._store, f"adopt {locator}"
        with reading(doing):
            image_id = layout.directory(link.ioctx, locator).get(locator, "")
            header = layout.headers(link.ioctx, [image_id]).get(image_id) if image_id else None
        if header is None or locator in store.pool.all_making(link):
            raise NotFound(f"{locator} is not an image of the pool")
        if self._foreign(link, locator, header) is None:
            raise Precondition(f"{locator} is a volume already", reason="NOT_ADOPTABLE")
        if not header.size or header.size % _SECTOR:
            raise Precondition(f"{locator} is no whole number of sectors long; import it", reason="NOT_ADOPTABLE")
        with store.image(link, image_id, doing, read_only=True) as opened:
            refuse_open(store, link, _as_found(locator, header, spec), opened, doing)
        store.pool.note_client(link)  # librbd opens the image by itself
        bury_at(store, link, image_id)
        store.pool.begin(link, image, Note(uid=spec.uid, adopted=locator))
        with changing(doing):
            layout.drop_name(link.ioctx, image, image_id)
            rbd.RBD().rename(link.ioctx, locator, image)

    def _restore(self, link: Link, locator: str, image: str, spec: VolumeSpec) -> None:
        image_id, doing = locator.removeprefix(_TRASH), f"undelete {locator}"
        if locator not in {foreign.locator for foreign in self._deleted(link)}:
            raise NotFound(f"{locator} is not in the trash of the pool; it is kept for `trash_seconds`")
        self._store.pool.begin(link, image, Note(uid=spec.uid, adopted=locator))
        with changing(doing):
            rbd.RBD().trash_restore(link.ioctx, image_id, image)
        self._store.pool.purged(link, image_id)

    def _tag(self, link: Link, locator: str, image: str, spec: VolumeSpec) -> Found:
        header = images.header_of(link, image)
        with changing(f"adopt {locator}"):  # an attempt that died may have left the name that it had
            layout.drop_name(link.ioctx, locator, header.id)
        tag = tag_of(spec, self._store.pool.instance, time.time())
        with contextlib.suppress(DataLoss):
            if header.tag and not spec.labels:  # it was a volume once
                tag = msgspec.structs.replace(tag, labels=unseal(header.tag, Content)[0].labels)
        return self._store.tag(link, image, header, tag, Content(place=self._store.place(link, header.id)))

    def _foreign(self, link: Link, image: str, header: Header) -> Foreign | None:
        if header.tag:
            try:
                _, content = unseal(header.tag, Content)
            except DataLoss:
                return None  # a damaged volume, which is told as one
            if content.place == self._store.place(link, header.id):
                return None
        return Foreign(image, header.size, Format.RAW, "an RBD image without an owner tag of its own")

    def _deleted(self, link: Link) -> list[Foreign]:
        """The volumes in the trash whose time has not come."""
        waiting = {image_id: due for image_id, due in self._store.pool.doomed(link).items() if due > time.time()}
        if not waiting:
            return []
        with reading("look into the trash"):
            there = {entry["id"]: entry["name"] for entry in rbd.RBD().trash_list(link.ioctx) if entry["id"] in waiting}
            headers = layout.headers(link.ioctx, there)
        found: list[Foreign] = []
        for image_id, header in sorted(headers.items()):
            when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(waiting[image_id]))
            told = f"image {there[image_id]} of a deleted volume, kept until {when}; adopt it to have it back"
            found.append(Foreign(_TRASH + image_id, header.size, Format.RAW, told))
        return found


def give_back(store: Store, link: Link, image: str, name: str) -> None:
    """Give an image that was being adopted the name that it had; success if it never lost it."""
    store.pool.note_client(link)  # librbd opens the image by itself
    with reading(f"look for image {image}"):
        image_id = layout.directory(link.ioctx, image).get(image, "")
        kept = layout.directory(link.ioctx, name).get(name, "")
    if image_id:
        bury_at(store, link, image_id)
    with changing(f"give image {image} back"), contextlib.suppress(rbd.ImageNotFound):
        if name.startswith(_TRASH):
            rbd.RBD().trash_move(link.ioctx, image, 0)
            return
        if image_id:
            layout.drop_name(link.ioctx, name, image_id)
            rbd.RBD().rename(link.ioctx, image, name)
        layout.drop_name(link.ioctx, image, image_id or kept)


def _as_found(locator: str, header: Header, spec: VolumeSpec) -> Found:
    """An image that is no volume yet, for those that tell of it."""
    return Found(locator, header, tag_of(spec, "", time.time()), Content(place=""))
