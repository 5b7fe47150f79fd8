"""The backend: every facet that an array of raw files has, each method a call to the array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from volgate.backend import (
    Adopts,
    ChangedBlocks,
    Clones,
    DataPath,
    Extent,
    Fences,
    Foreign,
    GroupMember,
    Groups,
    Holder,
    Holders,
    Measures,
    PathsSeen,
    PoolCheck,
    PoolContext,
    Relabels,
    Resizes,
    Reverts,
    SnapshotSpec,
    Traits,
    VolumeId,
)
from volgate.backend.image import convert
from volgate.connection import Connection, LocalFile
from volgate.errors import Precondition, VolgateError
from volgate.model import Capacity, Format, Health, Labels, Path, Snapshot, Volume, VolumeSpec
from volgate_plugins.memory import own
from volgate_plugins.memory.client import Client
from volgate_plugins.memory.server import Opened
from volgate_plugins.memory.settings import MemorySettings
from volgate_plugins.memory.table import GRAIN, MAXIMUM

__all__ = ["Memory", "MemoryWithClients"]

T = TypeVar("T")
_PAGE = 500
_COMPARED = 1 << 30
_CHECK_SECONDS = 3.0


class Memory(Resizes, Reverts, Clones, Measures, DataPath, Adopts, Relabels, PathsSeen, Groups, ChangedBlocks, Fences):
    """A pool on a simulated array."""

    def __init__(self, settings: MemorySettings, context: PoolContext) -> None:
        """Find or start the array and take it for the pool."""
        settings.check()
        self._settings = settings
        self._context = context
        path = settings.socket or own.place(context)
        self._client = Client(path, connect_seconds=settings.connect_seconds, call_seconds=settings.call_seconds)
        self._opening = threading.Lock()
        try:
            self._opened = self._open(settings.call_seconds)
        except BaseException:  # whatever it was, no connection stays
            self._client.close()
            raise

    @classmethod
    def open(cls, settings: MemorySettings, context: PoolContext) -> Memory:
        """Open the pool, with simulated clients if the settings say so.

        Raises Unreachable, Precondition (POOL_FOREIGN, POOL_MARKER_MISSING), InvalidRequest.
        """
        return (MemoryWithClients if settings.clients else cls)(settings, context)

    def _open(self, timeout: float) -> Opened:
        if not self._settings.socket:
            own.start(self._client.path, self._settings)
        context, settings = self._context, self._settings
        opened: Opened = self._client.call(
            "open_pool",
            Opened,
            timeout=timeout,
            instance=context.instance,
            pool=context.pool,
            accept_loss=settings.accept_loss,
            faults=settings.faults,
        )
        self._client.array = opened.array
        return opened

    def _call(self, verb: str, answer: type[T] | Any, /, *, timeout: float = 0.0, **arguments: Any) -> T:
        """Ask the array. One that was started again is taken anew, if the one before it lost nothing or nobody misses it."""
        meant = self._client.array
        try:
            found: T = self._client.call(verb, answer, timeout=timeout, **arguments)
            return found
        except Precondition as error:
            if error.reason != "POOL_MARKER_MISSING":
                raise
        with self._opening:
            if self._client.array == meant:
                self._opened = self._open(timeout or self._settings.call_seconds)
        again: T = self._client.call(verb, answer, timeout=timeout, **arguments)
        return again

    @property
    def traits(self) -> Traits:
        """What holds for this array."""
        return Traits(
            formats=(Format.RAW,),
            grain=GRAIN,
            minimum=GRAIN,
            maximum=MAXIMUM,
            independent_clones=self._opened.limits.independent_clones,
            notes=(
                f"simulated: volumes live as long as the array that listens at {self._client.path}",
                "an attached volume has no snapshots: QEMU writes to the array's file itself",
            ),
        )

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Create the volume; a clone is copied."""
        timeout = self._settings.copy_seconds if spec.source else self._settings.call_seconds
        return self._call("create_volume", Volume, timeout=timeout, spec=spec)

    def delete_volume(self, volume: VolumeId) -> None:
        """Delete the volume."""
        self._call("delete_volume", None, volume=volume)

    def get_volume(self, name: str) -> Volume:
        """Read the volume."""
        return self._call("get_volume", Volume, name=name)

    def list_volumes(self) -> Iterator[Volume]:
        """Yield every volume, a page at a time."""
        after = ""
        while True:
            page: list[Volume] = self._call("list_volumes", list[Volume], after=after, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].name

    def connection(self, volume: VolumeId, *, host: str) -> Connection:  # noqa: ARG002 - the array's files have one host
        """Say where the volume's file is."""
        return self._call("connection", LocalFile, volume=volume)

    def check(self) -> PoolCheck:
        """Look whether the array can serve; one of the pool's own that ended is started again."""
        timeout = min(_CHECK_SECONDS, self._settings.call_seconds)
        try:
            if not self._settings.socket:
                own.start(self._client.path, self._settings)
            return self._call("check", PoolCheck, timeout=timeout)
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)

    def close(self) -> None:
        """Close the connections; the array goes on."""
        self._client.close()

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """Grow the volume."""
        return self._call("expand_volume", Volume, volume=volume, size=size, online=online)

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Copy the volume."""
        return self._call("create_snapshot", Snapshot, timeout=self._settings.copy_seconds, volume=volume, spec=spec)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Delete the copy."""
        self._call("delete_snapshot", None, volume=volume, snapshot_uid=snapshot_uid)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Return the snapshots, oldest first."""
        return self._call("list_snapshots", list[Snapshot], volume=volume)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Copy the snapshot back."""
        timeout = self._settings.copy_seconds
        return self._call("revert_volume", Volume, timeout=timeout, volume=volume, snapshot_uid=snapshot_uid, token=token)

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """The data of the source, where files cannot share blocks."""
        return self._call("bytes_to_copy", int, spec=spec)

    def children(self, volume: VolumeId) -> Sequence[str]:
        """Return the clones that hold the volume or its snapshots."""
        return self._call("children", list[str], volume=volume)

    def capacity(self) -> Capacity:
        """Measure the array."""
        return self._call("capacity", Capacity)

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """Return the file of the volume or of a snapshot."""
        return self._call("image", LocalFile, volume=volume, snapshot_uid=snapshot_uid, writable=writable)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Callable[[float], None]) -> None:
        """Convert the image into a new file of the array, which then takes the place of the volume's."""
        timeout = self._settings.call_seconds
        with self._client.conversation() as talk:  # the array removes the file if this connection ends before
            begun: tuple[str, int] = talk.call("begin_fill", tuple[str, int], timeout=timeout, volume=volume)
            scratch, size = begun
            try:
                staging = scratch.rpartition("/")[0]
                convert(path, source_format, scratch, Format.RAW, progress=progress, staging=staging, maximum=size, durable=False)
                talk.call("fill_from_file", None, timeout=self._settings.copy_seconds, volume=volume, scratch=scratch)
            except VolgateError:
                talk.call("abandon_fill", None, timeout=timeout, scratch=scratch)
                raise

    def complete(self, volume: VolumeId) -> Volume:
        """Mark the volume as ready."""
        return self._call("complete", Volume, volume=volume)

    def list_foreign(self) -> Iterator[Foreign]:
        """Yield the files at the top of the array's directory."""
        yield from self._call("list_foreign", list[Foreign])

    def adopt_volume(self, locator: str, spec: VolumeSpec) -> Volume:
        """Make a foreign file a volume."""
        return self._call("adopt_volume", Volume, locator=locator, spec=spec)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        return self._call("relabel_volume", Volume, volume=volume, labels=labels)

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """Return the two simulated paths."""
        return self._call("paths", list[Path], volume=volume)

    def create_snapshot_group(self, group_uid: str, members: Sequence[GroupMember]) -> Sequence[Snapshot]:
        """Copy the volumes while nobody changes one of them."""
        del group_uid  # the array knows the snapshots by their own
        return self._call("create_snapshot_group", list[Snapshot], timeout=self._settings.copy_seconds, members=list(members))

    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, *, offset: int, length: int, exact: bool
    ) -> Iterator[Extent]:
        """Compare the files, a piece at a time."""
        asked: dict[str, Any] = {"volume": volume, "base_snapshot_uid": base_snapshot_uid, "snapshot_uid": snapshot_uid, "exact": exact}
        for begin in range(offset, offset + length, _COMPARED):
            piece = min(_COMPARED, offset + length - begin)
            yield from self._call("changed_blocks", list[Extent], **asked, offset=begin, length=piece)

    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        """Let the array refuse clients at these addresses."""
        self._call("fence", None, addresses=list(addresses), volumes=list(volumes))

    def unfence(self, addresses: Sequence[str]) -> None:
        """Let it take them again."""
        self._call("unfence", None, addresses=list(addresses))

    def fenced(self, addresses: Sequence[str]) -> Sequence[str]:
        """Return those that it refuses."""
        return self._call("fenced", list[str], addresses=list(addresses))


class MemoryWithClients(Memory, Holders):
    """One that tells who has a volume open: the simulated clients, and nobody else, so that no attach can be proven."""

    def holders(self, volume: VolumeId) -> Sequence[Holder]:
        """Return the simulated clients that have the volume open."""
        return self._call("holders", list[Holder], volume=volume)
