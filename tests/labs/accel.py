"""Which accelerator guests run under: KVM only where a guest was seen to boot with it."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Literal

from tests.labs.guest import BUILD, GuestImage, guest_image, locked

Accelerator = Literal["kvm", "tcg"]
PROBE_SECONDS = 6.0


def boots(image: GuestImage, accelerator: Accelerator, seconds: float = PROBE_SECONDS) -> bool:
    """Tell whether the guest's userland starts in time: /dev/kvm may exist, open, and then fail or crawl."""
    argv = ["qemu-system-x86_64", "-machine", f"q35,accel={accelerator}", "-cpu", "qemu64", "-m", "128", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    argv += ["-append", "console=ttyS0 quiet panic=-1 nokaslr rdinit=/bin/busybox -- echo GUEST-LIVES"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as probe:
        try:
            output = probe.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            probe.kill()
            output = probe.communicate()[0]
    return b"GUEST-LIVES" in output


@functools.cache
def accelerator(image: GuestImage | None = None) -> Accelerator:
    """Return what to use here for this image (the tiny guest's), remembered until the next boot of this machine."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    image = image or guest_image()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = BUILD / "accel" / f"{image.key}.{boot}"
    with locked(BUILD / "accel.lock"):
        if not answer.exists():
            answer.parent.mkdir(parents=True, exist_ok=True)
            answer.write_text("kvm" if boots(image, "kvm") else "tcg")
    return "kvm" if answer.read_text() == "kvm" else "tcg"


if __name__ == "__main__":
    print(accelerator())
