"""What a plugin may change of a disk: how it is driven, never what it is. Anything else would attach another file, or lose writes."""

from __future__ import annotations

import copy
from xml.etree import ElementTree as ET

__all__ = ["FREE_ATTRIBUTES", "FREE_ELEMENTS", "overstep"]

FREE_ELEMENTS = ("iotune", "blockio", "geometry", "vendor", "product", "wwn")
"""Elements of a `<disk>` that a plugin may add, change and remove."""
FREE_ATTRIBUTES = (
    *("cache", "io", "ioeventfd", "event_idx", "discard", "detect_zeroes", "discard_no_unref", "queues", "queue_size"),
    *("iothread", "iommu", "ats", "packed", "page_per_vq", "rerror_policy", "error_policy", "copy_on_read", "metadata_cache"),
)
"""Attributes of its `<driver>`; not among them is the format."""
_MOST = 64 << 10


def overstep(before: str, after: str) -> str:
    """Say what is wrong with an amended disk; "" if it is still the same disk."""
    if len(after) > _MOST or "<!" in after:
        return f"an element without declarations, of at most {_MOST} bytes, is wanted"
    try:
        changed = ET.fromstring(after)  # noqa: S314  # without declarations nothing is expanded
    except ET.ParseError as error:
        return f"it is no XML: {error}"
    was, now = _fixed(ET.fromstring(before)), _fixed(changed)  # noqa: S314  # our own
    if was.keys() != now.keys():
        return f"<{next(iter(sorted(was.keys() ^ now.keys())))}> must stay as it is"
    return next((f"<{name}> must stay as it is" for name in was if was[name] != now[name]), "")


def _fixed(disk: ET.Element) -> dict[str, list[bytes]]:
    """What must stay, by element name: the disk's own attributes under its own."""
    found: dict[str, list[bytes]] = {disk.tag: [repr(sorted(disk.attrib.items())).encode()]}
    for child in disk:
        if child.tag in FREE_ELEMENTS:
            continue
        kept = copy.deepcopy(child)
        kept.tail = None
        if child.tag == "driver":
            for name in FREE_ATTRIBUTES:
                kept.attrib.pop(name, None)
        found.setdefault(child.tag, []).append(ET.canonicalize(ET.tostring(kept, encoding="unicode"), strip_text=True).encode())
    return found
