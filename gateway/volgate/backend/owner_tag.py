"""The owner tag: the record on the storage that says whose an object is and what was asked for, sealed by a checksum.

Canonical JSON (sorted keys, no spaces). A backend may put a `content` of its own beside the tag's fields; the seal covers both.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from volgate.errors import DataLoss
from volgate.model import Format, Labels, Provisioning, Source, Volume, VolumeSpec, VolumeState

__all__ = ["OwnerTag", "TagSpec", "seal", "tag_of", "unseal", "volume_of"]

SCHEMA = 1
C = TypeVar("C")
_reading = threading.Lock()


class TagSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the creation asked for: a repeat is compared with it."""

    requested_size: int
    format: Format
    provisioning: Provisioning
    source: Source | None = None


class OwnerTag(msgspec.Struct, frozen=True, kw_only=True):
    """The tag. `instance` is the gateway that owns the object, `parent_uid` the volume it was cloned from."""

    schema: int = SCHEMA
    instance: str
    uid: str
    name: str
    spec: TagSpec
    parent_uid: str = ""
    generation: int = 1
    labels: Labels = {}
    created: float


msgspec.json.Decoder(OwnerTag)  # while the module is imported: see `_known`


def tag_of(spec: VolumeSpec, instance: str, now: float) -> OwnerTag:
    """Return the tag of a new volume."""
    asked = TagSpec(requested_size=spec.size, format=spec.format, provisioning=spec.provisioning, source=spec.source)
    parent = spec.source.volume_uid if spec.source else ""
    return OwnerTag(instance=instance, uid=spec.uid, name=spec.name, spec=asked, parent_uid=parent, labels=dict(spec.labels), created=now)


def volume_of(tag: OwnerTag, stored_as: str, size: int, state: VolumeState = VolumeState.READY) -> Volume:
    """Return the volume that a tag describes; the backend adds what it measures (`dataclasses.replace`)."""
    found = Volume(tag.name, tag.uid, stored_as, size, tag.spec.requested_size, tag.spec.format, tag.spec.provisioning, state)
    return replace(found, source=tag.spec.source, labels=dict(tag.labels), generation=tag.generation, created_at=tag.created)


def seal(tag: OwnerTag, content: Any = None) -> bytes:
    """Return the bytes to store: the tag's fields on top, `content` and the checksum beside them."""
    fields = {**msgspec.to_builtins(tag), "content": msgspec.to_builtins(content)}
    return msgspec.json.encode({**fields, "checksum": _checksum(fields)}, order="sorted") + b"\n"


def unseal(data: bytes, content: type[C]) -> tuple[OwnerTag, C]:
    """Read what `seal` wrote. Raises DataLoss (TAG_DAMAGED) saying what is wrong."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        found = fields.pop("checksum", "")
        if found != _checksum(fields):
            raise DataLoss("the owner tag's checksum does not match its bytes", reason="TAG_DAMAGED")
        if fields.get("schema") != SCHEMA:
            raise DataLoss(f"the owner tag's schema {fields.get('schema')!r} is unknown; a newer gateway wrote it", reason="TAG_DAMAGED")
        return msgspec.convert(fields, OwnerTag), msgspec.convert(fields["content"], _known(content))
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError) as error:
        raise DataLoss(f"the owner tag is unreadable: {error}", reason="TAG_DAMAGED") from error


def _known(content: type[C]) -> type[C]:
    """Let msgspec read a type: threads that bring it a new one at once would crash the process."""
    with _reading:
        msgspec.json.Decoder(content)
    return content


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
