"""The qcow2 header, natively: a new image without starting a process, and what an existing image (even an open one) says of itself.

Everything here is pure: bytes in, values out. The layout is the one QEMU makes by default: version 3, clusters of 64 KiB, 16-bit
reference counts. Cluster 0 holds the header, 1 the reference table, 2 its first block, 3 and on the (empty) L1 table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from volgate.model import Format

__all__ = ["CLUSTER", "MAGIC", "MAXIMUM", "Growth", "Header", "empty_image", "empty_length", "growth", "parse_header"]

MAGIC = b"QFI\xfb"
CLUSTER = 65536
MAXIMUM = 1 << 50
_COVERED = CLUSTER // 8 * CLUSTER  # bytes of guest data behind one L1 entry
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2
_HEADER_3 = struct.Struct(">QQQII")  # what version 3 adds
_NAME_MAXIMUM = 1023
_SIZE_AT = 24  # size, encryption and number of L1 entries: 16 bytes of one sector
_END, _BACKING_FORMAT = 0, 0xE2792ACA
_CLUSTER_BITS_MINIMUM, _CLUSTER_BITS_MAXIMUM = 9, 21
_DATA_FILE = 1 << 2
_VERSION_2, _VERSION_3 = 2, 3


@dataclass(frozen=True, slots=True)
class Header:
    """What the first cluster of an image says. `data_file`: the data lie elsewhere. `tables_end`: where its L1 table ends, bytes."""

    version: int
    size: int
    backing: str
    backing_format: str
    encrypted: bool
    data_file: bool
    dirty: bool
    corrupt: bool
    tables_end: int


def empty_image(size: int, backing: str = "", backing_format: Format = Format.QCOW2) -> tuple[tuple[int, bytes], ...]:
    """Return the pieces (offset, bytes) of an image without data, to be written into a file of `empty_length(size)` bytes.

    `backing` is the name of the layer below, relative to the image's own folder. Raises ValueError for a size or a name out of range.
    """
    clusters = _l1_clusters(size)
    name = backing.encode()
    if len(name) > _NAME_MAXIMUM:
        raise ValueError(f"a backing name of {len(name)} bytes is too long")
    return (
        (0, _first_cluster(size, name, backing_format)),
        (CLUSTER, struct.pack(">Q", 2 * CLUSTER)),
        (2 * CLUSTER, b"\0\1" * (3 + clusters)),
    )


def empty_length(size: int) -> int:
    """Return the length of the file of an image without data; an image that was never written to has still this length."""
    return (3 + _l1_clusters(size)) * CLUSTER


def parse_header(data: bytes) -> Header:
    """Read the header from the first bytes of an image (64 KiB suffice for ours). Raises ValueError if it is none or does not fit."""
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise ValueError("not a qcow2 image")
    _, version, name_at, name_length, bits, size, crypt, entries, table_at, *_ = _HEADER.unpack_from(data)
    if version not in (_VERSION_2, _VERSION_3) or not _CLUSTER_BITS_MINIMUM <= bits <= _CLUSTER_BITS_MAXIMUM:
        raise ValueError(f"qcow2 version {version} with clusters of 2^{bits} is unknown")
    incompatible, end = _flags(data, version)
    return Header(
        version=version,
        size=size,
        backing=_backing(data, name_at, name_length),
        backing_format=_extension(data, end, _BACKING_FORMAT),
        encrypted=crypt != 0,
        data_file=bool(incompatible & _DATA_FILE),
        dirty=bool(incompatible & 1),
        corrupt=bool(incompatible & 2),
        tables_end=table_at + 8 * entries,
    )


@dataclass(frozen=True, slots=True)
class Growth:
    """How an image grows by its header alone: `patch` is written at `at` once the `spare` bytes from `spare_at` are read as zeroes."""

    at: int
    patch: bytes
    spare_at: int
    spare: int


def growth(data: bytes, size: int) -> Growth | None:
    """Return how an image grows to `size` in place, from its first bytes; None if it takes more than its header.

    Its L1 table fills whole clusters: an entry more is one that lies there already. A layer below could show through, so there must be
    none; what an internal snapshot, a bitmap or an incompatible feature would need is left to QEMU's own tool.
    """
    header = parse_header(data)
    _, version, name_at, _, bits, old, crypt, entries, table_at, *_, internal, _ = _HEADER.unpack_from(data)
    if version != _VERSION_3 or name_at or crypt or internal or size <= old or size > MAXIMUM or size % 512 or header.data_file:
        return None
    incompatible, _, automatic, _, _ = _HEADER_3.unpack_from(data, _HEADER.size)
    cluster = 1 << bits
    wanted = -(-size // (cluster // 8 * cluster))
    room = -(-entries * 8 // cluster) * cluster // 8
    if incompatible or automatic or not entries <= wanted <= room:
        return None
    return Growth(_SIZE_AT, struct.pack(">QII", size, crypt, wanted), table_at + entries * 8, (wanted - entries) * 8)


def _l1_clusters(size: int) -> int:
    if not 0 < size <= MAXIMUM or size % 512:
        raise ValueError(f"{size} bytes is no size for a qcow2 image")
    return max(1, -(-(-(-size // _COVERED) * 8) // CLUSTER))


def _first_cluster(size: int, name: bytes, backing_format: Format) -> bytes:
    kind = str(backing_format).encode()
    extensions = struct.pack(">II", _BACKING_FORMAT, len(kind)) + kind.ljust(-(-len(kind) // 8) * 8, b"\0") if name else b""
    extensions += struct.pack(">II", _END, 0)
    length = _HEADER.size + _HEADER_3.size + 8  # eight more for the compression type and its padding
    name_at = length + len(extensions) if name else 0
    head = _HEADER.pack(MAGIC, 3, name_at, len(name), 16, size, 0, -(-size // _COVERED), 3 * CLUSTER, CLUSTER, 1, 0, 0)
    return head + _HEADER_3.pack(0, 0, 0, 4, length) + bytes(8) + extensions + name


def _flags(data: bytes, version: int) -> tuple[int, int]:
    if version == _VERSION_2:
        return 0, _HEADER.size
    if len(data) < _HEADER.size + _HEADER_3.size:
        raise ValueError("the header is cut off")
    incompatible, _, _, _, length = _HEADER_3.unpack_from(data, _HEADER.size)
    return incompatible, length


def _backing(data: bytes, at: int, length: int) -> str:
    if at == 0:
        return ""
    if length > _NAME_MAXIMUM or at + length > len(data):
        raise ValueError("the backing name lies outside of the header")
    return data[at : at + length].decode(errors="replace")


def _extension(data: bytes, at: int, wanted: int) -> str:
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == _END or at + 8 + length > len(data):
            return ""
        if kind == wanted:
            return data[at + 8 : at + 8 + length].decode(errors="replace")
        at += 8 + -(-length // 8) * 8
    return ""
