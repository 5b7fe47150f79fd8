"""A third-party plugin as it would be installed: a module and its metadata in a folder on the path."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["plugin"]


@contextmanager
def plugin(name: str, code: str) -> Iterator[Path]:
    """Put the folder that is yielded on PYTHONPATH; it goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vg-plugin-", dir="/tmp"))
    (folder / f"{name}.py").write_text(code)
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[volgate.plugins]\n{name} = {name}\n")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
