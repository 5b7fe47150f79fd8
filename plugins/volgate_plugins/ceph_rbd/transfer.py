"""Bytes between files and images: only what is no zero travels, in many requests at once."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import errno
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from volgate.backend.files import opened, sync_directory, write_all
from volgate.backend.image import convert
from volgate.errors import OutOfRange, translate
from volgate.model import Format
from volgate_plugins.ceph_rbd.faults import changing, reading

__all__ = ["empty", "extract", "fill"]

_GRAIN = 64 << 10
_LEAST = 1 << 20
Progress = Callable[[float], None]
Piece = tuple[int, int]


def empty(image: Any, size: int, doing: str) -> None:
    """Let an image hold nothing, and give it its size. Raises InDoubt, OutOfSpace."""
    with changing(doing):
        image.resize(0)
        image.resize(size)


def fill(image: Any, size: int, path: str, source_format: Format, *, width: int, staging: str, progress: Progress, doing: str) -> None:
    """Write an image file into an empty image of `size` bytes.

    Raises OutOfRange, OutOfSpace, InDoubt, and what `convert` and `progress` raise.
    """
    if source_format is Format.RAW:
        _fill(image, size, path, width, progress, doing)
        return
    with tempfile.TemporaryDirectory(prefix="volgate-ceph-", dir=staging or None) as folder:
        raw = f"{folder}/raw"
        convert(path, source_format, raw, Format.RAW, maximum=size, durable=False, progress=lambda done: progress(done / 2))
        _fill(image, size, raw, width, lambda done: progress(0.5 + done / 2), doing)


def _fill(image: Any, size: int, path: str, width: int, progress: Progress, doing: str) -> None:
    with translate(doing), opened(path, os.O_RDONLY) as descriptor:
        length = os.fstat(descriptor).st_size
        if length > size:
            raise OutOfRange(f"{doing}: the image has {length} bytes, the volume {size}")

        def write(piece: Piece) -> None:
            offset, count = piece
            for at, data in _stretches(offset, os.pread(descriptor, count, offset)):
                image.write(data, at)

        with changing(doing):
            _each(_data_of(descriptor, length, _chunk(image)), write, width, length, progress)
            image.flush()
        progress(1.0)


def extract(image: Any, path: str, *, width: int, progress: Progress, doing: str) -> None:
    """Write what an open image holds to a new sparse file, durably. Raises OutOfSpace, Unreachable, what `progress` raises."""
    with translate(doing), opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        with reading(doing):
            size = image.size()
            os.ftruncate(descriptor, size)

            def copy(piece: Piece) -> None:
                offset, count = piece
                for at, data in _stretches(offset, image.read(offset, count)):
                    write_all(descriptor, data, at)

            _each(_written(image, size), copy, width, size, progress)
        os.fsync(descriptor)
        sync_directory(os.path.dirname(os.path.abspath(path)))
    progress(1.0)


def _each(pieces: Iterator[Piece], work: Callable[[Piece], None], width: int, size: int, progress: Progress) -> None:
    """Work on the pieces, `width` at once; tell how far it is. What fails, or what `progress` raises, ends it."""
    running: deque[tuple[Piece, Future[None]]] = deque()
    progress(0.0)
    with ThreadPoolExecutor(width, thread_name_prefix="ceph-rbd-transfer") as threads:
        try:
            for piece in pieces:
                running.append((piece, threads.submit(work, piece)))
                if len(running) > 2 * width:
                    _finish(running, size, progress)
            while running:
                _finish(running, size, progress)
        except BaseException:  # whatever it was, what is not begun yet is not wanted any more
            for _, future in running:
                future.cancel()
            raise


def _finish(running: deque[tuple[Piece, Future[None]]], size: int, progress: Progress) -> None:
    (offset, count), future = running.popleft()
    future.result()
    progress(min(0.999, (offset + count) / size) if size else 0.0)


def _chunk(image: Any) -> int:
    return max(_LEAST, int(image.stat()["obj_size"]))


def _data_of(descriptor: int, length: int, chunk: int) -> Iterator[Piece]:
    """The data of a sparse file, cut where the image's objects end."""
    at = 0
    while at < length:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(length, os.lseek(descriptor, at, os.SEEK_HOLE))
        while at < end:
            until = min(end, (at // chunk + 1) * chunk)
            yield at, until - at
            at = until


def _written(image: Any, size: int) -> Iterator[Piece]:
    """Where objects of the image, or of what it lies on, exist."""
    found: list[Piece] = []

    def told(offset: int, length: int, exists: bool) -> None:
        if exists:
            found.append((offset, length))

    image.diff_iterate(0, size, None, told, include_parent=True, whole_object=True)
    chunk = _chunk(image)
    for offset, length in sorted(found):
        at, end = offset, min(size, offset + length)
        while at < end:
            until = min(end, (at // chunk + 1) * chunk)
            yield at, until - at
            at = until


def _stretches(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a piece that are no zeroes, in steps of 64 KiB."""
    zeroes = bytes(_GRAIN)
    start = -1
    for at in range(0, len(data), _GRAIN):
        step = data[at : at + _GRAIN]
        if step == zeroes[: len(step)]:
            if start >= 0:
                yield offset + start, data[start:at]
                start = -1
        elif start < 0:
            start = at
    if start == 0:
        yield offset, data
    elif start > 0:
        yield offset + start, data[start:]
