"""The content of a volume as a new file: converted from the files that hold it, or written by the backend where none does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from volgate.backend import DataPath, Extracts
from volgate.backend.image import convert
from volgate.model import Format, Volume
from volgate.operations import lookups
from volgate.pools import Pool

__all__ = ["extract", "is_extracted"]

# paths are plain strings here, as the backend takes them
# ruff: noqa: PTH108


def is_extracted(pool: Pool) -> bool:
    """Whether the backend writes the file itself. Raises Unsupported if it has no way to its bytes at all."""
    return isinstance(pool.facet(DataPath), Extracts)


def extract(
    pool: Pool,
    volume: Volume,
    snapshot: str,
    target: str,
    form: Format,
    *,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the volume, or with a name its snapshot, to the file `target` of this format; `progress` may raise to stop.

    Raises NotFound, and what `convert` and the backend raise; then nothing is left.
    """
    uid = lookups.snapshot_uid(pool, volume, snapshot)
    raw = target if form is Format.RAW else f"{target}.raw"
    share = 1.0 if form is Format.RAW else 0.5
    try:
        pool.call_long(pool.facet(Extracts).extract_to_file, lookups.identity(volume), uid, raw, lambda done: progress(done * share))
        if raw != target:
            pool.call_long(
                convert, raw, Format.RAW, target, form, chain=(), progress=lambda done: progress(share + done / 2), cancelled=cancelled
            )
    except BaseException:  # whatever it was, half a file does not stay
        _remove(target)
        raise
    finally:
        if raw != target:
            _remove(raw)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
