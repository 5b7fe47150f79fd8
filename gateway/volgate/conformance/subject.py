"""The pool under test: short words for what tests do with it, and a list of everything that they made, to take it away again."""

from __future__ import annotations

import contextlib
import itertools
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from volgate.backend import Backend, Clones, FencesHosts, Publishes, Snapshots, SnapshotSpec, Traits, VolumeId
from volgate.conformance.picture import PAGE, Picture
from volgate.errors import NotFound, VolgateError
from volgate.model import Format, Provisioning, Snapshot, Source, SourceKind, Volume, VolumeSpec

__all__ = ["Subject"]

B = TypeVar("B", bound=Backend)
_UNIT = 1 << 20


class Subject(ABC):
    """A pool, served by its backend in this process or by a gateway over the wire."""

    wire: bool
    backend: Backend

    def __init__(self, seed: int, prefix: str) -> None:
        """`prefix` begins the name of everything that is made; `seed` makes a run repeatable."""
        self.random = random.Random(seed)  # noqa: S311  # test data
        self._prefix = prefix
        self._numbers = itertools.count()
        self._made: list[str] = []

    # -- words

    @property
    def traits(self) -> Traits:
        """The facts of the open pool."""
        return self.backend.traits

    def facet(self, kind: type[B]) -> B:
        """The backend as one facet; the suite asks only for those that it has."""
        assert isinstance(self.backend, kind)
        return self.backend

    def size(self, units: int = 1) -> int:
        """A size that every pool can make: so many times a mebibyte, or more where the pool's least size or its grain is larger."""
        step = max(_UNIT, self.traits.minimum)
        grain = self.traits.grain
        return units * (-(-step // grain) * grain)

    def name(self, hint: str = "v") -> str:
        """A name that nobody has used."""
        return f"{self._prefix}{hint}{next(self._numbers)}"

    def spec(self, name: str = "", *, size: int = 0, **more: Any) -> VolumeSpec:
        """What a caller asks for, with an identity of its own; the volume is taken away at the end of the test."""
        asked = VolumeSpec(
            name=name or self.name(),
            uid=more.pop("uid", "") or str(uuid.uuid4()),
            size=size or self.size(),
            format=more.pop("format", None) or self.traits.formats[0],
            **more,
        )
        self._made.append(asked.name)
        return asked

    def create(self, name: str = "", **more: Any) -> Volume:
        """Make an empty volume, and tell it as it is read."""
        return self.get(self.backend.create_volume(self.spec(name, **more)))

    @staticmethod
    def id(volume: Volume) -> VolumeId:
        """Name a volume for good."""
        return VolumeId(volume.name, volume.uid)

    def snapshot(self, volume: Volume, name: str = "", **more: Any) -> Snapshot:
        """Cut a snapshot, and tell it as it is listed."""
        told = self.facet(Snapshots).create_snapshot(self.id(volume), self.cut(name, **more))
        return next(snapshot for snapshot in self.snapshots(volume) if snapshot.uid == told.uid)

    def cut(self, name: str = "", **more: Any) -> SnapshotSpec:
        """A snapshot to be cut, with an identity of its own."""
        return SnapshotSpec(name or self.name("s"), more.pop("uid", "") or str(uuid.uuid4()), **more)

    def snapshots(self, volume: Volume) -> list[Snapshot]:
        """The snapshots of a volume, as the backend lists them."""
        return [*self.facet(Snapshots).list_snapshots(self.id(volume))]

    @staticmethod
    def origin(volume: Volume, snapshot: Snapshot | None = None) -> Source:
        """A volume or a snapshot as what a new volume is filled from."""
        if snapshot is None:
            return Source(SourceKind.VOLUME, volume.name, volume.uid)
        return Source(SourceKind.SNAPSHOT, volume.name, volume.uid, snapshot.name, snapshot.uid)

    def named(self, origin: Source) -> Source:
        """An origin as it is told: over the wire by names alone."""
        return replace(origin, volume_uid="", snapshot_uid="") if self.wire else origin

    def clone(self, volume: Volume, snapshot: Snapshot | None = None, *, size: int = 0, **more: Any) -> Volume:
        """Make a volume of another, or of a snapshot."""
        size = size or (snapshot.size if snapshot else volume.size)
        return self.create(size=size, source=self.origin(volume, snapshot), format=more.pop("format", volume.format), **more)

    def listed(self) -> list[Volume]:
        """The volumes that this run made, as the backend lists them."""
        return [volume for volume in self.backend.list_volumes() if volume.name.startswith(self._prefix)]

    def get(self, volume: Volume | str) -> Volume:
        """Read a volume."""
        return self.backend.get_volume(volume if isinstance(volume, str) else volume.name)

    def delete(self, volume: Volume) -> None:
        """Delete a volume."""
        self.backend.delete_volume(self.id(volume))

    def pages(self, volume: Volume, count: int = 5) -> Picture:
        """Pages to write: the first, the last, and some between; each of one value that is no zero."""
        last = volume.size // PAGE - 1
        chosen = {0, last, *(self.random.randint(0, last) for _ in range(count - 2))}
        return {number * PAGE: self.random.randint(1, 255) for number in sorted(chosen)}

    @staticmethod
    @contextlib.contextmanager
    def refused(*kinds: type[VolgateError], naming: str = "") -> Iterator[list[VolgateError]]:
        """Expect one of these errors, whose message names the object; it is put into the list that the block gets."""
        told: list[VolgateError] = []
        with pytest.raises(kinds) as caught:
            yield told
        told.append(caught.value)
        assert naming in caught.value.message, f"the error does not name {naming}: {caught.value.message}"

    # -- what depends on how the pool is reached

    @abstractmethod
    def filled(self, pages: Mapping[int, int], *, size: int = 0, form: Format | None = None) -> Volume:
        """Make a volume of an image that holds these pages."""

    @abstractmethod
    def content(self, volume: Volume, snapshot: Snapshot | None = None) -> Picture:
        """Read a volume, or a snapshot of it."""

    @abstractmethod
    def write(self, volume: Volume, pages: Mapping[int, int]) -> None:
        """Write to a detached volume as a guest would."""

    @abstractmethod
    def reopen(self) -> None:
        """Close the pool and open it anew: whatever the backend kept in memory alone is gone."""

    # -- the end

    def clear(self) -> None:
        """Take away what the test made, clones before their sources, and let fenced hosts in; what a broken backend holds is left."""
        left = [name for name in dict.fromkeys(reversed(self._made)) if self._is_there(name)]
        for _ in range(len(left) + 1):
            left = [name for name in left if not self._taken_away(name)]
        self._made.clear()
        if isinstance(self.backend, FencesHosts):
            with contextlib.suppress(VolgateError):
                for host in self.backend.fenced_hosts():
                    self.backend.unfence_host(host)

    def _is_there(self, name: str) -> bool:
        with contextlib.suppress(VolgateError):
            self.get(name)
            return True
        return False

    def _taken_away(self, name: str) -> bool:
        try:
            volume = self.get(name)
            if isinstance(self.backend, Snapshots):
                for snapshot in reversed(self.snapshots(volume)):
                    with contextlib.suppress(VolgateError):
                        self.backend.delete_snapshot(self.id(volume), snapshot.uid)
            if isinstance(self.backend, Publishes):
                for host in self.backend.published(self.id(volume)):
                    self.backend.unpublish(self.id(volume), host)
            self.delete(volume)
        except NotFound:
            return True
        except VolgateError:
            return False
        return True

    @property
    def independent(self) -> bool:
        """Whether children survive their parent's deletion."""
        return self.traits.independent_clones or not isinstance(self.backend, Clones)

    @staticmethod
    def thick(spec: VolumeSpec) -> bool:
        """Whether a volume's space is taken when it is made."""
        return spec.provisioning is Provisioning.THICK
