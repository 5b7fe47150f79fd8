"""A small SAN inside the guest: a storage end in a network namespace with two ways to it. For tests that run in the kernel lab."""

from __future__ import annotations

import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from volgate.errors import Unreachable
from volgate_plugins.iscsi.tgtd import Mode, Op, Seen, Tgtd

__all__ = [
    "HOST",
    "LOOPBACK",
    "PORTALS",
    "TGT_PORT",
    "Daemon",
    "Lun",
    "Shelf",
    "eventually",
    "links",
    "make_room_for_registrations",
    "sh",
    "two_ways",
]

NAMESPACE = "storage"
PORTALS = ("10.10.1.1", "10.10.2.1")
HOST = "iqn.2026-01.org.volgate:host"
LOOPBACK = "127.0.0.1"
LIO = Path("/sys/kernel/config/target")
TGT_PORT = 3270
"""tgtd has one for all; LIO's portals are at the usual one."""


def sh(command: str, *, within: str = "", timeout: float = 60.0) -> str:
    """Run a shell command, perhaps in a network namespace; return what it printed. Raises CalledProcessError."""
    argv = [*(["nsenter", f"--net=/run/netns/{within}"] if within else []), "/bin/bash", "-ec", command]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it is. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds} s it is not so yet"
        time.sleep(0.1)


def two_ways() -> None:
    """Make the storage end and the two links to it."""
    commands = [f"ip netns add {NAMESPACE}", f"ip -n {NAMESPACE} link set lo up"]
    for number in (1, 2):
        far = f"ip -n {NAMESPACE}"
        commands += [f"ip link add host{number} type veth peer name port{number} netns {NAMESPACE}"]
        commands += [f"ip addr add 10.10.{number}.2/24 dev host{number}", f"ip link set host{number} up"]
        commands += [f"{far} addr add 10.10.{number}.1/24 dev port{number}", f"{far} link set port{number} up"]
    sh("\n".join(commands))


def links(*, up: bool) -> None:
    """Let nothing through the two links, or all."""
    sh("\n".join(f"ip -n {NAMESPACE} link set port{number} {'up' if up else 'down'}" for number in (1, 2)))


def make_room_for_registrations() -> None:
    """Where LIO writes registrations that outlive its power: of a target that no pool of ours made."""
    (Path((LIO / "dbroot").read_text().strip()) / "pr").mkdir(parents=True, exist_ok=True)


class Lun:
    """A file as LUN 1 of an iSCSI target of its own, by both portals, for `HOST` alone."""

    def __init__(self, name: str, path: Path, serial: str) -> None:
        """Make it, by LIO's configfs."""
        self.target = f"iqn.2026-01.org.volgate:{name}"
        self._store, self._tpg = LIO / f"core/fileio_0/{name}", LIO / f"iscsi/{self.target}/tpgt_1"
        self._store.mkdir(parents=True)
        (self._store / "control").write_text(f"fd_dev_name={path},fd_dev_size={path.stat().st_size}")
        (self._store / "wwn/vpd_unit_serial").write_text(serial)
        (self._store / "enable").write_text("1")
        (self._tpg / "lun/lun_1").mkdir(parents=True)
        (self._tpg / "lun/lun_1/disk").symlink_to(self._store)
        for portal in PORTALS:  # its socket is in the namespace of whoever makes it
            sh(f"mkdir {self._tpg}/np/{portal}:3260", within=NAMESPACE)
        for name_of, value in (("authentication", "0"), ("generate_node_acls", "0"), ("demo_mode_write_protect", "0")):
            (self._tpg / "attrib" / name_of).write_text(value)
        mapped = self._tpg / f"acls/{HOST}/lun_1"
        mapped.parent.mkdir()
        mapped.mkdir()
        (mapped / "disk").symlink_to(self._tpg / "lun/lun_1")
        (self._tpg / "enable").write_text("1")

    def enable(self, *, on: bool) -> None:
        """Serve it, or throw everybody out and let nobody in."""
        if (self._tpg / "enable").read_text().strip() != str(int(on)):
            (self._tpg / "enable").write_text(str(int(on)))

    def becomes(self, other: Lun) -> None:
        """Let LUN 1 of this target be the other's file from now on, with nobody told: what an array does when a number is used again."""
        mapped = self._tpg / f"acls/{HOST}/lun_1"
        (mapped / "disk").unlink()
        mapped.rmdir()
        (self._tpg / "lun/lun_1/disk").unlink()
        (self._tpg / "lun/lun_1").rmdir()
        (self._tpg / "lun/lun_1").mkdir()
        (self._tpg / "lun/lun_1/disk").symlink_to(other._store)
        mapped.mkdir()
        (mapped / "disk").symlink_to(self._tpg / "lun/lun_1")


class Shelf:
    """A target of an administrator, at the loopback address, with as many LUNs as there are sizes (bytes), numbered from 1, for `HOST`."""

    def __init__(self, name: str, sizes: list[int], content: bytes = b"left by others", others: Sequence[str] = ()) -> None:
        """Make it; each LUN begins with `content`. `others` are initiators that may come in, too."""
        make_room_for_registrations()
        self._hosts = (HOST, *others)
        self.target = f"iqn.2026-01.org.volgate:{name}"
        self.sizes = sizes
        tpg = self._tpg = LIO / f"iscsi/{self.target}/tpgt_1"
        (tpg / f"np/{LOOPBACK}:3260").mkdir(parents=True)
        for attribute in ("authentication", "generate_node_acls", "demo_mode_write_protect"):
            (tpg / "attrib" / attribute).write_text("0")
        for host in self._hosts:
            (tpg / "acls" / host).mkdir()
        self.files = [Path(f"/srv/{name}.{number}") for number in range(1, len(sizes) + 1)]
        for number, (file, size) in enumerate(zip(self.files, sizes, strict=True), 1):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content.ljust(size, b"\0"))
            store = LIO / f"core/fileio_0/{name}{number}"
            store.mkdir(parents=True)
            (store / "control").write_text(f"fd_dev_name={file},fd_dev_size={size}")
            (store / "wwn/vpd_unit_serial").write_text(self.wwid(number)[8:])
            (store / "enable").write_text("1")
            self.map(number, number)
        (tpg / "enable").write_text("1")

    def map(self, number: int, store: int) -> None:
        """Have LUN `number` be another store."""
        lun, mapped = self._tpg / f"lun/lun_{number}", [self._tpg / f"acls/{host}/lun_{number}" for host in self._hosts]
        for folder in (*mapped, lun):
            if folder.exists():
                (folder / "disk").unlink()
                folder.rmdir()
        lun.mkdir()
        (lun / "disk").symlink_to(LIO / f"core/fileio_0/{self.target.rpartition(':')[2]}{store}")
        for folder in mapped:
            folder.mkdir()
            (folder / "disk").symlink_to(lun)

    def wwid(self, number: int) -> str:
        """What a LUN is, as multipath writes it."""
        return f"36001405{zlib.crc32(self.target.encode()):08x}" + f"{number:x}".rjust(17, "b")

    def luns(self) -> list[dict[str, object]]:
        """Its LUNs as the settings of a pool tell of them."""
        return [
            {"wwid": self.wwid(number), "size": size, "target": self.target, "lun": number} for number, size in enumerate(self.sizes, 1)
        ]


class Daemon:
    """tgtd, the target of user space, with nothing configured."""

    def __init__(self, portal: str = f"{LOOPBACK}:{TGT_PORT}", *, user: Sequence[str] = (), folder: str = "/run/tgtd") -> None:
        """`user` is a command that changes who it runs as; its socket is in `folder`. It is started."""
        self.socket = f"{folder}/socket.0"
        self._argv = [*user, "env", f"TGT_IPC_SOCKET={folder}/socket", "tgtd", "-f", "--iscsi", f"portal={portal}"]
        Path(folder).mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers; it answers nobody but its own user, not even root."""
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self._argv, stdin=quiet, stdout=quiet, stderr=quiet)
        eventually(lambda: self.targets() is not None or (self._argv[0] != "env" and Path(self.socket).is_socket()))

    def targets(self) -> dict[str, Seen] | None:
        """Its targets, with what it says of their LUN 1; None while it does not answer."""
        try:
            return Tgtd(self.socket).targets(1, deadline=time.monotonic() + 5)
        except Unreachable:
            return None

    def ask(self, mode: Mode, op: Op, body: str, target: int = 0) -> str:
        """Do what an administrator would."""
        return Tgtd(self.socket).ask(mode, op, body, target=target, deadline=time.monotonic() + 60)

    def again(self) -> None:
        """It dies without warning, and another one knows nothing."""
        self.end()
        self.start()

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(60)

    def hang(self) -> None:
        """Let it do nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it work again."""
        self.process.send_signal(signal.SIGCONT)
