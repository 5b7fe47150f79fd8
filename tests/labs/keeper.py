"""The keeper of one private libvirtd: holds its mount namespace, starts it, and leaves nothing when its owner ends.

Run as `unshare -m python keeper.py BASE`. It reads commands from its standard input (`start`, `kill SIGNAL`) and answers each
with one line. At the end of input, at SIGTERM, or when the process that started it dies in whatever way, it kills libvirtd and
every QEMU (they are its children: it is their subreaper), and removes BASE. Standard library only, one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import select
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

PLACES = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
KVM = Path("/dev/kvm")
TERM_SECONDS = 15.0
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)


def children() -> list[int]:
    """Return the pids whose parent is this process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                text = Path(f"/proc/{entry}/stat").read_text()
                if int(text.rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found


def recorded(base: Path) -> list[int]:
    """Return the living QEMUs that libvirt recorded below BASE (what is left when a keeper itself was killed)."""
    found = []
    for path in base.glob("run/qemu/*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def sweep(base: Path) -> None:
    """Kill the recorded QEMUs of BASE and remove it; for an owner whose keeper is gone."""
    for pid in recorded(base):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(base, ignore_errors=True)


class Keeper:
    """One libvirtd and its QEMUs."""

    def __init__(self, base: Path) -> None:
        """Remember where, start nothing."""
        self.base = base
        self.daemon = 0

    def mount(self) -> None:
        """Put BASE's folders where libvirt's are, in this mount namespace only."""
        _mount(None, "/", MS_REC | MS_PRIVATE)
        for name, place in PLACES.items():
            Path(place).mkdir(parents=True, exist_ok=True)
            _mount(str(self.base / name), place, MS_BIND)
        if KVM.exists() and KVM.stat().st_gid == 0:
            self._debian_kvm()

    def _debian_kvm(self) -> None:
        """Show /dev/kvm as udev makes it (root:kvm 0660).

        Without udev it is root's alone, and then libvirt's defaults discard what they know about QEMU at every call and probe
        it again for seconds: the probe may open the device, libvirt-qemu may not.
        """
        devices = self.base / "dev"
        devices.mkdir(exist_ok=True)
        _mount("tmpfs", str(devices), 0, "tmpfs")
        os.mknod(devices / "kvm", 0o660 | stat.S_IFCHR, KVM.stat().st_rdev)
        os.chown(devices / "kvm", 0, grp.getgrnam("kvm").gr_gid)
        os.chmod(devices / "kvm", 0o660)
        _mount(str(devices / "kvm"), str(KVM), MS_BIND)

    def start(self) -> str:
        """Start libvirtd unless it runs."""
        if not self.daemon:
            self.daemon = os.fork() or self._become_libvirtd()
        return str(self.daemon)

    def _become_libvirtd(self) -> int:
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            output = os.open(self.base / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            program = "/usr/sbin/libvirtd"
            os.execv(program, [program, "-f", f"{self.base}/libvirtd.conf", "-p", f"{self.base}/libvirtd.pid"])
        finally:
            os._exit(127)

    def kill(self, number: str) -> str:
        """End libvirtd by KILL or TERM, and answer when it is gone; one that ignores TERM is killed."""
        if self.daemon:
            os.kill(self.daemon, int(number))
            os.kill(self.daemon, signal.SIGCONT)
        deadline = time.monotonic() + TERM_SECONDS
        while self.daemon:
            if time.monotonic() > deadline:
                os.kill(self.daemon, signal.SIGKILL)
            self.reap()
            time.sleep(0.002)
        return "done"

    def reap(self) -> None:
        """Collect children that ended, so that libvirt sees its QEMUs go at once."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.daemon:
                    self.daemon = 0
                    with (self.base / "stdout").open("a") as output:
                        output.write(f"libvirtd {ended[0]} ended with wait status {ended[1]}\n")

    def clean(self) -> None:
        """Kill everything below and remove BASE."""
        deadline = time.monotonic() + 10
        while (left := children()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            self.reap()
        libc.umount2(str(self.base / "dev").encode(), MNT_DETACH)
        sweep(self.base)

    def serve(self, owner: int) -> None:
        """Answer commands until the input, the owner or SIGTERM ends it."""
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        ended = []
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        while not ended:
            ready = select.select([0, wake, owner], [], [])[0]
            if wake in ready:
                os.read(wake, 512)
                self.reap()
            if owner in ready:
                return
            if 0 in ready:
                line = os.read(0, 4096).decode().split()
                if not line:
                    return
                answer = self.start() if line[0] == "start" else self.kill(line[1])
                os.write(1, f"{answer}\n".encode())


def _mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    if libc.mount(source.encode() if source else None, target.encode(), kind.encode() if kind else None, flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def main() -> None:
    """Keep one libvirtd below the folder named by the first argument, for the process named by the second."""
    base = Path(sys.argv[1])
    owner = os.pidfd_open(int(sys.argv[2]))
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = Keeper(base)
    try:
        keeper.mount()
        os.write(1, b"ready\n")
        keeper.serve(owner)
    finally:
        keeper.clean()


if __name__ == "__main__":
    main()
