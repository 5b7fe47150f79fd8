"""Deleted volumes that are kept for a while, and how they come back: by adoption, under a new uid."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH104, PTH208

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import msgspec

from volgate.backend import Foreign, OwnerTag, VolumeId
from volgate.backend.files import opened, sync_directory, write_durably
from volgate.errors import DataLoss, NotFound, Precondition
from volgate.model import Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.directory.index import Entry
from volgate_plugins.directory.manifest import Child, Manifest
from volgate_plugins.directory.store import MANIFEST, Store

__all__ = ["PREFIX", "deleted", "parent_of", "undelete"]

PREFIX = "trash:"


def deleted(store: Store) -> Iterator[Foreign]:
    """Yield what can be undeleted; `trash:OBJECT.MOMENT` is the locator, the moment in nanoseconds since 1970."""
    for name in sorted(os.listdir(store.pool.trash)):
        with contextlib.suppress(FileNotFoundError, DataLoss):  # emptied just now, or not to be saved
            manifest = _load(store, name)
            moment = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(int(name.rpartition(".")[2]) / 1e9))
            why = f"volume {manifest.tag.name}, deleted {moment}; adopt it to have it back"
            yield Foreign(PREFIX + name, manifest.content.promised, manifest.format, why)


def parent_of(store: Store, locator: str) -> str:
    """Return the name of the volume whose layers a deleted clone lies on, "" if there is none: it is to be locked as well."""
    with contextlib.suppress(FileNotFoundError, DataLoss):
        below = _root(_load(store, locator.removeprefix(PREFIX)))
        return store.load(below.split("/")[1]).tag.name if below else ""
    return ""


def undelete(store: Store, locator: str, spec: VolumeSpec) -> Volume:
    """Bring a deleted volume back as `spec.name`/`spec.uid`, its data and snapshots as they were; the names' locks are held.

    Raises NotFound (no longer in the trash), Precondition (FORMAT_DIFFERS), DataLoss (layers of a clone's source are gone).
    """
    entry = locator.removeprefix(PREFIX)
    folder, stored_as = f"{store.pool.trash}/{entry}", object_name(spec.name, spec.uid)
    try:
        found = _load(store, entry)
    except FileNotFoundError:
        raise NotFound(f"{locator} is not in the trash of {store.pool.root}; it is kept for `trash_seconds`") from None
    if found.format is not spec.format:
        raise Precondition(f"{locator} is {found.format}, asked was {spec.format}", reason="FORMAT_DIFFERS", field="format")
    tag = msgspec.structs.replace(found.tag, name=spec.name, uid=spec.uid, labels=dict(spec.labels) or found.tag.labels)
    manifest = Manifest(_anew(tag), msgspec.structs.replace(found.content, children=(), pending=None))
    with store.index.promise(stored_as, Entry(spec.name, spec.uid, manifest.content.promised), store.pool.limit()):
        _pin(store, manifest, stored_as)
        write_durably(f"{folder}/{MANIFEST}", manifest.encode())
        os.rename(folder, store.folder(stored_as))
        sync_directory(store.pool.volumes)
        sync_directory(store.pool.trash)
    return store.volume(stored_as, manifest)


def _anew(tag: OwnerTag) -> OwnerTag:
    return msgspec.structs.replace(tag, generation=tag.generation + 1)


def _load(store: Store, name: str) -> Manifest:
    with opened(f"{store.pool.trash}/{name}/{MANIFEST}", os.O_RDONLY) as descriptor:
        return Manifest.read(os.read(descriptor, os.fstat(descriptor).st_size))


def _root(manifest: Manifest) -> str:
    """Return what the lowest layer lies on: `../OBJECT/FILE` of a clone's source, or nothing."""
    return manifest.chain(manifest.content.active)[-1].parent


def _pin(store: Store, manifest: Manifest, stored_as: str) -> None:
    """Note a clone in its source again, so that nothing merges or deletes the layers below it."""
    below = _root(manifest)
    if not below:
        return
    _, origin, file = below.split("/")
    try:
        source = store.load(origin)
        source = store.find(VolumeId(source.tag.name, source.tag.uid))[1]
        source.layer(file)
    except (FileNotFoundError, NotFound, KeyError):
        raise DataLoss(
            f"volume {manifest.tag.name} lies on {below}, which is gone; it cannot be undeleted", reason="LAYER_MISSING"
        ) from None
    kept = tuple(child for child in source.content.children if child.object != stored_as)
    store.save(origin, source.change(children=(*kept, Child(stored_as, file))))
