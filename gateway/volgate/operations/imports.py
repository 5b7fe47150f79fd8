"""The use case of an import: inspect the image in a sandbox, make an incomplete volume, fill it, complete it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from volgate.backend import DataPath, VolumeId
from volgate.backend.image import inspect
from volgate.errors import AlreadyExists, NotFound, OutOfRange
from volgate.model import Provisioning, Volume, VolumeSpec, VolumeState
from volgate.operations import lookups, making, requests
from volgate.operations.context import Context
from volgate.pools import Pool
from volgate.store.records import IndexedVolume

__all__ = ["import_volume"]


def import_volume(ctx: Context, request: requests.ImportVolume) -> IndexedVolume:
    """Make a volume of an image file."""
    if request.spooled:
        with ctx.step("received", undo=lambda: remove_spool(request.path)):
            pass
    pool = ctx.world.pools.get(request.pool)
    identity = VolumeId(request.volume, ctx.drawn_uid)
    ctx.undo_earlier("create", lambda: making.delete(pool, identity))
    data = pool.facet(DataPath)
    existing = lookups.find_volume(pool, request.volume)
    if existing is not None and existing.uid != ctx.drawn_uid:
        raise AlreadyExists(
            f"{request.target} exists with uid {existing.uid}; import under another name, or repeat with the first import's request_id",
            metadata={"uid": existing.uid},
        )
    if existing is not None and existing.state is VolumeState.READY:
        return _finish(ctx, pool, request, existing)  # an earlier attempt died between the volume's completion and its record
    lookups.require_accepting(ctx.world, pool)
    if not Path(request.path).exists():
        raise NotFound(f"the image {request.path} is gone; upload it again", field="header.path")
    with ctx.step("inspect"):
        settings = ctx.world.settings
        most = settings.limits.maximum_volume_bytes
        found = inspect(request.path, request.source_format, maximum=most, staging=str(settings.spool_dir))
    if request.size and request.size < found.virtual_size:
        raise OutOfRange(f"size_bytes: {request.size} is less than the image's {found.virtual_size}", field="header.size_bytes")
    spec = VolumeSpec(
        name=request.volume,
        uid=ctx.drawn_uid,
        size=request.size or max(found.virtual_size, data.traits.minimum),
        format=request.format or data.traits.formats[0],
        provisioning=Provisioning.THIN,
        labels=request.labels,
        incomplete=True,
    )
    with ctx.step("create", undo=lambda: making.delete(pool, identity)):
        making.make(pool, spec)
    with ctx.step("fill"):
        pool.call_long(data.fill_from_file, identity, request.path, request.source_format, ctx.report)
    with ctx.step("complete"):
        volume = pool.call(data.complete, identity)
    return _finish(ctx, pool, request, volume)


def _finish(ctx: Context, pool: Pool, request: requests.ImportVolume, volume: Volume) -> IndexedVolume:
    if request.spooled:
        ctx.after(lambda: remove_spool(request.path))
    return lookups.put(ctx, pool, volume)


def remove_spool(path: str) -> None:
    """Remove an upload."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  # a plain path string is at hand
