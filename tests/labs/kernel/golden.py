"""The saved boot: the guest is booted once, everything in it started, and its memory and disk are kept beside its image."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.labs.guest import BUILD, locked
from tests.labs.kernel.control import Failed
from tests.labs.kernel.image import HOME, KernelImage
from tests.labs.kernel.machine import START_SECONDS, Machine

__all__ = ["golden"]

SETTLE = """udevadm settle --timeout=60; python3 -c 'import json, socket, subprocess, threading'; lvs; multipathd show daemon
until virsh -q list; do sleep 1; done
virsh -q define /root/guest.xml && virsh -q start guest --paused && sync"""


def golden(image: KernelImage) -> Path:
    """Return the folder of what was saved of this image, booting it if that was not done yet."""
    made = HOME / image.key / "saved"
    if made.exists():
        return made
    with locked(BUILD / "kernel-saved.lock"):
        if not made.exists():
            _save(Machine("golden"), made)
    return made


def _save(machine: Machine, to: Path) -> None:
    fresh = to.with_suffix(".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        machine.boot()
        machine.run(SETTLE, START_SECONDS)
        machine.qmp("stop")
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 8 << 30})
        machine.qmp("migrate", uri=f"exec:cat >{fresh}/memory")
        deadline = time.monotonic() + START_SECONDS
        while (state := machine.qmp("query-migrate"))["status"] != "completed":
            if state["status"] == "failed" or time.monotonic() > deadline:
                raise Failed(f"the guest's memory cannot be saved: {state}")
            time.sleep(0.05)
        machine.qmp("quit")
        assert machine.process
        machine.process.wait(START_SECONDS)
        shutil.copy(machine.base / "disk.qcow2", fresh)
    finally:
        machine.stop()
    fresh.rename(to)
