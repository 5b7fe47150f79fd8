"""Resource names: what the contract calls a pool, a volume, a snapshot, an attachment.

The style is that of AIP-122 (`pools/{pool}/volumes/{volume}`). Routing a call needs no database: the pool is in the name.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from volgate.errors import InvalidRequest

__all__ = [
    "AttachmentName",
    "PoolName",
    "SnapshotName",
    "VolumeName",
    "attachment_id",
    "check_identifier",
    "host_certificate_name",
    "object_name",
    "parse_content",
    "parse_volume",
]

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PARTS_OF_A_SNAPSHOT = 6
_NAMESPACE = uuid.UUID("b3a1f0ce-7d0f-5c43-9d4e-51c7e0a1f6aa")  # drawn once for Volgate; attachment ids derive from it


def check_identifier(value: str, field: str) -> str:
    """Return `value` if it is a name (`[a-z0-9][a-z0-9._-]{0,62}`); raise InvalidRequest naming `field` otherwise."""
    if not IDENTIFIER.fullmatch(value) or ".." in value:
        raise InvalidRequest(
            f"{field}: {value[:80]!r} is not a name; use 1 to 63 of a-z 0-9 . _ - (no '..'), first a letter or digit", field=field
        )
    return value


@dataclass(frozen=True, slots=True, order=True)
class PoolName:
    """`pools/{pool}`."""

    pool: str

    def __str__(self) -> str:
        return f"pools/{self.pool}"

    @classmethod
    def parse(cls, text: str, field: str = "name") -> PoolName:
        """Read `pools/{pool}`; raise InvalidRequest naming `field`."""
        return cls(*_split(text, field, "pools"))


@dataclass(frozen=True, slots=True, order=True)
class VolumeName:
    """`pools/{pool}/volumes/{volume}`."""

    pool: str
    volume: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/volumes/{self.volume}"

    @classmethod
    def parse(cls, text: str, field: str = "name") -> VolumeName:
        """Read `pools/{pool}/volumes/{volume}`; raise InvalidRequest naming `field`."""
        return cls(*_split(text, field, "pools", "volumes"))


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """`pools/{pool}/volumes/{volume}/snapshots/{snapshot}`."""

    pool: str
    volume: str
    snapshot: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/volumes/{self.volume}/snapshots/{self.snapshot}"

    @property
    def of(self) -> VolumeName:
        """The volume that the snapshot is of."""
        return VolumeName(self.pool, self.volume)

    @classmethod
    def parse(cls, text: str, field: str = "name") -> SnapshotName:
        """Read `pools/{pool}/volumes/{volume}/snapshots/{snapshot}`; raise InvalidRequest naming `field`."""
        return cls(*_split(text, field, "pools", "volumes", "snapshots"))


@dataclass(frozen=True, slots=True, order=True)
class AttachmentName:
    """`attachments/{id}`; the id is a uuid, see :func:`attachment_id`."""

    id: str

    def __str__(self) -> str:
        return f"attachments/{self.id}"

    @classmethod
    def parse(cls, text: str, field: str = "name") -> AttachmentName:
        """Read `attachments/{uuid}`; raise InvalidRequest naming `field`."""
        (found,) = _split(text, field, "attachments")
        if not UUID.fullmatch(found):
            raise InvalidRequest(f"{field}: {text[:120]!r} does not end in a uuid", field=field)
        return cls(found)


def parse_content(text: str, field: str = "name") -> VolumeName | SnapshotName:
    """Read the name of a volume or of a snapshot; by its parts, for a pool or a volume may itself be called `snapshots`."""
    return SnapshotName.parse(text, field) if text.count("/") == _PARTS_OF_A_SNAPSHOT - 1 else VolumeName.parse(text, field)


def parse_volume(text: str, field: str = "volume") -> VolumeName:
    """Read a full volume name."""
    return VolumeName.parse(text, field)


def attachment_id(volume_uid: str, host: str, domain_uuid: str) -> str:
    """Return the id of the attachment of a volume to a domain on a host: the same three always give the same uuid."""
    return str(uuid.uuid5(_NAMESPACE, f"{volume_uid}/{host}/{domain_uuid}"))


def host_certificate_name(host: str) -> str:
    """Return the DNS name that only the certificate of this host carries: whoever connects to the host compares it."""
    return f"{host}.host.volgate.internal"


def object_name(name: str, uid: str) -> str:
    """Return what the object is called on the storage: a re-created volume never meets its predecessor's leftovers."""
    return f"{name}.{uid.replace('-', '')[:8]}"


def _split(text: str, field: str, *collections: str) -> tuple[str, ...]:
    parts = text.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        pattern = "/".join(f"{c}/{{{c.rstrip('s')}}}" for c in collections)
        raise InvalidRequest(f"{field}: {text[:120]!r} is not of the form {pattern}", field=field)
    return tuple(check_identifier(part, field) for part in parts[1::2])
