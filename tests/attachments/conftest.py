"""A world for each test, on the lab's libvirt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attachments.world import World
from tests.labs.libvirtd import PrivateLibvirtd


@pytest.fixture
def world(tmp_path: Path, pool_dir: Path, libvirtd: PrivateLibvirtd) -> Iterator[World]:
    made = World(tmp_path, pool_dir, libvirtd.uri)
    yield made
    made.close()
