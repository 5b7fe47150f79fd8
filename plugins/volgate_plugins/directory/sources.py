"""Filling a new volume's folder: empty, or from another volume or a snapshot of the pool."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH116, PTH119

from __future__ import annotations

import os
from dataclasses import dataclass

from volgate.backend import VolumeId
from volgate.backend.files import allocated_bytes, copy_sparse, create_file, lock_image, opened, share_blocks, sync_directory
from volgate.backend.qcow2 import CLUSTER, empty_image, empty_length, growth
from volgate.backend.run import run_checked
from volgate.errors import NotFound, OutOfRange, Precondition, Unsupported
from volgate.model import Format, Provisioning, Source, SourceKind, VolumeSpec
from volgate_plugins.directory.manifest import Child, Layer, Manifest
from volgate_plugins.directory.store import Store, rounded

__all__ = ["bytes_to_copy", "fill", "grow"]

_TOOL_TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a clone comes from: an object, its manifest, the layer with the bytes and their size."""

    stored_as: str
    manifest: Manifest
    file: str
    size: int


def bytes_to_copy(store: Store, spec: VolumeSpec) -> int:
    """How much data this creation copies. Raises NotFound (source), Precondition."""
    if spec.source is None or spec.source.kind is SourceKind.EMPTY or spec.format is not Format.RAW:
        return 0
    if spec.provisioning is not Provisioning.THICK and store.pool.shares:
        return 0
    origin = _origin(store, spec.source)
    return min(origin.size, allocated_bytes(f"{store.folder(origin.stored_as)}/{origin.file}"))


def fill(store: Store, spec: VolumeSpec, work: str, stored_as: str) -> Layer:
    """Write the first layer of a new volume into the folder `work`, durably, and return it.

    Raises NotFound (source), OutOfRange, OutOfSpace, Unsupported, Precondition.
    """
    size, file = rounded(spec.size), f"0000.{spec.format}"
    path = f"{work}/{file}"
    if spec.source is not None and spec.source.kind is not SourceKind.EMPTY:
        return _fill_from(store, spec, path, stored_as)
    if spec.provisioning is Provisioning.THICK:
        store.pool.require_free(size, f"create volume {spec.name}")
        _make_thick(path, spec.format, size)
    elif spec.format is Format.RAW:
        create_file(path, (), size)
    else:
        create_file(path, empty_image(size), empty_length(size))
    return Layer(file)


def grow(path: str, kind: Format, size: int, provisioning: Provisioning) -> None:
    """Grow a detached layer durably. Raises OSError, OutOfSpace: then it is as large as before."""
    if kind is Format.RAW:
        _grow_raw(path, size, provisioning)
        return
    if provisioning is Provisioning.THIN and _grow_header(path, size):
        return
    preallocation = "falloc" if provisioning is Provisioning.THICK else "off"
    command = ["qemu-img", "resize", "-q", "-f", "qcow2", f"--preallocation={preallocation}", path, str(size)]
    run_checked(command, doing="grow the image", timeout=_TOOL_TIMEOUT)
    _sync(path)


def _grow_raw(path: str, size: int, provisioning: Provisioning) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            if provisioning is Provisioning.THICK:
                os.posix_fallocate(descriptor, 0, size)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        except OSError:  # where the space ends in the middle, the file has grown until there
            os.ftruncate(descriptor, before)
            raise


def _grow_header(path: str, size: int) -> bool:
    """Grow an image without starting a tool, where its header is all that changes. Raises InUse if QEMU has it open."""
    with opened(path, os.O_RDWR) as descriptor:
        found = growth(os.pread(descriptor, CLUSTER, 0), size)
        if found is None or os.pread(descriptor, found.spare, found.spare_at) != bytes(found.spare):
            return False
        lock_image(descriptor, path)
        os.pwrite(descriptor, found.patch, found.at)
        os.fsync(descriptor)
    return True


def _make_thick(path: str, kind: Format, size: int) -> None:
    if kind is Format.RAW:
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
        return
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", path, str(size)]
    run_checked(command, doing="allocate the image", timeout=_TOOL_TIMEOUT)
    os.chmod(path, 0o600)
    _sync(path)


def _fill_from(store: Store, spec: VolumeSpec, path: str, stored_as: str) -> Layer:
    assert spec.source is not None
    origin = _origin(store, spec.source)
    if origin.manifest.format is not spec.format:
        raise Unsupported(
            f"a clone has the format of its source, {origin.manifest.format}; asked was {spec.format}",
            reason="FORMAT_DIFFERS",
            field="format",
        )
    if spec.size < origin.size:
        raise OutOfRange(f"the clone's size, {spec.size}, is less than its source's, {origin.size}", field="size")
    if spec.format is Format.RAW:
        _copy_raw(store, spec, origin, path)
        return Layer(os.path.basename(path))
    return _overlay(store, spec, origin, path, stored_as)


def _origin(store: Store, source: Source) -> _Origin:
    stored_as, unsettled = store.find(VolumeId(source.volume, source.volume_uid))
    manifest = store.settled(stored_as, unsettled)
    if manifest.content.incomplete:
        raise Precondition(f"volume {source.volume} is still being filled", reason="NOT_READY")
    if source.kind is SourceKind.VOLUME:
        store.require_no_overlay(manifest)
        return _Origin(stored_as, manifest, manifest.content.active, store.size(stored_as, manifest.content.active, manifest.format))
    cut = manifest.snapshot(source.snapshot_uid)
    if cut is None:
        raise NotFound(f"snapshot {source.snapshot} ({source.snapshot_uid}) of volume {source.volume} does not exist")
    return _Origin(stored_as, manifest, cut.layer, cut.size)


def _copy_raw(store: Store, spec: VolumeSpec, origin: _Origin, path: str) -> None:
    source_path = f"{store.folder(origin.stored_as)}/{origin.file}"
    with opened(source_path, os.O_RDONLY) as source, opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as target:
        if spec.provisioning is Provisioning.THICK:
            store.pool.require_free(rounded(spec.size), f"clone volume {spec.name}")
            os.posix_fallocate(target, 0, rounded(spec.size))
            copy_sparse(source, target)
        elif store.pool.shares:
            share_blocks(source, target)
        else:
            store.pool.require_free(os.fstat(source).st_blocks * 512, f"clone volume {spec.name}")
            copy_sparse(source, target)
        os.ftruncate(target, rounded(spec.size))
        if spec.provisioning is Provisioning.THICK:
            os.posix_fallocate(target, 0, rounded(spec.size))
        os.fsync(target)


def _overlay(store: Store, spec: VolumeSpec, origin: _Origin, path: str, stored_as: str) -> Layer:
    if spec.provisioning is Provisioning.THICK:
        raise Unsupported("a qcow2 clone shares its source's layers and cannot be thick; ask for thin, or for raw", field="provisioning")
    uid = spec.source.snapshot_uid if spec.source else ""
    frozen = _freeze(store, origin, stored_as, uid)
    below = f"../{origin.stored_as}/{frozen}"
    create_file(path, empty_image(rounded(spec.size), below), empty_length(rounded(spec.size)))
    return Layer(os.path.basename(path), below)


def _freeze(store: Store, origin: _Origin, child: str, snapshot_uid: str) -> str:
    """Note the clone in its parent, before the clone exists; a volume's active layer gets a new top first."""
    manifest = origin.manifest
    for known in manifest.content.children:
        if known.object == child:
            return known.layer
    others = tuple(c for c in manifest.content.children if store.exists(c.object))
    if snapshot_uid or not (below := _clean_below(store, origin)):
        store.require_depth(origin.stored_as, manifest, origin.file)
    if snapshot_uid:
        store.save(origin.stored_as, manifest.change(children=(*others, Child(child, origin.file, snapshot_uid))))
        return origin.file
    if below:
        store.save(origin.stored_as, manifest.change(children=(*others, Child(child, below))))
        return below
    folder, file = store.folder(origin.stored_as), manifest.next_file()
    store.make_overlay(folder, file, origin.size, origin.file)
    sync_directory(folder)
    store.save(origin.stored_as, manifest.topped(file, children=(*others, Child(child, origin.file))))
    return origin.file


def _clean_below(store: Store, origin: _Origin) -> str:
    """Return the layer below the active one if the active one was never written to: a second clone then needs no further layer."""
    layer = origin.manifest.layer(origin.file)
    path = f"{store.folder(origin.stored_as)}/{origin.file}"
    untouched = os.stat(path).st_size == empty_length(origin.size)
    inside = bool(layer.parent) and "/" not in layer.parent
    if inside and untouched and store.size(origin.stored_as, layer.parent, Format.QCOW2) == origin.size:
        return layer.parent
    return ""


def _sync(path: str) -> None:
    with opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
