"""Volumes: created by one rename, deleted by one rename, found by what their folder says."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH102, PTH108

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence

from volgate.backend import Backend, Measures, PathsSeen, PoolCheck, PoolContext, Relabels, Resizes, Traits, VolumeId, tag_of
from volgate.backend.files import create_file, publish_directory, remove_tree
from volgate.connection import Connection
from volgate.errors import AlreadyExists, DataLoss, Holder, InUse, NotFound, OutOfRange, Precondition, Unsupported, VolgateError, translate
from volgate.model import Capacity, Health, Labels, Path, PathState, Provisioning, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.directory.index import Entry
from volgate_plugins.directory.manifest import Content, Manifest
from volgate_plugins.directory.settings import DirectorySettings
from volgate_plugins.directory.sources import fill, grow
from volgate_plugins.directory.store import MANIFEST, Store, rounded

__all__ = ["Volumes"]


class Volumes(Resizes, Measures, Relabels, PathsSeen, Backend):
    """A directory pool without snapshots; the rest of the package adds them."""

    def __init__(self, settings: DirectorySettings, context: PoolContext) -> None:
        """Open the pool."""
        self._store = Store(settings, context)

    @property
    def traits(self) -> Traits:
        """What holds for this pool."""
        return self._store.traits

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Create the volume, or finish its creation."""
        sources = (spec.source.volume,) if spec.source and spec.source.volume else ()
        with self._store.locks.holding(spec.name, *sources), translate(f"create volume {spec.name}"):
            found = self._existing(spec)
            return found or self._create(spec)

    def delete_volume(self, volume: VolumeId) -> None:
        """Delete the volume."""
        store, stored_as = self._store, object_name(volume.name, volume.uid)
        with store.locks.holding(volume.name), translate(f"delete volume {volume.name}"):
            try:
                found, manifest = store.find(volume)
            except NotFound:
                remove_tree(f"{store.pool.work}/{stored_as}")
            else:
                self._refuse_held(manifest)
                store.pool.discard(store.folder(found))
                store.index.drop(found)
            store.pool.empty_trash(stored_as)

    def get_volume(self, name: str) -> Volume:
        """Read the volume."""
        with translate(f"read volume {name}"):
            return self._read(name)

    def list_volumes(self) -> Iterator[Volume]:
        """Yield every volume in order of name."""
        with translate("list volumes"):
            self._store.pool.prove()
            found = self._store.index.objects()
        for name, _ in found:
            with contextlib.suppress(NotFound), translate(f"read volume {name}"):
                yield self._read(name)

    def connection(self, volume: VolumeId, *, host: str) -> Connection:  # noqa: ARG002 - local files have one host
        """Say where the active layer is and what proves it."""
        with self._store.holding(volume, "connection") as (stored_as, manifest):
            if manifest.content.incomplete:
                raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
            return self._store.connection(stored_as, manifest)

    def check(self) -> PoolCheck:
        """Look whether the pool can serve."""
        try:
            with translate("check the pool"):
                self._store.pool.prove()
                _try_to_write(f"{self._store.pool.work}/.probe.{uuid.uuid4().hex}")
                self._store.pool.empty_trash()
                self._store.pool.drop_staging()
                free = self._store.pool.space()[1]
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)
        if not free:
            return PoolCheck(Health.DEGRADED, f"{self._store.pool.root} has no free space beyond the reserve; delete volumes or enlarge it")
        return PoolCheck(Health.OK)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """Grow the active layer; while a guest holds it only the room is checked and noted."""
        store, wanted = self._store, rounded(size)
        with store.holding(volume, "expansion") as (stored_as, manifest):
            if wanted > store.traits.maximum:
                raise OutOfRange(f"{size} bytes are more than {store.traits.maximum}", field="size")
            now = store.size(stored_as, manifest.content.active, manifest.format)
            if wanted <= now:
                return store.volume(stored_as, manifest)
            if manifest.tag.spec.provisioning is Provisioning.THICK and not online:
                store.pool.require_free(wanted - now, f"expand volume {volume.name}")
            entry = Entry(volume.name, volume.uid, max(wanted, manifest.content.promised))
            with store.index.promise(stored_as, entry, store.pool.limit()):
                noted = store.save(stored_as, manifest.change(promised=entry.promised))  # first: a kill never leaves more than is promised
                if not online:
                    self._grow(stored_as, manifest, wanted)
                return store.volume(stored_as, noted)

    def _grow(self, stored_as: str, before: Manifest, size: int) -> None:
        path = f"{self._store.folder(stored_as)}/{before.content.active}"
        try:
            grow(path, before.format, size, before.tag.spec.provisioning)
        except BaseException:  # whatever it was, what was promised for it is given back, if that can be written
            with contextlib.suppress(OSError):
                self._store.save(stored_as, before)
            raise

    def capacity(self) -> Capacity:
        """Measure the pool."""
        with translate("measure the pool"):
            self._store.pool.prove()
            total, free = self._store.pool.space()
            return Capacity(total, free, self._store.index.provisioned(), self._store.pool.limit())

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        with self._store.holding(volume, "labels") as (stored_as, manifest):
            changed = manifest if manifest.tag.labels == labels else self._store.save(stored_as, manifest.labelled(labels))
            return self._store.volume(stored_as, changed)

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """Return the one path: the active file, whether it can be read, and the space around it."""
        with self._store.holding(volume, "paths") as (stored_as, manifest):
            file = f"{self._store.folder(stored_as)}/{manifest.content.active}"
            total, free = self._store.pool.space()
            facts = {"total": str(total), "free": str(free), "format": str(manifest.format)}
            try:
                layers = self._store.connection(stored_as, manifest).chain
            except (OSError, VolgateError) as error:
                return [Path("image", "pool", self._store.pool.root, file, PathState.FAILED, last_error=str(error), facts=facts)]
            facts["layers"] = str(1 + len(layers))
            return [Path("image", "pool", self._store.pool.root, file, PathState.ACTIVE_OPTIMIZED, facts=facts)]

    def _existing(self, spec: VolumeSpec) -> Volume | None:
        try:
            stored_as, manifest = self._store.find(VolumeId(spec.name, ""))
        except NotFound:
            return None
        except DataLoss as error:
            raise AlreadyExists(f"volume {spec.name} exists and is damaged: {error.message}") from error
        if manifest.tag.uid != spec.uid:
            raise AlreadyExists(f"volume {spec.name} exists with uid {manifest.tag.uid}, asked was {spec.uid}")
        return self._store.volume(stored_as, manifest)

    def _create(self, spec: VolumeSpec) -> Volume:
        store, stored_as, size = self._store, object_name(spec.name, spec.uid), rounded(spec.size)
        if spec.format not in store.traits.formats:
            raise Unsupported(f"format {spec.format} cannot be created here; use one of {', '.join(store.traits.formats)}", field="format")
        if not 0 < size <= store.traits.maximum:
            raise OutOfRange(f"{spec.size} bytes is not between 1 and {store.traits.maximum}", field="size")
        store.pool.require_free(0, f"create volume {spec.name}")
        work = f"{store.pool.work}/{stored_as}"
        with store.index.promise(stored_as, Entry(spec.name, spec.uid, size), store.pool.limit()):
            remove_tree(work)
            try:
                os.mkdir(work, 0o711)
                os.chmod(work, 0o711)  # noqa: S103 - QEMU's user must pass through
                manifest = self._build(spec, work, stored_as)
                publish_directory(work, store.folder(stored_as))
            except BaseException:  # whatever it was, nothing half-made stays; the rename is the last step
                remove_tree(work)
                raise
        return store.volume(stored_as, manifest)

    def _build(self, spec: VolumeSpec, work: str, stored_as: str) -> Manifest:
        layer = fill(self._store, spec, work, stored_as)
        content = Content(layers=(layer,), active=layer.file, promised=rounded(spec.size), incomplete=spec.incomplete)
        manifest = Manifest(tag_of(spec, self._store.pool.instance, time.time()), content)
        data = manifest.encode()
        create_file(f"{work}/{MANIFEST}", ((0, data),), len(data))
        return manifest

    def _read(self, name: str) -> Volume:
        identity = VolumeId(name, "")
        try:
            stored_as, manifest = self._store.find(identity)
            while (found := self._store.volume(stored_as, manifest)).problem:
                before, (stored_as, manifest) = manifest, self._store.find(identity)
                if manifest == before:
                    break  # else a file went because the volume was changed, or deleted, since its manifest was read
            return found
        except DataLoss as error:
            return self._store.damaged(name, self._store.index.lookup(name) or "", error.message)

    def _refuse_held(self, manifest: Manifest) -> None:
        holders = [Holder("snapshot", cut.name, cut.uid) for cut in manifest.content.snapshots]
        holders += [Holder("volume", name, "clone") for name in self._clones(manifest)]
        if holders:
            held = ", ".join(f"{holder.kind} {holder.name}" for holder in holders)
            raise InUse(f"volume {manifest.tag.name} is held by {held}; delete them first", holders=tuple(holders))

    def _clones(self, manifest: Manifest, snapshot_uid: str = "") -> list[str]:
        children = [c for c in manifest.content.children if not snapshot_uid or c.snapshot_uid == snapshot_uid]
        return sorted(child.object.rpartition(".")[0] for child in children if self._store.exists(child.object))


def _try_to_write(path: str) -> None:
    try:
        create_file(path, ((0, b"probe"),), 5)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
