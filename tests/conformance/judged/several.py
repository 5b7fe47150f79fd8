"""What the good backend does with several volumes, points in time, and clients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tests.conformance.judged.values import DISK, FENCES
from volgate.backend import ChangedBlocks, Extent, Fences, GroupMember, Groups, Holder, Holders, VolumeId
from volgate.backend.files import write_durably
from volgate.errors import AlreadyExists, InvalidRequest, Precondition, translate
from volgate.model import Snapshot

STEP = 4096
OBJECT = 1 << 16


class Several(Groups, ChangedBlocks, Holders, Fences):
    """Mixed into the good backend; its own methods are there."""

    find: Any
    cut: Any
    cut_one: Any
    snapshot_file: Any
    root: Any

    def create_snapshot_group(self, group_uid: str, members: Sequence[GroupMember]) -> Sequence[Snapshot]:
        with translate(f"snapshot group {group_uid}"):
            for member in members:
                self.refuse(member)
            return [self.cut_one(member.volume, member.spec) for member in members]

    def refuse(self, member: GroupMember) -> None:
        _, _, content = self.find(member.volume)
        if taken := [cut for cut in content.cuts if cut.name == member.spec.name and cut.uid != member.spec.uid]:
            raise AlreadyExists(f"snapshot {taken[0].name} of volume {member.volume.name} exists")

    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, *, offset: int, length: int, exact: bool
    ) -> Iterator[Extent]:
        with translate(f"compare volume {volume.name}"):
            folder, _, content = self.find(volume)
            files = [
                self.snapshot_file(folder, self.cut(content, uid)).read_bytes() if uid else None
                for uid in (base_snapshot_uid, snapshot_uid)
            ]
            self.require_older(content, base_snapshot_uid, snapshot_uid)
            new = (folder / DISK).read_bytes() if files[1] is None else files[1]
            yield from self.compare(files[0] or b"", new, offset, min(offset + length, len(new)), STEP if exact else OBJECT)

    def require_older(self, content: Any, base: str, newer: str) -> None:
        order = [cut.uid for cut in content.cuts]
        if base and newer and order.index(base) >= order.index(newer):
            raise Precondition("the base is not older")

    def compare(self, old: bytes, new: bytes, begin: int, end: int, step: int) -> Iterator[Extent]:
        for at in range(begin // step * step, end, step):
            first, last = max(at, begin), min(at + step, end)
            if new[first:last] != old[first:last].ljust(last - first, b"\0"):
                yield Extent(first, last - first, data=any(new[first:last]))

    def holders(self, volume: VolumeId) -> Sequence[Holder]:
        self.find(volume)
        return []

    def refused(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return set(msgspec.json.decode((self.root / FENCES).read_bytes(), type=list[str]))
        return set()

    def refuse_all(self, addresses: set[str]) -> None:
        write_durably(str(self.root / FENCES), msgspec.json.encode(sorted(addresses)))

    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        if not addresses:
            raise InvalidRequest("addresses: name some", field="addresses")
        self.refuse_all(self.refused() | set(addresses))

    def unfence(self, addresses: Sequence[str]) -> None:
        self.refuse_all(self.refused() - set(addresses))

    def fenced(self, addresses: Sequence[str]) -> Sequence[str]:
        return [address for address in addresses if address in self.refused()]
