"""The volumes of a pool: found by name, proven by their tag, told as values; images opened for a while."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import rados
import rbd

from volgate.backend import OwnerTag, PoolContext, VolumeId, seal, unseal, volume_of
from volgate.errors import DataLoss, InDoubt, NotFound, Precondition
from volgate.model import Format, Provisioning, Volume, VolumeState
from volgate_plugins.ceph_rbd import layout
from volgate_plugins.ceph_rbd.cluster import Cluster, Link
from volgate_plugins.ceph_rbd.faults import changing, number, reading
from volgate_plugins.ceph_rbd.holding import bury, bury_all
from volgate_plugins.ceph_rbd.layout import TAG, Header
from volgate_plugins.ceph_rbd.pool import PoolObject
from volgate_plugins.ceph_rbd.settings import CephSettings

__all__ = ["TAG", "Content", "Found", "Store"]

_STORED = re.compile(r"(.+)\.[0-9a-f]{8}")


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the tag. `place`: the very image that the tag is of; librbd copies metadata to clones."""

    place: str
    incomplete: bool = False
    reverts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A volume as it was just read: the image's name, its header, its tag."""

    image: str
    header: Header
    tag: OwnerTag
    content: Content

    @property
    def id(self) -> VolumeId:
        """The volume's name for good."""
        return VolumeId(self.tag.name, self.tag.uid)


class Store:
    """One open pool. Each call takes the connection (`use`) and passes it on."""

    def __init__(self, settings: CephSettings, context: PoolContext) -> None:
        """Connect, and take the pool. Raises Unreachable, Denied, NotFound, Precondition, InvalidRequest."""
        settings.check()
        self.settings = settings
        self.cluster = Cluster(settings)
        self.pool = PoolObject(self.cluster, context)
        self._counting = threading.Lock()
        self._writers: Counter[str] = Counter()
        try:
            with self.cluster.use() as link:
                self.fsid = link.fsid
                self.pool.open(link, used=self._is_used(link))
                bury_all(self, link)
        except BaseException:  # whatever it was, no connection stays
            self.cluster.close()
            raise

    @contextlib.contextmanager
    def use(self) -> Iterator[Link]:
        """Have the connection for a call. Raises as `Cluster.use`."""
        with self.cluster.use() as link:
            yield link

    # -- reading

    def place(self, link: Link, image_id: str) -> str:
        """What no other image in the world is."""
        return f"{link.fsid}/{link.pool_id}/{self.settings.namespace}/{image_id}"

    def lookup(self, link: Link, name: str, *, prove: bool = True) -> Found | None:
        """The volume of a name, None if there is none; `prove` that this is the pool where it would be.

        Raises DataLoss (TAG_DAMAGED), Precondition (marker).
        """
        with reading(f"look up volume {name}"):
            images = layout.directory(link.ioctx, f"{name}.")
            mine = {image: image_id for image, image_id in images.items() if _name_of(image) == name}
            headers = layout.headers(link.ioctx, mine.values(), whole=True)
        for image, image_id in sorted(mine.items()):
            found = self._read(link, image, headers.get(image_id))
            if found is not None and found.tag.name == name:
                return found
        if prove:
            self.pool.prove(link)
        return None

    def find(self, link: Link, volume: VolumeId) -> Found:
        """The very volume. Raises NotFound, Precondition (UID_DIFFERS), DataLoss."""
        found = self.lookup(link, volume.name)
        if found is None:
            raise NotFound(f"volume {volume.name} does not exist")
        if volume.uid and found.tag.uid != volume.uid:
            raise Precondition(f"volume {volume.name} has uid {found.tag.uid}, asked was {volume.uid}", reason="UID_MISMATCH")
        return found

    def every(self, link: Link) -> tuple[list[tuple[str, Header]], list[Volume]]:
        """All images with their headers, by name, and those that are volumes, told."""
        with reading("list the volumes"):
            images = layout.directory(link.ioctx)
            headers = layout.headers(link.ioctx, images.values())
            there = [(image, headers[image_id]) for image, image_id in sorted(images.items()) if image_id in headers]
            ours = [(image, header) for image, header in there if header.tag]
            sizes = layout.allocated(link.ioctx, [header for _, header in ours])
        told = [self._told(link, image, header, headers, sizes) for image, header in ours]
        return there, sorted((volume for volume in told if volume is not None), key=lambda volume: volume.name)

    def volume(self, link: Link, found: Found, *, empty: bool = False) -> Volume:
        """Tell a volume; `empty`: it was just made of nothing."""
        if empty:
            return _volume(found, 0, 0)
        with reading(f"read volume {found.tag.name}"):
            sizes = layout.allocated(link.ioctx, [found.header])
            depth = self.depth(link, found.header)
        return _volume(found, sizes[found.header.id], depth)

    def depth(self, link: Link, header: Header, known: Mapping[str, Header] | None = None) -> int:
        """How many images a clone lies on. Raises rados.Error."""
        count, seen = 0, {header.id}
        while (parent := header.parent) is not None and parent.image_id not in seen:
            count += 1
            if (parent.pool_id, parent.namespace) != (link.pool_id, self.settings.namespace):
                return count
            below = (known or {}).get(parent.image_id) or layout.headers(link.ioctx, [parent.image_id]).get(parent.image_id)
            if below is None:
                return count
            seen.add(parent.image_id)
            header = below
        return count

    # -- changing

    def save(self, link: Link, found: Found, tag: OwnerTag, content: Content) -> Found:
        """Replace the tag, durably, if nobody else has. Raises InDoubt, OutOfSpace."""
        return self.tag(link, found.image, found.header, tag, content)

    def tag(self, link: Link, image: str, header: Header, tag: OwnerTag, content: Content, removed: Sequence[str] = ()) -> Found:
        """Give an image its tag and take other metadata away, at once."""
        text = seal(tag, content)
        self.rewrite(link, f"tag volume {tag.name}", header, {TAG: text}, removed)
        return Found(image, replace(header, metadata={**header.metadata, TAG: text}), tag, content)

    def rewrite(self, link: Link, doing: str, header: Header, values: Mapping[str, bytes], removed: Sequence[str] = ()) -> None:
        """Change metadata of an image, if its tag is still the one that was read."""
        with changing(doing):
            try:
                layout.rewrite(link.ioctx, header, values, removed)
            except rados.Error as error:
                if number(error) == errno.ECANCELED:
                    raise InDoubt(f"{doing}: another call has changed the volume meanwhile; repeat the call") from error
                raise

    @contextlib.contextmanager
    def image(
        self, link: Link, image_id: str, doing: str, *, snapshot: str = "", snapshot_id: int = 0, read_only: bool = False
    ) -> Iterator[rbd.Image]:
        """Open an image by its id, at a snapshot by its name, or by its id where it has no name of its own.

        Raises NotFound, Unreachable; what happens inside is the caller's to translate.
        """
        with contextlib.ExitStack() as stack:
            if not read_only:
                self.pool.note_client(link)
                stack.enter_context(self._counted(image_id))
            with reading(doing):
                opened = rbd.Image(link.ioctx, image_id=image_id, snapshot=snapshot or None, read_only=read_only)
            try:
                if snapshot_id:
                    with reading(doing):
                        opened.set_snap_by_id(snapshot_id)
                if not read_only:
                    with reading(doing):
                        bury(self, link, opened, alone=self._writers[image_id] == 1)
                yield opened
            finally:
                with contextlib.suppress(rbd.Error):  # nothing is in flight: what was written was waited for
                    opened.close()

    @contextlib.contextmanager
    def _counted(self, image_id: str) -> Iterator[None]:
        """Count who has an image open for a change in this process."""
        with self._counting:
            self._writers[image_id] += 1
        try:
            yield
        finally:
            with self._counting:
                self._writers[image_id] -= 1
                if not self._writers[image_id]:
                    del self._writers[image_id]

    # -- inside

    def _is_used(self, link: Link) -> bool:
        """Whether there are images with a tag of a gateway; only looked at where there is no marker."""
        if self.pool.is_marked(link):
            return True
        with reading("look what is in the pool"):
            found = layout.headers(link.ioctx, layout.directory(link.ioctx).values())
        return any(header.tag for header in found.values())

    def _read(self, link: Link, image: str, header: Header | None) -> Found | None:
        """An image as a volume; None if it carries no tag of its own."""
        if header is None or not header.tag:
            return None
        tag, content = unseal(header.tag, Content)
        return Found(image, header, tag, content) if content.place == self.place(link, header.id) else None

    def _told(self, link: Link, image: str, header: Header, known: Mapping[str, Header], sizes: Mapping[str, int]) -> Volume | None:
        try:
            found = self._read(link, image, header)
        except DataLoss as error:
            return _damaged(image, header, error.message)
        if found is None:
            return None
        with reading("list the volumes"):
            return _volume(found, sizes[header.id], self.depth(link, header, known))


def _volume(found: Found, allocated: int, depth: int) -> Volume:
    state = VolumeState.CREATING if found.content.incomplete else VolumeState.READY
    told = volume_of(found.tag, found.image, found.header.size, state)
    return replace(told, allocated=allocated, depth=depth)


def _damaged(image: str, header: Header, problem: str) -> Volume:
    name = _name_of(image) or image
    return Volume(name, "", image, header.size, header.size, Format.RAW, Provisioning.THIN, VolumeState.FAILED, problem=problem)


def _name_of(image: str) -> str:
    """The volume's name in the name of its image, "" if that is no such name."""
    match = _STORED.fullmatch(image)
    return match[1] if match else ""
