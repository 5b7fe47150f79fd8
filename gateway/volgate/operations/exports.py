"""The use case of an export to a file on this host: make the image in a hidden folder beside it, then give it its name."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from volgate.backend.files import remove_tree, sync_directory
from volgate.backend.image import convert
from volgate.errors import AlreadyExists, Unsupported, translate
from volgate.model import Volume
from volgate.operations import lookups, requests
from volgate.operations.context import Context
from volgate.operations.extraction import extract, is_extracted
from volgate.operations.paths import new_path
from volgate.pools import Pool

__all__ = ["export_volume"]

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP)


def export_volume(ctx: Context, request: requests.ExportVolume) -> int:
    """Write a volume or a snapshot to a new file, mode 0600; return the file's length, bytes."""
    target = Path(request.path)
    work = target.parent / f".volgate-export-{ctx.nonce}"
    ctx.undo_earlier("convert", lambda: _remove(work))
    ctx.undo_earlier("publish", lambda: _withdraw(ctx, target))
    with translate(f"export to {target}"):
        if not _is_ours(ctx, target):
            _make(ctx, request, target, work)
        _remove(work)
        return target.stat().st_size


def _make(ctx: Context, request: requests.ExportVolume, target: Path, work: Path) -> None:
    new_path(ctx.world, request.path)  # again: the list may be another one since, and so may the links on the way
    if os.path.lexists(target):
        raise _taken(target)
    pool = ctx.world.pools.get(request.volume.pool)
    volume = lookups.require_volume(pool, request.volume, "")
    ctx.uid = volume.uid
    if not request.snapshot:
        lookups.refuse_attached(ctx, pool, volume, f"export {request.volume}")
    image = work / "image"
    with ctx.step("convert", undo=lambda: _remove(work)):
        if not _is_ours(ctx, image):  # else an earlier attempt came this far
            _remove(work)
            work.mkdir(mode=0o700)
            _write(ctx, request, pool, volume, str(image))
            ctx.note(image=_mark(image))
    with ctx.step("publish", undo=lambda: _withdraw(ctx, target)):
        _publish(image, target)


def _write(ctx: Context, request: requests.ExportVolume, pool: Pool, volume: Volume, image: str) -> None:
    if is_extracted(pool):
        extract(pool, volume, request.snapshot, image, request.format, progress=ctx.report, cancelled=ctx.cancelled.is_set)
        return
    source = lookups.source_of(pool, volume, request.snapshot)
    pool.call_long(
        convert,
        source.path,
        source.format,
        image,
        request.format,
        chain=source.chain,
        progress=ctx.report,
        cancelled=ctx.cancelled.is_set,
    )


def _publish(image: Path, target: Path) -> None:
    """Give the image its name; a link, unlike a rename, never replaces what another has put there."""
    try:
        target.hardlink_to(image)
    except FileExistsError:
        raise _taken(target) from None
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise Unsupported(f"path: the file system of {target.parent} has no hard links; export to another one", field="path") from error
        raise
    sync_directory(str(target.parent))


def _taken(target: Path) -> AlreadyExists:
    return AlreadyExists(f"path: {target} exists; remove it, or export to another name", field="path")


def _withdraw(ctx: Context, target: Path) -> None:
    if _is_ours(ctx, target):
        target.unlink()
        sync_directory(str(target.parent))


def _remove(work: Path) -> None:
    if work.exists():
        remove_tree(str(work))
        sync_directory(str(work.parent))


def _is_ours(ctx: Context, path: Path) -> bool:
    """Whether a file is the very one that this operation made."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return bool(ctx.facts.get("image") == _mark(path))
    return False


def _mark(path: Path) -> str:
    found = path.lstat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
