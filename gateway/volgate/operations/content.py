"""A digest of an image's content that a sparse image is quickly had of: equal bytes give equal digests, however they came."""

from __future__ import annotations

import hashlib
import struct

__all__ = ["ContentDigest"]

_BLOCK = 1 << 16
_ZEROES = bytes(_BLOCK)
_NUMBER = struct.Struct(">Q")


class ContentDigest:
    """Hashes the blocks that are not all zeroes, each with its number, and the length."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._hash = hashlib.sha256()
        self._number = 0
        self._begun = bytearray()

    @property
    def length(self) -> int:
        """How many bytes have come."""
        return self._number * _BLOCK + len(self._begun)

    def add(self, data: bytes) -> None:
        """Take bytes that follow."""
        first = min(len(data), -len(self._begun) % _BLOCK) if self._begun else 0
        self._begun += data[:first]
        if len(self._begun) == _BLOCK:
            self._take(bytes(self._begun))
            self._begun.clear()
        whole = first + (len(data) - first) // _BLOCK * _BLOCK
        for at in range(first, whole, _BLOCK):
            self._take(data[at : at + _BLOCK])
        self._begun += data[whole:]

    def skip(self, length: int) -> None:
        """Take so many zero bytes that follow."""
        if self._begun:
            first = min(length, _BLOCK - len(self._begun))
            self.add(bytes(first))
            length -= first
        self._number += length // _BLOCK
        self._begun += bytes(length % _BLOCK)

    def hexdigest(self) -> str:
        """The digest of what has come."""
        whole = self._hash.copy()
        whole.update(b"end" + _NUMBER.pack(self.length) + self._begun.rstrip(b"\0"))
        return whole.hexdigest()

    def _take(self, block: bytes) -> None:
        if block != _ZEROES:
            self._hash.update(_NUMBER.pack(self._number) + block)
        self._number += 1
