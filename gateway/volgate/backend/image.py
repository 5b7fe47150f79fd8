"""Images of strangers: inspected and converted in a child that owns nothing.

The child runs as `nobody` (when the gateway is root) with bounded memory, processor time and file size and no way to new privileges;
it is always told the format. What names other files (backing files, data files, extents) is refused before and after the tool looked.
"""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH100, PTH104, PTH116, PTH120

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from volgate.backend.files import begin_writeback, copy_sparse, opened, share_blocks, sync_directory
from volgate.backend.qcow2 import parse_header
from volgate.backend.run import Limits, refuse_killed, run, run_checked
from volgate.errors import Cancelled, InvalidRequest, OutOfRange, Precondition, VolgateError, translate
from volgate.model import Format

__all__ = ["MAXIMUM", "TOOL_MEMORY", "ImageInfo", "Sandbox", "Stretch", "convert", "described", "inspect", "stretches"]

MAXIMUM = 1 << 46
_INFO_TIMEOUT = 30.0
_CHECK_TIMEOUT, _CHECK_SECONDS = 1800.0, 900
_CHECK_FAILED = (1, 2)  # 3 means leaks alone, 63 a format without a check
_CONVERT_TIMEOUT = 24 * 3600.0
TOOL_MEMORY = 2 << 30
"""Bytes that a tool may take which reads a stranger's image."""
_OUTPUTS = (Format.RAW, Format.QCOW2)
_VMDK_MAGIC, _VMDK_HEADER = b"KDMV", struct.Struct("<4sIIQ")
_WHOLE_VMDK = ("monolithicSparse", "streamOptimized")
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")
_HEAD = 65536

Progress = Callable[[float], None]
Chain = tuple[tuple[str, Format], ...]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image holds: its format and the size that a guest would see, bytes."""

    format: Format
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Data of an image that lie in one piece: from `start` in the image, at `offset` in the file of a layer (0: the top), bytes."""

    start: int
    length: int
    layer: int
    offset: int


def stretches(source: str, chain: Chain) -> tuple[int, list[Stretch]] | None:
    """Return the size of a qcow2 volume of ours, which nobody writes to, and where its data lie; None if some are compressed.

    Everything between is zeroes. Raises Precondition (BAD_IMAGE), Unreachable (OUTPUT_TOO_LARGE: too scattered to tell).
    """
    with translate(f"map image {source}"):
        command = ["qemu-img", "map", "--output=json", described(source, Format.QCOW2, chain)]
        said = json.loads(run_checked(command, doing="map the image", timeout=_CHECK_TIMEOUT))
        with opened(source, os.O_RDONLY) as descriptor:
            size = parse_header(os.pread(descriptor, _HEAD, 0)).size
    data = [part for part in said if part["data"] and not part["zero"]]
    if any("offset" not in part for part in data):
        return None
    return size, [Stretch(part["start"], part["length"], part["depth"], part["offset"]) for part in data]


def inspect(path: str, image_format: Format, *, maximum: int = MAXIMUM, staging: str = "") -> ImageInfo:
    """Look at a stranger's image without believing it.

    Raises Precondition (HOSTILE_IMAGE naming what, BAD_IMAGE), OutOfRange (larger than `maximum`), NotFound. `staging`: a folder for a
    copy if the sandbox cannot read the file; its own folder by default.
    """
    with translate(f"inspect image {path}"):
        if image_format is Format.RAW:
            return _checked(ImageInfo(Format.RAW, os.stat(path).st_size), maximum)
        with Sandbox(staging or os.path.dirname(path)) as box:
            return box.look(path, image_format, maximum)[1]


def convert(
    source: str,
    source_format: Format,
    target: str,
    target_format: Format,
    *,
    chain: Chain | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    staging: str = "",
    maximum: int = MAXIMUM,
    durable: bool = True,
    thick: bool = False,
) -> ImageInfo:
    """Make the file `target`, mode 0600 and (if `durable`) durable, with the content of an image; it appears whole or not at all.

    `thick`: a qcow2 target has the space of every byte that a guest sees.

    A `chain` (the layers below, nearest first; empty: there are none) means that the source is a volume of ours: then the gateway itself
    reads exactly these files. None: the source is a stranger's, inspected first and converted in the sandbox.
    Returns what was found. `progress` gets the done fraction and
    may raise to stop. Raises Precondition (HOSTILE_IMAGE, BAD_IMAGE), OutOfSpace, InUse, Cancelled, Unsupported.
    """
    if target_format not in _OUTPUTS:
        raise InvalidRequest(f"an image cannot be written as {target_format}; use raw or qcow2", field="format")
    told = progress or (lambda _: None)
    with translate(f"convert image {source}"), Sandbox(staging or os.path.dirname(target)) as box:
        made = box.path("out")
        options = _options(told, cancelled, made if durable else "")
        if source_format is Format.RAW is target_format:
            found = inspect(source, source_format, maximum=maximum)
            _copy(source, made, told, cancelled)
        elif chain is not None:
            found = _flatten(source, source_format, chain, made, _command(target_format, thick=thick), options)
        else:
            found = _convert_inside(box, (source, source_format), _command(target_format, thick=thick), maximum, options)
        _take_over(made, target, durable=durable)
    told(1.0)
    return found


def _options(progress: Progress, cancelled: Callable[[], bool] | None, synced: str) -> dict[str, Any]:
    def on_line(line: str) -> None:
        if found := _PERCENT.search(line):
            progress(min(1.0, float(found[1]) / 100))
            if synced:
                with contextlib.suppress(FileNotFoundError), opened(synced, os.O_RDONLY) as descriptor:
                    begin_writeback(descriptor)

    return {"on_line": on_line, "cancelled": cancelled, "timeout": _CONVERT_TIMEOUT, "doing": "convert the image"}


def _convert_inside(box: Sandbox, source: tuple[str, Format], begun: list[str], maximum: int, options: dict[str, Any]) -> ImageInfo:
    path, source_format = source
    name, found = box.look(path, source_format, maximum)
    limits = Limits(memory=TOOL_MEMORY, file_size=found.virtual_size + found.virtual_size // 64 + (64 << 20))
    command = [*begun, "-f", str(source_format), f"file:{name}", "file:out"]
    run_checked(command, cwd=box.folder, user=box.user, limits=limits, **options)
    return found


def _flatten(source: str, kind: Format, chain: Chain, made: str, begun: list[str], options: dict[str, Any]) -> ImageInfo:
    with opened(source, os.O_RDONLY) as descriptor:
        size = parse_header(os.pread(descriptor, _HEAD, 0)).size if kind is Format.QCOW2 else os.fstat(descriptor).st_size
    run_checked([*begun, described(source, kind, chain), made], **options)
    return ImageInfo(kind, size)


def described(source: str, kind: Format, chain: Chain) -> str:
    """Name an image and exactly the layers below it, so that nothing follows what a header says."""
    node: dict[str, Any] | None = None
    for path, layer_format in reversed(((source, kind), *chain)):
        below = {"backing": node} if layer_format is Format.QCOW2 else {}
        node = {"driver": str(layer_format), "file": {"driver": "file", "filename": path}, **below}
    return f"json:{json.dumps(node)}"


def _command(target_format: Format, *, thick: bool) -> list[str]:
    """Begin the command. A raw file is the same whatever the order of the writes, and any order is several times faster."""
    words = ["-W"] if target_format is Format.RAW else ["-o", "preallocation=falloc"] if thick else []
    return ["qemu-img", "convert", "-p", "-O", str(target_format), *words]


def _copy(source: str, made: str, progress: Progress, cancelled: Callable[[], bool] | None) -> None:
    def step(done: float) -> None:
        if cancelled and cancelled():
            raise Cancelled("the copy was cancelled")
        progress(done)

    with opened(source, os.O_RDONLY) as old, opened(made, os.O_RDWR | os.O_CREAT | os.O_EXCL) as new:
        copy_sparse(old, new, step)


def _take_over(made: str, target: str, *, durable: bool) -> None:
    with opened(made, os.O_RDONLY) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Precondition("the converter left no plain file", reason="BAD_IMAGE")
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o600)
        if durable:
            os.fsync(descriptor)
    os.rename(made, target)
    if durable:
        sync_directory(os.path.dirname(target))


class Sandbox:
    """A folder that belongs to the sandbox's user; the child starts in it and needs no right on what lies above."""

    def __init__(self, parent: str) -> None:
        """Make it below `parent`; the end of the block takes it away with all that is in it. `user`: who the child is, None: as we are."""
        self.user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        self.folder = tempfile.mkdtemp(prefix=".image-", dir=parent)
        if self.user is not None:
            os.chown(self.folder, self.user, self.user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> str:
        """Where a file of this name lies in it."""
        return f"{self.folder}/{name}"

    def look(self, path: str, image_format: Format, maximum: int) -> tuple[str, ImageInfo]:
        """Refuse what is hostile; return the name that the child can open and what the image holds."""
        if image_format is Format.RAW:
            return self.bring_in(path), _checked(ImageInfo(Format.RAW, os.stat(path).st_size), maximum)
        _refuse_head(path, image_format)
        name = self.bring_in(path)
        found = _checked(_ask(self, name, image_format, path), maximum)
        _require_whole(self, name, image_format, path)
        return name, found

    def bring_in(self, path: str) -> str:
        """Return a name that the child can open: the file's own path if it is readable for everybody, else a copy in the folder."""
        if self.user is None or _readable_by_all(path):
            return os.path.abspath(path)
        inside = self.path("in")
        with opened(path, os.O_RDONLY) as source, opened(inside, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
            try:
                share_blocks(source, target)
            except OSError:
                copy_sparse(source, target)
            os.fchown(target, self.user, self.user)
        return "in"


def _readable_by_all(path: str) -> bool:
    if not os.stat(path).st_mode & stat.S_IROTH:
        return False
    folder = os.path.dirname(os.path.realpath(path))
    while os.stat(folder).st_mode & stat.S_IXOTH:
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
    return False


def _checked(found: ImageInfo, maximum: int) -> ImageInfo:
    if not 0 < found.virtual_size <= min(maximum, MAXIMUM):
        raise OutOfRange(f"the image says it has {found.virtual_size} bytes; between 1 and {min(maximum, MAXIMUM)} are accepted")
    return found


def _refuse_head(path: str, image_format: Format) -> None:
    with opened(path, os.O_RDONLY) as descriptor:
        head, length = os.pread(descriptor, _HEAD, 0), os.fstat(descriptor).st_size
    for problem in _problems_of_head(head, image_format):
        raise _hostile(problem)
    if image_format is Format.QCOW2 and parse_header(head).tables_end > length:
        raise Precondition(f"{path} is cut off: its tables lie behind its end", reason="BAD_IMAGE")


def _problems_of_head(head: bytes, image_format: Format) -> Iterator[str]:
    if image_format is Format.QCOW2:
        with _bad_image(image_format):
            header = parse_header(head)
        if header.backing:
            yield f"it has a backing file, {header.backing[:120]!r}; flatten it first"
        if header.data_file:
            yield "it keeps its data in another file (data-file)"
        if header.encrypted:
            yield "it is encrypted"
    elif image_format is Format.VMDK:
        if head[:4] != _VMDK_MAGIC and (b"Disk DescriptorFile" in head[:512] or head[:4] == b"COWD"):
            yield "it is a descriptor that names other files (external extents)"
        elif head[:4] == _VMDK_MAGIC and _VMDK_HEADER.unpack_from(head.ljust(32, b"\0"))[3] == 0:
            yield "its header has no capacity, so that a descriptor would name other files (external extents)"


def _ask(box: Sandbox, name: str, image_format: Format, path: str) -> ImageInfo:
    command = ["qemu-img", "info", "--output=json", "-f", str(image_format), f"file:{name}"]
    done = run(command, timeout=_INFO_TIMEOUT, cwd=box.folder, user=box.user, limits=Limits(memory=TOOL_MEMORY, cpu=20, file_size=1))
    if not done.timed_out:
        refuse_killed(done, f"inspect image {path}: qemu-img")
    if done.timed_out or done.returncode < 0:
        raise _hostile("the tool that reads it was stopped at its limits")
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()[-300:]
        raise Precondition(f"{path} is no readable {image_format} image: {text}", reason="BAD_IMAGE")
    with _bad_image(image_format):
        said = json.loads(done.stdout)
        for problem in _problems_of_answer(said):
            raise _hostile(problem)
        return ImageInfo(image_format, int(said["virtual-size"]))


def _require_whole(box: Sandbox, name: str, image_format: Format, path: str) -> None:
    """Refuse an image that was cut off or is damaged: the tool would read zeroes where its bytes are missing. Leaks are harmless."""
    command = ["qemu-img", "check", "-q", "-f", str(image_format), f"file:{name}"]
    done = run(
        command, timeout=_CHECK_TIMEOUT, cwd=box.folder, user=box.user, limits=Limits(memory=TOOL_MEMORY, cpu=_CHECK_SECONDS, file_size=1)
    )
    if not done.timed_out:
        refuse_killed(done, f"check image {path}: qemu-img")
    if done.timed_out or done.returncode < 0:
        raise _hostile("the tool that checks it was stopped at its limits")
    if done.returncode in _CHECK_FAILED:
        text = (done.stderr or done.stdout).decode(errors="replace").strip()[:300]
        raise Precondition(f"{path} is cut off or damaged: {text}", reason="BAD_IMAGE")


def _problems_of_answer(said: dict[str, Any]) -> Iterator[str]:
    data = said.get("format-specific", {}).get("data", {})
    if said.get("backing-filename") or said.get("full-backing-filename"):
        yield f"it has a backing file, {str(said.get('backing-filename'))[:120]!r}"
    if data.get("data-file"):
        yield "it keeps its data in another file (data-file)"
    if said.get("encrypted") or data.get("encrypt"):
        yield "it is encrypted"
    if "create-type" in data and (data["create-type"] not in _WHOLE_VMDK or len(data.get("extents", ())) > 1):
        yield f"it is a vmdk of type {str(data['create-type'])[:40]}, which names other files (external extents)"
    if data.get("parent-cid", 0xFFFFFFFF) not in (0xFFFFFFFF, 0):
        yield "it is a delta of another vmdk (a backing file)"


@contextlib.contextmanager
def _bad_image(image_format: Format) -> Iterator[None]:
    try:
        yield
    except VolgateError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise Precondition(f"it is no {image_format} image: {error}", reason="BAD_IMAGE") from error


def _hostile(problem: str) -> Precondition:
    return Precondition(f"the image is refused: {problem}", reason="HOSTILE_IMAGE")
