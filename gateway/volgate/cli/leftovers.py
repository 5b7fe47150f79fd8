"""What `volgate doctor` tells of the storage network: what this machine has of ours without an attachment, names that hosts share."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from volgate.cli.doctor import Finding
from volgate.cli.output import short
from volgate.hosts.local import LocalHost
from volgate.model import Leftover
from volgate.v1 import host_pb2
from volgate_client import Client

__all__ = ["leftovers", "twins"]

_SECONDS = 60.0
_APART = 31.0  # what is taken away was without an attachment half a minute before, too
_UNIQUE = {"iqn": "iSCSI initiator name", "nqn": "NVMe host name", "nvme_host_id": "NVMe host id", "machine_id": "machine id"}
_CHANGING = ("AttachVolume", "DetachVolume")


def twins(hosts: Iterable[host_pb2.Host]) -> Iterator[Finding]:
    """Hosts of record that share what no two may: a target takes them for one."""
    for field, word in _UNIQUE.items():
        owners: defaultdict[str, list[str]] = defaultdict(list)
        for host in hosts:
            owners[getattr(host, field)].append(host.name)
        for value, names in owners.items():
            if value and len(names) > 1:
                seen = f"they share the {word} {value}: storage takes them for one, and lets each have the disks of the other"
                action = f"give each its own {word}, then restart volgate there"
                yield Finding(ok=False, subject=", ".join(sorted(names)), seen=seen, action=action)


def leftovers(client: Client, name: str, local: LocalHost, *, repair: bool) -> Iterator[Finding]:
    """What this machine has of ours that no domain has a disk of. With `repair` it goes, unless a disk is being attached or detached."""
    disks = list(local.our_disks(timeout=_SECONDS))
    if {held.alias for held in client.list_attachments(host=name)} - {found.disk.alias for found in disks}:
        return  # a volume was prepared for a domain that does not have it yet: the gateway alone knows which
    found = _look(local, apply=False)
    if found and repair:
        busy = [one.name for one in client.list_operations(unfinished_only=True) if one.method in _CHANGING]
        if busy:
            action = f"repeat it when {', '.join(map(short, busy))} ended"
            yield Finding(ok=False, subject=name, seen="disks are being attached or detached: nothing was taken away", action=action)
        else:
            time.sleep(_APART)
            found = _look(local, apply=True)
    for one in found:
        action = (
            "let go of what uses it, then volgate doctor --repair" if repair else "the gateway takes it away; or volgate doctor --repair"
        )
        seen = "it was taken away: no attachment used it" if one.removed else one.problem
        yield Finding(ok=one.removed, subject=f"{name}: {one.kind} {one.name}", seen=seen, action="" if one.removed else action)


def _look(local: LocalHost, *, apply: bool) -> list[Leftover]:
    accounted = sorted({found.disk.source for found in local.our_disks(timeout=_SECONDS)})
    return list(local.leftovers(accounted, apply=apply, timeout=_SECONDS))
