"""Bytes between files and images: only what is no zero travels, in many requests at once."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import errno
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from volgate.backend.files import opened, sync_directory, write_all
from volgate.backend.image_reader import reading as reading_image
from volgate.errors import OutOfRange, translate
from volgate.model import Format
from volgate_plugins.ceph_rbd.faults import changing, reading

__all__ = ["empty", "extract", "fill"]

_GRAIN = 64 << 10
_LEAST = 1 << 20
Progress = Callable[[float], None]
Piece = tuple[int, int]
"""Offset and length."""


class _Source(NamedTuple):
    """What is written into an image: its length, where it has data, and a way to read them, from many threads."""

    length: int
    runs: Iterator[Piece]
    read: Callable[[int, int], bytes]


def empty(image: Any, size: int, doing: str) -> None:
    """Let an image hold nothing, and give it its size. Raises InDoubt, OutOfSpace."""
    with changing(doing):
        image.resize(0)
        image.resize(size)


def fill(image: Any, size: int, path: str, source_format: Format, *, width: int, staging: str, progress: Progress, doing: str) -> None:
    """Write an image file into an empty image of `size` bytes.

    Raises OutOfRange, OutOfSpace, InDoubt, and what the reader of strangers' images and `progress` raise.
    """
    if source_format is not Format.RAW:
        with reading_image(path, source_format, staging=staging or tempfile.gettempdir(), maximum=size) as source:
            _fill(image, _Source(source.size, source.data(), source.read), width, progress, doing)
        return
    with translate(doing), opened(path, os.O_RDONLY) as descriptor:
        length = os.fstat(descriptor).st_size
        if length > size:
            raise OutOfRange(f"{doing}: the image has {length} bytes, the volume {size}")
        raw = _Source(length, _data_of(descriptor, length), lambda offset, count: os.pread(descriptor, count, offset))
        _fill(image, raw, width, progress, doing)


def _fill(image: Any, source: _Source, width: int, progress: Progress, doing: str) -> None:
    def write(piece: Piece) -> None:
        for at, data in _stretches(piece[0], source.read(*piece)):
            image.write(data, at)

    with changing(doing):
        _each(_cut(source.runs, _chunk(image)), write, width, source.length, progress)
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


def _data_of(descriptor: int, length: int) -> Iterator[Piece]:
    """The data of a sparse file."""
    at = 0
    while at < length:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(length, os.lseek(descriptor, at, os.SEEK_HOLE))
        yield at, end - at
        at = end


def _cut(runs: Iterable[Piece], chunk: int) -> Iterator[Piece]:
    """Runs of data, cut where the image's objects end."""
    for start, length in runs:
        at = start
        while at < start + length:
            until = min(start + length, (at // chunk + 1) * chunk)
            yield at, until - at
            at = until


def _written(image: Any, size: int) -> Iterator[Piece]:
    """Where objects of the image, or of what it lies on, exist."""
    found: list[Piece] = []

    def told(offset: int, length: int, exists: bool) -> None:
        if exists:
            found.append((offset, length))

    image.diff_iterate(0, size, None, told, include_parent=True, whole_object=True)
    yield from _cut(((offset, min(length, size - offset)) for offset, length in sorted(found)), _chunk(image))


def _stretches(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a piece that are no zeroes, in steps of 64 KiB."""
    zeroes = bytes(_GRAIN)
    start = -1
    for at in range(0, len(data), _GRAIN):
        if data.startswith(zeroes if at + _GRAIN <= len(data) else zeroes[: len(data) - at], at):  # without a copy
            if start >= 0:
                yield offset + start, data[start:at]
                start = -1
        elif start < 0:
            start = at
    if start == 0:
        yield offset, data
    elif start > 0:
        yield offset + start, data[start:]
