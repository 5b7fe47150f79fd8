"""Snapshots of several images at one moment: librbd's groups, which hold off the writes of all clients while they cut.

The snapshot of a member has a row as any other, with the group's name; it lies in a namespace of RBD's own, and is reached by its id. An
image is in a group only while that cuts. The group itself stays as long as a row names it, and a note of the pool says of which images.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import rbd

from volgate.backend import GroupMember
from volgate.errors import AlreadyExists, InUse, Precondition, VolgateError
from volgate.model import Snapshot
from volgate_plugins.ceph_rbd import layout
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.holding import bury_at
from volgate_plugins.ceph_rbd.snapshots import ROW, Snapshotting, Taken, cuts_of, row_of, told
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["PREFIX", "Grouping"]

PREFIX = "volgate."
"""Begins the names of our groups."""
_SNAPSHOT = "cut"
_COMPLETE = 1
_UNFINISHED_SECONDS = 600.0


class Grouping:
    """What Groups asks, of one pool."""

    def __init__(self, store: Store, snapshots: Snapshotting) -> None:
        """Take the open pool."""
        self._store, self._snapshots = store, snapshots

    def create(self, group_uid: str, members: Sequence[GroupMember]) -> list[Snapshot]:
        """Cut all, or tell those of the same uids. Raises NotFound, AlreadyExists, InUse (another group), OutOfSpace, InDoubt."""
        group, doing = PREFIX + group_uid, f"cut a group of {len(members)} snapshots"
        with self._store.use() as link:
            found = [self._store.find(link, member.volume) for member in members]
            if there := self._there(link, group, found, members):
                self._leave(link, group, found)
                return there
            self._refuse(link, found, members)
            self._store.pool.note_client(link)  # librbd opens the images, and locks them
            self._store.pool.note_group(link, group_uid, [one.header.id for one in found])
            for one in found:
                bury_at(self._store, link, one.header.id)  # a call that died may hold its lock
            try:
                self._begin(link, group, found, doing)
                found = [self._described(link, group, one, member) for one, member in zip(found, members, strict=True)]
                with changing(doing):
                    rbd.Group(link.ioctx, group).create_snap(_SNAPSHOT)
            except VolgateError as error:
                if not error.retryable:  # it is known what was done: nothing stays of it
                    self._take_back(link, group, found, members)
                raise
            self._leave(link, group, found)
            return self._there(link, group, found, members)

    def forget(self, link: Link, group: str) -> None:
        """Remove a group that no snapshot belongs to any more, if it is one."""
        uid = group.removeprefix(PREFIX)
        ids = self._store.pool.groups(link).get(uid)
        if ids is None or self._needed(link, group, ids.images):
            return
        with changing(f"remove group {group}"):
            try:
                rbd.RBD().group_remove(link.ioctx, group)
            except rbd.ObjectNotFound:  # said too where the image of a member is purged: then the group is there, and stays for ever
                layout.drop_group(link.ioctx, group)
        self._store.pool.forget_group(link, uid)

    def sweep(self, link: Link) -> None:
        """Remove the groups that dead calls left without a member."""
        before = time.time() - _UNFINISHED_SECONDS
        for uid, note in self._store.pool.groups(link).items():
            if note.since < before:
                self.forget(link, PREFIX + uid)

    # -- steps

    def _there(self, link: Link, group: str, found: Sequence[Found], members: Sequence[GroupMember]) -> list[Snapshot]:
        """The snapshots, if all of them were cut; else none."""
        if not self._is_cut(link, group):
            return []
        cut = [self._one(link, one, member) for one, member in zip(found, members, strict=True)]
        return [told(volume, one) for volume, one in zip(found, cut, strict=True) if one] if all(cut) else []

    def _one(self, link: Link, found: Found, member: GroupMember) -> Taken | None:
        return next((one for one in self._snapshots.of(link, found) if one.cut.uid == member.spec.uid), None)

    def _is_cut(self, link: Link, group: str) -> bool:
        with reading(f"look at group {group}"), contextlib.suppress(rbd.ObjectNotFound):
            return any(one["name"] == _SNAPSHOT and one["state"] == _COMPLETE for one in rbd.Group(link.ioctx, group).list_snaps())
        return False

    def _refuse(self, link: Link, found: Sequence[Found], members: Sequence[GroupMember]) -> None:
        """Raise before anything is done what would fail one of them."""
        for volume, member in zip(found, members, strict=True):
            name = volume.tag.name
            if volume.content.incomplete:
                raise Precondition(f"volume {name} is still being filled", reason="NOT_READY")
            for one in self._snapshots.of(link, volume):
                if one.cut.name == member.spec.name and one.cut.uid != member.spec.uid:
                    raise AlreadyExists(f"volume {name} has a snapshot {one.cut.name} of uid {one.cut.uid}, asked was {member.spec.uid}")
            self._snapshots.refuse_many(volume, f"cut snapshot {member.spec.name} of volume {name}")
            other = self._group_of(link, volume)
            if other and not other.startswith(PREFIX):
                said = f"volume {name} is in RBD group {other}, and an image can be in one only; take it out (`rbd group image remove`)"
                raise InUse(said)

    def _group_of(self, link: Link, found: Found) -> str:
        doing = f"look at volume {found.tag.name}"
        with self._store.image(link, found.header.id, doing, read_only=True) as image, reading(doing):
            return str(image.group()["name"])

    def _begin(self, link: Link, group: str, found: Sequence[Found], doing: str) -> None:
        """Make the group with its members, without a snapshot: one that was cut by half goes."""
        with changing(doing):
            with contextlib.suppress(rbd.ObjectExists):
                rbd.RBD().group_create(link.ioctx, group)
            handle = rbd.Group(link.ioctx, group)
            for one in list(handle.list_snaps()):
                handle.remove_snap(one["name"])
        for one in found:
            other = self._group_of(link, one)
            with changing(doing):
                if other not in ("", group):  # of a call that died: it holds nothing by that
                    rbd.Group(link.ioctx, other).remove_image(link.ioctx, one.image)
                if other != group:
                    handle.add_image(link.ioctx, one.image)

    def _described(self, link: Link, group: str, found: Found, member: GroupMember) -> Found:
        """Write the row of a member: until the snapshot is there, it tells of nothing."""
        cut = msgspec.structs.replace(cuts_of(found.header).get(member.spec.uid) or row_of(member.spec), stored_as="", group=group)
        row = msgspec.json.encode(cut)
        self._store.rewrite(link, f"cut snapshot {cut.name} of volume {found.tag.name}", found.header, {ROW + cut.uid: row})
        return replace(found, header=replace(found.header, metadata={**found.header.metadata, ROW + cut.uid: row}))

    def _leave(self, link: Link, group: str, found: Sequence[Found]) -> None:
        """Take the images out of the group: their snapshots stay."""
        for one in found:
            with changing(f"take volume {one.tag.name} out of group {group}"), contextlib.suppress(rbd.ObjectNotFound, rbd.ImageNotFound):
                rbd.Group(link.ioctx, group).remove_image(link.ioctx, one.image)

    def _take_back(self, link: Link, group: str, found: Sequence[Found], members: Sequence[GroupMember]) -> None:
        with contextlib.suppress(VolgateError):  # what stays is found by the repeat, or by the sweep
            self._leave(link, group, found)
            for member in members:
                self._snapshots.delete(member.volume, member.spec.uid)
            self.forget(link, group)

    def _needed(self, link: Link, group: str, images: Sequence[str]) -> bool:
        with reading(f"look at group {group}"):
            headers = layout.headers(link.ioctx, images, whole=True)
        return any(cut.group == group for header in headers.values() for cut in cuts_of(header).values())
