"""The tiny guest: Debian's cloud kernel, busybox and qemu-ga, built once under build/labs/guest.

It truly answers PCI and SCSI hot-unplug, speaks the guest agent, and boots in seconds without KVM. ext4 is built into its
kernel and busybox makes ext2, so a test can format, mount and freeze what it attached.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "labs"
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console")
COMPRESSIONS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz"}  # how Debian packs its kernels
FOLDERS = "bin sbin dev proc sys tmp run mnt m var var/run lib lib/x86_64-linux-gnu lib64"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /tmp
for m in @MODULES@; do insmod /m/$m.ko; done
mkdir -p /dev/virtio-ports /run/qga
port=/dev/virtio-ports/org.qemu.guest_agent.0
i=0
while [ $i -lt 500 ] && [ ! -e $port ]; do
    for p in /sys/class/virtio-ports/*; do
        [ -s $p/name ] && n=$(cat $p/name) && [ -n "$n" ] && ln -sf ../${p##*/} /dev/virtio-ports/$n
    done
    i=$((i+1)); usleep 20000
done
qemu-ga -m virtio-serial -p $port -t /run/qga -F/bin/true </dev/null >/tmp/qga.log 2>&1 &
echo "GUEST-READY up=$(cut -d' ' -f1 /proc/uptime)"
while :; do setsid cttyhack sh </dev/console >/dev/console 2>&1; sleep 1; done
"""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU is started with, and a key that changes with its content."""

    kernel: Path
    initrd: Path
    key: str


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@functools.cache
def guest_image() -> GuestImage:
    """Return the guest, building it when these versions were not built yet (apt is asked again when its lists change)."""
    stamp = hashlib.sha256(f"{Path(__file__).read_text()} {os.stat('/var/lib/apt/lists').st_mtime_ns}".encode()).hexdigest()
    current = BUILD / "guest" / "current"
    if current.exists() and (words := current.read_text().split())[0] == stamp and (current.parent / words[1]).exists():
        return _image(words[1])
    kernel_package = _kernel_package()
    versions = [kernel_package, *(_candidate(name) for name in (kernel_package, "qemu-guest-agent", "busybox-static"))]
    key = hashlib.sha256("\n".join([*versions, Path(__file__).read_text()]).encode()).hexdigest()[:16]
    home = BUILD / "guest" / key
    with locked(BUILD / "guest.lock"):
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=BUILD, prefix="guest-") as work:
                _build(Path(work), kernel_package)
                home.parent.mkdir(parents=True, exist_ok=True)
                (Path(work) / "out").rename(home)
        current.with_suffix(".fresh").write_text(f"{stamp} {key}\n")
        current.with_suffix(".fresh").rename(current)
    return _image(key)


def _image(key: str) -> GuestImage:
    home = BUILD / "guest" / key
    return GuestImage(home / "vmlinux", home / "initrd.gz", key)


def _build(work: Path, kernel_package: str) -> None:
    out = work / "out"
    out.mkdir()
    trees = {name: _unpacked(work, name) for name in (kernel_package, "qemu-guest-agent")}
    vmlinuz = next((trees[kernel_package] / "boot").glob("vmlinuz-*"))
    (out / "vmlinux").write_bytes(vmlinux(vmlinuz.read_bytes()))
    root = _root(work, trees[kernel_package], trees["qemu-guest-agent"])
    (out / "initrd.gz").write_bytes(gzip.compress(newc(root), compresslevel=1, mtime=0))


def _kernel_package() -> str:
    found = _kernel_dependency()
    if not found:
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdin=subprocess.DEVNULL)
        found = _kernel_dependency()
    if not found:
        raise RuntimeError("apt knows no linux-image-6.1*-cloud-amd64: is Debian 12 among its sources?")
    return found


def _kernel_dependency() -> str | None:
    text = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"linux-image-6\.1\S*-cloud-amd64", text)
    return found[0] if found else None


def _candidate(package: str) -> str:
    text = subprocess.run(["apt-cache", "policy", package], check=True, capture_output=True, text=True).stdout
    found = re.search(r"Candidate: (\S+)", text)
    return found[1] if found else "none"


def _unpacked(work: Path, package: str) -> Path:
    folder, tree = work / "deb" / package, work / "tree" / package
    tree.mkdir(parents=True)
    folder.mkdir(parents=True)
    subprocess.run(["apt-get", "download", "-qq", package], check=True, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(tree)], check=True)
    return tree


def vmlinux(bzimage: bytes) -> bytes:
    """Take the uncompressed kernel out of a bzImage: QEMU starts it by PVH, without decompressing under TCG."""
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length - 4]  # the last four bytes are the size
    program = next((program for magic, program in COMPRESSIONS.items() if payload.startswith(magic)), None)
    if program is None:
        raise RuntimeError(f"the kernel's payload is compressed in an unknown way: {payload[:4].hex()}")
    return subprocess.run([program, "-dc"], input=payload, check=True, capture_output=True).stdout


def _root(work: Path, kernel: Path, agent: Path) -> Path:
    root = work / "root"
    for folder in FOLDERS.split():
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if not busybox:
        raise RuntimeError("busybox-static is missing")
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(agent / "usr/sbin/qemu-ga", root / "sbin/qemu-ga")
    for library in _libraries(agent / "usr/sbin/qemu-ga"):
        (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), root / library.lstrip("/"))
    loaded = modules(kernel, MODULES)
    for name, blob in loaded.items():
        (root / "m" / f"{name}.ko").write_bytes(blob)
    (root / "init").write_text(INIT.replace("@MODULES@", " ".join(loaded)))
    (root / "init").chmod(0o755)
    return root


def _libraries(program: Path) -> list[str]:
    text = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    if "not found" in text:
        raise RuntimeError(f"the guest agent misses a library of this machine:\n{text}")
    return re.findall(r"(/\S+) \(0x", text)


def modules(kernel: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return these modules of an unpacked kernel in the order to load them, each after what it needs."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.glob("lib/modules/*/**/*.ko*")}
    ordered: dict[str, bytes] = {}

    def need(name: str) -> None:
        if name in ordered or name not in files:
            return
        blob = files[name].read_bytes()
        blob = lzma.decompress(blob) if files[name].suffix == ".xz" else blob
        depends = re.search(rb"\0depends=([^\0]*)\0", blob)
        for other in depends[1].decode().split(",") if depends else []:
            need(other.replace("-", "_"))
        ordered[name] = blob

    for name in names:
        need(name)
    return ordered


def newc(root: Path) -> bytes:
    """Pack a tree as the kernel's cpio (newc); written here because Debian's minimal systems lack cpio."""
    parts: list[bytes] = []
    paths = sorted(root.rglob("*"))
    for number, path in enumerate(paths, 1):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        parts.append(_record(number, str(path.relative_to(root)), status.st_mode, data))
    parts.append(_record(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def _record(inode: int, name: str, mode: int, data: bytes) -> bytes:
    label = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


if __name__ == "__main__":
    print(guest_image())
