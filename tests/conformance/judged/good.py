"""A small backend that is right, with every facet of a raw array: the bad ones differ from it in one thing each.

A volume is a folder with its bytes, its sealed tag, and a file for each snapshot. Nothing is shared: clones are copies, which the
backend nevertheless holds to their parents, so that this can be judged too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path as File

import msgspec

from tests.conformance.judged.several import Several
from tests.conformance.judged.values import DISK, GRAIN, MARKER, TAG, Content, Cut, GoodSettings, offer
from volgate.backend import (
    Adopts,
    BackendType,
    Clones,
    DataPath,
    Foreign,
    Measures,
    OwnerTag,
    PathsSeen,
    PoolCheck,
    PoolContext,
    Relabels,
    Resizes,
    Reverts,
    SnapshotSpec,
    Traits,
    VolumeId,
    hookimpl,
    seal,
    tag_of,
    unseal,
    volume_of,
)
from volgate.backend.files import (
    allocated_bytes,
    copy_sparse,
    create_file,
    opened,
    publish_directory,
    remove_tree,
    sync_directory,
    write_durably,
)
from volgate.connection import Connection, FileIdentity, LocalFile
from volgate.errors import (
    AlreadyExists,
    Holder,
    InUse,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unsupported,
    VolgateError,
    translate,
)
from volgate.model import (
    Capacity,
    Format,
    Health,
    Labels,
    Path,
    PathState,
    Provisioning,
    Snapshot,
    SourceKind,
    Volume,
    VolumeSpec,
    VolumeState,
)
from volgate.names import object_name


class AllButClones2(Reverts, Clones, Resizes, Measures, DataPath, Adopts, Relabels, PathsSeen):
    """Every method, but for the one that version 2 of Clones brought."""

    limit = 64 << 20

    def __init__(self, settings: GoodSettings, context: PoolContext) -> None:
        self.settings = settings
        self.root, self.instance = File(settings.path), context.instance
        self.volumes, self.work = self.root / "volumes", self.root / ".work"
        self.lock = threading.Lock()
        self.held: dict[str, int] = {}
        with translate(f"open pool {context.pool}"):
            if not (self.root / MARKER).exists() and not self.volumes.exists():
                self.root.mkdir(exist_ok=True)
                write_durably(str(self.root / MARKER), self.instance.encode())
            self.prove()
            for folder in (self.volumes, self.work):
                folder.mkdir(exist_ok=True)

    # -- the pool

    @property
    def traits(self) -> Traits:
        return Traits(formats=(Format.RAW,), grain=GRAIN, minimum=GRAIN, maximum=1 << 40)

    def check(self) -> PoolCheck:
        try:
            with translate("check the pool"):
                self.prove()
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)
        return PoolCheck(Health.OK)

    def close(self) -> None:
        pass

    def prove(self) -> None:
        if (self.root / MARKER).read_text() != self.instance:
            raise Precondition(f"{self.root} belongs to another gateway", reason="POOL_FOREIGN")

    def capacity(self) -> Capacity:
        return Capacity(1 << 30, 1 << 29, self.promised(), self.limit)

    def promised(self) -> int:
        return sum(volume.size for volume in self.list_volumes())

    @contextlib.contextmanager
    def promise(self, name: str, more: int) -> Iterator[None]:
        """Hold what is being promised, so that calls at once cannot promise it twice."""
        with self.lock:
            if self.limit and more > 0 and self.promised() + sum(self.held.values()) + more > self.limit:
                raise OutOfSpace(f"{name}: {more} bytes are more than the pool's limit leaves", reason="OVERSUBSCRIBED")
            self.held[name] = max(0, more)
        try:
            yield
        finally:
            with self.lock:
                del self.held[name]

    # -- where things are

    def folder(self, volume: VolumeId) -> File:
        return self.volumes / object_name(volume.name, volume.uid)

    def named(self, name: str) -> File | None:
        return next((self.volumes / entry for entry in os.listdir(self.volumes) if entry.rpartition(".")[0] == name), None)

    def find(self, volume: VolumeId) -> tuple[File, OwnerTag, Content]:
        folder = self.folder(volume)
        try:
            return folder, *unseal((folder / TAG).read_bytes(), Content)
        except FileNotFoundError:
            self.prove()
            raise NotFound(f"volume {volume.name} ({volume.uid}) does not exist") from None

    def read(self, folder: File) -> Volume:
        size = (folder / DISK).stat().st_size
        tag, content = unseal((folder / TAG).read_bytes(), Content)
        state = VolumeState.CREATING if content.incomplete else VolumeState.READY
        taken = sum(allocated_bytes(str(path)) for path in folder.iterdir())
        return replace(volume_of(tag, folder.name, size, state), allocated=taken)

    def save(self, folder: File, tag: OwnerTag, content: Content) -> Volume:
        tag = msgspec.structs.replace(tag, generation=tag.generation + 1)
        write_durably(str(folder / TAG), seal(tag, content))
        return self.read(folder)

    @staticmethod
    def copy(source: File, target: File, size: int = 0) -> None:
        with opened(str(source), os.O_RDONLY) as old, opened(str(target), os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
            copy_sparse(old, new)
            os.ftruncate(new, size or os.fstat(old).st_size)
            os.fsync(new)

    # -- volumes

    def create_volume(self, spec: VolumeSpec) -> Volume:
        with translate(f"create volume {spec.name}"):
            if folder := self.named(spec.name):
                return self.repeated(spec, self.read(folder))
            size = self.rounded(spec.size)
            self.require_possible(spec, size)
            made, final = self.work / object_name(spec.name, spec.uid), self.folder(VolumeId(spec.name, spec.uid))
            with self.promise(spec.name, size):
                remove_tree(str(made))
                made.mkdir()
                self.fill(spec, made / DISK, size)
                tag = seal(tag_of(spec, self.instance, self.now()), Content(incomplete=spec.incomplete))
                create_file(str(made / TAG), ((0, tag),), len(tag))
                publish_directory(str(made), str(final))
            return self.read(final)

    def rounded(self, size: int) -> int:
        return -(-size // GRAIN) * GRAIN

    def now(self) -> float:
        return time.time()

    def repeated(self, spec: VolumeSpec, found: Volume) -> Volume:
        if found.uid != spec.uid:
            raise AlreadyExists(f"volume {spec.name} exists with uid {found.uid}")
        return found

    def require_possible(self, spec: VolumeSpec, size: int) -> None:
        if spec.format is not Format.RAW:
            raise Unsupported(f"create volume {spec.name}: only raw volumes are made, not {spec.format}", field="format")
        if size > self.traits.maximum:
            raise OutOfRange(f"create volume {spec.name}: {size} bytes are too many", field="size")

    def fill(self, spec: VolumeSpec, path: File, size: int) -> None:
        if spec.source is not None and spec.source.kind is not SourceKind.EMPTY:
            origin = self.origin(spec)
            if origin.stat().st_size > spec.size:
                raise OutOfRange(f"create volume {spec.name}: its source is larger", field="size")
            self.copy(origin, path, size)
        elif spec.provisioning is Provisioning.THICK:
            self.thick(path, size)
        else:
            create_file(str(path), (), size)

    def thick(self, path: File, size: int) -> None:
        with opened(str(path), os.O_WRONLY | os.O_CREAT) as disk:
            os.posix_fallocate(disk, 0, size)
            os.fsync(disk)

    def origin(self, spec: VolumeSpec) -> File:
        assert spec.source
        folder, _, content = self.find(VolumeId(spec.source.volume, spec.source.volume_uid))
        if spec.source.kind is SourceKind.VOLUME:
            return folder / DISK
        return self.snapshot_file(folder, self.cut(content, spec.source.snapshot_uid))

    def delete_volume(self, volume: VolumeId) -> None:
        gone = self.work / object_name(volume.name, volume.uid)
        with translate(f"delete volume {volume.name}"):
            folder = self.folder(volume)
            if folder.exists():
                self.refuse_held(volume)
                remove_tree(str(gone))
                folder.rename(gone)
                sync_directory(str(self.volumes))
            remove_tree(str(gone))

    def refuse_held(self, volume: VolumeId) -> None:
        _, _, content = self.find(volume)
        holders = [Holder("snapshot", cut.name) for cut in content.cuts] + [Holder("volume", name) for name in self.children(volume)]
        if holders:
            raise InUse(f"volume {volume.name} is held by {', '.join(holder.name for holder in holders)}", holders=tuple(holders))

    def get_volume(self, name: str) -> Volume:
        with translate(f"read volume {name}"):
            for _ in range(2):
                with contextlib.suppress(FileNotFoundError):  # deleted since it was found
                    if folder := self.named(name):
                        return self.read(folder)
            self.prove()
        raise NotFound(f"volume {name} does not exist")

    def list_volumes(self) -> Iterator[Volume]:
        with translate("list volumes"):
            self.prove()
            names = sorted(os.listdir(self.volumes))
        found = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                found.append(self.read(self.volumes / name))
        yield from sorted(found, key=lambda volume: volume.name)

    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        with translate(f"connection of volume {volume.name}"):
            folder, _, content = self.find(volume)
            if content.incomplete:
                raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
            return self.location(folder, folder / DISK, volume.uid)

    def location(self, folder: File, path: File, uid: str) -> LocalFile:
        found = path.stat()
        return LocalFile(
            str(path), Format.RAW, FileIdentity(found.st_dev, found.st_ino, uid), str(self.root), str(folder / TAG), found.st_size
        )

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        with translate(f"expand volume {volume.name}"):
            folder, tag, _ = self.find(volume)
            now, wanted = (folder / DISK).stat().st_size, self.rounded(size)
            if wanted <= now:
                return self.read(folder)
            with self.promise(volume.name, wanted - now):
                self.grow(folder, tag, wanted)
            return self.read(folder)

    def grow(self, folder: File, tag: OwnerTag, size: int) -> None:
        with opened(str(folder / DISK), os.O_WRONLY) as disk:
            if tag.spec.provisioning is Provisioning.THICK:
                os.posix_fallocate(disk, 0, size)
            os.ftruncate(disk, size)
            os.fsync(disk)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        with translate(f"relabel volume {volume.name}"):
            folder, tag, content = self.find(volume)
            if tag.labels == labels:
                return self.read(folder)
            return self.save(folder, msgspec.structs.replace(tag, labels=dict(labels)), content)

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        folder, _, _ = self.find(volume)
        return [Path("good", "here", str(folder), "", PathState.ACTIVE)]

    # -- snapshots

    def snapshot_file(self, folder: File, cut: Cut) -> File:
        return folder / f"{cut.uid}.snapshot"

    def cut(self, content: Content, uid: str) -> Cut:
        found = next((cut for cut in content.cuts if cut.uid == uid), None)
        if found is None:
            raise NotFound(f"snapshot {uid} does not exist")
        return found

    def told(self, tag: OwnerTag, cut: Cut) -> Snapshot:
        return Snapshot(cut.name, cut.uid, tag.name, tag.uid, cut.size, dict(cut.labels), cut.created)

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        return self.cut_one(volume, spec)

    def cut_one(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        with translate(f"snapshot volume {volume.name}"):
            folder, tag, content = self.find(volume)
            for known in content.cuts:
                if known.uid == spec.uid:
                    return self.told(tag, known)
                if known.name == spec.name:
                    raise AlreadyExists(f"snapshot {spec.name} of volume {volume.name} exists with uid {known.uid}")
            cut = Cut(spec.uid, spec.name, (folder / DISK).stat().st_size, dict(spec.labels), time.time())
            self.copy(folder / DISK, self.snapshot_file(folder, cut))
            sync_directory(str(folder))
            self.save(folder, tag, msgspec.structs.replace(content, cuts=(*content.cuts, cut)))
            return self.told(tag, cut)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        with translate(f"delete snapshot {snapshot_uid} of volume {volume.name}"):
            folder, tag, content = self.find(volume)
            held = [child.name for child in self.list_volumes() if child.source and child.source.snapshot_uid == snapshot_uid]
            if held:
                raise InUse(f"snapshot {snapshot_uid} is held by {held}", holders=tuple(Holder("volume", name) for name in held))
            kept = tuple(cut for cut in content.cuts if cut.uid != snapshot_uid)
            if kept != content.cuts:
                self.save(folder, tag, msgspec.structs.replace(content, cuts=kept))
            (folder / f"{snapshot_uid}.snapshot").unlink(missing_ok=True)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        _, tag, content = self.find(volume)
        return [self.told(tag, cut) for cut in content.cuts]

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        with translate(f"revert volume {volume.name}"):
            folder, tag, content = self.find(volume)
            if token in content.reverts:
                return self.read(folder)
            cut = self.cut(content, snapshot_uid)
            self.put_back(folder, cut)
            return self.save(folder, tag, msgspec.structs.replace(content, reverts=(*content.reverts, token)[-64:]))

    def put_back(self, folder: File, cut: Cut) -> None:
        self.copy(self.snapshot_file(folder, cut), folder / "back.part", cut.size)
        (folder / "back.part").rename(folder / DISK)
        sync_directory(str(folder))

    def children(self, volume: VolumeId) -> Sequence[str]:
        return [child.name for child in self.list_volumes() if child.source and child.source.volume_uid == volume.uid]

    # -- bytes

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        with translate(f"image of volume {volume.name}"):
            folder, _, content = self.find(volume)
            if writable and not content.incomplete:
                raise Precondition(f"volume {volume.name} is complete", reason="NOT_INCOMPLETE")
            path = self.snapshot_file(folder, self.cut(content, snapshot_uid)) if snapshot_uid else folder / DISK
            return self.location(folder, path, volume.uid)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        with translate(f"fill volume {volume.name}"):
            folder, _, content = self.find(volume)
            if not content.incomplete:
                raise Precondition(f"volume {volume.name} is complete", reason="NOT_INCOMPLETE")
            try:
                progress(0.0)
                self.take_in(File(path), folder)
                progress(1.0)
            finally:
                (folder / "fill.part").unlink(missing_ok=True)

    def take_in(self, source: File, folder: File) -> None:
        size = (folder / DISK).stat().st_size
        self.copy(source, folder / "fill.part", size)
        if self.read(folder).provisioning is Provisioning.THICK:
            self.keep_thick(folder / "fill.part", size)
        (folder / "fill.part").rename(folder / DISK)
        sync_directory(str(folder))

    def keep_thick(self, path: File, size: int) -> None:
        with opened(str(path), os.O_WRONLY) as disk:
            os.posix_fallocate(disk, 0, size)
            os.fsync(disk)

    def complete(self, volume: VolumeId) -> Volume:
        with translate(f"complete volume {volume.name}"):
            folder, tag, content = self.find(volume)
            return self.save(folder, tag, msgspec.structs.replace(content, incomplete=False)) if content.incomplete else self.read(folder)

    # -- what others made

    def list_foreign(self) -> Iterator[Foreign]:
        for path in sorted(self.root.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                yield Foreign(path.name, path.stat().st_size, Format.RAW, "a file without a tag")

    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        with translate(f"adopt {locator}"):
            source = self.root / locator
            if folder := self.named(spec.name):
                if source.exists() and source.samefile(folder / DISK):
                    source.unlink()  # an earlier attempt died before this
                return self.repeated(spec, self.read(folder))
            if not source.is_file():
                raise NotFound(f"{locator} does not exist")
            made, final = self.work / object_name(spec.name, spec.uid), self.folder(VolumeId(spec.name, spec.uid))
            remove_tree(str(made))
            made.mkdir()
            (made / DISK).hardlink_to(source)
            tag = seal(tag_of(spec, self.instance, time.time()), Content())
            create_file(str(made / TAG), ((0, tag),), len(tag))
            publish_directory(str(made), str(final))
            source.unlink()
            return self.read(final)


class Good(Several, AllButClones2):
    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        return allocated_bytes(str(self.origin(spec)))


@hookimpl
def volgate_backends() -> list[BackendType]:
    return [offer(Good, "good")]
