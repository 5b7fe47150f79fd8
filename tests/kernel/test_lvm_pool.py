"""What is particular to pools in a volume group; the judge of all backends is in tests/conformance/test_lvm.py."""

import os
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.groups import Group
from tests.kernel.san import sh
from volgate.backend import PoolContext, SnapshotSpec, VolumeId
from volgate.connect import block
from volgate.errors import NotFound, OutOfSpace, Precondition, Unsupported
from volgate.model import Format, Health, PathState, Provisioning, Volume, VolumeSpec
from volgate_plugins.lvm import Lvm, LvmSettings

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(6, turns=5), pytest.mark.timeout(600)]
MIB = 1 << 20
ROOT = Path(__file__).parents[2]
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"


@pytest.fixture(scope="module")
def group() -> Group:
    return Group()


def opened(group: Group, instance: str = INSTANCE, **more: object) -> Lvm:
    table = {**group.table(), **more, "devices": (group.device,)}
    return Lvm(LvmSettings(**table), PoolContext("local", instance))


@pytest.fixture
def pool(group: Group):
    made = opened(group)
    yield made
    for volume in list(made.list_volumes()):
        for cut in made.list_snapshots(named(volume)):
            made.delete_snapshot(named(volume), cut.uid)
        made.delete_volume(named(volume))
    assert group.logicals() == {}


def spec(name: str, size: int = 4 * MIB, **more: object) -> VolumeSpec:
    return VolumeSpec(name, str(uuid.uuid4()), size, Format.RAW, **more)


def named(volume: Volume) -> VolumeId:
    return VolumeId(volume.name, volume.uid)


def content(pool: Lvm, volume: Volume) -> bytes:
    with open(pool.connection(named(volume), host="here").path, "rb") as device:
        return device.read()


def write(pool: Lvm, volume: Volume, data: bytes) -> None:
    descriptor = os.open(pool.connection(named(volume), host="here").path, os.O_WRONLY)
    os.pwrite(descriptor, data, 0)
    os.fsync(descriptor)
    os.close(descriptor)


def test_a_thick_volume_has_nothing_of_others_and_no_snapshots(pool: Lvm, group: Group) -> None:
    sh(
        f"lvcreate -q -y -Wn -Zn -L 8m -n before {group.name}; dd if=/dev/urandom of=/dev/{group.name}/before bs=1M count=8 conv=fsync; lvremove -q -y {group.name}/before"
    )
    made = pool.create_volume(spec("thick", provisioning=Provisioning.THICK))
    assert content(pool, made) == bytes(4 * MIB) and made.allocated == made.size
    write(pool, made, b"kept")
    grown = pool.expand_volume(named(made), 8 * MIB, online=False)
    assert grown.size == 8 * MIB and content(pool, grown) == b"kept".ljust(8 * MIB, b"\0")
    with pytest.raises(Unsupported, match="thick"):
        pool.create_snapshot(named(made), SnapshotSpec("s", str(uuid.uuid4())))


def test_what_a_dead_creation_left_is_no_volume_and_is_finished_by_its_repeat(
    pool: Lvm, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec("half", provisioning=Provisioning.THICK)

    def dies(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("volgate_plugins.lvm.media.zero", dies)
        with pytest.raises(SystemExit):
            pool.create_volume(asked)
    assert len(group.logicals()) == 1 and list(pool.list_volumes()) == []
    with pytest.raises(NotFound):
        pool.get_volume("half")
    made = pool.create_volume(asked)
    assert (made.uid, made.size) == (asked.uid, 4 * MIB) and len(group.logicals()) == 1


def test_a_revert_keeps_its_snapshot_and_the_newer_one(pool: Lvm, group: Group) -> None:
    made = pool.create_volume(spec("back"))
    write(pool, made, b"first")
    old, new = (SnapshotSpec(name, str(uuid.uuid4())) for name in ("old", "new"))
    pool.create_snapshot(named(made), old)
    write(pool, made, b"later")
    pool.create_snapshot(named(made), new)
    told = pool.revert_volume(named(made), old.uid, token=str(uuid.uuid4()))
    assert content(pool, told).startswith(b"first") and told.object != made.object
    assert [cut.name for cut in pool.list_snapshots(named(made))] == ["old", "new"]
    assert pool.revert_volume(named(made), new.uid, token=str(uuid.uuid4())) and content(pool, told).startswith(b"later")
    assert len(group.logicals()) == 3


def test_a_pool_that_fills_up_alerts_and_then_refuses(pool: Lvm, group: Group) -> None:
    made = pool.create_volume(spec("big", 64 * MIB))
    descriptor = os.open(pool.connection(named(made), host="here").path, os.O_WRONLY)
    for at in range(64):
        os.pwrite(descriptor, b"\1" * MIB, at * MIB)
    os.fsync(descriptor)
    os.close(descriptor)
    assert pool.check().health is Health.OK and pool.capacity().free <= 192 * MIB
    low = opened(group, alert_percent=10.0, refuse_percent=20.0)
    told = low.check()
    assert told.health is Health.DEGRADED and "is full to 25" in told.message
    for take in (
        lambda: low.create_volume(spec("more")),
        lambda: low.create_snapshot(named(made), SnapshotSpec("s", str(uuid.uuid4()))),
        lambda: low.expand_volume(named(made), 65 * MIB, online=False),
    ):
        with pytest.raises(OutOfSpace) as refused:
            take()
        assert refused.value.reason == "LVM_POOL_FULL"
    assert [volume.name for volume in low.list_volumes()] == ["big"]


def test_what_others_made_in_the_group_is_not_touched(pool: Lvm, group: Group) -> None:
    sh(f"lvcreate -q -y -V 4m -T {group.name}/pool -n others --addtag theirs")
    try:
        assert list(pool.list_volumes()) == []
        made = pool.create_volume(spec("others"))
        pool.delete_volume(named(made))
        assert group.logicals() == {"others": "theirs"}
    finally:
        sh(f"lvremove -q -y {group.name}/others")


def test_only_the_named_devices_are_looked_at(group: Group) -> None:
    other = Group(64 * MIB, 16 * MIB)
    with pytest.raises(Precondition) as refused:
        Lvm(LvmSettings(group.name, "pool", (other.device,)), PoolContext("local", INSTANCE))
    assert refused.value.reason == "LVM_GROUP_MISSING" and other.device in refused.value.message
    with pytest.raises(Precondition) as refused:
        opened(other, thin_pool="nothing")
    assert refused.value.reason == "LVM_POOL_MISSING"


def test_a_device_is_proven_through_its_descriptor_before_it_is_handed_on(pool: Lvm) -> None:
    one, other = (pool.create_volume(spec(name)) for name in ("one", "other"))
    found, wrong = (pool.connection(named(volume), host="here") for volume in (one, other))
    assert block.connect(found).path == found.path
    (path,) = block.paths(found, "here")
    assert path.state is PathState.ACTIVE_OPTIMIZED and path.facts["below"].startswith("dm-")
    for lie in (
        replace(found, path=wrong.path),
        replace(found, path="/dev/null"),
        replace(found, path="/dev/vda"),
        replace(found, size=found.size + 1),
    ):
        with pytest.raises(Precondition) as refused:
            block.connect(lie)
        assert refused.value.reason == "IDENTITY_MISMATCH" and block.paths(lie, "here")[0].state is PathState.FAILED
    with pytest.raises(NotFound):
        block.connect(replace(found, path="/dev/nowhere"))


def test_a_host_that_started_anew_has_its_volumes_again(pool: Lvm, group: Group) -> None:
    made = pool.create_volume(spec("sleeps"))
    write(pool, made, b"kept")
    sh(f"lvchange -an {group.name}/{made.object}")
    assert content(pool, made).startswith(b"kept")


def test_a_user_with_the_capabilities_of_the_drop_in_serves_a_pool(group: Group) -> None:
    """Of the service's sandbox nothing else is there: systemd does not run here."""
    units = ROOT / "deploy/systemd"
    told = [line for name in ("volgate.service", "volgate-lvm.conf") for line in (units / name).read_text().splitlines()]
    named = " ".join(line.partition("=")[2] for line in told if line.startswith("AmbientCapabilities="))
    sets = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in named.split())
    deeds = """
import sys, uuid
from tests.kernel.test_lvm_pool import INSTANCE, MIB, SnapshotSpec, content, named, spec, write
from volgate.backend import PoolContext
from volgate_plugins.lvm import Lvm, LvmSettings
pool = Lvm(LvmSettings(sys.argv[1], "pool", (sys.argv[2],)), PoolContext("local", INSTANCE))
made = pool.create_volume(spec("unprivileged"))
write(pool, made, b"first")
cut = SnapshotSpec("s", str(uuid.uuid4()))
pool.create_snapshot(named(made), cut)
write(pool, made, b"later")
pool.expand_volume(named(made), 8 * MIB, online=False)
made = pool.revert_volume(named(made), cut.uid, token=str(uuid.uuid4()))
assert content(pool, made).startswith(b"first")
pool.delete_snapshot(named(made), cut.uid)
pool.delete_volume(named(made))
"""
    privileges = (
        f"--reuid=daemon --regid=daemon --clear-groups --inh-caps=-all,{sets} --ambient-caps=-all,{sets} --bounding-set=-all,{sets}"
    )
    sh(f"setpriv --no-new-privs {privileges} {sys.executable} -c '{deeds}' {group.name} {group.device}", timeout=240)
    assert group.logicals() == {}
