"""What the small backends keep of a volume beside its bytes, and how they are offered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from volgate.backend import BackendType
from volgate.model import Labels

GRAIN = 1 << 16
MARKER, DISK, TAG, FENCES, HOSTS, OUT = ".good-pool", "disk.raw", "owner.json", ".fences", ".hosts", ".out"


class Cut(msgspec.Struct, frozen=True):
    uid: str
    name: str
    size: int
    labels: Labels = {}
    created: float = 0.0


class Content(msgspec.Struct, frozen=True):
    incomplete: bool = False
    cuts: tuple[Cut, ...] = ()
    reverts: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoodSettings:
    path: str


def offer(kind: type[Any], name: str) -> BackendType:
    return BackendType(kind=name, settings=GoodSettings, open=kind, summary=str(kind.__doc__), in_threads=True)
