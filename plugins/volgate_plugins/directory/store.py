"""The volumes' folders: finding, reading and writing manifests and layer files under the volume's lock."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH108, PTH112, PTH116, PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from volgate.backend import PoolContext, Traits, VolumeId, volume_of
from volgate.backend.files import allocated_bytes, create_file, opened, write_durably
from volgate.backend.qcow2 import Header, empty_image, empty_length, parse_header
from volgate.connection import FileIdentity, LocalFile
from volgate.errors import DataLoss, Holder, NotFound, Precondition, translate
from volgate.model import Format, Provisioning, Volume, VolumeState
from volgate_plugins.directory.index import Entry, Index, Locks
from volgate_plugins.directory.manifest import Manifest
from volgate_plugins.directory.pool import PoolDirectory
from volgate_plugins.directory.settings import DirectorySettings

__all__ = ["GRAIN", "MANIFEST", "Store", "rounded"]

GRAIN = 4096
MANIFEST = "volume.json"
_HEAD = 65536


def rounded(size: int) -> int:
    """Return the size that a volume really gets."""
    return -(-size // GRAIN) * GRAIN


class Store:
    """What every facet of a directory pool stands on."""

    def __init__(self, settings: DirectorySettings, context: PoolContext) -> None:
        """Open the pool. Raises Precondition, NotFound, InvalidRequest."""
        settings.check()
        self.settings = settings
        self.pool = PoolDirectory(settings, context)
        self.locks = Locks(self.pool.beside)
        self.index = Index(self.pool.volumes, self._entry)
        with translate(f"open pool {context.pool}"):
            self.index.provisioned()
        self.traits = _traits(settings, shares=self.pool.shares)

    def folder(self, stored_as: str) -> str:
        """Return the folder of an object."""
        return f"{self.pool.volumes}/{stored_as}"

    def exists(self, stored_as: str) -> bool:
        """Say whether an object exists or is being made."""
        return os.path.isdir(self.folder(stored_as)) or os.path.isdir(f"{self.pool.work}/{stored_as}")

    def load(self, stored_as: str) -> Manifest:
        """Read an object's manifest. Raises FileNotFoundError (no such object), DataLoss."""
        folder = self.folder(stored_as)
        try:
            with opened(f"{folder}/{MANIFEST}", os.O_RDONLY) as descriptor:
                return Manifest.read(_read_all(descriptor))
        except FileNotFoundError:
            if os.path.isdir(folder):
                raise DataLoss(f"{folder} has no {MANIFEST}", reason="TAG_DAMAGED") from None
            raise

    def save(self, stored_as: str, manifest: Manifest) -> Manifest:
        """Replace an object's manifest durably."""
        write_durably(f"{self.folder(stored_as)}/{MANIFEST}", manifest.encode())
        self.index.put(stored_as, Entry(manifest.tag.name, manifest.tag.uid, manifest.content.promised))
        return manifest

    @contextlib.contextmanager
    def holding(self, volume: VolumeId, doing: str, *others: str) -> Iterator[tuple[str, Manifest]]:
        """Lock a volume and yield its object and manifest; native errors come out as ours. Raises NotFound."""
        with self.locks.holding(volume.name, *others), translate(f"{doing} of volume {volume.name}"):
            stored_as, manifest = self.find(volume)
            try:
                yield stored_as, self.settled(stored_as, manifest)
            except FileNotFoundError as error:
                self.pool.prove()
                raise DataLoss(f"{doing} of volume {volume.name}: {error.filename} is missing", reason="LAYER_MISSING") from error
            except OSError:  # a full file system above all: what was begun takes no space until somebody comes by
                self.sweep(stored_as, self.load(stored_as))
                raise

    def find(self, volume: VolumeId) -> tuple[str, Manifest]:
        """Return the object and manifest of a volume. Raises NotFound (no such name, or its uid is another), DataLoss."""
        for _ in range(2):  # a second look, for the folder may go between name and manifest
            stored_as = self._lookup(volume.name)
            if stored_as is None:
                break
            try:
                manifest = self.load(stored_as)
            except FileNotFoundError:
                self.index.drop(stored_as)
                continue
            if volume.uid and manifest.tag.uid != volume.uid:
                break
            return stored_as, manifest
        self.pool.prove()
        raise NotFound(f"volume {volume.name} ({volume.uid or 'any uid'}) does not exist in {self.pool.root}")

    def settled(self, stored_as: str, manifest: Manifest) -> Manifest:
        """Finish the record of a merge whose data part was done when the gateway died; the volume's lock is held."""
        merge = manifest.content.merging
        if merge is None:
            return manifest
        if self.header(f"{self.folder(stored_as)}/{merge.into}").backing != manifest.layer(merge.gone).parent:
            return manifest
        return self.save(stored_as, manifest.merged(merge))

    def header(self, path: str) -> Header:
        """Read a qcow2 header, also of an image that QEMU has open. Raises DataLoss."""
        with opened(path, os.O_RDONLY) as descriptor:
            try:
                return parse_header(os.pread(descriptor, _HEAD, 0))
            except ValueError as error:
                raise DataLoss(f"{path}: {error}", reason="IMAGE_DAMAGED") from error

    def size(self, stored_as: str, file: str, kind: Format) -> int:
        """Return the size that a guest sees of one layer."""
        path = f"{self.folder(stored_as)}/{file}"
        return self.header(path).size if kind is Format.QCOW2 else os.stat(path, follow_symlinks=False).st_size

    def make_overlay(self, folder: str, file: str, size: int, below: str) -> None:
        """Write an empty qcow2 layer on `below` durably."""
        path = f"{folder}/{file}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        create_file(path, empty_image(size, below), empty_length(size))

    def chain(self, stored_as: str, manifest: Manifest, file: str) -> tuple[str, ...]:
        """Return the absolute paths of a layer and all below it, nearest first, across volumes."""
        own = manifest.chain(file)
        found = [f"{self.folder(stored_as)}/{layer.file}" for layer in own]
        below = own[-1].parent
        if not below:
            return tuple(found)
        _, other, other_file = below.split("/")
        try:
            return (*found, *self.chain(other, self.load(other), other_file))
        except (FileNotFoundError, KeyError) as error:
            raise DataLoss(f"{found[-1]} lies on {below}, which is gone", reason="LAYER_MISSING") from error

    def depth(self, stored_as: str, manifest: Manifest, file: str = "") -> int:
        """Return the number of layers below the active one, or below `file`."""
        return len(self.chain(stored_as, manifest, file or manifest.content.active)) - 1

    def require_depth(self, stored_as: str, manifest: Manifest, file: str) -> None:
        """Raise Precondition if one more layer on `file` were too many."""
        if self.depth(stored_as, manifest, file) + 1 > self.settings.max_depth:
            raise Precondition(
                f"volume {manifest.tag.name} has {self.settings.max_depth} layers below it, no more are allowed; "
                "delete snapshots, or copy the volume",
                reason="CHAIN_TOO_DEEP",
            )

    def require_no_overlay(self, manifest: Manifest) -> None:
        """Raise Precondition if an overlay waits for QEMU: what is made on the active layer now would not lie below it."""
        if pending := manifest.content.pending:
            raise Precondition(
                f"volume {manifest.tag.name} has an unfinished overlay for snapshot {pending.name}; finish or abandon it",
                reason="OVERLAY_PENDING",
                holders=(Holder("snapshot", pending.name, pending.uid),),
            )

    def connection(self, stored_as: str, manifest: Manifest, file: str = "") -> LocalFile:
        """Return how one layer (the active one) is reached; each header must agree with the manifest. Raises DataLoss, NotFound."""
        paths = self.chain(stored_as, manifest, file or manifest.content.active)
        kind = manifest.format
        with opened(paths[0], os.O_RDONLY) as descriptor:
            found = os.fstat(descriptor)
        size = self._prove_chain(paths) if kind is Format.QCOW2 else found.st_size
        return LocalFile(
            path=paths[0],
            format=kind,
            identity=FileIdentity(found.st_dev, found.st_ino, manifest.tag.uid),
            root=self.pool.root,
            tag=f"{self.folder(stored_as)}/{MANIFEST}",
            size=size,
            chain=tuple((path, kind) for path in paths[1:]),
        )

    def volume(self, stored_as: str, manifest: Manifest) -> Volume:
        """Return the volume as it is now; what is wrong with it becomes state failed and its problem."""
        content = manifest.content
        state = VolumeState.CREATING if content.incomplete else VolumeState.READY
        try:
            size = self.size(stored_as, content.active, manifest.format)
            taken = sum(allocated_bytes(f"{self.folder(stored_as)}/{layer.file}") for layer in content.layers)
            depth = self.depth(stored_as, manifest)
        except FileNotFoundError as error:
            return replace(volume_of(manifest.tag, stored_as, content.promised, VolumeState.FAILED), problem=f"{error.filename} is missing")
        except DataLoss as error:
            return replace(volume_of(manifest.tag, stored_as, content.promised, VolumeState.FAILED), problem=error.message)
        return replace(volume_of(manifest.tag, stored_as, size, state), allocated=taken, depth=depth)

    def damaged(self, name: str, stored_as: str, problem: str) -> Volume:
        """Return what can be said of a volume whose manifest cannot be read."""
        return Volume(name, "", stored_as, 0, 0, self.traits.formats[0], Provisioning.THIN, VolumeState.FAILED, problem=problem)

    def sweep(self, stored_as: str, manifest: Manifest) -> None:
        """Unlink layer files that the manifest does not name: what a dead call left, or what nothing needs any more."""
        named = {layer.file for layer in manifest.content.layers}
        if manifest.content.pending:
            named.add(manifest.content.pending.layer)
        folder = self.folder(stored_as)
        for name in os.listdir(folder):
            if name != MANIFEST and name not in named:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{name}")

    def _lookup(self, name: str) -> str | None:
        try:
            return self.index.lookup(name)
        except FileNotFoundError:
            self.pool.prove()
            raise

    def _prove_chain(self, paths: tuple[str, ...]) -> int:
        headers = [self.header(path) for path in paths]
        for path, header, below in zip(paths, headers, (*paths[1:], ""), strict=True):
            said = os.path.normpath(os.path.join(os.path.dirname(path), header.backing)) if header.backing else ""
            if said != below or header.data_file or header.encrypted:
                raise DataLoss(
                    f"{path} says that it lies on {said!r}, its record says {below!r}; it is not opened", reason="CHAIN_MISMATCH"
                )
        return headers[0].size

    def _entry(self, stored_as: str) -> Entry:
        try:
            manifest = self.load(stored_as)
        except DataLoss:
            return Entry(stored_as.rpartition(".")[0] or stored_as, "", 0)
        return Entry(manifest.tag.name, manifest.tag.uid, manifest.content.promised)


def _read_all(descriptor: int) -> bytes:
    return os.read(descriptor, os.fstat(descriptor).st_size)


def _traits(settings: DirectorySettings, *, shares: bool) -> Traits:
    default = Format(settings.default_format)
    other = Format.RAW if default is Format.QCOW2 else Format.QCOW2
    notes = () if shares else ("raw volumes have no snapshots and clone by copying: this file system cannot share blocks (FICLONE)",)
    return Traits(
        formats=(default, other),
        grain=GRAIN,
        minimum=GRAIN,
        online_snapshots="overlay",
        max_depth=settings.max_depth,
        notes=notes,
    )
