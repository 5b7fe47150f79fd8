"""The host side over the lab's libvirt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.rig import Bench
from tests.labs.libvirtd import PrivateLibvirtd


@pytest.fixture
def bench(libvirtd: PrivateLibvirtd, pool_dir: Path) -> Iterator[Bench]:
    made = Bench(libvirtd, pool_dir)
    yield made
    made.host.close()
