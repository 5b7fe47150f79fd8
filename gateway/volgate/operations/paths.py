"""Paths on this host that callers name: only below the directories that the operator lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from volgate.errors import Denied, InvalidRequest, NotFound
from volgate.operations.world import World

__all__ = ["allowed_path", "new_path"]


def allowed_path(world: World, text: str) -> str:
    """Resolve a server-side path of an image; links are followed before the check. Raises Denied, NotFound, InvalidRequest."""
    if not Path(text).is_absolute():
        raise InvalidRequest(f"header.path: {text!r} is not absolute", field="header.path")
    found = Path(os.path.realpath(text))
    if not _is_below(found, world.settings.imports.allowed_directories):
        raise _outside("header.path", text, "imports", world.settings.imports.allowed_directories)
    if not found.is_file():
        raise NotFound(f"header.path: {text} is not a file", field="header.path")
    return str(found)


def new_path(world: World, text: str) -> str:
    """Resolve the server-side path of a file to be made; links in its folder are followed before the check.

    Raises Denied, NotFound (the folder), InvalidRequest.
    """
    folder, _, name = text.rpartition("/")
    if not text.startswith("/") or name in ("", ".", ".."):
        raise InvalidRequest(f"path: {text!r} is not an absolute path of a file", field="path")
    found = Path(os.path.realpath(folder or "/"))
    if not _is_below(found, world.settings.exports.allowed_directories):
        raise _outside("path", text, "exports", world.settings.exports.allowed_directories)
    if not found.is_dir():
        raise NotFound(f"path: {folder} is not a directory; make it first", field="path")
    return str(found / name)


def _is_below(found: Path, allowed: Sequence[str]) -> bool:
    return any(found.is_relative_to(os.path.realpath(directory)) for directory in allowed)


def _outside(field: str, text: str, section: str, allowed: Sequence[str]) -> Denied:
    where = ", ".join(allowed) or "none"
    return Denied(f"{field}: {text} is not below an allowed directory ({where}); see [{section}] in the configuration", field=field)
