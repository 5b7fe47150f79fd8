"""The pool's directory itself: its marker, its folders, its space."""

# descriptors, flags and fsync are the subject here; paths stay plain strings
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH112, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid

import msgspec

from volgate.backend import PoolContext
from volgate.backend.files import can_share, remove_tree, sync_directory, write_durably
from volgate.errors import NotFound, OutOfSpace, Precondition, translate
from volgate_plugins.directory.beside import Beside
from volgate_plugins.directory.settings import DirectorySettings

__all__ = ["Marker", "PoolDirectory"]

MARKER = ".volgate-pool.json"


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose pool this is."""

    schema: int = 1
    instance: str
    uid: str
    created: float


_markers = msgspec.json.Decoder(Marker)


class PoolDirectory:
    """Where things are, and whether they are ours."""

    def __init__(self, settings: DirectorySettings, context: PoolContext) -> None:
        """Open the directory, marking a new empty one. Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING), NotFound."""
        self.settings = settings
        self.instance = context.instance
        self.root = os.path.normpath(settings.path)
        self.volumes, self.work, self.trash = (f"{self.root}/{name}" for name in ("volumes", ".work", ".trash"))
        with translate(f"open pool {context.pool}"):
            self._make_root(context)
            self.marker = self._read_marker() or self._mark()
            self.prove()
            for folder in (self.volumes, self.work, self.trash):
                _make(folder)
            self.shares = can_share(self.work)
        self.empty_trash()
        self.beside = Beside(self.root)
        with translate(f"open pool {context.pool}"):
            self.drop_staging()

    def prove(self) -> None:
        """Check that the marker is there and still ours. Raises Precondition."""
        found = self._read_marker()
        if found is None:
            raise _missing(self.root)
        if found.instance != self.instance:
            raise Precondition(
                f"{self.root} belongs to the gateway instance {found.instance!r}, this one is {self.instance!r}; "
                f"give the pool a directory of its own, or remove {MARKER} if that gateway is gone for good",
                reason="POOL_FOREIGN",
            )
        if found.uid != getattr(self, "marker", found).uid:
            raise Precondition(
                f"{self.root} is another pool than the one that was opened; look what is mounted there", reason="POOL_FOREIGN"
            )

    def space(self) -> tuple[int, int]:
        """Return total and free bytes, without the reserve."""
        found = os.statvfs(self.root)
        reserve = self.settings.reserve_bytes
        return max(0, found.f_blocks * found.f_frsize - reserve), max(0, found.f_bavail * found.f_frsize - reserve)

    def limit(self) -> int:
        """Return how many bytes may be promised; 0: any number."""
        return int(self.space()[0] * self.settings.oversubscription)

    def require_free(self, size: int, what: str) -> None:
        """Raise OutOfSpace unless `size` bytes (at least one block) are free beyond the reserve."""
        free = self.space()[1]
        if free < max(size, 4096):
            raise OutOfSpace(f"{what}: needs {size} bytes, {free} are free beyond the reserve in {self.root}")

    def discard(self, folder: str) -> None:
        """Take a volume's folder away by one durable rename, then remove it (or keep it for `trash_seconds`)."""
        target = f"{self.trash}/{os.path.basename(folder)}.{time.time_ns()}"
        os.rename(folder, target)
        sync_directory(os.path.dirname(folder))
        if not self.settings.trash_seconds:
            remove_tree(target)

    def empty_trash(self, stored_as: str = "") -> None:
        """Remove what is old enough; of the object `stored_as` only, if one is given."""
        before = time.time_ns() - int(self.settings.trash_seconds * 1e9)
        with translate("empty the trash"):
            for name in os.listdir(self.trash):
                thing, _, moment = name.rpartition(".")
                if moment.isdigit() and int(moment) <= before and stored_as in ("", thing):
                    self._remove_deleted(name)

    def _remove_deleted(self, name: str) -> None:
        """Take it out of the trash by one rename first: an undelete finds all of it or nothing."""
        gone = f"{self.work}/.gone-{name}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self.trash}/{name}", gone)
            shutil.rmtree(gone, ignore_errors=True)

    def drop_staging(self) -> None:
        """Remove what a dead process left half-made, if nobody works in this pool now: what is made anew begins from nothing."""
        with self.beside.alone() as alone:
            for name in os.listdir(self.work) if alone else ():
                path = f"{self.work}/{name}"
                with contextlib.suppress(FileNotFoundError):  # another controller's check, which comes and goes
                    remove_tree(path) if os.path.isdir(path) else os.unlink(path)

    def _make_root(self, context: PoolContext) -> None:
        if os.path.isdir(self.root):
            return
        if self.settings.expect_marker:
            raise _missing(self.root)
        if not self.settings.create:
            raise NotFound(f"pool {context.pool}: {self.root} does not exist and create is off", reason="POOL_DIRECTORY_MISSING")
        with translate(f"make {self.root}"):
            _make_path(self.root)

    def _read_marker(self) -> Marker | None:
        try:
            with open(f"{self.root}/{MARKER}", "rb") as file:
                return _markers.decode(file.read())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise Precondition(f"{self.root}/{MARKER} is damaged: {error}", reason="POOL_MARKER_DAMAGED") from error

    def _mark(self) -> Marker:
        if self.settings.expect_marker or os.path.isdir(self.volumes):
            raise _missing(self.root)
        marker = Marker(instance=self.instance, uid=str(uuid.uuid4()), created=time.time())
        write_durably(f"{self.root}/{MARKER}", msgspec.json.encode(marker, order="sorted") + b"\n", 0o644)
        return marker


def _make(folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o711)
        os.chmod(folder, 0o711)  # noqa: S103 - QEMU's user must pass through


def _make_path(folder: str) -> None:
    """Make `folder` and the parents that it lacks, each durable in its parent."""
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        _make_path(parent)
    _make(folder)
    sync_directory(parent)


def _missing(root: str) -> Precondition:
    return Precondition(
        f"{root} has no {MARKER}: its file system is probably not mounted; mount it, "
        "or remove `volumes/` and `expect_marker` for a new pool",
        reason="POOL_MARKER_MISSING",
    )
