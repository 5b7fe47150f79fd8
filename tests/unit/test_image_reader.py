"""Images of strangers, read piece by piece: to the byte, in a child that owns nothing, and refused where the child makes no sense."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volgate.backend.image_reader import reading
from volgate.backend.nbd import Lost, NbdClient
from volgate.conformance.tracing import descendants
from volgate.errors import OutOfRange, Precondition, Unreachable
from volgate.model import Format

MIB = 1 << 20
SIZE = 24 * MIB
KINDS = {
    "qcow2": (Format.QCOW2, []),
    "packed": (Format.QCOW2, ["-c"]),
    "vmdk": (Format.VMDK, ["-o", "subformat=streamOptimized"]),
    "vhdx": (Format.VHDX, []),
}
HOLES_UNTOLD = {"vhdx"}
"""QEMU tells zeroes of these as data."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    path, rng = tmp_path / "disk.raw", random.Random(7)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in (0, 5 * MIB - 777, 17 * MIB + 65536, SIZE - 65536):
            os.pwrite(file.fileno(), rng.randbytes(65536 if offset else 3 * MIB), offset)
    return path


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    made = tmp_path / "staging"
    made.mkdir()
    return made


def packed(disk: Path, name: str = "packed") -> tuple[str, Format]:
    kind, words = KINDS[name]
    path = disk.with_name(name)
    subprocess.run(["qemu-img", "convert", *words, "-O", str(kind), disk, path], check=True)
    return str(path), kind


def footprint() -> tuple[list[str], int]:
    return os.listdir(tempfile.gettempdir()), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_an_image_reads_as_what_it_was_made_of_and_its_holes_are_no_data(disk: Path, staging: Path, name: str, mode: int):
    source, kind = packed(disk, name)
    os.chmod(source, mode)
    with reading(source, kind, staging=str(staging)) as image:
        held, runs = bytearray(image.size), list(image.data())
        for offset, length in runs:
            held[offset : offset + length] = image.read(offset, length)
        assert image.read(5 * MIB - 1000, 9 * MIB) == disk.read_bytes()[5 * MIB - 1000 : 14 * MIB - 1000], "holes too"
    assert (image.size, held) == (SIZE, disk.read_bytes())
    assert runs == sorted(runs) and (name in HOLES_UNTOLD or sum(length for _, length in runs) < 8 * MIB)
    assert not list(staging.iterdir())


def test_the_child_owns_nothing_and_nothing_of_it_stays(disk: Path, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    source, kind = packed(disk)
    with reading(source, kind, staging=str(staging)):
        pass  # the spawner's own pipes are there from now on
    before = footprint()
    with reading(source, kind, staging=str(staging)) as image:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server()}/status").read_text().splitlines())
        assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
        assert os.geteuid() != 0 or "0" not in status["Uid"].split()
        assert image.read(0, MIB) == disk.read_bytes()[:MIB]
    with pytest.raises(ZeroDivisionError), reading(source, kind, staging=str(staging)) as image:
        assert image.read(0, MIB) == disk.read_bytes()[: 1 // 0]
    deadline = time.monotonic() + 30
    while servers() or footprint() != before:
        assert time.monotonic() < deadline, (servers(), footprint(), before)
        time.sleep(0.05)


def servers() -> list[int]:
    found = []
    for pid in descendants(os.getpid()):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "qemu-nbd":
                found.append(pid)
        except OSError:
            continue
    return found


def server() -> int:
    (found,) = servers()
    return found


def test_what_is_hostile_or_too_large_is_refused_before_it_is_read(disk: Path, staging: Path):
    secret = disk.with_name("secret")
    secret.write_bytes(b"s" * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", disk.with_name("top")], check=True)
    for source, kind, error, words in (
        (str(disk.with_name("top")), Format.QCOW2, Precondition, "backing file"),
        (*packed(disk), OutOfRange, "bytes"),
        (str(disk), Format.QCOW2, Precondition, "no qcow2 image"),
    ):
        with pytest.raises(error, match=words), reading(source, kind, staging=str(staging), maximum=SIZE - 512):
            pytest.fail("it is read")
    assert not list(staging.iterdir())


def test_bytes_that_cannot_be_unpacked_are_told(disk: Path, staging: Path):
    source, kind = packed(disk)
    with open(source, "r+b") as file:
        end = os.fstat(file.fileno()).st_size
        os.pwrite(file.fileno(), b"\xff" * 200_000, end - 400_000)  # within the packed clusters: their tables are whole
    with pytest.raises(Precondition, match="cannot be read: ") as told, reading(source, kind, staging=str(staging)) as image:
        for offset, length in image.data():
            image.read(offset, length)
    assert told.value.reason == "BAD_IMAGE"


def test_a_child_that_is_killed_is_told_as_such(disk: Path, staging: Path):
    source, kind = packed(disk)
    with pytest.raises(Unreachable) as told, reading(source, kind, staging=str(staging)) as image:
        os.kill(server(), signal.SIGKILL)
        while True:
            image.read(0, MIB)
    assert told.value.reason == "COMMAND_KILLED"


# -- servers that lie

GREETING = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)
ACK = struct.pack(">QIII", 0x3E889045565A9, 8, 1, 0)
META = struct.pack(">QIII", 0x3E889045565A9, 10, 4, 19) + struct.pack(">I", 1) + b"base:allocation"
EXPORT = struct.pack(">QIII", 0x3E889045565A9, 7, 3, 12) + struct.pack(">HQH", 0, MIB, 3)
WELCOME = GREETING + ACK + META + ACK.replace(b"\0\0\0\x08", b"\0\0\0\x0a", 1) + EXPORT + ACK.replace(b"\0\0\0\x08", b"\0\0\0\x07", 1)


def chunk(kind: int, body: bytes, *, flags: int = 1, cookie: int = 1, size: int = -1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(body) if size < 0 else size) + body


def at(offset: int, rest: bytes) -> bytes:
    return struct.pack(">Q", offset) + rest


def read(client: NbdClient) -> bytes:
    return client.read(4096, 8192)


def data(client: NbdClient) -> object:
    return list(client.data(4096, 8192))


def greet(_client: NbdClient) -> None:
    """Nothing more."""


LIES: dict[str, tuple[Callable[[NbdClient], object], bytes]] = {
    "another protocol": (greet, b"SSH-2.0-OpenSSH_9.2p1 Debian-2"),
    "an old greeting": (greet, b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 1)),
    "an option refused": (greet, GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 0x80000001, 0)),
    "an endless reply": (greet, GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 3, 0) * 1000),
    "a reply of gigabytes": (greet, GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 3, 1 << 31)),
    "no size": (greet, WELCOME.replace(EXPORT, b"")),
    "bytes before": (read, WELCOME + chunk(1, at(0, b"x" * 8192))),
    "bytes behind": (read, WELCOME + chunk(1, at(8192, b"x" * 8192))),
    "too many bytes": (read, WELCOME + chunk(1, at(4096, b"x" * 8193))),
    "too few bytes": (read, WELCOME + chunk(1, at(4096, b"x" * 8191))),
    "the same bytes twice": (read, WELCOME + chunk(1, at(4096, b"x" * 8192), flags=0) + chunk(1, at(4096, b"x" * 8192))),
    "gigabytes": (read, WELCOME + chunk(1, at(4096, b"x" * 100), size=0xFFFFFFFF)),
    "a hole too large": (read, WELCOME + chunk(2, at(4096, struct.pack(">I", 0xFFFFFFFF)))),
    "an empty hole": (read, WELCOME + chunk(2, at(4096, struct.pack(">I", 0)))),
    "no end": (read, WELCOME + chunk(1, at(4096, b"x"), flags=0) * 9000),
    "nothing without an end": (read, WELCOME + chunk(0, b"", flags=0) * 9000),
    "another request's answer": (read, WELCOME + chunk(1, at(4096, b"x" * 8192), cookie=2)),
    "extents for bytes": (read, WELCOME + chunk(5, struct.pack(">III", 1, 8192, 0))),
    "bytes for extents": (data, WELCOME + chunk(1, at(4096, b"x" * 8192))),
    "extents of no length": (data, WELCOME + chunk(5, struct.pack(">III", 1, 0, 0))),
    "half an extent": (data, WELCOME + chunk(5, struct.pack(">II", 1, 8192))),
    "no extents": (data, WELCOME + chunk(0, b"")),
    "extents of gigabytes": (data, WELCOME + chunk(5, b"", size=0xFFFFFFF4)),
}


@pytest.fixture
def lying() -> Iterator[Callable[[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)

    def serve(said: bytes) -> socket.socket:
        def send() -> None:
            try:
                theirs.sendall(said)
                theirs.shutdown(socket.SHUT_WR)
                while theirs.recv(4096):
                    pass
            except OSError:
                return  # the client has hung up

        threading.Thread(target=send, daemon=True).start()
        return ours

    yield serve
    ours.close()
    theirs.close()


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_refused(lying: Callable[[bytes], socket.socket], lie: str):
    act, said = LIES[lie]
    with pytest.raises(Precondition) as told:
        act(NbdClient(lying(said)))
    assert told.value.reason == "BAD_IMAGE"


def test_a_server_that_tells_the_truth_in_many_pieces_is_believed(lying: Callable[[bytes], socket.socket]):
    body = os.urandom(4096)
    answer = chunk(2, at(4096, struct.pack(">I", 4096)), flags=0) + chunk(1, at(8192, body), flags=0) + chunk(0, b"")
    client = NbdClient(lying(WELCOME + answer))
    assert (client.size, read(client)) == (MIB, bytes(4096) + body)
    with pytest.raises(Lost):
        read(client)
