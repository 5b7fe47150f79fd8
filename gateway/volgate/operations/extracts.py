"""The content of a volume as an image file: read by the gateway where files hold it, written by the backend where none does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from volgate.backend import Extracts
from volgate.backend.image import convert
from volgate.model import Format, Volume
from volgate.operations import lookups
from volgate.pools import Pool

__all__ = ["write_image"]

Progress = Callable[[float], None]


def write_image(
    pool: Pool,
    volume: Volume,
    snapshot: str,
    target: Path,
    wanted: Format,
    *,
    progress: Progress = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    durable: bool = True,
) -> None:
    """Make the file `target` with what a volume, or its snapshot of that name, holds. What it leaves after an error is the caller's.

    Raises NotFound, Unsupported, OutOfSpace, Cancelled, Unreachable.
    """
    backend = pool.backend()
    if not isinstance(backend, Extracts):
        source = lookups.source_of(pool, volume, snapshot)
        pool.call_long(
            convert,
            source.path,
            source.format,
            str(target),
            wanted,
            chain=source.chain,
            progress=progress,
            cancelled=cancelled,
            durable=durable,
        )
        return
    uid = lookups.snapshot_uid(pool, volume, snapshot)
    if wanted is Format.RAW:
        pool.call_long(backend.extract_to_file, lookups.identity(volume), uid, str(target), progress)
        return
    raw = target.with_name(f"{target.name}.raw")
    try:
        pool.call_long(backend.extract_to_file, lookups.identity(volume), uid, str(raw), lambda done: progress(done / 2))
        pool.call_long(
            convert,
            str(raw),
            Format.RAW,
            str(target),
            wanted,
            chain=(),
            progress=lambda done: progress(0.5 + done / 2),
            cancelled=cancelled,
            durable=durable,
        )
    finally:
        raw.unlink(missing_ok=True)
