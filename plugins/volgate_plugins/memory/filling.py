"""The array's verbs for bytes that come from elsewhere: imports that fill a volume, and files at the top that become one."""

# descriptors and links are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH104, PTH116, PTH119, PTH120, PTH208

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid

from volgate.backend import Foreign, VolumeId, tag_of
from volgate.backend.files import opened
from volgate.backend.qcow2 import MAGIC
from volgate.connection import LocalFile
from volgate.errors import InvalidRequest, NotFound, Precondition, translate
from volgate.model import Format, Volume, VolumeSpec
from volgate.names import object_name
from volgate_plugins.memory import media
from volgate_plugins.memory.snapshots import find_cut
from volgate_plugins.memory.table import Record, Table, rounded
from volgate_plugins.memory.volumes import Volumes

__all__ = ["Filling"]

_SECTOR = 512
_SCRATCH, _IMAGE = "fill-", "image"


class Filling:
    """Verbs on a table."""

    def __init__(self, table: Table, volumes: Volumes) -> None:
        """Work on a table."""
        self._table = table
        self._volumes = volumes

    def image(self, volume: VolumeId, snapshot_uid: str, writable: bool) -> LocalFile:
        """Where the bytes of a volume or a snapshot are."""
        record = self._table.find(volume)
        if writable and not record.incomplete:
            raise Precondition(f"volume {volume.name} is complete; only an import writes to an image", reason="NOT_INCOMPLETE")
        file = find_cut(record, snapshot_uid).file if snapshot_uid else record.file
        return self._table.media.location(record.stored_as, file, record.tag.uid)

    def begin_fill(self, volume: VolumeId) -> tuple[str, int]:
        """Name a file to be written for a volume that is incomplete, in a folder of its own, and its size, bytes."""
        record = self._incomplete(volume)
        size, _ = self._table.media.size(record.stored_as, record.file)
        return f"{self._table.media.begin(f'{_SCRATCH}{uuid.uuid4()}')}/{_IMAGE}", size

    def fill_from_file(self, volume: VolumeId, scratch: str) -> None:
        """Put the file that was written in the place of the volume's bytes, lengthened to the volume's size."""
        table = self._table
        with table.holding(volume.name), translate(f"fill volume {volume.name}"):
            record = self._incomplete(volume)
            self._require_scratch(scratch)
            path = table.media.path(record.stored_as, record.file)
            size = max(os.stat(path).st_size, os.stat(scratch).st_size)
            space = size if record.thick else os.stat(scratch).st_blocks * _SECTOR
            with table.promise(volume.name, max(size, record.promised), max(0, space - os.stat(path).st_blocks * _SECTOR)):
                media.grow(scratch, size, thick=record.thick)
                table.wanted()
                os.rename(scratch, path)
        self.abandon_fill(scratch)

    def abandon_fill(self, scratch: str) -> None:
        """Remove the folder of a file that is written no more, with all that lies in it."""
        self._table.media.abandon(self._require_scratch(scratch))

    def complete(self, volume: VolumeId) -> Volume:
        """Mark a volume as ready."""
        with self._table.holding(volume.name), translate(f"complete volume {volume.name}"):
            record = self._table.find(volume)
            return self._table.volume(self._table.save(record.change(incomplete=False)) if record.incomplete else record)

    def list_foreign(self) -> list[Foreign]:
        """The files at the top of the array's directory."""
        root, found = self._table.media.root, []
        with translate("list foreign files"):
            for name in sorted(os.listdir(root)):
                with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                    status = os.stat(f"{root}/{name}", follow_symlinks=False)
                    if not name.startswith(".") and stat.S_ISREG(status.st_mode):
                        kind = _looks_like(f"{root}/{name}")
                        found.append(Foreign(name, status.st_size, kind, "a file at the top of the array's directory"))
        return found

    def make_foreign(self, name: str, size: int) -> str:
        """Make an empty raw file at the top, as if somebody else had; return its path."""
        path = f"{self._table.media.root}/{_locator(name)}"
        if os.path.lexists(path):
            raise Precondition(f"{path} exists")
        with translate(f"make {path}"):
            media.make(path, rounded(size), thick=False)
        return path

    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        """Move a foreign file into a new volume."""
        table, source = self._table, f"{self._table.media.root}/{_locator(locator)}"
        with table.holding(spec.name, f"/{locator}"), translate(f"adopt {locator} as volume {spec.name}"):
            return table.volume(self._volumes.known(spec) or self._adopt(source, spec))

    def _adopt(self, source: str, spec: VolumeSpec) -> Record:
        table, stored_as = self._table, object_name(spec.name, spec.uid)
        size = _adoptable(source, spec)
        file = f"{table.media.begin(stored_as)}/0000.raw"
        moved = False
        try:
            with table.promise(spec.name, rounded(size)):
                os.rename(source, file)
                moved = True
                os.chmod(file, 0o600)
                record = Record(
                    tag=tag_of(spec, self._table.instance, time.time()), stored_as=stored_as, file="0000.raw", promised=rounded(size)
                )
                return table.add(record)
        except BaseException:  # whatever it was, the file gets its place back
            if moved:
                os.rename(file, source)
            table.media.abandon(stored_as)
            raise

    def _require_scratch(self, path: str) -> str:
        """The name of the folder of a file that `begin_fill` named."""
        name = os.path.basename(os.path.dirname(path))
        if not name.startswith(_SCRATCH) or path != f"{self._table.media.staged(name)}/{_IMAGE}":
            raise InvalidRequest(f"{path!r} is no file that `begin_fill` named", field="scratch")
        return name

    def _incomplete(self, volume: VolumeId) -> Record:
        record = self._table.find(volume)
        if not record.incomplete:
            raise Precondition(f"volume {volume.name} is complete already", reason="NOT_INCOMPLETE")
        return record


def _locator(name: str) -> str:
    if not name or "/" in name or name.startswith(".") or name in ("volumes", "staging"):
        raise InvalidRequest(f"{name!r} is not the name of a file at the top of the array's directory", field="locator")
    return name


def _adoptable(source: str, spec: VolumeSpec) -> int:
    """The size of a file that can be adopted. Raises NotFound, Precondition."""
    try:
        found = os.stat(source, follow_symlinks=False)
    except FileNotFoundError:
        raise NotFound(f"{source} does not exist") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise Precondition(f"{source} is not a plain file with one name", reason="NOT_ADOPTABLE")
    if spec.format is not Format.RAW:
        raise Precondition(f"a file of format {spec.format} cannot be adopted; import it", reason="NOT_ADOPTABLE")
    if not found.st_size or found.st_size % _SECTOR:
        raise Precondition(f"{source} is no whole number of sectors long; import it", reason="NOT_ADOPTABLE")
    return found.st_size


def _looks_like(path: str) -> Format | None:
    with opened(path, os.O_RDONLY) as descriptor:
        return Format.QCOW2 if os.pread(descriptor, 4, 0) == MAGIC else Format.RAW
