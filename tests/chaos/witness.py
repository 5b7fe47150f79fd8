"""Looks at the guests themselves, all the time: no volume is a disk of two of them at any moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import PurePath
from xml.etree import ElementTree as ET

import libvirt

from tests.labs.site import HostNode

__all__ = ["Witness"]


class Witness:
    """Reads each domain's live XML through a connection of its own; `seen` counts looks that found a disk."""

    def __init__(self, nodes: list[HostNode]) -> None:
        self.seen = 0
        self.violations: list[str] = []
        self._nodes = nodes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, name="witness", daemon=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(30)

    def _go(self) -> None:
        first, second = self._nodes
        links = [node.libvirtd.connect() for node in self._nodes if node.libvirtd]
        try:
            while not self._stop.wait(0.05):
                before, other, after = self._disks(links[0], first), self._disks(links[1], second), self._disks(links[0], first)
                self.seen += bool(before) + bool(other)
                # in the first guest before and after the look at the second one, under the same alias: also in between
                for volume, alias in before.items():
                    if after.get(volume) == alias and volume in other:
                        self.violations.append(f"{time.time():.1f} {volume}: {alias} and {other[volume]}")
        finally:
            for link in links:
                link.close()

    @staticmethod
    def _disks(link: libvirt.virConnect, node: HostNode) -> dict[str, str]:
        """Aliases by the volume's folder."""
        assert node.guest
        xml = ET.fromstring(link.lookupByUUIDString(node.guest.uuid).XMLDesc())
        found = {}
        for disk in xml.iterfind("devices/disk"):
            source, alias = disk.find("source"), disk.find("alias")
            if source is not None and alias is not None:
                found[PurePath(source.get("file", "")).parent.name] = alias.get("name", "")
        return found
