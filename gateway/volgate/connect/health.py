"""How healthy the way to a file is: the file, its file system, the device below."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from volgate.connection import LocalFile
from volgate.model import Path as IoPath
from volgate.model import PathState

__all__ = ["file_paths"]

_FULL = 4 << 20  # bytes: QEMU writes up to some MiB at once, and a file system keeps a few blocks that nobody gets
_LITTLE = 0.02  # of the file system: a warning before the guest is paused for want of space


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    kind: str
    device: str
    options: tuple[str, ...]


def file_paths(file: LocalFile, host: str) -> list[IoPath]:
    """The stations from the host to the file, as they are now."""
    mount = _mount_of(file.path)
    return [_file(file, host), _file_system(file, host, mount)]


def _file(file: LocalFile, host: str) -> IoPath:
    state, error, facts = PathState.ACTIVE_OPTIMIZED, "", {"format": file.format.value, "layers": str(len(file.chain))}
    for path in (file.path, *(layer for layer, _ in file.chain)):
        try:
            found = os.stat(path, follow_symlinks=False)  # noqa: PTH116  # one call style for all of them
            if path == file.path and found.st_ino != file.identity.inode:
                state, error = PathState.FAILED, f"{path} is another file than the recorded one"
        except OSError as problem:
            state, error = PathState.FAILED, f"{path}: {problem.strerror}"
            break
    return IoPath("file", host, file.path, file.path, state, last_error=error, facts=facts)


def _file_system(file: LocalFile, host: str, mount: _Mount) -> IoPath:
    state, error, errors = PathState.ACTIVE_OPTIMIZED, "", 0
    facts = {"mount": mount.point, "type": mount.kind, "options": ",".join(mount.options)}
    try:
        space = os.statvfs(file.root)
    except OSError as problem:
        return IoPath("filesystem", host, mount.point, mount.device, PathState.FAILED, last_error=str(problem.strerror), facts=facts)
    facts["free_bytes"] = str(space.f_bavail * space.f_frsize)
    errors = _kernel_errors(mount)
    if space.f_flag & os.ST_RDONLY or "ro" in mount.options:
        state, error = PathState.FAILED, f"{mount.point} is mounted read-only"
    elif space.f_bavail * space.f_frsize < _FULL:
        state, error = PathState.FAILED, f"{mount.point} is full"
    elif space.f_blocks and space.f_bavail < _LITTLE * space.f_blocks:
        error = f"{mount.point} is nearly full"
    elif errors:
        error = f"the kernel counted {errors} errors on {mount.point}"
    return IoPath("filesystem", host, mount.point, mount.device, state, last_error=error, errors=errors, facts=facts)


def _mount_of(path: str) -> _Mount:
    """The mount that a path is on, from the kernel's own table: nothing that could hang is asked."""
    best = _Mount("/", "", "", ())
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        point = fields[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best.point):
            best = _Mount(point, tail[0], tail[1], tuple({*fields[5].split(","), *tail[2].split(",")}))
    return best


def _kernel_errors(mount: _Mount) -> int:
    counter = Path("/sys/fs") / mount.kind / Path(mount.device).name / "errors_count"
    try:
        return int(counter.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
