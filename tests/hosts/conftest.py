"""One site for a module: a controller, two hosts with a guest each, one on libvirt's driver for tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.visit import Visit
from tests.labs.site import Site
from tests.plugins.memory_rig import Array


@pytest.fixture(scope="module")
def array() -> Iterator[Array]:
    """A simulated array: it knows clients, and refuses those that are fenced."""
    folder = Path(tempfile.mkdtemp(prefix="vga-", dir="/tmp"))
    folder.chmod(0o711)
    made = Array(folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site(array: Array) -> Iterator[Site]:
    made = Site(pools=f'[pools.sim]\nkind = "memory"\nsocket = "{array.socket}"\n')
    try:
        made.controller.start()
        for name in ("h1", "h2"):
            made.add(name, guest=True).spawn()
        bare = made.add("h3")
        bare.iqn = bare.nqn = bare.nvme_host_id = ""
        bare.spawn()
        yield made
    finally:
        made.close()
    assert not made.base.exists() and not list(Path("/run/netns").glob(f"{made.network.prefix}-*")), "nothing of it is left"


@pytest.fixture
def visit(site: Site) -> Iterator[Visit]:
    """The site as each test expects it, and leaves it: all live, nothing attached."""
    made = Visit(site)
    made.whole()
    yield made
    made.whole()
    made.close()
