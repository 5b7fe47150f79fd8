"""The lab itself: real hot attach, real crashes, and nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.labs import domain
from tests.labs.accel import accelerator, boots
from tests.labs.domain import GOLDEN, Guest
from tests.labs.guest import BUILD, guest_image
from tests.labs.lab import BASE, running
from tests.labs.libvirtd import PrivateLibvirtd, Security

ROOT = Path(__file__).resolve().parents[2]
DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/><source file='{path}'/>
<target dev='{target}' bus='{bus}'/><serial>{serial}</serial><alias name='ua-{serial}'/></disk>"""


def raw(pool_dir: Path, name: str, size: int = 8 << 20) -> Path:
    path = pool_dir / name
    path.write_bytes(os.urandom(4096))
    os.truncate(path, size)
    path.chmod(0o600)
    return path


def attach(guest: Guest, path: Path, bus: str, serial: str) -> str:
    xml = DISK.format(path=path, target={"scsi": "sdq", "virtio": "vdq"}[bus], bus=bus, serial=serial)
    guest.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return xml


@pytest.mark.parametrize("bus", ["scsi", "virtio"])
@pytest.mark.parametrize("which", ["guest", "default_guest"])
def test_guest_sees_what_is_attached_and_gives_it_back(which: str, bus: str, pool_dir: Path, request: pytest.FixtureRequest) -> None:
    guest: Guest = request.getfixturevalue(which)
    path, serial = raw(pool_dir, "disk.raw"), f"lab-{bus}"
    xml = attach(guest, path, bus, serial)
    disk = guest.wait_disk(serial)
    assert disk and disk.size == 8 << 20 and not disk.read_only
    owner = path.stat().st_uid
    assert (owner == 0) == (which == "guest"), "libvirt's defaults give the file to libvirt-qemu, the bare lab leaves it"
    assert guest.run(f"head -c 4096 {disk.device} | sha256sum").split()[0] == digest(path)
    guest.run(f"mke2fs {disk.device} && mount {disk.device} /mnt && echo here >/mnt/it && umount /mnt")
    assert any(node["node-name"] for node in guest.qmp("query-named-block-nodes") if str(path) in node["file"])
    guest.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    assert guest.wait_disk(serial, present=False) is None
    assert guest.live_disks() == [] and b"here" in path.read_bytes()


def test_disk_that_comes_while_disks_are_listed_is_told_by_its_own_name_or_not_at_all(tmp_path: Path) -> None:
    """Its name was `sd*` once: what the guest then wrote to /dev/sd* went to a new file in its memory and was missed on the disk."""
    (tmp_path / "vda").mkdir()
    for name, text in (("size", "16384"), ("ro", "0"), ("serial", "first")):
        (tmp_path / "vda" / name).write_text(f"{text}\n")
    comes = 'cat() { [ -e sda ] || cp -r vda sda; command cat "$@"; }\n'
    script = comes + domain.LIST_DISKS.replace("/sys/block", str(tmp_path))
    rows = [subprocess.run(["busybox", "sh", "-c", script], check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert (tmp_path / "sda").exists()
    assert [row.splitlines() for row in rows] == [["vda 16384 0 first"], ["vda 16384 0 first", "sda 16384 0 first"]]


def digest(path: Path) -> str:
    return subprocess.run(f"head -c 4096 {path} | sha256sum", shell=True, check=True, capture_output=True, text=True).stdout.split()[0]


def test_guest_survives_death_and_restart_of_libvirtd(new_guest: Callable[[], Guest], libvirtd: PrivateLibvirtd, pool_dir: Path) -> None:
    guest: Guest = new_guest()
    attach(guest, raw(pool_dir, "disk.raw"), "scsi", "survivor")
    guest.wait_disk("survivor")
    guest.run("echo kept >/tmp/kept")
    before, daemon = guest.qemu_pid(), libvirtd.pid
    libvirtd.kill9()
    assert not Path(f"/proc/{daemon}").exists()
    with pytest.raises(libvirt.libvirtError):
        libvirtd.connect()
    libvirtd.start()
    assert guest.run("cat /tmp/kept") == "kept" and guest.qemu_pid() == before
    libvirtd.restart()
    assert guest.run("cat /tmp/kept") == "kept" and guest.qemu_pid() == before
    guest.detach_all()
    assert guest.disks() == []


def test_frozen_libvirtd_goes_on(new_guest: Callable[[], Guest], libvirtd: PrivateLibvirtd) -> None:
    guest: Guest = new_guest()
    libvirtd.freeze()
    time.sleep(0.2)
    libvirtd.thaw()
    assert guest.run("echo on") == "on"
    libvirtd.freeze()
    libvirtd.restart()
    assert guest.run("echo on") == "on"


def test_paused_guest_is_deaf_until_resumed(fresh_guest: Guest) -> None:
    fresh_guest.pause()
    with pytest.raises(libvirt.libvirtError):
        fresh_guest.agent("guest-ping", timeout=1)
    fresh_guest.resume()
    fresh_guest.wait_agent()


def test_power_cycle_by_boot_and_by_restore(fresh_guest: Guest) -> None:
    fresh_guest.run("touch /tmp/before")
    fresh_guest.destroy()
    assert not fresh_guest.domain.isActive() and fresh_guest.domain.isPersistent()
    fresh_guest.start(boot=True)
    assert fresh_guest.sh("test -e /tmp/before")[0] == 1
    fresh_guest.reset()
    assert fresh_guest.sh("test -e /tmp/before")[0] == 1


def test_failed_scripts_tell(guest: Guest) -> None:
    assert guest.sh("echo out; echo err >&2; exit 3") == (3, "out\nerr")
    with pytest.raises(RuntimeError, match="exit status 1"):
        guest.run("false")
    with pytest.raises(TimeoutError):
        guest.sh("sleep 3", timeout=0.2)
    with pytest.raises(TimeoutError):
        guest.wait_disk("nobody", timeout=0.2)


def test_restored_guests_are_distinct(new_guest: Callable[[], Guest]) -> None:
    first, second = new_guest(), new_guest()
    for guest in (first, second):
        tree = ET.fromstring(guest.domain.XMLDesc(0))
        assert (tree.findtext("name"), tree.findtext("uuid")) == (guest.name, guest.uuid)
        assert GOLDEN not in guest.domain.XMLDesc(0)
    first.run("touch /tmp/mine")
    assert second.sh("test -e /tmp/mine")[0] == 1


@pytest.mark.parametrize("security", ["off", "default"])
def test_stop_leaves_nothing(security: Security) -> None:
    with PrivateLibvirtd(security=security) as daemon:
        guest = Guest(daemon, "doomed")
        pids = [daemon.pid, guest.qemu_pid()]
        assert all(alive(pid) for pid in pids) and traces(daemon.base)
        guest.disconnect()
    assert traces(daemon.base) == [] and not any(alive(pid) for pid in pids)


def test_killed_owner_leaves_nothing() -> None:
    script = """
import time
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
daemon = PrivateLibvirtd()
daemon.start()
print(daemon.base, daemon.pid, Guest(daemon, "orphan").qemu_pid(), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        base, *pids = owner.stdout.readline().split()
        assert Path(base).exists() and len(pids) == 2
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: traces(Path(base)) == [] and not any(alive(int(pid)) for pid in pids))


def test_killed_keeper_is_swept_by_its_owner() -> None:
    daemon = PrivateLibvirtd()
    daemon.start()
    guest = Guest(daemon, "half")
    pids = [daemon.pid, guest.qemu_pid()]
    assert daemon._keeper
    daemon._keeper.kill()
    daemon.stop()
    eventually(lambda: traces(daemon.base) == [] and not any(alive(pid) for pid in pids))


def test_lab_for_people() -> None:
    def lab(action: str) -> str:
        argv = [sys.executable, "-m", "tests.labs.lab", action, "libvirt"]
        return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    mine = not running(BUILD / "libvirt")  # somebody may be at work in it
    printed = lab("start")
    try:
        uri = tomllib.loads((BUILD / "libvirt" / "volgate.toml").read_text())["hosts"]["local"]["uri"]
        assert uri in printed
        with closing(libvirt.open(uri)) as connection:
            assert connection.lookupByName("lab").isActive()
        assert lab("start") == printed
    finally:
        if mine:
            lab("stop")
            assert traces(BASE) == []


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def traces(base: Path) -> list[str]:
    """Return whatever speaks of a lab on this machine: its folder, mounts, processes. Others have names that begin with its name."""
    named = re.compile(re.escape(os.fsencode(base)) + rb"(?![\w-])")
    found = [str(base)] if base.exists() else []
    found += [os.fsdecode(line) for line in Path("/proc/self/mounts").read_bytes().splitlines() if named.search(line)]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if named.search(path.read_bytes()):
                found.append(str(path))
        except OSError:
            continue
    return found


def test_accelerator_is_chosen_by_a_boot_that_was_seen() -> None:
    assert accelerator() in {"kvm", "tcg"}
    assert boots(guest_image(), "tcg", 60)
    before = time.monotonic()
    assert not boots(guest_image(), "tcg", 0.2)
    assert time.monotonic() - before < 3


def test_unusable_saved_guest_means_boot(libvirtd: PrivateLibvirtd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.save"
    broken.write_bytes(b"x" * 4096)
    monkeypatch.setattr(domain, "_golden", lambda *_: broken)
    guest = Guest(libvirtd, "booted")
    assert guest.run("echo up") == "up" and not broken.exists()
    guest.remove()
