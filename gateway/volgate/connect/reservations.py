"""SCSI-3 persistent reservations of a disk that several hosts have: who may write, and how one is kept out for good.

Each host registers a key of its own. While the disk is reserved for registrants, a host without a key writes nothing: to take a
key away is to fence. A map of dm-multipath carries each call to all its ways; keys are read by PERSISTENT RESERVE IN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from volgate.connect import scsi
from volgate.errors import NotFound, Precondition, Unreachable, Unsupported, VolgateError, from_os_error, translate

__all__ = ["WRITE_EXCLUSIVE_ALL_REGISTRANTS", "Disk", "Reservation", "enrol", "opened", "withdraw"]

WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
"""The kind of reservation, as SCSI numbers it: all read, those with a key write; it is everybody's who has one, and stays with the last."""
_KERNEL_TYPE = 5  # the same, as the kernel's calls number it
_IGNORE_OLD_KEY = 1
_REGISTRATION, _RESERVATION, _PREEMPTION, _CLEARING = (struct.Struct(form) for form in ("=QQII", "=QII", "=QQII", "=QII"))
_REGISTER, _RESERVE, _RELEASE, _PREEMPT, _PREEMPT_AND_ABORT, _CLEAR = range(200, 206)
_CONFLICT, _CHECK = 0x18, 0x02
_SG_IO, _FROM_DEVICE = 0x2285, -3
_RESERVE_IN, _READ_KEYS, _READ_RESERVATION = 0x5E, 0, 1
_ANSWER = 8192  # bytes: a thousand keys
_SECONDS = 30
_SENSE = 64
_DESCRIPTORS, _ILLEGAL = 0x72, 5  # sense data in descriptors; the key of what the disk does not know
_TRIES, _PAUSE = 10, 0.05


@dataclass(frozen=True, slots=True)
class Reservation:
    """Who holds a disk (0 where all that are registered do), and for what, as SCSI numbers it."""

    key: int
    kind: int


@contextmanager
def opened(path: str) -> Iterator[Disk]:
    """A disk or a map. Raises NotFound, VolgateError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # a command by one that does not wait is told to come again
    except OSError as error:
        raise from_os_error(error, f"open {path}") from error
    try:
        yield Disk(descriptor, path)
    finally:
        os.close(descriptor)


def enrol(path: str, key: int, *, shared: bool) -> None:
    """Let this host write to a disk: by its key if the disk is `shared`, or if it is reserved for those who have one.

    Raises Unsupported (NO_RESERVATIONS: it is to be shared), Precondition (RESERVED), Unreachable, NotFound.
    """
    try:
        with opened(path) as disk:
            if shared or disk.reservation() is not None:
                disk.join(key)
    except Unsupported:
        if shared:
            raise


def withdraw(path: str, key: int) -> None:
    """Take this host's key away, if the disk is there and has it. Raises Precondition (RESERVED), Unreachable."""
    with contextlib.suppress(NotFound, Unsupported), opened(path) as disk:
        disk.leave(key)


class Disk:
    """An open disk or map. Each method is one command, or one for each way; each raises Unsupported (NO_RESERVATIONS), Unreachable."""

    def __init__(self, descriptor: int, name: str) -> None:
        """`descriptor` is open for writing; its identity is proven by whoever opened it. `name` is for errors."""
        self._descriptor, self._name = descriptor, name

    # -- what others may do

    def join(self, key: int) -> None:
        """Register this host by every way, and see that the disk is reserved for those who are registered. Idempotent.

        Raises Precondition (RESERVED: it is reserved in another manner, by somebody else).
        """
        self.register(key)
        self.hold(key)

    def hold(self, key: int) -> None:
        """See that those who are registered, this host among them, write alone. Raises Precondition (RESERVED)."""
        if self._do("reserve", _RESERVE, _RESERVATION.pack(key, _KERNEL_TYPE, 0)):
            return
        found = self.reservation()
        if key not in self.registered():
            raise self._conflict("reserve")
        if found is None or found.kind != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
            told = f"by key {found.key:#x} for another use (type {found.kind})" if found else "by somebody who lets it go just now"
            raise Precondition(
                f"{self._name} is reserved {told}; see `sg_persist --in -r {self._name}`, and let whoever did it release it",
                reason="RESERVED",
            )

    def leave(self, key: int) -> None:
        """Take this host's key away by every way; success if it has none. The disk stays reserved for whoever else has a key."""
        if key in self.registered() and not self._do("unregister", _REGISTER, _REGISTRATION.pack(key, 0, _IGNORE_OLD_KEY, 0)):
            raise self._conflict("unregister")

    def fence(self, mine: int, theirs: int) -> None:
        """Keep the holder of a key out: what it has under way is aborted, and what it writes from now on fails. Idempotent.

        Proven before it returns. Raises Precondition (RESERVED; FENCE_SELF), Unreachable (FENCE_UNPROVEN).
        """
        if mine == theirs:
            raise Precondition(f"{self._name}: this host would keep itself out", reason="FENCE_SELF")
        self.join(mine)
        if theirs in self.registered():
            self.preempt(mine, theirs, abort=True)
        self.hold(mine)
        found, keys = self.reservation(), self.registered()
        if theirs in keys or mine not in keys or found is None or found.kind != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
            shown = f"keys {', '.join(f'{key:#x}' for key in keys)}; {found}"
            told = f"{self._name}: key {theirs:#x} is not proven to be kept out ({shown}); repeat the call"
            raise Unreachable(told, reason="FENCE_UNPROVEN", retry_after=1.0)

    # -- the commands

    def register(self, key: int) -> None:
        """Give this host a key by every way, in place of any that it has."""
        if not self._do("register", _REGISTER, _REGISTRATION.pack(0, key, _IGNORE_OLD_KEY, 0)):
            raise self._conflict("register")

    def release(self, key: int) -> None:
        """Let the reservation go that this host holds; the keys stay. Success if it holds none."""
        if not self._do("release", _RELEASE, _RESERVATION.pack(key, _KERNEL_TYPE, 0)):
            raise self._conflict("release")

    def preempt(self, mine: int, theirs: int, *, abort: bool) -> None:
        """Take a key away, and the reservation if it holds it; with `abort` end what its owner has under way."""
        number = _PREEMPT_AND_ABORT if abort else _PREEMPT
        done = self._do("preempt", number, _PREEMPTION.pack(mine, theirs, _KERNEL_TYPE, 0))  # in this order, whatever the kernel calls them
        if not done and theirs in self.registered():  # a map may try the next way after one that has done it
            raise self._conflict("preempt")

    def clear(self, key: int) -> None:
        """Take every key and the reservation away."""
        if not self._do("clear", _CLEAR, _CLEARING.pack(key, 0, 0)):
            raise self._conflict("clear")

    def registered(self) -> list[int]:
        """Every key, once for each way of each host that it is registered by."""
        answer = self._ask(_READ_KEYS)
        (length,) = struct.unpack_from(">I", answer, 4)
        return [key for (key,) in struct.iter_unpack(">Q", answer[8 : 8 + min(length, _ANSWER - 8) // 8 * 8])]

    def reservation(self) -> Reservation | None:
        """What the disk is reserved for, if it is."""
        answer = self._ask(_READ_RESERVATION)
        (length,) = struct.unpack_from(">I", answer, 4)
        return Reservation(int.from_bytes(answer[8:16], "big"), answer[21] & 0x0F) if length else None

    # -- inside

    def _do(self, what: str, number: int, argument: bytes) -> bool:
        """Make a call of the kernel; False where the disk says that there is a conflict of reservations."""
        request, status = 1 << 30 | len(argument) << 16 | ord("p") << 8 | number, 0
        for _ in range(_TRIES):
            try:
                status = int(fcntl.ioctl(self._descriptor, request, bytearray(argument), True))  # its answer is the status
            except OSError as error:
                if error.errno == errno.EBADE:
                    return False
                raise self._failure(what, error) from error
            if status in (0, _CONFLICT):
                return status == 0
            time.sleep(_PAUSE)  # what the disk has to tell first is heard by now
        told = f"{self._name}: {what}: the disk answers with status {status:#x}; a way to it does not work, repeat the call"
        raise Unreachable(told, reason="IO_ERROR", retry_after=1.0)

    def _ask(self, action: int) -> bytes:
        """PERSISTENT RESERVE IN. A disk below a map is asked: a map that queues, and has no way, lets a command wait until there is one."""
        if not scsi.is_map(self._descriptor):
            return self._ask_by(self._descriptor, action)
        problem: VolgateError = Unreachable(f"{self._name} has no way now; repeat the call", reason="IO_ERROR", retry_after=1.0)
        for folder in scsi.below(self._descriptor):
            try:
                with _opened_way(folder) as way:
                    return self._ask_by(way, action)
            except Unreachable as error:
                problem = error
        raise problem

    def _ask_by(self, way: int, action: int) -> bytes:
        """By the kernel's way for any command. What the disk has to tell first is heard, and it is asked again."""
        for _ in range(_TRIES):
            answer, sense = self._asked(way, action)
            if answer is not None:
                return answer
            if sense == _ILLEGAL:
                raise Unsupported(f"{self._name} knows no persistent reservations; use storage that has them", reason="NO_RESERVATIONS")
            time.sleep(_PAUSE)
        told = f"{self._name}: its reservations cannot be read (sense key {sense:#x}); repeat the call"
        raise Unreachable(told, reason="IO_ERROR", retry_after=1.0)

    def _asked(self, way: int, action: int) -> tuple[bytes | None, int]:
        """The answer, or None and the sense key of what the disk says instead."""
        answer, sense = ctypes.create_string_buffer(_ANSWER), ctypes.create_string_buffer(_SENSE)
        command = ctypes.create_string_buffer(struct.pack(">BB5xHB", _RESERVE_IN, action, _ANSWER, 0), 10)
        header = bytearray(
            struct.pack(
                "@iiBBHIPPPIIiPBBBBHHiII4x",
                *(ord("S"), _FROM_DEVICE, 10, _SENSE, 0, _ANSWER, ctypes.addressof(answer), ctypes.addressof(command)),
                *(ctypes.addressof(sense), _SECONDS * 1000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
            )
        )
        try:
            fcntl.ioctl(way, _SG_IO, header, True)  # it is written to
        except OSError as error:
            raise self._failure("read its reservations", error) from error
        status, host, driver = header[64], *struct.unpack_from("@HH", header, 68)
        if status == _CHECK:
            return None, sense.raw[1 if sense.raw[0] & 0x7F >= _DESCRIPTORS else 2] & 0x0F
        if status or host or driver & 0x07:
            told = f"{self._name}: its reservations cannot be read (status {status:#x}, host {host:#x}, driver {driver:#x})"
            raise Unreachable(f"{told}; repeat the call", reason="IO_ERROR", retry_after=1.0)
        return answer.raw, 0

    def _failure(self, what: str, error: OSError) -> VolgateError:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            told = f"{self._name}: {what}: {error.strerror}; it is no disk that has persistent reservations"
            return Unsupported(told, reason="NO_RESERVATIONS")
        told = f"{self._name}: {what}: {error.strerror}; a way to it does not work, repeat the call"
        return Unreachable(told, reason="IO_ERROR", retry_after=1.0)

    def _conflict(self, what: str) -> Precondition:
        return Precondition(
            f"{self._name}: {what}: this host has no key there, or another one holds it; see `sg_persist --in -k -r {self._name}`",
            reason="RESERVED",
        )


@contextmanager
def _opened_way(folder: Path) -> Iterator[int]:
    """A disk below a map, by its folder of the kernel. Raises Unreachable."""
    with translate(f"open /dev/{folder.name}", {OSError: Unreachable}):
        descriptor = os.open(f"/dev/{folder.name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = os.fstat(descriptor).st_rdev
        with translate(f"look at {folder}", {OSError: Unreachable}):
            known = (folder / "dev").read_text(encoding="ascii").strip()
        if known != f"{os.major(number)}:{os.minor(number)}":
            raise Unreachable(f"/dev/{folder.name} is the node of another disk; repeat the call", retry_after=1.0)
        yield descriptor
    finally:
        os.close(descriptor)
