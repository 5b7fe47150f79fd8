"""A LUN from this process, through libiscsi: no device of this machine, no session of its kernel, nothing left when the process dies.

For what the gateway itself does with a LUN of somebody's SAN: prove which one it is, wipe it, write and read images. Deadlines: every
command ends within the seconds that were given.
"""

from __future__ import annotations

import ctypes
import itertools
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from volgate.backend.secrets import resolve
from volgate.connection import Chap, IscsiPortal
from volgate.errors import Denied, Precondition, Unreachable

__all__ = ["Refused", "Unit", "reached"]

_LIBRARY = "libiscsi.so.7"
_NORMAL_SESSION, _NO_DIGEST = 2, 0
_NONE, _READ, _WRITE = 0, 1, 2  # where data go
_GOOD, _CHECK, _CONFLICT = 0, 0x02, 0x18
_ILLEGAL, _ATTENTION = 5, 6  # sense keys: the unit does not know the command; it has something to tell first
_TRIES, _PAUSE = 20, 0.05
_OUI, _OURS = 0x00023D, 0x8000  # open-iscsi's names of ports, and of them those that its kernel takes last
_SENSE, _SENSE_KEY = 64, 4  # room for libiscsi's `struct scsi_sense`, and where its key is
_INQUIRY, _CAPACITY, _READ_16, _WRITE_16, _SYNC, _SAME = 0x12, 0x9E, 0x88, 0x8A, 0x91, 0x93
_IDENTITY_PAGE, _NAA, _OF_UNIT = 0x83, 3, 0
_AT_ONCE = 1 << 20
_numbers = itertools.count(secrets.randbelow(_OURS))  # two sessions of one name would end each other
_REFUSED = ("auth", "Authorization", "authent")


class Refused(Precondition):
    """A unit refuses a command; `unknown`: it does not know it, or not for so much."""

    default_reason = "COMMAND_FAILED"

    def __init__(self, message: str, *, unknown: bool) -> None:
        """`message` is the unit's."""
        super().__init__(message)
        self.unknown = unknown


class _Data(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_char_p))


@dataclass
class Unit:
    """A unit that is logged in to. Sizes and offsets are bytes, multiples of `block`."""

    _library: Any
    _context: int
    _lun: int
    block: int = 512
    size: int = 0
    _same: int = 32 << 20

    def identity(self) -> str:
        """Its registered name, as multipath writes it; "" for a unit without one."""
        told = self.command(struct.pack(">BBBHB", _INQUIRY, 1, _IDENTITY_PAGE, 1024, 0), reads=1024)
        at, found = 4, b""
        while at + 4 <= len(told) and at < 4 + int.from_bytes(told[2:4], "big"):
            about, kind, length = (told[at + 1] >> 4) & 3, told[at + 1] & 15, told[at + 3]
            if about == _OF_UNIT and kind == _NAA:
                found = max(found, told[at + 4 : at + 4 + length], key=len)  # the longest is what udev and multipath take
            at += 4 + length
        return f"3{found.hex()}" if found else ""

    def measure(self) -> None:
        """Learn its size."""
        told = self.command(struct.pack(">BBQIBB", _CAPACITY, 0x10, 0, 32, 0, 0), reads=32)
        last, self.block = struct.unpack(">QI", told[:12])
        self.size = (last + 1) * self.block

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return self.command(self._range(_READ_16, offset, length), reads=length)

    def write(self, offset: int, data: bytes) -> None:
        """Write; not yet durable."""
        self.command(self._range(_WRITE_16, offset, len(data)), writes=data)

    def zero(self, offset: int, length: int) -> Iterator[int]:
        """Let a stretch read as zeroes; yield up to where it does. The unit does it by itself if it can."""
        end = offset + length
        while offset < end:
            offset += self._zeroed(offset, end - offset)
            yield offset

    def sync(self) -> None:
        """Make what was written durable."""
        self.command(struct.pack(">BBQIBB", _SYNC, 0, 0, 0, 0, 0))

    def _zeroed(self, offset: int, left: int) -> int:
        while self._same >= _AT_ONCE:
            length = min(left, self._same)
            try:
                self.command(self._range(_SAME, offset, length), writes=bytes(self.block))
            except Precondition:  # not for so much at once, or it does not know the command
                self._same //= 4
            else:
                return length
        length = min(left, _AT_ONCE)
        self.write(offset, bytes(length))
        return length

    def _range(self, code: int, offset: int, length: int) -> bytes:
        return struct.pack(">BBQIBB", code, 0, offset // self.block, length // self.block, 0, 0)

    def reset(self) -> None:
        """End what anybody has under way there. Raises Unreachable (FENCE_UNPROVEN: it does not)."""
        if said := self._library.iscsi_task_mgmt_lun_reset_sync(self._context, self._lun):
            told = f"the unit does not abort what is under way ({said}: {_error(self._library, self._context)}); repeat the call"
            raise Unreachable(told, reason="FENCE_UNPROVEN", retry_after=1.0)

    def command(self, cdb: bytes, *, reads: int = 0, writes: bytes = b"") -> bytes:
        """Give a command. Raises Unreachable (no answer in time), Refused, Precondition (RESERVED: for others)."""
        status, key = _GOOD, 0
        for _ in range(_TRIES):
            status, key, answer = self._once(cdb, reads, writes)
            if status == _GOOD:
                return answer
            if (status, key) != (_CHECK, _ATTENTION):
                break
            time.sleep(_PAUSE)
        if status == _CONFLICT:
            raise Precondition(f"the unit refuses command {cdb[0]:#x}: it is reserved for others", reason="RESERVED")
        told = f"the unit refuses command {cdb[0]:#x} with status {status:#x}, sense key {key:#x}: {_error(self._library, self._context)}"
        raise Refused(told, unknown=(status, key) == (_CHECK, _ILLEGAL))

    def _once(self, cdb: bytes, reads: int, writes: bytes) -> tuple[int, int, bytes]:
        """The status, the sense key, and what was read."""
        library = self._library
        task = library.scsi_create_task(len(cdb), cdb, _READ if reads else _WRITE if writes else _NONE, reads or len(writes))
        into = ctypes.create_string_buffer(max(1, reads))
        if reads:
            library.scsi_task_add_data_in_buffer(task, reads, into)
        data = _Data(len(writes), writes)
        done = library.iscsi_scsi_command_sync(self._context, self._lun, task, ctypes.byref(data) if writes else None)
        if not done:
            raise Unreachable(f"the SAN does not answer: {_error(library, self._context)}", reason="ISCSI_UNREACHABLE", retry_after=5.0)
        try:
            sense = ctypes.create_string_buffer(_SENSE)
            status = int(library.scsi_task_get_status(done, sense))
            return status, int.from_bytes(sense.raw[_SENSE_KEY : _SENSE_KEY + 4], "little"), into.raw[:reads]
        finally:
            library.scsi_free_scsi_task(done)


@contextmanager
def reached(initiator: str, portals: Iterable[IscsiPortal], lun: int, chap: Chap | None, seconds: float) -> Iterator[Unit]:
    """Log in by the first portal that answers. Raises Unreachable (ISCSI_UNREACHABLE), Denied (ISCSI_DENIED), Precondition."""
    library = _library()
    portal = _answering(portals, seconds)
    context = library.iscsi_create_context(initiator.encode())
    try:
        _prepare(library, context, portal, chap, seconds)
        if library.iscsi_full_connect_sync(context, portal.place.encode(), lun):
            told = _error(library, context)
            if any(word in told for word in _REFUSED):
                raise Denied(f"{portal} does not let {initiator} in: {told}", reason="ISCSI_DENIED")
            raise Unreachable(f"{portal}, LUN {lun}: {told}", reason="ISCSI_UNREACHABLE", retry_after=5.0)
        unit = Unit(library, context, lun)
        unit.measure()
        yield unit
        library.iscsi_logout_sync(context)
    finally:
        library.iscsi_destroy_context(context)


def _answering(portals: Iterable[IscsiPortal], seconds: float) -> IscsiPortal:
    """Libiscsi waits for a connection as long as the kernel does: minutes. So it is tried before."""
    problem = "no portal is named"
    for portal in portals:
        try:
            socket.create_connection((portal.address, portal.port), timeout=seconds).close()
        except OSError as error:
            problem = f"{portal}: {error}"
        else:
            return portal
    raise Unreachable(f"the SAN does not answer: {problem}", reason="ISCSI_UNREACHABLE", retry_after=5.0)


def _prepare(library: Any, context: int, portal: IscsiPortal, chap: Chap | None, seconds: float) -> None:
    # LIO compares the first four bytes alone, and lets no port of an initiator that has a key write if they differ (pr_reg_bin_isid)
    library.iscsi_set_isid_oui(context, _OUI, _OURS | next(_numbers) & (_OURS - 1))
    library.iscsi_set_targetname(context, portal.target.encode())
    library.iscsi_set_session_type(context, _NORMAL_SESSION)
    library.iscsi_set_header_digest(context, _NO_DIGEST)
    library.iscsi_set_noautoreconnect(context, 1)
    library.iscsi_set_timeout(context, max(1, int(seconds)))
    if chap:
        library.iscsi_set_initiator_username_pwd(context, chap.user.encode(), resolve(chap.secret).reveal().encode())
        if chap.target_user:
            library.iscsi_set_target_username_pwd(context, chap.target_user.encode(), resolve(chap.target_secret).reveal().encode())


def _error(library: Any, context: int) -> str:
    return bytes(library.iscsi_get_error(context) or b"it says nothing").decode(errors="replace")


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Precondition(f"{_LIBRARY} is not on this machine: install libiscsi7", reason="LIBISCSI_MISSING") from error
    pointer = ctypes.c_void_p
    library.iscsi_create_context.restype = library.scsi_create_task.restype = library.iscsi_scsi_command_sync.restype = pointer
    library.iscsi_get_error.restype = ctypes.c_char_p
    library.iscsi_set_isid_oui.argtypes = [pointer, ctypes.c_uint32, ctypes.c_uint32]
    for name in ("set_session_type", "set_header_digest", "set_noautoreconnect", "set_timeout"):
        getattr(library, f"iscsi_{name}").argtypes = [pointer, ctypes.c_int]
    library.iscsi_set_targetname.argtypes = [pointer, ctypes.c_char_p]
    for name in ("set_initiator_username_pwd", "set_target_username_pwd"):
        getattr(library, f"iscsi_{name}").argtypes = [pointer, ctypes.c_char_p, ctypes.c_char_p]
    library.iscsi_full_connect_sync.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
    for name in ("iscsi_destroy_context", "iscsi_get_error", "iscsi_logout_sync", "scsi_free_scsi_task"):
        getattr(library, name).argtypes = [pointer]
    library.scsi_create_task.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.scsi_task_add_data_in_buffer.argtypes = [pointer, ctypes.c_int, ctypes.c_char_p]
    library.iscsi_scsi_command_sync.argtypes = [pointer, ctypes.c_int, pointer, pointer]
    library.scsi_task_get_status.argtypes = [pointer, pointer]
    library.iscsi_task_mgmt_lun_reset_sync.argtypes = [pointer, ctypes.c_uint32]
    return library
