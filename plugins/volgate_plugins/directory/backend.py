"""The backend: volumes and snapshots, plus their bytes and the adoption of files that others left in the pool."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH116, PTH121, PTH208

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator

from volgate.backend import Adopts, DataPath, Foreign, PoolContext, VolumeId, tag_of
from volgate.backend.files import create_file, opened, publish_directory, remove_tree, sync_directory
from volgate.backend.image import convert, inspect
from volgate.backend.qcow2 import MAGIC
from volgate.connection import Connection
from volgate.errors import InvalidRequest, NotFound, Precondition, translate
from volgate.model import Format, Provisioning, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.directory import trash
from volgate_plugins.directory.manifest import Content, Layer, Manifest
from volgate_plugins.directory.settings import DirectorySettings
from volgate_plugins.directory.snapshots import Snapshotting
from volgate_plugins.directory.sources import grow
from volgate_plugins.directory.store import MANIFEST, rounded

__all__ = ["Directory"]


class Directory(Snapshotting, DataPath, Adopts):
    """A pool in a directory."""

    @classmethod
    def open(cls, settings: DirectorySettings, context: PoolContext) -> Directory:
        """Open the pool. Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING), NotFound, InvalidRequest."""
        return cls(settings, context)

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """Return the layer that holds the bytes of the volume or of a snapshot."""
        with self._store.holding(volume, "image") as (stored_as, manifest):
            if writable and not manifest.content.incomplete:
                raise Precondition(f"volume {volume.name} is complete; only an import writes to an image", reason="NOT_INCOMPLETE")
            if not snapshot_uid:
                return self._store.connection(stored_as, manifest)
            cut = manifest.snapshot(snapshot_uid)
            if cut is None:
                raise NotFound(f"snapshot {snapshot_uid} of volume {volume.name} does not exist")
            return self._store.connection(stored_as, manifest, cut.layer)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Convert the image into a new file beside the empty layer, then put it in its place."""
        store = self._store
        with store.holding(volume, "import") as (stored_as, manifest):
            if not manifest.content.incomplete:
                raise Precondition(f"volume {volume.name} is complete already", reason="NOT_INCOMPLETE")
            store.sweep(stored_as, manifest)
            size, folder = store.size(stored_as, manifest.content.active, manifest.format), store.folder(stored_as)
            scratch, provisioning = f"{folder}/fill.part", manifest.tag.spec.provisioning
            try:
                found = convert(
                    path,
                    source_format,
                    scratch,
                    manifest.format,
                    progress=progress,
                    staging=store.pool.work,
                    maximum=size,
                    thick=provisioning is Provisioning.THICK,
                )
                if found.virtual_size < size or manifest.format is Format.RAW:  # a raw image comes in thin
                    grow(scratch, manifest.format, size, provisioning)
                os.rename(scratch, f"{folder}/{manifest.content.active}")
                sync_directory(folder)
            except BaseException:  # whatever it was, the half-filled file goes and the empty layer stays
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(scratch)
                raise

    def complete(self, volume: VolumeId) -> Volume:
        """Mark the volume as ready."""
        with self._store.holding(volume, "completion") as (stored_as, manifest):
            done = self._store.save(stored_as, manifest.change(incomplete=False)) if manifest.content.incomplete else manifest
            return self._store.volume(stored_as, done)

    def list_foreign(self) -> Iterator[Foreign]:
        """Yield the files at the top of the pool's directory, and the deleted volumes that can come back."""
        root = self._store.pool.root
        with translate("list foreign files"):
            yield from trash.deleted(self._store)
            for name in sorted(os.listdir(root)):
                found = os.stat(f"{root}/{name}", follow_symlinks=False)
                if not name.startswith(".") and stat.S_ISREG(found.st_mode):
                    kind = self._looks_like(f"{root}/{name}")
                    yield Foreign(name, found.st_size, kind, "a file at the top of the pool's directory, without an owner tag")

    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        """Move a foreign file into a new volume's folder, or bring a deleted volume back."""
        if locator.startswith(trash.PREFIX):
            return self._undelete(locator, spec)
        store, stored_as = self._store, object_name(spec.name, spec.uid)
        if not locator or "/" in locator or locator.startswith("."):
            raise InvalidRequest(f"{locator!r} is not the name of a file at the top of the pool's directory", field="locator")
        source = f"{store.pool.root}/{locator}"
        with store.locks.holding(spec.name, f"/{locator}"), translate(f"adopt {locator} as volume {spec.name}"):
            found = self._existing(spec) or self._adopt(source, locator, spec, stored_as)
            layer = f"{store.folder(stored_as)}/0000.{spec.format}"
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(source, layer):
                    os.unlink(source)
                    sync_directory(store.pool.root)
            return found

    def _undelete(self, locator: str, spec: VolumeSpec) -> Volume:
        entry = locator.removeprefix(trash.PREFIX)
        if not entry or "/" in entry or entry.startswith("."):
            raise InvalidRequest(f"{locator!r} is not a deleted volume; list the pool's foreign objects", field="locator")
        with translate(f"undelete {locator} as volume {spec.name}"):
            held = (spec.name, f"/{locator}", *filter(None, [trash.parent_of(self._store, locator)]))
            with self._store.locks.holding(*held):
                return self._existing(spec) or trash.undelete(self._store, locator, spec)

    def _adopt(self, source: str, locator: str, spec: VolumeSpec, stored_as: str) -> Volume:
        """Give the file a second name in a new volume; its first name goes last, so that no crash can lose it."""
        work = f"{self._store.pool.work}/{stored_as}"
        remove_tree(work)
        self._require_adoptable(source, locator, spec)
        try:
            os.mkdir(work, 0o711)
            os.chmod(work, 0o711)  # noqa: S103 - QEMU's user must pass through
            os.link(source, f"{work}/0000.{spec.format}", follow_symlinks=False)
            return self._tag_adopted(spec, work, stored_as)
        except BaseException:  # whatever it was, the file keeps its first name
            remove_tree(work)
            raise

    def _tag_adopted(self, spec: VolumeSpec, work: str, stored_as: str) -> Volume:
        file = f"0000.{spec.format}"
        os.chmod(f"{work}/{file}", 0o600)
        with opened(f"{work}/{file}", os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
        size = self._store.header(f"{work}/{file}").size if spec.format is Format.QCOW2 else os.stat(f"{work}/{file}").st_size
        manifest = Manifest(
            tag_of(spec, self._store.pool.instance, time.time()), Content(layers=(Layer(file),), active=file, promised=rounded(size))
        )
        data = manifest.encode()
        create_file(f"{work}/{MANIFEST}", ((0, data),), len(data))
        publish_directory(work, self._store.folder(stored_as))
        return self._store.volume(stored_as, manifest)

    def _require_adoptable(self, source: str, locator: str, spec: VolumeSpec) -> None:
        try:
            found = os.stat(source, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"{locator} is not in {self._store.pool.root}") from None
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise Precondition(f"{locator} is not a plain file with one name", reason="NOT_ADOPTABLE")
        if spec.format not in self._store.traits.formats:
            raise Precondition(f"a file of format {spec.format} cannot be adopted; import it", reason="NOT_ADOPTABLE")
        if inspect(source, spec.format, staging=self._store.pool.work).virtual_size % 512:
            raise Precondition(f"{locator} is no whole number of sectors long; import it", reason="NOT_ADOPTABLE")

    def _looks_like(self, path: str) -> Format | None:
        with contextlib.suppress(OSError), opened(path, os.O_RDONLY) as descriptor:
            return Format.QCOW2 if os.pread(descriptor, 4, 0) == MAGIC else Format.RAW
        return None
