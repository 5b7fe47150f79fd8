"""What the guest boots: a kernel, an initial file system, and a root disk, made of Debian's packages under build/labs/kernel-image.

The packages come from where this machine's own apt has them and are only unpacked: none of them is installed here, and no script
of theirs runs, here or there. What their scripts would have done, as far as the lab needs it, stands in `_settle`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.labs.guest import BUILD, locked, modules, newc, vmlinux

__all__ = ["HOME", "KernelImage", "kernel_image"]

HERE = Path(__file__).parent
HOME = BUILD / "kernel-image"
ROOT_SIZE = "3G"  # sparse: what is free in it is the room of tests
LOADED = (
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "9p",
    "9pnet_virtio",
    "configfs",
    "loop",
    "dm_mod",
    "dm_thin_pool",
    "dm_snapshot",
    "dm_multipath",
    "dm_service_time",
    "dm_round_robin",
    "dm_queue_length",
    "dm_flakey",
    "dm_delay",
    "scsi_dh_alua",
    "sd_mod",
    "sg",
    "target_core_mod",
    "target_core_file",
    "target_core_iblock",
    "target_core_pscsi",
    "iscsi_target_mod",
    "tcm_loop",
    "iscsi_tcp",
    "nvme",
    "nvme_fabrics",
    "nvme_tcp",
    "nvmet",
    "nvmet_tcp",
    "veth",
    "dummy",
    "xfs",
)
BOOT = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
# Folders of modules: storage, and what storage travels over. What drives hardware that QEMU does not have is left out.
KEPT = (
    "arch/x86/crypto",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char/hw_random",
    "drivers/md",
    "drivers/net/virtio_net*",
    "drivers/net/veth*",
    "drivers/net/dummy*",
    "drivers/net/net_failover*",
    "drivers/nvme",
    "drivers/char/virtio_console*",
    "drivers/char/ipmi",
    "drivers/target",
    "drivers/virtio",
    "fs",
    "lib",
    "net/9p",
    "net/8021q",
    "net/802",
    "net/bridge",
    "net/ceph",
    "net/core",
    "net/dns_resolver",
    "net/llc",
    "net/ipv6",
    "net/sunrpc",
    "net/tls",
    "drivers/scsi/*.ko*",
    "drivers/scsi/device_handler",
    "drivers/scsi/fcoe",
    "drivers/scsi/libfc",
    "drivers/infiniband/core",
    "drivers/cdrom",
    "virt",
)
LEFT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/share/lintian",
)
MULTIPATH = """defaults {
    user_friendly_names no
    find_multipaths no
    polling_interval 2
}
overrides {
    no_path_retry 6
    fast_io_fail_tmo 5
    dev_loss_tmo 30
}
blacklist {
    devnode "^(vd|loop|ram|sr|nbd|rbd|zram)"
}
"""
# Neither systemd nor virtlogd nor cgroups of version 1 are there, and all is root's.
QEMU_CONF = """stdio_handler = "file"
cgroup_controllers = [ ]
security_driver = "none"
security_default_confined = 0
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ ]
seccomp_sandbox = 0
"""
LIBVIRTD_CONF = """auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
DOMAIN = """<domain type='qemu'>
 <name>guest</name><uuid>901de000-0000-4000-8000-000000000001</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='pc'>hvm</type></os>
 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <controller type='scsi' model='virtio-scsi'/><controller type='usb' model='none'/><memballoon model='none'/>
 </devices>
</domain>
"""
INITRD = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for m in @MODULES@; do $B insmod /m/$m.ko; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 500 ]; do $B usleep 20000; i=$((i+1)); done
$B mount -t ext4 -o noatime /dev/vda /r
$B mount --move /dev /r/dev
exec $B switch_root /r /sbin/lab-init
"""


@dataclass(frozen=True)
class KernelImage:
    """What QEMU is started with, and a key that changes with its content."""

    kernel: Path
    initrd: Path
    root: Path
    key: str


@functools.cache
def kernel_image() -> KernelImage:
    """Return the image, building it when it was not built of these versions (apt is asked again when its lists change)."""
    sources = b"".join(path.read_bytes() for path in (HERE / "init", HERE / "image.py", HERE / "packages.txt", HERE.parent / "guest.py"))
    stamp = hashlib.sha256(sources + str(os.stat("/var/lib/apt/lists").st_mtime_ns).encode()).hexdigest()
    current = HOME / "current"
    with locked(BUILD / "kernel-image.lock"):
        if current.exists() and (words := current.read_text().split())[0] == stamp and (HOME / words[1]).exists():
            return _image(words[1])
        archives = _archives()
        key = hashlib.sha256(sources + "\n".join(archives).encode()).hexdigest()[:16]
        if not (HOME / key).exists():
            HOME.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=BUILD, prefix="kernel-image-") as work:
                _build(Path(work), archives)
                (Path(work) / "out").rename(HOME / key)
        current.with_suffix(".fresh").write_text(f"{stamp} {key}\n")
        current.with_suffix(".fresh").rename(current)
    return _image(key)


def _image(key: str) -> KernelImage:
    home = HOME / key
    return KernelImage(home / "vmlinux", home / "initrd.gz", home / "root.img", key)


def _apt(word: str, archives: Path) -> str:
    """Ask apt as a machine would that has nothing installed: what is needed is everything."""
    status = HOME / "no-packages"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    status.touch()
    argv = [
        "apt-get",
        "-qq",
        "-y",
        "--no-install-recommends",
        "-o",
        f"Dir::State::Status={status}",
        "-o",
        f"Dir::Cache::Archives={archives}/",
    ]
    wanted = [line for line in (HERE / "packages.txt").read_text().split("\n") if line and not line.startswith("#")]
    whole = [*argv, "-o", "APT::Sandbox::User=root", word, "install", *wanted]
    return subprocess.run(whole, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def _archives() -> list[str]:
    """The packages' files, each named by its version."""
    empty = HOME / "no-archives"  # apt leaves out what it has
    try:
        told = _apt("--print-uris", empty)
    except subprocess.CalledProcessError:
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdin=subprocess.DEVNULL)
        told = _apt("--print-uris", empty)
    return sorted(re.findall(r"^'\S+' (\S+\.deb) ", told, re.MULTILINE))


def _build(work: Path, names: list[str]) -> None:
    out, root, kernel = work / "out", work / "root", work / "kernel"
    for folder in (out, root, kernel):
        folder.mkdir()
    archives = HOME / "archives"
    _apt("--download-only", archives)
    files = [archives / name for name in names]
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: _unpack(path, kernel if path.name.startswith("linux-image-6") else root), files))
        version = next((kernel / "lib/modules").iterdir())
        list(pool.map(lambda folder: _take_modules(version, root, folder), KEPT))
        started = pool.submit(_start_files, kernel, out)
        _settle(root, version.name)
        started.result()
    argv = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-m",
        "0",
        "-d",
        str(root),
        str(out / "root.img"),
        ROOT_SIZE,
    ]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def _unpack(package: Path, to: Path) -> None:
    """As dpkg would; the links of the merged /usr stay."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reading:
        argv = ["tar", "-x", "--keep-directory-symlink", "-C", str(to), *(f"--exclude=./{name}/*" for name in LEFT)]
        subprocess.run(argv, check=True, stdin=reading.stdout)
    if reading.returncode:
        raise RuntimeError(f"{package} cannot be unpacked")


def _take_modules(version: Path, root: Path, pattern: str) -> None:
    """Copy a folder's modules, without their compression: the guest is slow."""
    base = version / "kernel"
    for found in base.glob(pattern):
        for path in [found] if found.is_file() else found.rglob("*.ko*"):
            target = (
                root
                / "lib/modules"
                / version.name
                / "kernel"
                / path.relative_to(base).with_suffix("" if path.suffix == ".xz" else path.suffix)
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".xz":
                with target.open("wb") as writing:
                    subprocess.run(["xz", "-dc", str(path)], check=True, stdout=writing)
            else:
                shutil.copy(path, target)


def _start_files(kernel: Path, out: Path) -> None:
    (out / "vmlinux").write_bytes(vmlinux(next((kernel / "boot").glob("vmlinuz-*")).read_bytes()))
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        root = Path(folder)
        for name in ("bin", "m", "r", "dev"):
            (root / name).mkdir()
        shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
        loaded = modules(kernel, BOOT)
        for name, blob in loaded.items():
            (root / "m" / f"{name}.ko").write_bytes(blob)
        (root / "init").write_text(INITRD.replace("@MODULES@", " ".join(loaded)))
        (root / "init").chmod(0o755)
        (out / "initrd.gz").write_bytes(gzip.compress(newc(root), compresslevel=1, mtime=0))


def _settle(root: Path, version: str) -> None:
    """What the packages' scripts would have done, and the guest's own files."""
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(root.parent / "kernel/lib/modules" / version / name, root / "lib/modules" / version)
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    for name, line in (("passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"), ("group", "libvirt-qemu:x:64055:")):
        with (root / "etc" / name).open("a") as file:
            file.write(f"{line}\n")  # libvirtd looks for them, whoever runs QEMU
    (root / "sbin/lab-init").write_text((HERE / "init").read_text().replace("@MODULES@", " ".join(LOADED)))
    (root / "sbin/lab-init").chmod(0o755)
    texts = {
        "etc/hostname": "kernel-lab\n",
        "etc/hosts": "127.0.0.1 localhost kernel-lab\n",
        "etc/machine-id": "0" * 31 + "1\n",
        "etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.2026-01.org.volgate:host\n",
        "etc/nvme/hostnqn": "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001\n",
        "etc/nvme/hostid": "00000000-0000-4000-8000-000000000001\n",
        "etc/multipath.conf": MULTIPATH,
        "etc/libvirt/libvirtd.conf": LIBVIRTD_CONF,
        "etc/libvirt/qemu.conf": QEMU_CONF,
        "root/guest.xml": DOMAIN,
        "etc/lvm/lvmlocal.conf": "global { event_activation = 0\n use_lvmpolld = 0 }\nactivation { monitoring = 0 }\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc/target", "var/lib/iscsi", "var/log/libvirt/qemu", "share"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/mtab").symlink_to("/proc/mounts")
    shutil.rmtree(root / "var/run", ignore_errors=True)
    (root / "var/run").symlink_to("/run")
    settings = root / "etc/iscsi/iscsid.conf"
    settings.write_text(re.sub(r"(?m)^iscsid.startup = .*", "iscsid.startup = /sbin/iscsid", settings.read_text()))
    for argv in (["ldconfig"], ["depmod", version]):
        subprocess.run(["chroot", str(root), *argv], check=True, stdin=subprocess.DEVNULL)
    library = root / "usr/lib"
    compiled = [str(library / "python3.11"), str(library / "python3/dist-packages")]
    argv = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-j",
        "2",
        "-x",
        "/(test|lib2to3|idlelib|tkinter)/",
        "-s",
        str(root),
        "-p",
        "/",
        *compiled,
    ]
    subprocess.run(argv, check=False, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    print(kernel_image())
