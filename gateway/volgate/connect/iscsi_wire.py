"""iSCSI over a socket of our own, as far as it takes to ask a LUN who it is (RFC 7143): log in, some commands, log out.

Every wait has a deadline, and nothing of it is seen by the kernel or by QEMU. The session's ISID is random: one that is in use would
end the session that uses it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Self

from volgate.connection import IscsiPortal
from volgate.errors import Denied, NotFound, Unreachable, VolgateError
from volgate.secret import Secret

__all__ = ["Lun", "Proof", "look"]

_LOGIN, _LOGIN_ANSWER = 0x43, 0x23
_COMMAND, _COMMAND_ANSWER, _DATA_IN = 0x01, 0x21, 0x25
_LOGOUT, _NOP_IN = 0x46, 0x20
_SECURITY, _OPERATIONAL, _FULL = 0, 1, 3
_LAST, _READ, _STATUS_HERE = 0x80, 0x40, 0x01
_HEADER = 48
_MOST = 1 << 20  # bytes of one answer
_ROUNDS = 8  # of a login, and of a command that meets "unit attention"
_MD5 = "5"
_CHECK_CONDITION, _ILLEGAL_REQUEST, _UNIT_ATTENTION = 2, 5, 6
_NO_SUCH_LUN = 0x25
_FLAT_FROM = 256  # smaller numbers are written as a peripheral device of bus 0
_OFFER = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "MaxRecvDataSegmentLength": "65536",
    "MaxConnections": "1",
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxBurstLength": "65536",
    "FirstBurstLength": "65536",
    "MaxOutstandingR2T": "1",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "ErrorRecoveryLevel": "0",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """How initiator and target prove themselves by CHAP; with a `target_user` the target must too."""

    user: str
    secret: Secret
    target_user: str = ""
    target_secret: Secret | None = None


@dataclass(frozen=True, slots=True)
class Lun:
    """What a LUN says of itself: its WWID as multipath writes it, its size in bytes, and whether it is reserved for some."""

    wwid: str
    size: int
    reserved: bool = False


def look(portal: IscsiPortal, lun: int, initiator: str, proof: Proof | None, *, deadline: float) -> Lun:
    """Log in as `initiator`, ask, log out; `deadline` is in monotonic seconds.

    Raises Denied (ISCSI_DENIED), NotFound (ISCSI_TARGET_MISSING), Unreachable (ISCSI_UNREACHABLE, LUN_MISSING).
    """
    try:
        with socket.create_connection((portal.address, portal.port), _left(deadline)) as link:
            session = _Session(portal, link, deadline).login(initiator, proof)
            page = session.read(lun, bytes((0x12, 1, 0x83, 0, 255, 0)), 255)
            capacity = session.read(lun, bytes((0x9E, 0x10)) + bytes(8) + (32).to_bytes(4, "big") + bytes(2), 32)
            reserved = session.read(lun, bytes((0x5E, 1, 0, 0, 0, 0, 0, 0, 255, 0)), 255, or_nothing=True)
            session.logout()
    except (OSError, struct.error) as error:
        told = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise Unreachable(f"{portal} does not answer this host ({told}); look whether it is up", reason="ISCSI_UNREACHABLE") from error
    last, block = struct.unpack_from(">QI", capacity)
    return Lun(_wwid(page), (last + 1) * block, any(reserved[4:8]))  # the length of what it tells of a reservation


class _Session:
    """One session with one connection, and one command at a time."""

    def __init__(self, portal: IscsiPortal, link: socket.socket, deadline: float) -> None:
        self._portal, self._link, self._deadline = portal, link, deadline
        self._isid = b"\x80" + secrets.token_bytes(3) + bytes(2)  # of the random kind
        self._tag, self._command, self._expected = 1, 1, 0
        self._handle = 0

    def login(self, initiator: str, proof: Proof | None) -> Self:
        """Go through both stages. Raises Denied, NotFound, Unreachable."""
        keys = {"InitiatorName": initiator, "TargetName": self._portal.target, "SessionType": "Normal"}
        if proof is None:
            told = self._stage({**keys, "AuthMethod": "None,CHAP"}, _SECURITY, _OPERATIONAL, wanted="CHAP")
            if told.get("AuthMethod") == "CHAP":
                raise self._denied("it wants CHAP")
        else:
            self._stage({**keys, "AuthMethod": "CHAP"}, _SECURITY)
            self._prove(proof)
        self._stage(_OFFER, _OPERATIONAL, _FULL)
        return self

    def read(self, lun: int, command: bytes, size: int, *, or_nothing: bool = False) -> bytes:
        """What a LUN answers to a command that reads; with `or_nothing` it need not know that command.

        Raises Unreachable (LUN_MISSING, ISCSI_UNREACHABLE).
        """
        for _ in range(_ROUNDS):
            data, status, sense = self._ask(lun, command, size)
            if not status:
                return data
            if status != _CHECK_CONDITION or _sense(sense)[0] != _UNIT_ATTENTION:
                break
        if status == _CHECK_CONDITION and _sense(sense)[1] == _NO_SUCH_LUN:
            raise Unreachable(
                f"{self._portal} shows this host no LUN {lun}; look at its access list", reason="LUN_MISSING", retry_after=1.0
            )
        if or_nothing and status == _CHECK_CONDITION and _sense(sense)[0] == _ILLEGAL_REQUEST:
            return b""
        told = f"LUN {lun} of {self._portal} answers with the SCSI status {status:#x}, sense {_sense(sense)}"
        raise Unreachable(f"{told}; look at the target", reason="ISCSI_UNREACHABLE")

    def logout(self) -> None:
        """Say goodbye, and wait until it is heard."""
        self._send(struct.pack(">BB14xIHHII16x", _LOGOUT, _LAST, self._tag + 1, 0, 0, self._command, self._expected))
        self._receive()

    # -- login

    def _prove(self, proof: Proof) -> None:
        asked = self._stage({"CHAP_A": _MD5}, _SECURITY)
        try:
            number, challenge = int(asked["CHAP_I"]), _bytes(asked["CHAP_C"])
        except (KeyError, ValueError):
            raise self._denied("it offers no CHAP with MD5") from None
        answer = {"CHAP_N": proof.user, "CHAP_R": "0x" + _digest(number, proof.secret, challenge).hex()}
        ours = secrets.randbelow(256), secrets.token_bytes(16)
        if proof.target_user:
            answer |= {"CHAP_I": str(ours[0]), "CHAP_C": "0x" + ours[1].hex()}
        told = self._stage(answer, _SECURITY, _OPERATIONAL)
        if proof.target_user:
            wanted = _digest(ours[0], proof.target_secret or Secret(""), ours[1])
            proven = hmac.compare_digest(_bytes(told.get("CHAP_R", "0x")), wanted)
            if told.get("CHAP_N") != proof.target_user or not proven:
                raise self._denied("the target does not prove itself")

    def _stage(self, keys: dict[str, str], stage: int, following: int | None = None, *, wanted: str = "") -> dict[str, str]:
        """Send keys, and again nothing until the target goes on to the next stage, if one is asked for; return what it said.

        A target that chooses the method `wanted` goes nowhere without it.
        """
        found: dict[str, str] = {}
        data = b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())
        for _ in range(_ROUNDS):
            flags = stage << 2 | (_LAST | following if following is not None else 0)
            header = struct.pack(">BBBBI6sHIHHII16x", _LOGIN, flags, 0, 0, len(data), self._isid, self._handle, 1, 0, 0, 1, self._expected)
            self._send(header, data)
            answer, text = self._receive()
            if answer[0] & 0x3F != _LOGIN_ANSWER:
                raise Unreachable(f"{self._portal} does not speak iSCSI", reason="ISCSI_UNREACHABLE")
            self._refuse(answer[36], answer[37])
            self._handle = struct.unpack_from(">H", answer, 14)[0]
            found |= dict(part.split("=", 1) for part in text.decode(errors="replace").split("\0") if "=" in part)
            if following is None or answer[1] & _LAST or (wanted and found.get("AuthMethod") == wanted):
                return found
            data = b""
        raise Unreachable(f"{self._portal} does not end the login", reason="ISCSI_UNREACHABLE")

    def _refuse(self, kind: int, detail: int) -> None:
        if not kind:
            return
        told = f"{self._portal} refuses the login ({kind:#04x}{detail:02x})"
        if (kind, detail) in ((2, 1), (2, 2)):
            raise self._denied(f"it refuses the login ({kind:#04x}{detail:02x})")
        if (kind, detail) == (2, 3):
            raise NotFound(f"{self._portal} knows no such target", reason="ISCSI_TARGET_MISSING")
        raise Unreachable(f"{told}; look at the target", reason="ISCSI_UNREACHABLE")

    def _denied(self, why: str) -> VolgateError:
        return Denied(f"{self._portal}: {why}; compare its access list and CHAP with what this host has", reason="ISCSI_DENIED")

    # -- packets

    def _ask(self, lun: int, command: bytes, size: int) -> tuple[bytes, int, bytes]:
        """The data, the SCSI status, and the sense data of a command."""
        self._tag += 1
        place = struct.pack(">H6x", lun if lun < _FLAT_FROM else 0x4000 | lun)
        packed = struct.pack(">BBxxI8sIIII", _COMMAND, _LAST | _READ | 1, 0, place, self._tag, size, self._command, self._expected)
        self._send(packed + command.ljust(16, b"\0"))
        self._command += 1
        data = bytearray()
        while True:
            header, segment = self._receive()
            kind = header[0] & 0x3F
            if kind == _DATA_IN:
                data += segment
                if header[1] & _STATUS_HERE:
                    return bytes(data), header[3], b""
            elif kind == _COMMAND_ANSWER:
                return bytes(data), header[3], segment[2:]
            elif kind != _NOP_IN:
                raise Unreachable(f"{self._portal} answers a command with {kind:#x}", reason="ISCSI_UNREACHABLE")

    def _send(self, header: bytes, data: bytes = b"") -> None:
        self._link.settimeout(_left(self._deadline))
        self._link.sendall(header + data + bytes(-len(data) % 4))

    def _receive(self) -> tuple[bytes, bytes]:
        header = self._exactly(_HEADER)
        length = int.from_bytes(header[5:8], "big")
        if length > _MOST:
            raise OSError(f"an answer of {length} bytes")
        rest = self._exactly(header[4] * 4 + length + -length % 4)
        if header[0] & 0x3F in (_LOGIN_ANSWER, _COMMAND_ANSWER) or (header[0] & 0x3F == _DATA_IN and header[1] & _STATUS_HERE):
            self._expected = (struct.unpack_from(">I", header, 24)[0] + 1) & 0xFFFFFFFF
        return header, rest[header[4] * 4 :][:length]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._link.settimeout(_left(self._deadline))
            part = self._link.recv(size - len(data))
            if not part:
                raise OSError("it hangs up")
            data += part
        return data


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())


def _digest(number: int, secret: Secret, challenge: bytes) -> bytes:
    return hashlib.md5(bytes((number & 0xFF,)) + secret.reveal().encode() + challenge).digest()  # noqa: S324  # what CHAP is


def _bytes(text: str) -> bytes:
    """A number as CHAP writes it, in hex. Raises ValueError."""
    if not text.lower().startswith("0x"):
        raise ValueError(text)
    digits = text[2:]
    return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)


def _sense(data: bytes) -> tuple[int, int]:
    """The key, and the additional code."""
    data = data.ljust(13, b"\0")
    if data[0] & 0x7F in (0x72, 0x73):
        return data[1] & 0xF, data[2]
    return data[2] & 0xF, data[12]


def _wwid(page: bytes) -> str:
    """The name of the device in its page 0x83, chosen and written as multipath does; "" if it has none."""
    found: dict[int, bytes] = {}
    place, end = 4, min(len(page), 4 + int.from_bytes(page[2:4], "big"))
    while place + 4 <= end:
        kind, association, length = page[place + 1] & 0xF, page[place + 1] >> 4 & 3, page[place + 3]
        name = page[place + 4 : place + 4 + length]
        if association == 0 and len(name) == length and length > len(found.get(kind, b"")):
            found[kind] = name
        place += 4 + length
    for kind in (3, 2):
        if kind in found:
            return f"{kind}{found[kind].hex()}"
    return f"1{found[1].decode(errors='replace').strip()}" if 1 in found else ""
