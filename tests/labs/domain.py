"""A guest: a persistent libvirt domain whose inside answers through the guest agent.

It is booted once and saved; afterwards each start of a lab restores the saved state in about a second.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from tests.labs import saved
from tests.labs.accel import accelerator
from tests.labs.guest import BUILD, GuestImage, guest_image, locked
from tests.labs.libvirtd import PrivateLibvirtd

GOLDEN = "golden-guest-of-volgate-whose-name-is-as-long-as-any-name-may-be"
GOLDEN_UUID = "901de000-0000-4000-8000-000000000000"
INSIDE = "/var/lib/libvirt/lab"  # in libvirtd's own namespace: the same path in every lab, so that one saved state fits all
BOOT_SECONDS = 90.0
RESTORE_SECONDS = 20.0
SERIAL_CUT = 20  # virtio-blk tells only the first 20 characters
ROOT_PORTS = 16
ASK_AGAIN = 6.0  # QEMU refuses to repeat an unplug request for 5 seconds, and asking a device that just goes crashed libvirtd once
XML = """<domain type='{type}'>
 <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu><iothreads>2</iothreads>
 <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{inside}/vmlinux</kernel><initrd>{inside}/initrd.gz</initrd>
  <cmdline>console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable</cmdline></os>
 <features><acpi/></features>
 <cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
 <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <controller type='pci' index='0' model='pcie-root'/>{ports}
  <controller type='scsi' index='0' model='virtio-scsi'><driver queues='1' iothread='1'/></controller>
  <controller type='usb' model='none'/><memballoon model='none'/>
  <serial type='file'><source path='{inside}/{name}.serial'/><target port='0'/></serial>
  <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
 </devices>
</domain>"""
# Quoted, because a disk may come after the patterns were expanded: `sd*` would be read from sda and told as the disk's name.
LIST_DISKS = """cd /sys/block; for b in vd* sd*; do size=$(cat "$b/size" 2>/dev/null) && ro=$(cat "$b/ro" 2>/dev/null) || continue
s=$(cat "$b/serial" 2>/dev/null || tail -c +5 "$b/device/vpd_pg80" 2>/dev/null); echo "$b $size $ro $s"; done; true"""


@dataclass(frozen=True)
class GuestDisk:
    """A disk as the guest sees it."""

    name: str
    size: int
    read_only: bool
    serial: str

    @property
    def device(self) -> str:
        """Return its path inside the guest."""
        return f"/dev/{self.name}"


class Guest:
    """One domain of a private libvirtd; every method works again after libvirtd was killed and started."""

    def __init__(self, libvirtd: PrivateLibvirtd, name: str = "guest") -> None:
        """Define the domain and start it (from the saved state, else by booting)."""
        self.libvirtd = libvirtd
        self.name = name
        self.uuid = GOLDEN_UUID if name == GOLDEN else str(uuid.uuid4())
        self._connection: libvirt.virConnect | None = None
        self._image = guest_image()
        _put_image(libvirtd, self._image)
        self.xml = _xml(name, self.uuid)
        self.connection.defineXML(self.xml)
        self.start()

    @property
    def connection(self) -> libvirt.virConnect:
        """Return a connection that works now."""
        if self._connection is not None:
            try:
                self._connection.getLibVersion()
            except libvirt.libvirtError:
                self.disconnect()
        if self._connection is None:
            self._connection = self.libvirtd.connect()
        return self._connection

    @property
    def domain(self) -> libvirt.virDomain:
        """Return libvirt's object of this domain."""
        return self.connection.lookupByUUIDString(self.uuid)

    def disconnect(self) -> None:
        """Close this object's own connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    # life
    def start(self, *, boot: bool = False) -> None:
        """Start the domain and wait for its agent: restored if it can be, booted if it must be or `boot` says so."""
        if self.name == GOLDEN or boot or not self._restore():
            self.domain.create()
            self.wait_agent(BOOT_SECONDS)

    def destroy(self) -> None:
        """Pull the power; the persistent definition stays."""
        if self.domain.isActive():
            self.domain.destroy()

    def reset(self) -> None:
        """Begin again: destroy, define as at first (no disks), start."""
        self.destroy()
        self.connection.defineXML(self.xml)
        self.start()

    def remove(self) -> None:
        """Destroy and undefine; the object is of no use afterwards."""
        with contextlib.suppress(libvirt.libvirtError):
            self.destroy()
            self.domain.undefine()
        self.disconnect()

    def pause(self) -> None:
        """Stop the virtual CPUs: the guest answers neither the agent nor an unplug."""
        self.domain.suspend()

    def resume(self) -> None:
        """Let the virtual CPUs go on."""
        self.domain.resume()

    def qemu_pid(self) -> int:
        """Return the pid of its QEMU."""
        return int((self.libvirtd.base / "run/qemu" / f"{self.name}.pid").read_text())

    def _restore(self) -> bool:
        golden = _golden(self.libvirtd, self._image, self.xml)
        if golden is None:
            return False
        copy = self.libvirtd.base / "golden" / f"{self.name}.save"
        try:
            saved.copy_renamed(golden, copy, {GOLDEN: self.name, GOLDEN_UUID: self.uuid})
            self.connection.restoreFlags(str(copy), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)
            self.wait_agent(RESTORE_SECONDS)
        except (libvirt.libvirtError, saved.NotASavedState, TimeoutError) as error:
            logging.getLogger(__name__).warning("the saved guest cannot be restored, booting instead: %s", error)
            golden.unlink(missing_ok=True)
            self.destroy()
            return False
        finally:
            copy.unlink(missing_ok=True)
        return True

    # inside
    def agent(self, command: str, *, timeout: int = 10, **arguments: Any) -> Any:
        """Run one command of the guest agent; a libvirtd just started is given time to connect to it."""
        text = json.dumps({"execute": command, "arguments": arguments})
        deadline = time.monotonic() + timeout
        while True:
            try:
                return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, text, timeout, 0))["return"]
            except libvirt.libvirtError as error:
                if "is not connected" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def wait_agent(self, timeout: float = 10.0) -> None:
        """Wait until the agent answers."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.agent("guest-ping", timeout=1)
            except libvirt.libvirtError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the agent of {self.name} does not answer: {self.serial_output()[-1000:]}") from error
                time.sleep(0.02)
            else:
                return

    def sh(self, script: str, timeout: float = 30.0) -> tuple[int, str]:
        """Run a shell script in the guest; return its exit status and its output (standard output, then errors)."""
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self.agent("guest-exec", **arguments)["pid"]
        deadline = time.monotonic() + timeout
        while not (answer := self.agent("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s the guest still runs: {script}")
            time.sleep(0.01)
        output = b"".join(base64.b64decode(answer.get(part, "")) for part in ("out-data", "err-data"))
        return answer.get("exitcode", 128 + answer.get("signal", 0)), output.decode(errors="replace").strip()

    def run(self, script: str, timeout: float = 30.0) -> str:
        """Run a shell script that must succeed; return its output."""
        status, output = self.sh(script, timeout)
        if status:
            raise RuntimeError(f"exit status {status} in the guest: {script}\n{output}")
        return output

    def disks(self) -> list[GuestDisk]:
        """Return the disks that the guest sees."""
        rows = (line.split(maxsplit=3) for line in self.run(LIST_DISKS).splitlines())
        return [GuestDisk(row[0], int(row[1]) * 512, row[2] == "1", row[3].strip() if len(row) > 3 else "") for row in rows]

    def wait_disk(self, serial: str, present: bool = True, timeout: float = 10.0) -> GuestDisk | None:
        """Wait until the guest sees a disk of that serial (returned), or none any more; virtio-blk's may be cut to 20 characters."""
        deadline = time.monotonic() + timeout
        while True:
            seen = self.disks()
            found = next((disk for disk in seen if disk.serial in {serial, serial[:SERIAL_CUT]}), None)
            if (found is not None) == present:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s serial {serial!r} is {'absent' if present else 'present'}: {seen}")

    def serial_output(self) -> str:
        """Return what the serial console printed."""
        path = self.libvirtd.base / "lib/lab" / f"{self.name}.serial"
        return path.read_text(errors="replace") if path.exists() else ""

    # outside
    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command."""
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, text, 0))
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    def live_disks(self) -> list[ET.Element]:
        """Return the `<disk>` elements of the live XML."""
        return ET.fromstring(self.domain.XMLDesc(0)).findall("devices/disk")

    def detach_all(self, timeout: float = 20.0) -> None:
        """Detach every disk, live and persistent, by alias, and wait until libvirt has none."""
        domain = self.domain
        deadline = time.monotonic() + timeout
        asked: dict[str, float] = {}
        while aliases := [disk.find("alias").get("name") for disk in self.live_disks()]:  # type: ignore[union-attr]
            for alias in aliases:
                if time.monotonic() - asked.get(alias, float("-inf")) > ASK_AGAIN:
                    asked[alias] = time.monotonic()
                    with contextlib.suppress(libvirt.libvirtError):
                        domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} keeps {aliases}")
            time.sleep(0.02)
        self.connection.defineXML(self.xml)


def _xml(name: str, identity: str) -> str:
    kind = "kvm" if accelerator() == "kvm" else "qemu"
    ports = "<controller type='pci' model='pcie-root-port'/>" * ROOT_PORTS
    return XML.format(type=kind, name=name, uuid=identity, inside=INSIDE, ports=ports)


def _put_image(libvirtd: PrivateLibvirtd, image: GuestImage) -> None:
    """Give this libvirtd its own copies: with dynamic ownership libvirt changes their owner."""
    for source in (image.kernel, image.initrd):
        target = libvirtd.base / "lib/lab" / source.name
        if not target.exists():
            shutil.copy(source, target)


def _golden(libvirtd: PrivateLibvirtd, image: GuestImage, xml: str) -> Path | None:
    """Return the saved state that fits, making it once per versions of guest, libvirt, QEMU and XML."""
    with contextlib.closing(libvirtd.connect()) as connection:
        versions = f"{image.key} {connection.getLibVersion()} {connection.getVersion()} {os.uname().machine}"
    anonymous = re.sub(r"<name>.*</uuid>|[^/]*\.serial", "", xml)
    key = hashlib.sha256(f"{versions} {anonymous}".encode()).hexdigest()[:16]
    golden = BUILD / "golden" / f"{key}.save"
    with _once(golden) as missing:
        if missing:
            guest = Guest(libvirtd, GOLDEN)
            guest.run("echo 3 >/proc/sys/vm/drop_caches; sync")
            fresh = libvirtd.base / "golden" / "fresh.save"
            guest.domain.save(str(fresh))
            guest.remove()
            golden.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(fresh, golden.with_suffix(".fresh"))
            fresh.unlink()
            golden.with_suffix(".fresh").rename(golden)
    return golden


@contextlib.contextmanager
def _once(path: Path) -> Iterator[bool]:
    if path.exists():
        yield False
        return
    with locked(path.parent.with_suffix(".lock")):
        yield not path.exists()
