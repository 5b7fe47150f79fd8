"""What lies in a directory pool, read from its files alone: a fingerprint, and whatever has no business there."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from volgate.backend.qcow2 import parse_header
from volgate_plugins.directory.manifest import Manifest

MARKER = ".volgate-pool.json"
LOCKS = ".volgate-locks"


def stray(pool: Path, *folders: Path) -> list[str]:
    """Every file that no volume accounts for: in the pool, and in other folders that must be empty (a spool).

    What a merge that follows an answered call is just writing is given five seconds to go; what stays is stray.
    """
    deadline = time.monotonic() + 5.0
    while (found := _stray_now(pool, folders)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _stray_now(pool: Path, folders: tuple[Path, ...]) -> list[str]:
    found = [str(path.relative_to(pool)) for name in (".work", ".trash") for path in _without_probes(pool / name)]
    found += [path.name for path in pool.iterdir() if path.name not in (MARKER, LOCKS, ".work", ".trash", "volumes")]
    for folder in (pool / "volumes").iterdir():
        manifest = Manifest.read((folder / "volume.json").read_bytes())
        named = {layer.file for layer in manifest.content.layers} | {"volume.json"}
        found += [f"{folder.name}/{path.name}" for path in folder.iterdir() if path.name not in named]
        found += [f"{folder.name}/{name} is missing" for name in named if not (folder / name).exists()]
        size = _size(folder / manifest.content.active, str(manifest.format))
        if manifest.content.promised != size:
            found.append(f"{folder.name} has {size} bytes, {manifest.content.promised} are promised")
        if manifest.content.incomplete or manifest.content.pending or manifest.content.merging:
            found.append(f"{folder.name} has work under way")
    return found + [str(path) for folder in folders if folder.exists() for path in folder.iterdir()]


def _size(path: Path, kind: str) -> int:
    """The size that a guest sees."""
    return parse_header(path.read_bytes()[:65536]).size if kind == "qcow2" else path.stat().st_size


def _without_probes(folder: Path) -> list[Path]:
    """What lies in a folder; the file that a check of the pool's health just writes is given a second to go."""
    deadline = time.monotonic() + 1.0
    while any(path.name.startswith(".probe.") for path in folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return list(folder.iterdir())


def names(pool: Path) -> list[str]:
    """The names of the volumes by their manifests; one that is there twice comes twice."""
    return sorted(json.loads((folder / "volume.json").read_bytes())["name"] for folder in (pool / "volumes").iterdir())


def fingerprint(pool: Path) -> str:
    """A hash of every name and every byte below the pool."""
    digest = hashlib.sha256()
    for path in sorted(pool.rglob("*")):
        digest.update(str(path.relative_to(pool)).encode() + b"\0")
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
