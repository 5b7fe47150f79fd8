"""The owner tag as tags of LVM's: sealed, compressed, in numbered pieces, for a tag has a small alphabet and 1024 characters at most."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence

import msgspec

from volgate.backend import OwnerTag, seal, unseal
from volgate.errors import DataLoss

__all__ = ["OWN", "Content", "owner_mark", "read", "words"]

OWN = "volgate"
_PIECE = re.compile(r"volgate\.(\d+)=([A-Za-z0-9_=-]+)")
_LENGTH = 1000
_MOST = 1 << 20  # bytes of a tag: what unpacks to more was not written here


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a logical volume says of itself beside the tag.

    `volume`: of a snapshot, the name of the volume; its uid is the tag's parent. `epoch`: of those of one uid the highest is the volume.
    `making`: it is not whole yet. `incomplete`: an import fills it. `zeroed`: bytes that hold nothing of others.
    """

    volume: str = ""
    epoch: int = 0
    making: bool = False
    incomplete: bool = False
    zeroed: int = 0
    quiesced: bool = False
    reverts: tuple[str, ...] = ()


def owner_mark(instance: str) -> str:
    """The tag of a volume group that a gateway owns."""
    return f"{OWN}.owner={instance}"


def words(tag: OwnerTag, content: Content) -> list[str]:
    """The tags that hold it."""
    packed = base64.urlsafe_b64encode(zlib.compress(seal(tag, content), 9)).decode()
    pieces = [packed[at : at + _LENGTH] for at in range(0, len(packed), _LENGTH)]
    return [OWN, *(f"{OWN}.{number}={piece}" for number, piece in enumerate(pieces))]


def read(tags: Sequence[str]) -> tuple[OwnerTag, Content]:
    """Read what `words` made. Raises DataLoss (TAG_DAMAGED)."""
    pieces = sorted((int(found[1]), found[2]) for tag in tags if (found := _PIECE.fullmatch(tag)))
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.urlsafe_b64decode("".join(piece for _, piece in pieces)), _MOST)
    except (ValueError, zlib.error) as error:
        raise DataLoss(f"the owner tag is unreadable: {error}", reason="TAG_DAMAGED") from error
    return unseal(data, Content)
