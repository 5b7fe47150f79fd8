"""The host side over the lab's libvirt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.rig import Bench
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd


@pytest.fixture
def bench(libvirtd: PrivateLibvirtd, pool_dir: Path) -> Iterator[Bench]:
    made = Bench(libvirtd, pool_dir)
    yield made
    made.host.close()


@pytest.fixture
def guest(guest: Guest) -> Iterator[Guest]:
    """The shared guest; a test that failed with a disk attached spoils no other."""
    yield guest
    nodes = [node for node in guest.qmp("x-debug-query-block-graph")["nodes"] if node["name"].startswith("libvirt-")]
    if nodes or guest.live_disks() or "<disk" in guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE):
        guest.reset()
