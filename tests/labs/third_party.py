"""Distributions of third parties: installed into a folder as pip leaves them, without an index."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["installed"]


def installed(site: Path, name: str, module: str, *, source: str = "", version: str = "1.0") -> str:
    """Put a distribution with one plugin into the folder; return a PYTHONPATH with which it is found.

    `module` is what its entry point names; `source` is the text of that module, "" if it is importable already.
    """
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[volgate.plugins]\n{name} = {module}\n", encoding="utf-8")
    if source:
        (site / f"{module}.py").write_text(source, encoding="utf-8")
    root = str(Path(__file__).parents[2])
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([str(site), root, *known]))
