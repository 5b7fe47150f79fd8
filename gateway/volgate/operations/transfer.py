"""Bytes in and out by stream: uploads are spooled, exports are read with their gaps left out."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from volgate.backend import DataPath
from volgate.backend.image import Stretch, convert, stretches
from volgate.connection import LocalFile
from volgate.errors import OutOfRange, Unreachable, translate
from volgate.model import Format, Volume
from volgate.names import SnapshotName, VolumeName
from volgate.operations import lookups
from volgate.operations.content import ContentDigest
from volgate.operations.extraction import extract, is_extracted
from volgate.operations.runner import Runner
from volgate.operations.world import World
from volgate.pools import Pool
from volgate.store import journal

__all__ = ["ExportReader", "Upload", "open_export", "sweep_spool"]

_CHUNK = 1 << 20
_ZEROES = bytes(_CHUNK)


class Upload:
    """One image on its way in; removed by `abort`, or by the operation that makes a volume of it."""

    def __init__(self, directory: Path) -> None:
        """Begin a file in the spool. Raises OutOfSpace and others by errno."""
        self.path = directory / uuid.uuid4().hex
        self._digest = ContentDigest()
        with translate("spool an upload"):
            self._stream = self.path.open("xb")
            self.path.chmod(0o600)

    @property
    def length(self) -> int:
        """How many bytes of the image have come, holes included."""
        return self._digest.length

    def skip(self, length: int) -> None:
        """Append so many zero bytes; they take no space. Raises OutOfRange."""
        self._digest.skip(length)
        with translate("spool an upload"):
            try:
                self._stream.seek(length, os.SEEK_CUR)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                told = f"hole: a file of {self._digest.length} bytes is more than the file system of {self.path.parent} can hold"
                raise OutOfRange(told, field="hole") from error

    def write(self, chunk: bytes) -> None:
        """Append bytes; runs of zeroes take no space. Raises OutOfSpace."""
        self._digest.add(chunk)
        with translate("spool an upload"):
            if chunk == _ZEROES[: len(chunk)]:
                self._stream.seek(len(chunk), os.SEEK_CUR)
            else:
                self._stream.write(chunk)

    def finish(self) -> tuple[str, str]:
        """Make the file durable; return its path and the content's digest."""
        with translate("spool an upload"):
            self._stream.truncate()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        return str(self.path), self._digest.hexdigest()

    def abort(self) -> None:
        """Remove the file."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


Pieces = Iterator[tuple[int, bytes]]


class ExportReader:
    """The content of an image, a piece at a time; gaps are left out."""

    def __init__(self, size: int, descriptors: Sequence[int], pieces: Pieces, release: Callable[[], None]) -> None:
        """Take the open files that `pieces` reads, to close them; `release` is called at the end. `size`: of the image, bytes."""
        self.size = size
        self._descriptors = list(descriptors)
        self._pieces = pieces
        self._release: Callable[[], None] | None = release
        self.require: Callable[[], None] = lambda: None

    @classmethod
    def of_file(cls, path: Path, release: Callable[[], None], *, temporary: bool) -> ExportReader:
        """Read a file as it lies. `temporary`: a converted copy that goes then."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if temporary:
            path.unlink()
        size = os.fstat(descriptor).st_size
        return cls(size, [descriptor], _of_file(descriptor, size), release)

    @classmethod
    def of_layers(cls, paths: Sequence[str], size: int, parts: Sequence[Stretch], release: Callable[[], None]) -> ExportReader:
        """Read the data of an image where they lie in its layers, the top first."""
        with contextlib.ExitStack() as stack:
            descriptors = []
            for path in paths:
                descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, descriptors[-1])
            stack.pop_all()
        return cls(size, descriptors, _of_layers(descriptors, parts), release)

    def next(self) -> tuple[int, bytes] | None:
        """The next piece as offset and bytes, None at the end. Raises Unreachable once others may change the volume."""
        self.require()
        return next(self._pieces, None)

    def close(self) -> None:
        """Let go of the files and the volume."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        release, self._release = self._release, None
        if release:
            release()


def _of_file(descriptor: int, size: int) -> Pieces:
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield from _read(descriptor, begin, offset - begin, begin)


def _of_layers(descriptors: Sequence[int], parts: Sequence[Stretch]) -> Pieces:
    for part in parts:
        yield from _read(descriptors[part.layer], part.offset, part.length, part.start)


def _read(descriptor: int, offset: int, length: int, start: int) -> Pieces:
    """Pieces of one stretch of a file; what is all zeroes is left out."""
    done = 0
    while done < length:
        piece = os.pread(descriptor, min(_CHUNK, length - done), offset + done)
        if not piece:
            return
        if piece != _ZEROES[: len(piece)]:
            yield start + done, piece
        done += len(piece)


def sweep_spool(world: World) -> None:
    """Remove what a dead process left in the spool, but for the uploads that unfinished operations need."""
    with world.database.read() as connection:
        needed = b"\n".join(record.request for record in journal.unfinished(connection))
    for path in Path(world.settings.spool_dir).iterdir():
        if path.is_dir():
            shutil.rmtree(path)  # a sandbox of a dead process
        elif path.name.encode() not in needed:
            path.unlink()


def open_export(world: World, runner: Runner, name: VolumeName | SnapshotName, wanted: Format) -> ExportReader:
    """Lock the volume, make the image and return its reader. Raises InUse for an attached volume, NotFound, OutOfSpace."""
    of = name.of if isinstance(name, SnapshotName) else name
    pool = world.pools.get(of.pool)
    pool.require_served()
    pool.facet(DataPath)
    release = runner.hold(str(of), timeout=30.0)
    with contextlib.ExitStack() as stack:
        stack.callback(release)
        volume = lookups.require_volume(pool, of, "")
        if not isinstance(name, SnapshotName):
            lookups.refuse_held(world, pool, volume, f"export {name}")
        snapshot = name.snapshot if isinstance(name, SnapshotName) else ""
        reader = _extracted if is_extracted(pool) else _converted
        made = reader(world, pool, volume, snapshot, wanted, release)
        stack.pop_all()
    made.require = world.lease.require
    return made


def _extracted(world: World, pool: Pool, volume: Volume, snapshot: str, wanted: Format, release: Callable[[], None]) -> ExportReader:
    """The image as the backend writes it into the spool."""
    target = world.settings.spool_dir / uuid.uuid4().hex
    extract(pool, volume, snapshot, str(target), wanted, progress=lambda _done: None, cancelled=lambda: False)
    return ExportReader.of_file(target, release, temporary=True)


def _converted(world: World, pool: Pool, volume: Volume, snapshot: str, wanted: Format, release: Callable[[], None]) -> ExportReader:
    """The image in the files that hold it, or in a converted one in the spool."""
    source = lookups.source_of(pool, volume, snapshot)
    if source.format is wanted and not source.chain:
        return ExportReader.of_file(Path(source.path), release, temporary=False)
    if wanted is Format.RAW and (parts := pool.call(_mapped, source)):
        return ExportReader.of_layers([source.path, *(path for path, _ in source.chain)], *parts, release)
    target = world.settings.spool_dir / uuid.uuid4().hex
    try:
        pool.call(convert, source.path, source.format, str(target), wanted, chain=source.chain, durable=False)
        return ExportReader.of_file(target, release, temporary=True)
    except BaseException:  # whatever it was, half a file does not stay
        target.unlink(missing_ok=True)
        raise


def _mapped(source: LocalFile) -> tuple[int, list[Stretch]] | None:
    """Where the data of a volume lie, None if it has to be converted: its data are compressed, or too scattered."""
    try:
        return stretches(source.path, source.chain)
    except Unreachable:
        return None
