"""What later backends stand on is alive in the lab's guest: LIO, open-iscsi, dm-multipath, LVM thin pools, NVMe over TCP."""

import json
import os
from pathlib import Path

import pytest

from tests.kernel.san import HOST, PORTALS, Lun, eventually, sh, two_ways

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5)]
PATTERN = b"volgate!" * 512
NQN = "nqn.2026-01.org.volgate:disk"
LATER = "drbd fcoe gfs2 dlm libfc nbd nfs nfsd nvme_fcloop nvme_loop nvme_tcp nvmet_fc rbd scsi_debug sunrpc target_core_pscsi target_core_user tcm_fc tcm_loop xfs"


@pytest.fixture(scope="module")
def ways():
    two_ways()


def make(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def written(device: str, offset: int = 1 << 20) -> None:
    descriptor = os.open(device, os.O_WRONLY)
    try:
        os.pwrite(descriptor, PATTERN, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def found(path: str | Path, offset: int = 1 << 20) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, len(PATTERN), offset)
    finally:
        os.close(descriptor)


def test_the_kernel_is_debians_own_and_has_every_storage_module():
    assert os.uname().release.startswith("6.12.") and "deb12" in os.uname().release
    sh(f"modprobe -a -n {LATER}")  # whether they and what they need are there, without loading them


def test_a_lun_of_lio_is_reached_by_two_portals_and_is_one_map(ways, tmp_path):
    lun = Lun("disk", make(Path("/srv/disk.img"), 64 << 20), "a1000000000000000000000001")
    for portal in PORTALS:
        record = f"iscsiadm -m node -T {lun.target} -p {portal}"
        sh(f"{record} -o new; {record} -o update -n node.session.scan -v manual; {record} --login")
    hosts = [path.name for path in Path("/sys/class/iscsi_host").iterdir()]
    assert len(hosts) == 2 and HOST in sh("cat /sys/class/iscsi_session/session*/initiatorname")
    for host in hosts:
        Path(f"/sys/class/scsi_host/{host}/scan").write_text("0 0 1")
    eventually(lambda: any(len(one["path_groups"]) for one in maps()))
    one = maps()[0]
    eventually(lambda: maps()[0]["paths"] == 2)
    assert one["uuid"].startswith("36001405a1") and one["vend"] == "LIO-ORG"
    written(f"/dev/mapper/{one['uuid']}")
    assert found("/srv/disk.img") == PATTERN


def maps():
    return json.loads(sh("multipathd show maps json"))["maps"]


def test_a_thin_pool_makes_volumes_and_snapshots_that_keep_what_was_written():
    device = sh(f"losetup --find --show {make(Path('/srv/pv.img'), 256 << 20)}").strip()
    sh(f"pvcreate -q {device}; vgcreate -q thin {device}; lvcreate -q -y -L 128M -T thin/pool; lvcreate -q -y -V 64M -T thin/pool -n disk")
    written("/dev/thin/disk")
    sh("lvcreate -q -y -s thin/disk -n kept -kn; blkdiscard /dev/thin/disk")
    assert found("/dev/thin/disk") == bytes(len(PATTERN)) and found("/dev/thin/kept") == PATTERN
    reported = json.loads(sh("lvs --reportformat json -o lv_name,pool_lv,data_percent thin"))["report"][0]["lv"]
    assert {row["lv_name"]: row["pool_lv"] for row in reported} == {"pool": "", "disk": "pool", "kept": "pool"}


def test_a_namespace_of_nvmet_is_connected_to_by_tcp(ways):
    root = Path("/sys/kernel/config/nvmet")
    space, port = root / f"subsystems/{NQN}/namespaces/1", root / "ports/1"
    space.mkdir(parents=True)
    port.mkdir()
    (root / f"subsystems/{NQN}/attr_allow_any_host").write_text("1")
    for name, value in (("device_path", str(make(Path("/srv/space.img"), 64 << 20))), ("buffered_io", "1"), ("enable", "1")):
        (space / name).write_text(value)
    for name, value in (("addr_trtype", "tcp"), ("addr_adrfam", "ipv4"), ("addr_traddr", PORTALS[0]), ("addr_trsvcid", "4420")):
        (port / name).write_text(value)
    sh(f"ln -s {root}/subsystems/{NQN} {port}/subsystems/{NQN}", within="storage")
    sh(f"nvme connect -t tcp -a {PORTALS[0]} -s 4420 -n {NQN}")
    eventually(lambda: Path("/dev/nvme0n1").exists())
    written("/dev/nvme0n1")
    assert found("/srv/space.img") == PATTERN
    assert Path("/sys/class/nvme/nvme0/state").read_text().strip() == "live"
