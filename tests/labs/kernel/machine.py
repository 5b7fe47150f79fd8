"""One guest of the kernel lab: restored from a saved boot in seconds, commanded, cut off, cut from power, and gone without a trace."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.labs.accel import accelerator
from tests.labs.guest import GuestImage
from tests.labs.kernel.control import Agent, Failed, Monitor
from tests.labs.kernel.disk import VolatileDisk
from tests.labs.kernel.image import KernelImage, kernel_image
from tests.labs.kernel.network import Cable

__all__ = ["ROOT", "TESTS_PORT", "Machine"]

ROOT = Path(__file__).resolve().parents[3]
TESTS_PORT = "volgate.tests"
MEMORY_MIB = 1024
START_SECONDS = 120.0
STOP_SECONDS = 30.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENV = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
APPEND = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on audit=0 apparmor=0 net.ifnames=0 nowatchdog nvme_core.multipath=Y"
# What the product's own wheels need (x86-64-v2), and nothing that a restore on another machine could miss.
TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+svm,+npt"
ARRIVAL = """date -s @{now} >/dev/null; hostname {name}; ip link set eth0 address 52:54:00:aa:00:{number:02x}
mkdir -p {root} && mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro checkout {root}
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,rw share /share"""


class Machine:
    """A guest. `run()` is its shell; the checkout is at the same path as here, /share is `share` here."""

    def __init__(self, name: str = "lab", *, number: int = 1, cable: Cable | None = None, base: Path | None = None) -> None:
        """Prepare; nothing runs before `start()`. `number` makes its MAC address its own; `cable` leads to a private network.

        `base` is an empty folder with a short path: a unix socket's ends at 108 bytes.
        """
        self.name, self.number, self.cable = name, number, cable
        self.base = base or Path(tempfile.mkdtemp(prefix="vgk-", dir="/tmp"))
        self.share = self.base / "share"
        self.share.mkdir()
        self.image = kernel_image()
        self.process: subprocess.Popen[bytes] | None = None
        self.monitor: Monitor | None = None
        self._agent: Agent | None = None
        self._disks: dict[str, VolatileDisk] = {}

    # -- life

    def start(self) -> Self:
        """Restore the guest and make it this one."""
        from tests.labs.kernel.golden import golden

        saved = golden(self.image)
        for left in ("qmp", "agent", "tests", "shell"):
            (self.base / left).unlink(missing_ok=True)  # of the QEMU before a power cut
        self._overlay(saved / "disk.qcow2", "qcow2")
        self.launch("-incoming", f"exec:cat {saved / 'memory'}")
        deadline = time.monotonic() + START_SECONDS
        while (status := self.qmp("query-status")["status"]) not in ("paused", "running", "postmigrate"):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} is still {status}: {self.said()}")
            time.sleep(0.02)
        self.qmp("cont")
        self.run(ARRIVAL.format(now=f"{time.time():.3f}", name=self.name, number=self.number, root=ROOT), START_SECONDS)
        if self.cable:
            self.run(f"ip addr add {self.cable.address}/24 dev eth0 && ip link set eth0 up")
        for name in self._disks:
            self._plug(name)
        return self

    def boot(self) -> Self:
        """Boot the guest from its disk, with nothing mounted."""
        self._overlay(self.image.root, "raw")
        self.launch()
        self._agent = Agent(self.base / "agent", START_SECONDS)
        return self

    def launch(self, *more: str) -> None:
        """Start QEMU. It ends with the thread that called this."""
        inside = self.cable.inside() if self.cable else []
        argv = ["setpriv", "--pdeathsig=KILL", *inside, *_argv(self.image, self.base, self._netdev()), *more]
        with (self.base / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.base, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while self.monitor is None:
            with contextlib.suppress(OSError):
                self.monitor = Monitor(self.base / "qmp")
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"QEMU of {self.name} did not start: {self.said()}")
            time.sleep(0.02)

    def hang_up(self) -> None:
        """Leave the agent to another process: it serves one at a time. The next command calls it again."""
        if self._agent is not None:
            self._agent.close()
        self._agent = None

    def kill(self) -> None:
        """Pull the plug: what the guest had in memory is lost."""
        self.hang_up()
        if self.monitor is not None:
            self.monitor.close()
        self.monitor = None
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
            self.process = None

    def power_cut(self, chance: random.Random) -> int:
        """Pull the plug and start again: memory, root disk and /tmp are as at the first start, and of the disks that were added
        what the guest had flushed is there. Return how many bytes were lost for want of a flush.
        """
        self.kill()
        lost = sum(disk.lose(chance) for disk in self._disks.values())
        self.start()
        return lost

    def stop(self) -> None:
        """End it and leave nothing."""
        self.kill()
        for disk in self._disks.values():
            disk.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # whatever it was, nothing stays running
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- inside

    @property
    def agent(self) -> Agent:
        """The guest's agent, connected."""
        if self._agent is None:
            self._agent = Agent(self.base / "agent", START_SECONDS)
        return self._agent

    def sh(self, script: str, timeout: float = 60.0) -> tuple[int, str]:
        """Run a shell script in the guest; return its exit status and its output (standard output, then errors). Raises Failed."""
        pid = self.agent.start(["/bin/bash", "-c", script], ENV)
        try:
            return self.finished(pid, timeout)
        except TimeoutError as error:
            raise Failed(f"after {timeout} s {self.name} still runs: {script}\n{self.console()[-2000:]}") from error

    def finished(self, pid: int, timeout: float) -> tuple[int, str]:
        """Wait for a process that the agent started; return its exit status and what it printed. Raises Failed, TimeoutError."""
        deadline = time.monotonic() + timeout
        while (done := self.agent.status(pid)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} of {self.name} does not end")
            time.sleep(0.02)
        return done

    def run(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script that must succeed; return its output. Raises Failed."""
        status, output = self.sh(script, timeout)
        if status:
            raise Failed(f"exit status {status} in {self.name}: {script}\n{output}")
        return output

    def console(self) -> str:
        """What its kernel printed."""
        path = self.base / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- outside

    def add_disk(self, name: str, size: int) -> str:
        """Give the guest a disk that outlives its power; return its path there. `size` in bytes."""
        self._disks[name] = VolatileDisk(self.base / f"{name}.raw", size)
        return self._plug(name)

    def _plug(self, name: str) -> str:
        server = {"type": "unix", "path": str(self._disks[name].socket)}
        self.qmp("blockdev-add", **{"driver": "nbd", "node-name": name, "server": server})
        self.qmp("device_add", **{"driver": "virtio-blk-pci", "drive": name, "id": f"disk-{name}", "serial": name, "write-cache": "on"})
        path = f"/dev/disk/by-id/virtio-{name}"
        self.run(f"for i in $(seq 300); do [ -b {path} ] && exit; udevadm settle; sleep 0.1; done; exit 1")
        return path

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor. Raises Failed."""
        if self.monitor is None:
            raise Failed(f"{self.name} is not running")
        return self.monitor.command(command, **arguments)

    def said(self) -> str:
        """What QEMU and the console said last."""
        log = self.base / "qemu.log"
        return (log.read_text(errors="replace")[-2000:] if log.exists() else "") + self.console()[-2000:]

    def _overlay(self, backing: Path, form: str) -> None:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", form, str(self.base / "disk.qcow2")]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    def _netdev(self) -> str:
        return f"tap,id=n0,ifname={self.cable.device},script=no,downscript=no,vnet_hdr=off" if self.cable else "hubport,id=n0,hubid=0"


def _argv(image: KernelImage, base: Path, netdev: str) -> list[str]:
    kind = accelerator(GuestImage(image.kernel, image.initrd, image.key))
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc,usb=off,vmport=off"]
    argv += ["-accel", "kvm", "-cpu", "host"] if kind == "kvm" else ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", TCG_CPU]
    argv += ["-smp", "2", "-m", str(MEMORY_MIB), "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", APPEND]
    argv += ["-serial", f"file:{base}/console.log", "-qmp", f"unix:{base}/qmp,server=on,wait=off"]
    argv += ["-drive", f"file={base}/disk.qcow2,format=qcow2,if=virtio,cache=unsafe,discard=unmap"]
    argv += ["-netdev", netdev, "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    argv += ["-chardev", f"socket,id=shell,path={base}/shell,server=on,wait=off", "-device", "virtconsole,chardev=shell"]
    for name, port in (("agent", "org.qemu.guest_agent.0"), ("tests", TESTS_PORT)):
        argv += [
            "-chardev",
            f"socket,id={name},path={base}/{name},server=on,wait=off",
            "-device",
            f"virtserialport,chardev={name},name={port}",
        ]
    for name, path, mode in (("checkout", ROOT, "on"), ("share", base / "share", "off")):
        argv += ["-fsdev", f"local,id={name},path={path},security_model=none,readonly={mode},multidevs=remap"]
        argv += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    return argv
