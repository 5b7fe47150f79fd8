"""Pools of kind `iscsi` whose targets are of the guest's kernel or of tgtd, for the tests of what is particular to them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LIO, TGT_PORT, Daemon, sh
from volgate.backend import Initiator, PoolContext, VolumeId
from volgate.connect import iscsi_sessions
from volgate.connect.iscsi import Iscsi
from volgate.connection import IscsiLun
from volgate.model import Format, Volume, VolumeSpec
from volgate.secret import Secret
from volgate_plugins.directory import DirectorySettings
from volgate_plugins.iscsi import ChapSettings, IscsiSettings, PublishedWithSnapshots, open_pool
from volgate_plugins.iscsi.tgtd import Tgtd

MIB = 1 << 20
SECONDS = 60.0
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"
ME, OTHER = Initiator("me", HOST), Initiator("other", "iqn.2026-01.org.volgate:other")
SECRETS = {"in": "correct-horse-12", "out": "battery-staple"}


@pytest.fixture(scope="module")
def place() -> Path:
    """A file system that shares blocks."""
    root = Path("/srv/xfs")
    root.mkdir(parents=True)
    sh(f"truncate -s 512M /srv/xfs.img; mkfs.xfs -q -m reflink=1 /srv/xfs.img; mount -o loop /srv/xfs.img {root}")
    return root


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """tgtd; what the pool listens at besides, it adds."""
    made = Daemon()
    yield made
    made.go_on()
    made.end()


@pytest.fixture(params=["lio", "tgt"])
def target(request: pytest.FixtureRequest) -> str:
    """Whose targets they are."""
    if request.param == "tgt":
        request.getfixturevalue("daemon")
    return str(request.param)


only_lio = pytest.mark.parametrize("target", ["lio"], indirect=True)
only_tgt = pytest.mark.parametrize("target", ["tgt"], indirect=True)


@pytest.fixture
def settings(place: Path, tmp_path: Path, target: str) -> IscsiSettings:
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret)
    chap = ChapSettings("gate", f"file:{tmp_path}/in", "disk", f"file:{tmp_path}/out")
    return IscsiSettings(
        iqn="iqn.2026-01.org.volgate",
        portals=(f"127.0.0.1:{TGT_PORT}", f"127.0.0.2:{TGT_PORT}") if target == "tgt" else ("127.0.0.1", "127.0.0.2:3260"),
        target=target,
        records=str(place / f"records.{target}"),
        directory=DirectorySettings(str(place / f"pool.{target}")),
        chap=chap,
    )


def opened(settings: IscsiSettings) -> PublishedWithSnapshots:
    found = open_pool(settings, PoolContext("san", INSTANCE))
    assert isinstance(found, PublishedWithSnapshots)
    return found


@pytest.fixture
def pool(settings: IscsiSettings) -> Iterator[PublishedWithSnapshots]:
    """A pool; what of it stays in the kernel after a test is the test's failure."""
    made = opened(settings)
    before = kernel()
    yield made
    for volume in list(made.list_volumes()):
        for host in made.published(named(volume)):
            made.unpublish(named(volume), host)
        for cut in made.list_snapshots(named(volume)):
            made.delete_snapshot(named(volume), cut.uid)
        made.delete_volume(named(volume))
    assert kernel() == before and list(Path(settings.records).glob("[!.]*")) == []


@pytest.fixture
def host() -> Iterator[Iscsi]:
    yield Iscsi()
    assert [session.portal.target for session in iscsi_sessions.Sessions().all()] == []


def kernel() -> list[str]:
    """The targets, backing stores and loop devices that there are, and the targets of tgtd."""
    told = Tgtd("/run/tgtd/socket.0").targets(1, deadline=time.monotonic() + SECONDS) if Path("/run/tgtd/socket.0").exists() else []
    found = [*told, *LIO.glob("iscsi/iqn*"), *LIO.glob("core/*_*/*/enable"), *Path("/sys/block").glob("loop*/loop")]
    return sorted(str(path) for path in found)


def made(pool: PublishedWithSnapshots, name: str = "a", size: int = 16 * MIB) -> Volume:
    return pool.create_volume(VolumeSpec(name, str(uuid.uuid4()), size, Format.RAW))


def named(volume: Volume) -> VolumeId:
    return VolumeId(volume.name, volume.uid)


def reached(pool: PublishedWithSnapshots, volume: Volume) -> IscsiLun:
    found = pool.connection(named(volume), host="me")
    assert isinstance(found, IscsiLun)
    return found


def log_in(host: Iscsi, lun: IscsiLun, **secrets: str) -> str:
    known = {**SECRETS, **secrets}
    assert lun.chap
    given = {lun.chap.secret: Secret(known["in"]), lun.chap.target_secret: Secret(known["out"])}
    return host.connect(lun, given, deadline=time.monotonic() + SECONDS).path


def log_out(host: Iscsi, lun: IscsiLun) -> None:
    host.disconnect(lun, deadline=time.monotonic() + SECONDS)


def grown_on(host: Iscsi, lun: IscsiLun, size: int) -> int:
    """Have a host learn a size, and tell the one that it has then."""
    host.grow(lun.source, size, deadline=time.monotonic() + SECONDS)
    descriptor = os.open(lun.source, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def write(path: str, data: bytes, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, data, offset)
    os.fsync(descriptor)
    os.close(descriptor)


def read(path: str, length: int, offset: int = 0) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def clear_kernel(pool: PublishedWithSnapshots, volume: Volume) -> None:
    """What a boot does to a target."""
    publishing = pool._publishing
    publishing.target.remove(publishing.unit(named(volume)))


def dies(act: Callable[[], object], allowed: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Call it, and end it after so many changes of the kernel's target; whether it came to that."""
    left = allowed

    def mortal(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path | Tgtd, *args: object, **more: object) -> object:
            nonlocal left
            left -= isinstance(path, Tgtd) or path.is_relative_to(LIO)
            if left < 0:
                raise SystemExit
            return real(path, *args, **more)

        return call

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rmdir", "write_text", "symlink_to", "unlink"):
            patched.setattr(Path, name, mortal(getattr(Path, name)))
        patched.setattr(Tgtd, "ask", mortal(Tgtd.ask))
        try:
            act()
        except SystemExit:
            return True
    return False
