"""QEMU's monitor through libvirt: what QEMU itself has, and the few commands that repair it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

from volgate.connection import libiscsi_source
from volgate.errors import Precondition, Unreachable
from volgate.hypervisor.faults import translated

__all__ = ["Drive", "Node", "command", "drives", "io_errors", "luks_header", "nodes", "opened", "secrets"]


_KEY_OBJECTS = ("-storage-auth-secret0", "-format-encryption-secret0")


@dataclass(frozen=True, slots=True)
class Drive:
    """A device with a disk in it: its id (libvirt's alias), its top node, size in bytes and the files of its layers, top first.

    `failed`: QEMU has stopped the guest for an error of it.
    """

    device: str
    node: str
    size: int
    files: tuple[str, ...]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A block node. `index` is libvirt's number of the layer ("" if libvirt did not name it), `files` its own file and those below."""

    name: str
    index: str
    files: tuple[str, ...]


def command(domain: libvirt.virDomain, name: str, **arguments: Any) -> Any:
    """Run one command and return its answer. Raises Precondition with QEMU's words (QEMU_REFUSED), Unreachable.

    libvirt runs it as a change of the domain: never in the middle of an attach or detach of whomever.
    """
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
        image = inserted.get("image") or {}
        device = _identifier(block.get("qdev") or block.get("device") or "")
        size, failed = int(image.get("virtual-size", 0)), block.get("io-status", "ok") != "ok"
        found.append(Drive(device, inserted.get("node-name", ""), size, tuple(_layers(image)), failed))
    return found


def nodes(domain: libvirt.virDomain) -> list[Node]:
    """Every named block node; without files if QEMU has given up an image as corrupt: it refuses to describe any node then."""
    try:
        described = command(domain, "query-named-block-nodes")
    except Precondition as error:
        if "is ejected" not in error.message:
            raise
        graph = command(domain, "x-debug-query-block-graph")["nodes"]
        return [Node(node["name"], _index(node["name"]), ()) for node in graph if node["type"] == "block-driver"]
    found = []
    for node in described:
        name = node.get("node-name", "")
        files = dict.fromkeys((opened(node.get("file", "")), *_layers(node.get("image") or {})))
        found.append(Node(name, _index(name), tuple(files)))
    return found


def luks_header(domain: libvirt.virDomain, index: str) -> int:
    """What LUKS keeps for itself of the layer that libvirt numbered so, bytes. Raises Unreachable (QEMU_LOST)."""
    for node in command(domain, "query-named-block-nodes"):
        told = (node.get("image") or {}).get("format-specific") or {}
        if node.get("node-name") == f"libvirt-{index}-format" and told.get("type") == "luks":
            return int(told["data"]["payload-offset"])
    raise Unreachable(f"QEMU of {domain.name()} does not show the LUKS of layer {index}", reason="QEMU_LOST")


def secrets(domain: libvirt.virDomain) -> list[tuple[str, str]]:
    """Objects that hold the key of a layer, each with libvirt's number of it."""
    names = [str(found["name"]) for found in command(domain, "qom-list", path="/objects")]
    return [(_index(name), name) for name in names if _index(name) and name.endswith(_KEY_OBJECTS)]


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


def _index(name: str) -> str:
    """N of libvirt-N-storage and libvirt-N-format."""
    head, _, rest = name.partition("-")
    number, _, kind = rest.partition("-")
    return number if head == "libvirt" and number.isdigit() and kind else ""


def _layers(image: dict[str, Any]) -> Iterator[str]:
    while image:
        yield opened(str(image.get("filename", "")))
        image = image.get("backing-image") or {}


def opened(name: str) -> str:
    """What is behind QEMU's name of it: a path, `librbd:POOL/IMAGE`, `iscsi:IQN/LUN`, or a `json:` description that nests one."""
    if not name.startswith("json:"):
        return name
    try:
        described = json.loads(name.removeprefix("json:"))
    except ValueError:
        return name
    while isinstance(described, dict):
        if described.get("driver") == "rbd":
            return "librbd:" + "/".join(str(described[part]) for part in ("pool", "namespace", "image") if described.get(part))
        if described.get("driver") == "iscsi":
            return libiscsi_source(str(described.get("target")), int(described.get("lun") or 0))
        if isinstance(path := described.get("filename"), str):
            return opened(path)
        described = described.get("file")
    return name
