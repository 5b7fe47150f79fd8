"""Random calls with a model of what they come to: strands of calls that depend on each other, independent of all other strands."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.recovery.calls import POOL, Call, snapshot_name, volume_name
from volgate.v1 import attachment_pb2, volume_pb2

MIB = 1 << 20
HEAD = 65536
"""A content is one byte, repeated so often at the volume's begin; all that follows is zero."""


@dataclass(frozen=True)
class Write:
    """What a guest would write meanwhile; done once, by the test itself."""

    volume: str
    pattern: int


@dataclass
class Modelled:
    """A volume as it must be; snapshots as (size, pattern)."""

    size: int
    pattern: int
    format: int
    labels: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, tuple[int, int]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    attached: bool = False


class Strand:
    """Draws calls on volumes of its own and keeps the model beside."""

    def __init__(self, number: int, generator: random.Random, images: dict[int, Path], domain: str) -> None:
        self.steps: list[Call | Write] = []
        self.volumes: dict[str, Modelled] = {}
        self._name = f"s{number:03}"
        self._random = generator
        self._images = images
        self._domain = domain
        self._count = 0
        self._clones: dict[str, tuple[str, str]] = {}

    def draw(self, calls: int) -> None:
        """Add so many calls."""
        while self._count < calls:
            verbs = [act for fits, act in self._possible() if fits]
            self._random.choice(verbs)()

    def _possible(self) -> list[tuple[bool, Callable[[], None]]]:
        if not self.volumes:
            return [(True, self._create), (True, self._import)]
        name = self._random.choice(sorted(self.volumes))
        found = self.volumes[name]
        idle, layered = not found.attached, found.format == volume_pb2.VOLUME_FORMAT_QCOW2
        return [
            (True, lambda: self._expand(name)),
            (True, lambda: self._update(name)),
            (layered, lambda: self._snapshot(name)),
            (bool(found.snapshots) and idle, lambda: self._revert(name)),
            (bool(set(found.snapshots) - found.held), lambda: self._unsnapshot(name)),
            (idle and len(self.volumes) < 3, lambda: self._clone(name)),
            (idle and not found.snapshots and not found.held, lambda: self._delete(name)),
            (bool(self._domain) and idle, lambda: self._attach(name)),
            (found.attached, lambda: self._detach(name)),
            (found.attached, lambda: self._detach(name)),
        ]

    def _call(self, verb: str, **fields: Any) -> None:
        self._count += 1
        self.steps.append(Call(verb, {**fields, "request_id": f"{self._name}-{self._count}"}))

    def _free_name(self) -> str:
        return next(name for number in range(9) if (name := f"{self._name}-{number}") not in self.volumes)

    def _create(self) -> None:
        name = self._free_name()
        kind = self._random.choice([volume_pb2.VOLUME_FORMAT_QCOW2] * 3 + [volume_pb2.VOLUME_FORMAT_RAW])
        self.volumes[name] = Modelled(MIB, 0, kind)
        self._call("create", pool=POOL, volume_id=name, size_bytes=MIB, format=kind)

    def _import(self) -> None:
        name, pattern = self._free_name(), self._random.choice(sorted(self._images))
        self.volumes[name] = Modelled(MIB, pattern, volume_pb2.VOLUME_FORMAT_QCOW2)
        path, kind = str(self._images[pattern]), volume_pb2.VOLUME_FORMAT_QCOW2
        self._call("import", pool=POOL, volume_id=name, path=path, source_format=kind)

    def _expand(self, name: str) -> None:
        found = self.volumes[name]
        found.size += MIB
        self._call("expand", name=volume_name(name), size_bytes=found.size)

    def _update(self, name: str) -> None:
        self.volumes[name].labels = {"step": str(self._count)}
        self._call("update", name=volume_name(name), labels=self.volumes[name].labels)

    def _snapshot(self, name: str) -> None:
        found, cut = self.volumes[name], f"c{self._count}"
        found.snapshots[cut] = (found.size, found.pattern)
        self._call("snapshot", volume=volume_name(name), snapshot_id=cut)
        if not found.attached:
            found.pattern = self._random.randrange(1, 255)
            self.steps.append(Write(name, found.pattern))

    def _revert(self, name: str) -> None:
        found = self.volumes[name]
        cut = self._random.choice(sorted(found.snapshots))
        found.size, found.pattern = found.snapshots[cut]
        self._call("revert", name=volume_name(name), snapshot=cut)

    def _unsnapshot(self, name: str) -> None:
        found = self.volumes[name]
        cut = self._random.choice(sorted(set(found.snapshots) - found.held))
        del found.snapshots[cut]
        self._call("unsnapshot", name=snapshot_name(name, cut))

    def _clone(self, name: str) -> None:
        found, clone = self.volumes[name], self._free_name()
        cut = self._random.choice(["", *sorted(found.snapshots)])
        size, pattern = found.snapshots[cut] if cut else (found.size, found.pattern)
        self.volumes[clone] = Modelled(size, pattern, found.format)
        if found.format == volume_pb2.VOLUME_FORMAT_QCOW2:
            found.held.add(cut or clone)
            self._clones[clone] = (name, cut)
        self._call("create", pool=POOL, volume_id=clone, source=snapshot_name(name, cut) if cut else volume_name(name))

    def _delete(self, name: str) -> None:
        del self.volumes[name]
        if name in self._clones:
            source, cut = self._clones.pop(name)
            if (source, cut) not in self._clones.values() or not cut:
                self.volumes[source].held.discard(cut or name)
        self._call("delete", name=volume_name(name))

    def _attach(self, name: str) -> None:
        self.volumes[name].attached = True
        options = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)
        self._call("attach", volume=volume_name(name), domain=self._domain, options=options)

    def _detach(self, name: str) -> None:
        """The attachment's name is known only by asking: the caller fills it in."""
        self.volumes[name].attached = False
        self._call("detach", name=f"of {name}", wait_seconds=60)


def with_name(call: Call, attachment: str) -> Call:
    """A detach with the attachment's name filled in."""
    return replace(call, fields={**call.fields, "name": attachment})
