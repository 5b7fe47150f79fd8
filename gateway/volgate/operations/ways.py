"""What the stations on the way to a volume come to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from volgate.errors import Unreachable
from volgate.hosts.interface import Host
from volgate.model import Path, PathState, Redundancy
from volgate.store.records import AttachmentRecord

__all__ = ["at_guest", "blocked", "redundancy"]

_ALTERNATIVES = ("iscsi", "monitor")
"""Transports whose stations of one initiator stand in for each other; of all others, each is needed."""


def at_guest(host: Host, record: AttachmentRecord, *, timeout: float) -> Sequence[Path]:
    """The end of the way: the disk as its domain has it. A host that cannot be asked is a failed station: that is what is asked about."""
    try:
        return host.paths(record.domain, record.alias, timeout=timeout)
    except Unreachable as error:
        return [Path("libvirt", record.host, record.domain_name, record.alias, PathState.FAILED, last_error=error.message)]


def redundancy(paths: Sequence[Path]) -> Redundancy:
    """One station that failed fails the whole, unless others stand in for it; one with errors degrades it.

    Redundant: a backend's stations say so (`redundant` among their facts), and each that has alternatives has a healthy one.
    """
    if blocked(paths):
        return Redundancy.DOWN
    if any(path.last_error or path.errors or path.state is PathState.FAILED for path in paths):
        return Redundancy.DEGRADED
    told = [path.facts["redundant"] for path in paths if "redundant" in path.facts]
    survived = all(len(group) > 1 for group in _groups(paths).values())
    return Redundancy.REDUNDANT if told and set(told) == {"yes"} and survived else Redundancy.SINGLE


def blocked(paths: Sequence[Path]) -> str:
    """Why no I/O gets through, "" if some does."""
    for path in paths:
        if path.state is PathState.FAILED and path.transport not in _ALTERNATIVES:
            return path.last_error or path.device
    for group in _groups(paths).values():
        if all(path.state is PathState.FAILED for path in group):
            return "; ".join(path.last_error or path.target for path in group)
    return ""


def _groups(paths: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in paths:
        if path.transport in _ALTERNATIVES:
            found[path.transport, path.initiator].append(path)
    return found
