"""A pool that is a directory on this host, in which every volume is a folder: what all backends of that shape must get right, once.

A marker names the gateway that owns the directory. A folder is made aside and published by one rename, with its owner tag; it goes the
same way. What else lies in a folder is the backend's affair.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from volgate.backend.facets import PoolCheck, VolumeId
from volgate.backend.files import publish_directory, remove_tree, sync_directory, write_durably
from volgate.backend.hooks import PoolContext
from volgate.backend.owner_tag import OwnerTag, seal, tag_of, unseal, volume_of
from volgate.connection import FileIdentity, LocalFile
from volgate.errors import AlreadyExists, DataLoss, InvalidRequest, NotFound, Precondition, VolgateError, translate
from volgate.model import Format, Health, Provisioning, Volume, VolumeSpec, VolumeState
from volgate.names import object_name

__all__ = ["Folders"]

_PASS = 0o711  # QEMU's own user passes through, whatever the umask is; only root lists
_TAG = "owner.json"
C = TypeVar("C")
T = TypeVar("T")


class Folders:
    """The folders of one pool. Methods are called from several threads, for one volume by one at a time.

    All but `at` and `check` raise OSError besides what they name: call them in a block of `at`.
    """

    def __init__(self, path: str, context: PoolContext, marker: str, *, expect_marker: bool = False) -> None:
        """Claim an empty directory by writing `marker` into it, or prove that it is ours.

        `expect_marker`: claim none, so that a mount point without its file system is never taken for a new pool.

        Raises InvalidRequest (`path` is not absolute), NotFound (no such directory), Precondition (POOL_MARKER_MISSING, POOL_FOREIGN).
        """
        if not path.startswith("/"):
            raise InvalidRequest(f"path: {path!r} is not absolute", field="path")
        self.root = Path(os.path.normpath(path))
        self._instance, self._marker = context.instance, self.root / marker
        self._volumes, self._work = self.root / "volumes", self.root / ".work"
        doing = f"open pool {context.pool}"
        with translate(doing):
            others = {entry.name for entry in self.root.iterdir()} - {"lost+found", f".{marker}.tmp"}  # the latter of a claim that died
            if not others and not expect_marker:
                write_durably(str(self._marker), self._instance.encode())
        with self.at(doing):
            for folder in (self._volumes, self._work):
                folder.mkdir(exist_ok=True)
                folder.chmod(_PASS)
            sync_directory(str(self.root))

    @contextmanager
    def at(self, doing: str) -> Iterator[None]:
        """Wrap a call: nothing is believed of the directory before its marker is proven, and what the system refuses is told as our error.

        `doing` names the act and its object, and begins the messages. Raises Precondition (POOL_MARKER_MISSING, POOL_FOREIGN), and what
        :func:`volgate.errors.translate` makes of an OSError.
        """
        with translate(doing):
            try:
                owner = self._marker.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                told = f"{doing}: {self.root} has no {self._marker.name}; is it mounted? A new pool begins in an empty directory"
                raise Precondition(told, reason="POOL_MARKER_MISSING") from None
            if owner != self._instance:
                told = f"{doing}: {self.root} belongs to gateway {owner[:80]!r}, this one is {self._instance!r}"
                raise Precondition(f"{told}; give the pool a directory of its own", reason="POOL_FOREIGN")
            yield

    # -- which folders there are

    def path(self, volume: VolumeId | VolumeSpec) -> Path:
        """Return where the folder of this uid is, or would be."""
        return self._volumes / object_name(volume.name, volume.uid)

    def named(self, name: str) -> Path:
        """Return the folder that has a name now. Raises NotFound."""
        if found := next((folder for folder in self._all() if _name(folder) == name), None):
            return found
        raise NotFound(f"volume {name} does not exist in {self.root}")

    def made(self, spec: VolumeSpec) -> Path | None:
        """Return the folder of this uid if it was made already. Raises AlreadyExists (the name is another volume's)."""
        if (final := self.path(spec)).exists():
            return final
        with contextlib.suppress(NotFound):
            raise AlreadyExists(f"volume {spec.name} exists, as {self.named(spec.name)}")
        return None

    def each(self, read: Callable[[Path], T]) -> Iterator[T]:
        """Yield what `read` tells of every folder, in order of the volumes' names; one that is gone by then is left out."""
        for folder in sorted(self._all(), key=_name):
            with contextlib.suppress(FileNotFoundError):
                yield read(folder)

    def _all(self) -> Iterator[Path]:
        return self._volumes.iterdir()

    # -- how one comes and goes

    @contextmanager
    def make(self, spec: VolumeSpec, content: Any = None) -> Iterator[Path]:
        """Give an empty folder aside; when the block ends well, it is there under its name, whole and durable, with its tag.

        Files that the block makes must be synced. What a dead call of the same uid left is removed first; what this one made, if it fails.
        """
        final = self.path(spec)
        made = self._work / final.name
        remove_tree(str(made))
        try:
            made.mkdir()
            made.chmod(_PASS)
            yield made
            self.save(made, tag_of(spec, self._instance, time.time()), content)
            publish_directory(str(made), str(final))
        except BaseException:  # whatever it was, what is half-made goes
            remove_tree(str(made))
            raise

    def remove(self, volume: VolumeId) -> None:
        """Take the folder of this uid away by one durable rename, then remove it; success if there is none."""
        folder = self.path(volume)
        gone = self._work / folder.name
        if folder.exists():
            remove_tree(str(gone))
            folder.rename(gone)
            sync_directory(str(self._volumes))
        remove_tree(str(gone))

    # -- what one says

    def load(self, volume: VolumeId, content: type[C]) -> tuple[Path, OwnerTag, C]:
        """Return the folder of this uid, its tag, and what the backend put into the tag. Raises NotFound, DataLoss (TAG_DAMAGED)."""
        folder = self.path(volume)
        with contextlib.suppress(FileNotFoundError):
            tag, own = _unsealed(folder, content)
            if tag.uid == volume.uid:
                return folder, tag, own
        raise NotFound(f"volume {volume.name} of uid {volume.uid} does not exist in {self.root}")

    def save(self, folder: Path, tag: OwnerTag, content: Any = None) -> None:
        """Replace the tag, atomically and durably."""
        write_durably(str(folder / _TAG), seal(tag, content))

    def tell(self, folder: Path, file: str, *, size: int = 0) -> Volume:
        """Return the volume of a folder whose bytes are in `file`; its size is the file's unless `size`, bytes, is told.

        One whose tag is damaged, or whose file is missing, has failed and says why. Raises FileNotFoundError if the folder is gone.
        """
        length = allocated = 0
        try:
            found = (folder / file).lstat()
            length, allocated = size or found.st_size, found.st_blocks * 512
            tag, _ = _unsealed(folder, Any)
        except (FileNotFoundError, DataLoss) as error:
            if not folder.exists():
                raise
            told = error.message if isinstance(error, DataLoss) else f"{error.filename} is missing"
            lost = Volume(_name(folder), "", folder.name, length, length, Format.RAW, Provisioning.THIN, VolumeState.FAILED, allocated)
            return replace(lost, problem=told)
        return replace(volume_of(tag, folder.name, length), allocated=allocated)

    def connection(self, volume: VolumeId, file: str, image: Format = Format.RAW) -> LocalFile:
        """Return how a host reaches `file` of a volume's folder, an image of that format. Raises NotFound."""
        path = self.load(volume, Any)[0] / file
        found = path.lstat()
        identity = FileIdentity(found.st_dev, found.st_ino, volume.uid)
        return LocalFile(str(path), image, identity, str(self.root), str(path.with_name(_TAG)), found.st_size)

    # -- the pool

    def check(self) -> PoolCheck:
        """Look whether the directory is there, ours, and can be written to."""
        try:
            with self.at("check the pool"):
                if os.access(self._work, os.W_OK):
                    return PoolCheck(Health.OK)
                return PoolCheck(Health.DOWN, f"{self._work} cannot be written to; look how its file system is mounted")
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)

    def space(self) -> tuple[int, int]:
        """Return total and free bytes of the file system."""
        found = os.statvfs(self.root)
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _unsealed(folder: Path, content: type[C]) -> tuple[OwnerTag, C]:
    try:
        return unseal((folder / _TAG).read_bytes(), content)
    except FileNotFoundError as error:
        if folder.exists():
            raise DataLoss(f"{error.filename} is missing", reason="TAG_DAMAGED") from error
        raise


def _name(folder: Path) -> str:
    return folder.name.rpartition(".")[0]
