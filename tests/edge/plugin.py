"""A third-party plugin as it would be installed: a module and its metadata in a folder on the path."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.labs.third_party import installed

__all__ = ["plugin"]


@contextmanager
def plugin(name: str, code: str) -> Iterator[Path]:
    """Put the folder that is yielded on PYTHONPATH; it goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vg-plugin-", dir="/tmp"))
    installed(folder, name, name, source=code)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
