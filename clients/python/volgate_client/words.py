"""Values of the contract's enums as words: VOLUME_FORMAT_QCOW2 is `qcow2`, DISK_BUS_VIRTIO_BLK is `virtio-blk`."""

from __future__ import annotations

from typing import Any

from volgate_client.errors import local

__all__ = ["number", "word", "words"]

_UNSET = "UNSPECIFIED"


def _prefix(enum: Any) -> str:
    return str(enum.keys()[0]).removesuffix(_UNSET)


def word(enum: Any, value: int) -> str:
    """The word of a value; "" for unset, the number for one that this client does not know."""
    if value not in enum.values():
        return str(value)
    found = str(enum.Name(value)).removeprefix(_prefix(enum))
    return "" if found == _UNSET else found.lower().replace("_", "-")


def words(enum: Any) -> list[str]:
    """Every word of an enum."""
    return [found for value in enum.values() if (found := word(enum, value))]


def number(enum: Any, text: str, field: str) -> Any:
    """The value of a word; unset for "". Raises InvalidRequest with the words there are."""
    if text and text not in words(enum):
        raise local(field, f"{text!r} is not one of {', '.join(words(enum))}")
    return enum.Value(_prefix(enum) + (text.upper().replace("-", "_") or _UNSET))
