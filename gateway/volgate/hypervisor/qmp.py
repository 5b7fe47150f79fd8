"""QEMU's monitor through libvirt: what QEMU itself has, and the few commands that repair it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

from volgate.errors import Precondition
from volgate.hypervisor.link import translated

__all__ = ["Drive", "Node", "command", "drives", "io_errors", "nodes"]


@dataclass(frozen=True, slots=True)
class Drive:
    """A device with a disk in it: its id (libvirt's alias) and size in bytes."""

    device: str
    node: str
    size: int


@dataclass(frozen=True, slots=True)
class Node:
    """A block node: its name and the file it opens."""

    name: str
    file: str
    driver: str


def command(domain: libvirt.virDomain, name: str, **arguments: Any) -> Any:
    """Run one command and return its answer. Raises Precondition with QEMU's words, Unreachable."""
    text = json.dumps({"execute": name, "arguments": arguments} if arguments else {"execute": name})
    with translated(f"QEMU {name}"):
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, text, 0))
    if "error" in answer:
        raise Precondition(f"QEMU {name}: {answer['error'].get('desc', answer['error'])}", reason="QEMU_REFUSED")
    return answer["return"]


def drives(domain: libvirt.virDomain) -> list[Drive]:
    """Every device with a disk in it."""
    found = []
    for block in command(domain, "query-block"):
        inserted = block.get("inserted") or {}
        size = int((inserted.get("image") or {}).get("virtual-size", 0))
        found.append(Drive(_identifier(block.get("qdev") or block.get("device") or ""), inserted.get("node-name", ""), size))
    return found


def nodes(domain: libvirt.virDomain) -> list[Node]:
    """Every named block node."""
    return [Node(n.get("node-name", ""), n.get("file", ""), n.get("drv", "")) for n in command(domain, "query-named-block-nodes")]


def io_errors(domain: libvirt.virDomain, alias: str) -> int:
    """Failed reads, writes and flushes that QEMU counted on a disk."""
    for block in command(domain, "query-blockstats"):
        if _identifier(block.get("qdev") or block.get("device") or "") == alias:
            stats = block.get("stats", {})
            return sum(int(stats.get(f"failed_{kind}_operations", 0)) for kind in ("rd", "wr", "flush"))
    return 0


def _identifier(qdev: str) -> str:
    """The device's id: virtio-blk reports the path of its backend child."""
    parts = [part for part in qdev.split("/") if part not in ("", "machine", "peripheral", "virtio-backend")]
    return parts[0] if parts else qdev
