"""What the good backend does with several volumes, points in time, and clients."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.conformance.judged.values import DISK, FENCES, HOSTS, OUT
from volgate.backend import (
    ChangedBlocks,
    Extent,
    Extracts,
    Fences,
    FencesHosts,
    GroupMember,
    Groups,
    Holder,
    Holders,
    Initiator,
    Publishes,
    VolumeId,
)
from volgate.backend.files import copy_sparse, opened, sync_directory, write_durably
from volgate.errors import AlreadyExists, InUse, InvalidRequest, Precondition, translate
from volgate.errors import Holder as Blocker
from volgate.model import Snapshot, Volume

STEP = 4096
OBJECT = 1 << 16


class Several(Groups, ChangedBlocks, Extracts, Holders, Fences, Publishes, FencesHosts):
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

    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Callable[[float], None]) -> None:
        with translate(f"extract volume {volume.name}"):
            folder, _, content = self.find(volume)
            source = self.snapshot_file(folder, self.cut(content, snapshot_uid)) if snapshot_uid else folder / DISK
            self.write_out(source, path, progress)
            progress(1.0)

    def write_out(self, source: Path, path: str, progress: Callable[[float], None]) -> None:
        with opened(str(source), os.O_RDONLY) as old, opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
            copy_sparse(old, new, progress)
            os.fsync(new)
        sync_directory(str(Path(path).parent))

    def holders(self, volume: VolumeId) -> Sequence[Holder]:
        with translate(f"look who has volume {volume.name}"):
            folder, _, _ = self.find(volume)
        return self.lockers(folder / DISK)

    def lockers(self, disk: Path) -> list[Holder]:
        """Who has a lock on a file, as a QEMU has that may write: this backend takes none."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                for entry in [*(process / "fd").iterdir()]:
                    with contextlib.suppress(OSError):  # closed meanwhile
                        if entry.samefile(disk) and "OFDLCK" in (process / "fdinfo" / entry.name).read_text(encoding="ascii"):
                            found.append(Holder(f"descriptor {entry.name} of process {process.name}", "127.0.0.1"))
        return found

    def refused(self) -> set[str]:
        with translate("read the fences"), contextlib.suppress(FileNotFoundError):
            return set(msgspec.json.decode((self.root / FENCES).read_bytes(), type=list[str]))
        return set()

    def refuse_all(self, addresses: set[str]) -> None:
        with translate("write the fences"):
            write_durably(str(self.root / FENCES), msgspec.json.encode(sorted(addresses)))

    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        if not addresses:
            raise InvalidRequest("addresses: name some", field="addresses")
        self.refuse_all(self.refused() | set(addresses))

    def unfence(self, addresses: Sequence[str]) -> None:
        self.refuse_all(self.refused() - set(addresses))

    def fenced(self, addresses: Sequence[str]) -> Sequence[str]:
        return [address for address in addresses if address in self.refused()]

    def let_in(self) -> dict[str, list[str]]:
        """The hosts of each volume, by its uid."""
        with translate("read who is let in"), contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode((self.root / HOSTS).read_bytes(), type=dict[str, list[str]])
        return {}

    def let_in_now(self, known: dict[str, list[str]]) -> None:
        with translate("write who is let in"):
            write_durably(str(self.root / HOSTS), msgspec.json.encode(known))

    def publish(self, volume: VolumeId, initiator: Initiator) -> None:
        with translate(f"publish volume {volume.name}"):
            self.find(volume)
            self.require_name(initiator)
            self.require_free(initiator)
            known = self.let_in()
            self.let_in_now({**known, volume.uid: sorted({*known.get(volume.uid, []), initiator.host})})

    def require_name(self, initiator: Initiator) -> None:
        if not initiator.iqn:
            raise Precondition(f"host {initiator.host} has no name", reason="INITIATOR_MISSING")

    def out(self) -> list[str]:
        with translate("read who is kept out"), contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode((self.root / OUT).read_bytes(), type=list[str])
        return []

    def out_now(self, hosts: set[str]) -> None:
        if hosts:
            write_durably(str(self.root / OUT), msgspec.json.encode(sorted(hosts)))
        elif (self.root / OUT).exists():
            (self.root / OUT).unlink()
            sync_directory(str(self.root))

    def require_free(self, initiator: Initiator) -> None:
        if initiator.host in self.out():
            raise Precondition(f"host {initiator.host} is fenced", reason="HOST_FENCED")

    def fence_host(self, initiator: Initiator, volumes: Sequence[VolumeId]) -> None:
        del volumes  # a host is kept out of all
        with translate(f"fence host {initiator.host}"):
            self.out_now({*self.out(), initiator.host})
            self.let_in_now({uid: [host for host in hosts if host != initiator.host] for uid, hosts in self.let_in().items()})

    def unfence_host(self, host: str) -> None:
        with translate(f"unfence host {host}"):
            self.out_now({*self.out()} - {host})

    def fenced_hosts(self) -> Sequence[str]:
        return self.out()

    def unpublish(self, volume: VolumeId, host: str) -> None:
        with translate(f"unpublish volume {volume.name}"):
            known = self.let_in()
            self.let_in_now({**known, volume.uid: [other for other in known.get(volume.uid, []) if other != host]})

    def published(self, volume: VolumeId) -> Sequence[str]:
        return self.let_in().get(volume.uid, [])

    def refuse_published(self, volume: VolumeId, act: str) -> None:
        if hosts := self.published(volume):
            raise InUse(f"{act} volume {volume.name}: hosts have it", holders=tuple(Blocker("host", host) for host in hosts))

    def delete_volume(self, volume: VolumeId) -> None:
        with translate(f"delete volume {volume.name}"):
            if self.folder(volume).exists():
                self.refuse_published(volume, "delete")
        super().delete_volume(volume)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        with translate(f"revert volume {volume.name}"):
            if token not in self.find(volume)[2].reverts:
                self.refuse_published(volume, "revert")
        return super().revert_volume(volume, snapshot_uid, token=token)
