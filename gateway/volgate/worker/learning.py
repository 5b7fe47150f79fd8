"""Types that several threads decode are read by msgspec before: it notes a class too early, and who comes between crashes the process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = ["learn"]


def learn(kinds: Iterable[Any]) -> None:
    """Have msgspec read types, while a module is imported: one thread does that at a time. Raises TypeError for what it cannot decode."""
    for kind in kinds:
        msgspec.msgpack.Decoder(kind)
