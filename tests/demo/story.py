"""The story: one volume from its creation to its deletion, under a real guest, through a crash of the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.demo.stage import Gateway, Mismatch, check, say, step
from tests.labs.domain import Guest

__all__ = ["play"]

VOLUME = "default/data"
SERIAL = "demo-disk"
GIB = 1 << 30
WAIT_SECONDS = 30.0


def play(gateway: Gateway, guest: Guest) -> None:
    """Tell the whole story. Raises Mismatch where it does not go as promised."""
    step("Serve: a directory pool named `default`, no configuration but where libvirt is")
    gateway.start()
    gateway.volgate("pool", "list")
    gateway.volgate("doctor")
    _create_and_attach(gateway, guest)
    pattern = _write(guest)
    _snapshot_and_overwrite(gateway, guest, pattern)
    _revert(gateway, guest, pattern)
    _expand(gateway, guest)
    _paths(gateway)
    _crash_in_the_middle_of_a_detach(gateway, guest)
    _delete(gateway)


def _create_and_attach(gateway: Gateway, guest: Guest) -> None:
    step("Create a volume and attach it to the running guest")
    gateway.volgate("volume", "create", "data", "--pool", "default", "--size", "1GiB", "--format", "qcow2")
    _attach(gateway, guest)
    say("The same call again changes nothing and answers the same:")
    before = _attachment(gateway)
    gateway.volgate("attachment", "attach", "--volume", VOLUME, "--domain", guest.name, "--serial", SERIAL)
    check("the attachment's id", _attachment(gateway), before)


def _attach(gateway: Gateway, guest: Guest) -> None:
    gateway.volgate("attachment", "attach", "--volume", VOLUME, "--domain", guest.name, "--serial", SERIAL)
    disk = guest.wait_disk(SERIAL)
    if disk is None:
        raise Mismatch(f"the guest does not see a disk with serial {SERIAL}")
    say(f"The guest sees it as {disk.device}, {disk.size} bytes.")


def _write(guest: Guest) -> str:
    step("Inside the guest: make a file system and write a pattern")
    device = _device(guest)
    guest.run(f"mke2fs -F {device} >/dev/null 2>&1")
    guest.run(f"mount -t ext4 {device} /mnt && dd if=/dev/urandom of=/mnt/pattern bs=1M count=8 2>/dev/null && sync && umount /mnt")
    pattern = _sum(guest)
    say(f"sha256 of the pattern: {pattern}")
    return pattern


def _snapshot_and_overwrite(gateway: Gateway, guest: Guest, pattern: str) -> None:
    step("Snapshot while attached, then the guest overwrites its data")
    gateway.volgate("snapshot", "create", "before", "--volume", VOLUME)
    guest.run(f"mount -t ext4 {_device(guest)} /mnt && dd if=/dev/zero of=/mnt/pattern bs=1M count=8 2>/dev/null && sync && umount /mnt")
    check("the pattern is gone", _sum(guest) != pattern, True)
    say("A revert under a running guest would pull the disk from under it; it is refused and says who holds the volume:")
    gateway.volgate("volume", "revert", VOLUME, "--snapshot", "before", exit_code=4)


def _revert(gateway: Gateway, guest: Guest, pattern: str) -> None:
    step("Detach, revert, attach again: the pattern is back")
    gateway.volgate("attachment", "detach", _attachment(gateway))
    check("the guest has no disk of ours", guest.wait_disk(SERIAL, present=False), None)
    gateway.volgate("volume", "revert", VOLUME, "--snapshot", "before")
    _attach(gateway, guest)
    check("sha256 of the pattern, inside the guest", _sum(guest), pattern)
    gateway.volgate("snapshot", "list", "--volume", VOLUME)


def _expand(gateway: Gateway, guest: Guest) -> None:
    step("Expand while attached: the guest sees the new size")
    gateway.volgate("volume", "expand", VOLUME, "--size", "2GiB")
    _until("the guest sees 2 GiB", lambda: int(guest.run(f"blockdev --getsize64 {_device(guest)}")) == 2 * GIB)


def _paths(gateway: Gateway) -> None:
    step("ListPaths: every station that the I/O passes, and its state")
    gateway.volgate("attachment", "paths", _attachment(gateway))


def _crash_in_the_middle_of_a_detach(gateway: Gateway, guest: Guest) -> None:
    step("Crash: the gateway dies in the middle of a detach and recovers")
    attachment = _attachment(gateway)
    say("The guest is paused, so it cannot release the disk: the detach is under way.")
    guest.pause()
    asked = gateway.begin("attachment", "detach", attachment, "--wait", "60")
    _until("the detach is under way", lambda: bool(_running(gateway)), quiet=True)
    gateway.kill9()
    asked.kill()
    asked.wait(10)
    say("A new gateway finds the operation in its journal and goes on with it, unasked:")
    gateway.start()
    check("operations that go on", _running(gateway), ["DetachVolume"])
    guest.resume()
    _until("the guest has released the disk", lambda: guest.wait_disk(SERIAL, present=False) is None)
    _until("the detach is done", lambda: not _running(gateway))
    check("attachments", gateway.ask("attachment", "list"), [])
    gateway.volgate("operation", "list")


def _delete(gateway: Gateway) -> None:
    step("Delete: the snapshot first (a volume with snapshots is not deleted), then the volume")
    gateway.volgate("volume", "delete", VOLUME, exit_code=4)
    gateway.volgate("snapshot", "delete", f"{VOLUME}/before")
    gateway.volgate("volume", "delete", VOLUME)
    check("volumes", gateway.ask("volume", "list"), [])
    check("files left in the pool", _files(gateway.state / "pools" / "default" / "volumes"), [])
    gateway.volgate("doctor")


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _device(guest: Guest) -> str:
    disk = guest.wait_disk(SERIAL)
    if disk is None:
        raise Mismatch(f"the guest lost the disk with serial {SERIAL}")
    return disk.device


def _sum(guest: Guest) -> str:
    """Read the pattern through the file system, from the disk and not from the guest's cache."""
    script = f"mount -t ext4 -o ro {_device(guest)} /mnt && sha256sum </mnt/pattern; umount /mnt; echo 3 >/proc/sys/vm/drop_caches"
    return guest.run(script).split()[0]


def _attachment(gateway: Gateway) -> str:
    rows = gateway.ask("attachment", "list")
    if len(rows) != 1:
        raise Mismatch(f"expected one attachment, found {rows}")
    return str(rows[0]["name"])


def _running(gateway: Gateway) -> list[str]:
    return [row["method"] for row in gateway.ask("operation", "list", "--unfinished")]


def _until(what: str, holds: Callable[[], bool], *, quiet: bool = False) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise Mismatch(f"not within {WAIT_SECONDS:g} s: {what}")
        time.sleep(0.1)
    if not quiet:
        check(what, found=True, expected=True)
