"""The lab as fixtures. Each worker of a parallel run has its own libvirtd and guest; nothing of them outlives the run."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.labs.ceph import CephCluster
    from tests.labs.domain import Guest
    from tests.labs.libvirtd import PrivateLibvirtd
    from tests.labs.postgres import PostgresServer

pytest_plugins = ["tests.drawing", "tests.labs.kernel.delegate"]


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    """A private libvirtd whose QEMU runs as root and changes no owners."""
    from tests.labs.libvirtd import PrivateLibvirtd

    with PrivateLibvirtd(security="off") as running:
        yield running


@pytest.fixture(scope="session")
def default_libvirtd() -> Iterator[PrivateLibvirtd]:
    """A private libvirtd as Debian ships it: QEMU as libvirt-qemu, dynamic ownership, namespaces."""
    from tests.labs.libvirtd import PrivateLibvirtd

    with PrivateLibvirtd(security="default") as running:
        yield running


@pytest.fixture(scope="session")
def guest(libvirtd: PrivateLibvirtd) -> Guest:
    """One guest for many tests: leave it running and without disks (`guest.detach_all()`, `guest.reset()`)."""
    from tests.labs.domain import Guest

    return Guest(libvirtd)


@pytest.fixture(scope="session")
def default_guest(default_libvirtd: PrivateLibvirtd) -> Guest:
    """As `guest`, under libvirt's defaults."""
    from tests.labs.domain import Guest

    return Guest(default_libvirtd)


@pytest.fixture
def new_guest(libvirtd: PrivateLibvirtd) -> Iterator[Callable[[], Guest]]:
    """Make guests of this test's own (0.6 s each), removed at its end."""
    from tests.labs.domain import Guest

    made: list[Guest] = []

    def make() -> Guest:
        made.append(Guest(libvirtd, f"guest-{uuid.uuid4().hex[:8]}"))
        return made[-1]

    yield make
    for one in made:
        one.remove()


@pytest.fixture
def fresh_guest(new_guest: Callable[[], Guest]) -> Guest:
    """A guest of this test's own (0.6 s)."""
    return new_guest()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may restart, but not leave away; each test makes a database of its own in it."""
    from tests.labs.postgres import PostgresServer

    with PostgresServer() as running:
        yield running


@pytest.fixture(scope="session")
def ceph() -> Iterator[CephCluster]:
    """A Ceph cluster in memory, for many tests: each makes an RBD namespace of its own in it (`ceph.new_namespace()`), none ends a daemon."""
    from tests.labs.ceph import CephCluster

    with CephCluster() as running:
        yield running


@pytest.fixture
def pool_dir() -> Iterator[Path]:
    """An empty folder with a short path that libvirt-qemu may pass through."""
    top = Path(tempfile.mkdtemp(prefix="vg-", dir="/tmp"))
    top.chmod(0o711)
    pool = top / "pool"
    pool.mkdir()
    pool.chmod(0o711)
    yield pool
    shutil.rmtree(top, ignore_errors=True)
