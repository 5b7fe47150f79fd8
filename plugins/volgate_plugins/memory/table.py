"""What the simulated array knows: its volumes by name, under its locks. Every change passes one point, all or nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from volgate.backend import OwnerTag, VolumeId, volume_of
from volgate.errors import NotFound, OutOfSpace
from volgate.model import Labels, Provisioning, SourceKind, Volume, VolumeState
from volgate_plugins.memory.media import Media

__all__ = ["GRAIN", "MAXIMUM", "Cut", "Limits", "Record", "Table", "rounded"]

GRAIN = 4096
MAXIMUM = 1 << 50


def rounded(size: int) -> int:
    """Return the size that a volume really gets."""
    return -(-size // GRAIN) * GRAIN


class Limits(msgspec.Struct, frozen=True):
    """How an array is made: `capacity` in bytes, how many times it may be promised (0: any), whether children survive their parents."""

    capacity: int = 1 << 40
    oversubscription: float = 10.0
    independent_clones: bool = False


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot."""

    uid: str
    name: str
    file: str
    size: int
    labels: Labels
    created: float
    quiesced: bool


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A volume: its tag, its folder, the file with its bytes; `promised` counts against the limit, `number` names the next file."""

    tag: OwnerTag
    stored_as: str
    file: str
    promised: int
    number: int = 1
    incomplete: bool = False
    snapshots: tuple[Cut, ...] = ()
    reverts: tuple[str, ...] = ()

    @property
    def thick(self) -> bool:
        """Whether its space is taken from the start."""
        return self.tag.spec.provisioning is Provisioning.THICK

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of it."""
        return (self.file, *(cut.file for cut in self.snapshots))

    @property
    def next_file(self) -> str:
        """The name of the next file."""
        return f"{self.number:04d}.raw"

    def change(self, **fields: Any) -> Record:
        """Return it with other fields and the next generation."""
        tag = fields.pop("tag", self.tag)
        return msgspec.structs.replace(self, tag=msgspec.structs.replace(tag, generation=tag.generation + 1), **fields)

    def cut(self, uid: str) -> Cut | None:
        """The snapshot of that uid."""
        return next((cut for cut in self.snapshots if cut.uid == uid), None)


class Table:
    """The volumes. Methods are thread-safe; who changes a volume holds its name."""

    def __init__(self, media: Media, limits: Limits, *, wanted: Callable[[], None], occupied: Callable[[int], None]) -> None:
        """`wanted` raises if nobody waits for the call of this thread any more; `occupied` is told how many volumes there will be.

        `instance` is set to the gateway's, once one opens the pool.
        """
        self.media = media
        self.limits = limits
        self.wanted = wanted
        self.instance = ""
        self._occupied = occupied
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        self._children: dict[str, dict[str, str]] = {}
        self._held: dict[str, tuple[int, int]] = {}
        self._provisioned = 0
        self._names = _Names()

    @contextlib.contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        """Hold the locks of names, taken in sorted order."""
        with self._names.holding(*names):
            yield

    def lookup(self, name: str) -> Record | None:
        """The volume of a name."""
        with self._lock:
            return self._records.get(name)

    def find(self, volume: VolumeId) -> Record:
        """The volume of a name and a uid ("": any). Raises NotFound."""
        found = self.lookup(volume.name)
        if found is None or volume.uid not in ("", found.tag.uid):
            raise NotFound(f"volume {volume.name} ({volume.uid or 'any uid'}) does not exist on the array")
        return found

    def after(self, name: str, limit: int) -> list[Record]:
        """The volumes whose names follow `name`, in order, at most `limit`."""
        with self._lock:
            names = sorted(found for found in self._records if found > name)[:limit]
            return [self._records[found] for found in names]

    def __len__(self) -> int:
        """How many volumes there are."""
        return len(self._records)

    def add(self, record: Record) -> Record:
        """Make a volume appear whose folder was begun."""
        with self._lock:
            self.wanted()
            self._occupied(len(self._records) + 1)
            self.media.publish(record.stored_as, record.tag)
            self._put(record)
            return record

    def save(self, *records: Record) -> Record:
        """Replace what is known of volumes, of all at once; return the last of them."""
        with self._lock:
            self.wanted()
            for record in records:
                self.media.retag(record.stored_as, record.tag)
                self._put(record)
        return records[-1]

    def drop(self, record: Record) -> None:
        """Make a volume disappear; its bytes go afterwards."""
        with self._lock:
            self.wanted()
            del self._records[record.tag.name]
            self._provisioned -= record.promised
            for holder in _parents(record.tag):
                self._children[holder].pop(record.tag.uid)
                if not self._children[holder]:
                    del self._children[holder]
            self._occupied(len(self._records))
        self.media.remove(record.stored_as)

    def children(self, uid: str) -> list[str]:
        """Names of the clones that hold a volume or a snapshot: none where clones are independent."""
        with self._lock:
            return [] if self.limits.independent_clones else sorted(self._children.get(uid, {}).values())

    def volume(self, record: Record) -> Volume:
        """The volume as it is now."""
        state = VolumeState.CREATING if record.incomplete else VolumeState.READY
        try:
            sizes = [self.media.size(record.stored_as, file) for file in record.files]
        except FileNotFoundError as error:
            told = f"{error.filename} is missing: somebody removed it behind the array's back"
            return replace(volume_of(record.tag, record.stored_as, record.promised, VolumeState.FAILED), problem=told)
        return replace(volume_of(record.tag, record.stored_as, sizes[0][0], state), allocated=sum(taken for _, taken in sizes))

    def read(self, name: str) -> Volume | None:
        """The volume of a name as it is now: if it changed, or went, while its files were looked at, once more."""
        record = self.lookup(name)
        while record is not None:
            told, before = self.volume(record), record
            record = self.lookup(name)
            if not told.problem or record is before:
                return told
        return None

    def provisioned(self) -> int:
        """The sum of the sizes promised, bytes."""
        with self._lock:
            return self._provisioned

    def limit(self) -> int:
        """How many bytes may be promised; 0: any number."""
        return int(self.limits.capacity * self.limits.oversubscription)

    def free(self) -> int:
        """Measure the space that is left, bytes."""
        with self._lock:
            records = list(self._records.values())
            held = sum(space for _, space in self._held.values())
        return max(0, self.limits.capacity - held - sum(self._taken(record) for record in records))

    def _taken(self, record: Record) -> int:
        with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
            return sum(self.media.size(record.stored_as, file)[1] for file in record.files)
        return 0

    @contextlib.contextmanager
    def promise(self, name: str, promised: int, space: int = 0) -> Iterator[None]:
        """Hold room while a volume is made or grown to `promised` bytes, or takes `space` more. Raises OutOfSpace."""
        with self._lock:
            old = self._records[name].promised if name in self._records else 0
            more = max(0, promised - old)
            total = self._provisioned + sum(held for held, _ in self._held.values()) + more
            if more and (limit := self.limit()) and total > limit:
                raise OutOfSpace(
                    f"{name}: with {promised} bytes {total} would be promised, the array's limit is {limit}; delete volumes, or give the"
                    " array more capacity or over-subscription",
                    reason="OVERSUBSCRIBED",
                )
            if space and space > (free := self.free()):
                raise OutOfSpace(f"{name}: needs {space} bytes, {free} of the array's {self.limits.capacity} are free; delete volumes")
            self._held[name] = (more, space)
        try:
            yield
        finally:
            with self._lock:
                del self._held[name]

    def _put(self, record: Record) -> None:
        old = self._records.get(record.tag.name)
        self._provisioned += record.promised - (old.promised if old else 0)
        self._records[record.tag.name] = record
        if record.tag.name in self._held:
            self._held[record.tag.name] = (0, 0)  # from now on the volume itself is counted
        for holder in _parents(record.tag):
            self._children.setdefault(holder, {})[record.tag.uid] = record.tag.name


def _parents(tag: OwnerTag) -> tuple[str, ...]:
    """What a clone hangs on: the uids of its source's volume and snapshot."""
    source = tag.spec.source
    if source is None or source.kind is SourceKind.EMPTY:
        return ()
    return (source.volume_uid, source.snapshot_uid) if source.snapshot_uid else (source.volume_uid,)


class _Names:
    """A lock per name, made when needed and forgotten when free."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names)):
                stack.enter_context(self._one(name))
            yield

    @contextlib.contextmanager
    def _one(self, name: str) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(name, (threading.RLock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[name]
                self._locks[name] = (lock, users - 1)
                if users == 1:
                    del self._locks[name]
