"""Which files and folders of a volume were changed by a traced call and not synced after that."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from volgate.conformance.in_process import Opened
from volgate.conformance.tracing import Line
from volgate.conformance.verbs import Call
from volgate.connection import LocalFile
from volgate.errors import VolgateError
from volgate.model import VolumeState

# the paths are strace's strings, of which nothing is opened
# ruff: noqa: PTH118, PTH120

__all__ = ["forgotten"]

_CALL = re.compile(r"^(\w+)\((.*)$")
_DESCRIPTOR = re.compile(r"^-?\d+<([^>]*)>")
_DESCRIPTORS = re.compile(r"\d+<([^>]*)>")
_PATH = re.compile(r'(?:AT_FDCWD(?:<([^>]*)>)?|\d+<([^>]*)>), "((?:[^"\\]|\\.)*)"|"((?:[^"\\]|\\.)*)"')
_WRITES = ("write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate", "ioctl")
_ENTRIES = ("rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat")
_REMOVALS = ("unlink", "unlinkat", "rmdir")
"""One that a power cut takes back leaves litter that a repeat finds, and nothing that was answered for is lost."""


def forgotten(lines: Sequence[Line], pool: Opened, call: Call) -> list[str]:
    """The volume's files, the folders above them in the pool's root, and what the call writes beside, that are still to be synced."""
    dirty = set[str]()
    for line in lines:
        _follow(line.text, dirty)
    wanted = {*call.files, *map(os.path.dirname, call.files)}
    root, paths = _files(pool, call) or ("", [])
    for path in paths:
        wanted.add(path)
        folder = os.path.dirname(path)
        while folder.startswith(root):
            wanted.add(folder)
            folder = os.path.dirname(folder)
    return sorted(dirty & wanted)


def _files(pool: Opened, call: Call) -> tuple[str, list[str]] | None:
    """The root of the pool and the files that the call's volume has now; the folders of a volume that is gone are those of another."""
    name = call.volume
    try:
        found = pool.get(name)
        if found.state is not VolumeState.READY:
            return None
    except VolgateError:
        found = pool.create()
        connection = pool.there(found)
        if not isinstance(connection, LocalFile):
            return None
        return connection.root, [os.path.dirname(os.path.dirname(connection.path)) + "/."]
    connection = pool.there(found)
    if not isinstance(connection, LocalFile):
        return None
    return connection.root, [connection.path, connection.tag, *(path for path, _ in connection.chain)]


def _follow(text: str, dirty: set[str]) -> None:
    """Take one system call into account; one that failed did nothing."""
    found = _CALL.match(text)
    if not found or re.search(r"= -1 E[A-Z]+", text):
        return
    name, rest = found.groups()
    descriptor = _DESCRIPTOR.match(rest)
    if name in ("fsync", "fdatasync") and descriptor:
        dirty.discard(descriptor[1])
    elif name == "copy_file_range":
        dirty |= set(_DESCRIPTORS.findall(rest)[1:2])  # from the first to the second
    elif name in _WRITES and descriptor and (name != "ioctl" or "FICLONE" in rest):
        dirty.add(descriptor[1])
    elif name in ("openat", "creat") and ("O_CREAT" in rest or "O_TRUNC" in rest):
        for path in _paths(rest):
            dirty |= {path, os.path.dirname(path)}
    elif name in _ENTRIES:
        _moved(name, list(_paths(rest)), dirty)
    elif name in _REMOVALS:
        dirty -= set(_paths(rest))


def _moved(name: str, paths: list[str], dirty: set[str]) -> None:
    """Names came or changed; the folder of what a link is made of stays as it is."""
    dirty |= {os.path.dirname(path) for path in (paths if name.startswith("rename") else paths[-1:])}
    if name.startswith("rename") and len(paths) > 1:
        old, new = paths[:2]
        below = {path for path in dirty if path == old or path.startswith(f"{old}/")}
        dirty -= below
        dirty |= {new + path[len(old) :] for path in below}


def _paths(rest: str) -> Iterator[str]:
    for here, folder, below, alone in _PATH.findall(rest):
        path = below or alone
        yield os.path.normpath(path if path.startswith("/") else os.path.join(here or folder or "/", path))
