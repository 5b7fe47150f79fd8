"""Where objects lie: a name for each placement group of a pool, so that every one of them can be asked something.

The hash is Ceph's `rjenkins`, which is that of every pool of RBD.
"""

from __future__ import annotations

import itertools

__all__ = ["group_of", "names"]

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_BLOCK = 12
_SHIFTS = ((13, 8, 13), (12, 16, 5), (3, 10, 15))


def names(groups: int, namespace: str = "") -> list[str]:
    """The names of objects of which one lies in each of so many placement groups; the objects need not exist."""
    found: dict[int, str] = {}
    for number in itertools.count():
        name = f"volgate.probe.{number}"
        found.setdefault(group_of(name, groups, namespace), name)
        if len(found) == groups:
            return list(found.values())
    raise AssertionError("numbers do not end")


def group_of(name: str, groups: int, namespace: str = "") -> int:
    """The number of the placement group that an object lies in, of so many."""
    value = _hash((f"{namespace}\x1f{name}" if namespace else name).encode())
    mask = (1 << (groups - 1).bit_length()) - 1
    return value & mask if value & mask < groups else value & (mask >> 1)


def _hash(data: bytes) -> int:
    first = second = _GOLDEN
    third = 0
    whole = len(data) // _BLOCK * _BLOCK
    for at in range(0, whole, _BLOCK):
        words = (int.from_bytes(data[at + step : at + step + 4], "little") for step in (0, 4, 8))
        first, second, third = _mix(*(old + word for old, word in zip((first, second, third), words, strict=True)))
    rest = data[whole:]
    first += int.from_bytes(rest[:4], "little")
    second += int.from_bytes(rest[4:8], "little")
    third += len(data) + (int.from_bytes(rest[8:], "little") << 8)
    return _mix(first, second, third)[2]


def _mix(first: int, second: int, third: int) -> tuple[int, int, int]:
    """Bob Jenkins' mixing of three words."""
    for right, left, last in _SHIFTS:
        first = (first - second - third & _WORD) ^ ((third & _WORD) >> right)
        second = (second - third - first & _WORD) ^ (first << left & _WORD)
        third = (third - first - second & _WORD) ^ (second >> last)
    return first, second, third
