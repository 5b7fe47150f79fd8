"""Which placement group an object is in, computed as Ceph does: asking the monitors for each object of a large image would take minutes."""

from __future__ import annotations

import struct

__all__ = ["group_of"]

_GOLDEN = 0x9E3779B9
_WORD = 0xFFFFFFFF
_NAMESPACE_END = "\x1f"


def group_of(name: str, namespace: str, groups: int) -> int:
    """The number of the placement group among `groups` of a pool with the hash `rjenkins`, as every pool of RBD has it."""
    text = f"{namespace}{_NAMESPACE_END}{name}" if namespace else name
    found = _hash(text.encode())
    mask = (1 << (groups - 1).bit_length()) - 1
    return found & mask if found & mask < groups else found & (mask >> 1)


def _hash(data: bytes) -> int:
    """Robert Jenkins' hash of 1996, in the form of Ceph."""
    a, b, c = _GOLDEN, _GOLDEN, 0
    whole = len(data) // 12 * 12
    for at in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = _mix((a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD)
    rest = data[whole:]
    first, second, third = (int.from_bytes(part, "little") for part in (rest[:4], rest[4:8], rest[8:]))
    return _mix((a + first) & _WORD, (b + second) & _WORD, (c + len(data) + (third << 8)) & _WORD)[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for first, second, third in ((13, 8, 13), (12, 16, 5), (3, 10, 15)):
        a = (a - b - c & _WORD) ^ (c >> first)
        b = (b - c - a & _WORD) ^ (a << second & _WORD)
        c = (c - a - b & _WORD) ^ (b >> third)
    return a, b, c
