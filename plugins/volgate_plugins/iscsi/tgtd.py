"""Tgtd, the target of user space, by its own socket: one request and one answer for each connection, as tgtadm sends them.

A secret travels in the body of a request, and in no argument. tgtd is one for all pools and people: it forgets everything when it ends.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from volgate.errors import Unreachable

__all__ = ["Mode", "Op", "Refused", "Seen", "Session", "Tgtd", "despite"]

_REQUEST, _ANSWER = struct.Struct("=ii64sIiQQ6I"), struct.Struct("=II")
_DRIVER, _EVERY = b"iscsi", -1
_MOST = 256 << 20  # bytes of an answer
_WORDS = (
    *("done", "an error without a name", "no memory", "no such driver", "no such target", "no such unit", "no such session"),
    *("no such connection", "no such binding", "the target exists", "the unit exists", "the binding exists", "the entry exists"),
    *("no such entry", "the account exists", "no such account", "too many accounts", "it makes no sense", "another account is there"),
    *("the target is in use", "the unit is in use", "the driver is in use", "it is not supported", "a parameter is not known"),
)


class Mode(IntEnum):
    """What a request is about."""

    TARGET = 1
    UNIT = 2
    PORTAL = 3
    CONNECTION = 6
    ACCOUNT = 7


class Op(IntEnum):
    """What is to be done."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Refused(Exception):
    """Tgtd says no; `code` is why."""

    NO_TARGET, NO_UNIT, NO_SESSION, NO_CONNECTION = 4, 5, 6, 7
    TARGET_EXISTS, ENTRY_EXISTS, NO_ENTRY, ACCOUNT_EXISTS, NO_ACCOUNT = 9, 12, 13, 14, 15
    OUTGOING_EXISTS, TARGET_ACTIVE, UNIT_ACTIVE = 18, 19, 20

    def __init__(self, code: int) -> None:
        """Say it in words."""
        super().__init__(_WORDS[code] if code < len(_WORDS) else f"error {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Session:
    """Who is logged in, by which connection."""

    handle: int
    connection: int
    initiator: str
    address: str


@dataclass(slots=True)
class Seen:
    """A target as tgtd tells of it; of its units the one that was asked for.

    `users` come in by CHAP, in their order; `outgoing` proves the target.
    """

    number: int
    name: str
    state: str = ""
    sessions: list[Session] = field(default_factory=list)
    unit: dict[str, str] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    outgoing: str = ""
    names: set[str] = field(default_factory=set)


class Tgtd:
    """Any thread. Every request ends by its deadline (monotonic seconds)."""

    def __init__(self, path: str) -> None:
        """`path` is its socket."""
        self._path = path

    def ask(
        self,
        mode: Mode,
        op: Op,
        body: str = "",
        *,
        deadline: float,
        target: int = 0,
        unit: int = 0,
        session: Session | None = None,
        outgoing: bool = False,
    ) -> str:
        """Make a request; return what tgtd tells. Raises Refused, Unreachable (TGT_DOWN): whether it was carried out is not known then."""
        data = body.encode() + b"\0" if body else b""
        handle, connection = (session.handle, session.connection) if session else (0, 0)
        head = _REQUEST.pack(mode, op, _DRIVER, _REQUEST.size + len(data), target, handle, unit, connection, 0, 0, int(outgoing), 0, 0)
        try:
            with socket.socket(socket.AF_UNIX) as link:
                _within(link, deadline)
                link.connect(self._path)
                link.sendall(head + data)
                code, length = _ANSWER.unpack(_exactly(link, _ANSWER.size, deadline))
                if code:
                    raise Refused(code)
                return _exactly(link, length - _ANSWER.size, deadline).rstrip(b"\0").decode(errors="replace")
        except OSError as error:
            why = "it does not answer in time" if isinstance(error, TimeoutError) else str(error)
            told = f"tgtd at {self._path}: {why}; see that it runs (systemctl status tgt), as the user that the gateway runs as"
            raise Unreachable(told, reason="TGT_DOWN", retry_after=5.0) from error

    def targets(self, unit: int, *, deadline: float) -> dict[str, Seen]:
        """Every target by name, with what it says of its unit of that number."""
        return {found.name: found for found in _read(self.ask(Mode.TARGET, Op.SHOW, target=_EVERY, deadline=deadline), unit)}

    def accounts(self, *, deadline: float) -> set[str]:
        """The names of all accounts; they are common to all targets."""
        return {line.strip() for line in self.ask(Mode.ACCOUNT, Op.SHOW, deadline=deadline).splitlines() if line.startswith(" ")}

    def portals(self, *, deadline: float) -> set[tuple[str, int]]:
        """Where it listens: address and port."""
        told = self.ask(Mode.PORTAL, Op.SHOW, deadline=deadline)
        return {(address.strip("[]"), int(port)) for address, port in re.findall(r"^Portal: (\S+):(\d+),", told, re.MULTILINE)}


def _within(link: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)


def _exactly(link: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    if size > _MOST:
        raise OSError(f"an answer of {size} bytes")
    while len(data) < size:
        _within(link, deadline)
        part = link.recv(min(size - len(data), 1 << 16))
        if not part:
            raise ConnectionResetError("it hangs up: it answers its own user alone")
        data += part
    return bytes(data)


def _read(told: str, unit: int) -> Iterator[Seen]:
    """Each block of the listing is a target; what it says stands under headings, deeper in."""
    for block in re.split(r"^(?=Target \d+: )", told, flags=re.MULTILINE):
        lines = block.splitlines()
        if not lines:
            continue
        number, _, name = lines[0].removeprefix("Target ").partition(": ")
        parts: dict[str, list[str]] = {}
        heading = ""
        for line in lines[1:]:
            if re.match(r" {4}\S", line):
                heading = line.strip().removesuffix(" information:")
            else:
                parts.setdefault(heading, []).append(line)
        yield _target(Seen(int(number), name), parts, unit)


def _target(found: Seen, parts: dict[str, list[str]], unit: int) -> Seen:
    found.state = dict(_pairs(parts.get("System", []))).get("State", "")
    found.names = {line.strip() for line in parts.get("ACL", [])}
    accounts = [line.strip() for line in parts.get("Account", [])]
    found.outgoing = next((name.removesuffix(" (outgoing)") for name in accounts if name.endswith(" (outgoing)")), "")
    found.users = [name for name in accounts if not name.endswith(" (outgoing)")]
    for key, lines in _blocks(parts.get("I_T nexus", []), "I_T nexus"):
        of = dict(_pairs(lines))
        name = of.get("Initiator", "").partition(" alias: ")[0]
        found.sessions.append(Session(int(key), int(of.get("Connection", 0)), name, of.get("IP Address", "")))
    found.unit = next((dict(_pairs(lines)) for key, lines in _blocks(parts.get("LUN", []), "LUN") if int(key) == unit), {})
    return found


def _blocks(lines: list[str], word: str) -> Iterator[tuple[str, list[str]]]:
    """What stands under each line `word: NUMBER`."""
    begins = [place for place, line in enumerate(lines) if line.strip().startswith(f"{word}: ")]
    for place, end in zip(begins, [*begins, len(lines)][1:], strict=True):
        yield lines[place].strip().removeprefix(f"{word}: "), lines[place + 1 : end]


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, mark, value = line.strip().partition(": ")
        if mark:
            yield key, value


@contextlib.contextmanager
def despite(*codes: int) -> Iterator[None]:
    """Take a refusal for success that says it is so already."""
    try:
        yield
    except Refused as error:
        if error.code not in codes:
            raise
