"""Keeping a host out of a LUN of somebody's SAN: by SCSI-3 persistent reservations, given from this process.

A LUN is reserved for all who have a key there (write exclusive, all registrants: what hosts make of a LUN that they share), and the host
has none. The reservation stays while anybody has a key, and ours is left there: no session of ours is needed, nor any machine's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from volgate.errors import Precondition, Unreachable, Unsupported
from volgate_plugins.iscsi.initiator import Refused, Unit

__all__ = ["Keys", "admitted", "forget_all", "keep_out", "let_in"]

_IN, _OUT = 0x5E, 0x5F
_READ_KEYS, _READ_RESERVATION = 0, 1
_RESERVE, _CLEAR, _PREEMPT_AND_ABORT, _REGISTER_ANYWAY = 1, 3, 5, 6
_ALL_REGISTRANTS = 7
_OUTLIVES_POWER = 1  # APTPL: the array keeps it over a power cut
_ANSWER = 8192  # bytes: a thousand keys


@dataclass(frozen=True, slots=True)
class Keys:
    """Ours: `fence` stays at LUNs that somebody is kept out of, `work` is there while this gateway writes."""

    fence: int
    work: int

    @classmethod
    def of(cls, instance: str) -> Keys:
        """Those of a gateway, by its id."""
        return cls(
            *(int.from_bytes(hashlib.sha256(f"volgate {use} {instance}".encode()).digest()[:8], "big") or 1 for use in ("fence", "work"))
        )


def keep_out(unit: Unit, keys: Keys, theirs: int, doing: str) -> None:
    """Have it proven that whoever has the key `theirs` (0: it is not known), or none, writes nothing any more. Idempotent.

    What it has under way is aborted. Raises Precondition (RESERVED: in another manner), Unreachable (FENCE_UNPROVEN), Unsupported
    (NO_RESERVATIONS).
    """
    before = _registered(unit)
    _register(unit, keys.fence)
    try:
        _reserve(unit, keys.fence, doing)
        if theirs in before:
            _out(unit, _PREEMPT_AND_ABORT, keys.fence, theirs)
        else:
            unit.reset()  # without a key it had no conflict until now: what it has under way may be carried out yet
    finally:
        if keys.fence in before:  # of an earlier session, and it stays: a SAN has room for so many only
            _register(unit, 0)
    now = _registered(unit)
    if theirs in now or keys.fence not in now or _kind(unit) != _ALL_REGISTRANTS:
        told = f"{doing}: the host is not proven to be kept out (keys {_shown(now)}); repeat the call"
        raise Unreachable(told, reason="FENCE_UNPROVEN", retry_after=1.0)


def let_in(unit: Unit, keys: Keys) -> None:
    """Let those without a key write again, if nobody is left who has one. Where hosts have the LUN by their keys, it stays as it is."""
    with suppress(Unsupported):
        if not {*_registered(unit)} - {keys.fence, keys.work}:
            forget_all(unit, keys)


def forget_all(unit: Unit, keys: Keys) -> None:
    """Take every key and the reservation away, if it has any: nobody has the LUN any more."""
    with suppress(Unsupported):
        if _registered(unit):
            _register(unit, keys.work)
            _out(unit, _CLEAR, keys.work, 0)


@contextmanager
def admitted(unit: Unit, keys: Keys, *, ours: bool, doing: str) -> Iterator[None]:
    """Write to a LUN that is reserved, perhaps. `ours`: it is a volume, so that whoever reserved it was a host of it.

    Raises Precondition (RESERVED: by somebody that we know nothing of).
    """
    if not _is_reserved(unit):
        yield
        return
    known = _registered(unit)
    if not ours and keys.fence not in known:
        told = f"{doing}: LUN {unit.identity()} is reserved by somebody who is no host of a volume (keys {_shown(known)}); nothing was done"
        raise Precondition(f"{told}: look who uses it, and take it out of the settings, or let it be released", reason="RESERVED")
    _register(unit, keys.work)
    try:
        yield
    finally:
        _register(unit, 0)


def _reserve(unit: Unit, key: int, doing: str) -> None:
    try:
        _out(unit, _RESERVE, key, 0)
    except Precondition as error:
        if error.reason != "RESERVED":
            raise
        told = f"{doing}: it is reserved in another manner (type {_kind(unit)}, keys {_shown(_registered(unit))})"
        raise Precondition(f"{told}; let whoever did it release it, and repeat the call", reason="RESERVED") from error


def _register(unit: Unit, key: int) -> None:
    """Give this session a key in place of any that it has; 0 takes it away."""
    _out(unit, _REGISTER_ANYWAY, 0, key)


def _out(unit: Unit, action: int, mine: int, other: int) -> None:
    parameters = struct.pack(">QQ4xBxH", mine, other, _OUTLIVES_POWER if action == _REGISTER_ANYWAY else 0, 0)
    unit.command(struct.pack(">BBB2xIB", _OUT, action, _ALL_REGISTRANTS, len(parameters), 0), writes=parameters)


def _registered(unit: Unit) -> list[int]:
    """Every key, once for each session that it is registered by."""
    told = _in(unit, _READ_KEYS)
    length = int.from_bytes(told[4:8], "big")
    return [key for (key,) in struct.iter_unpack(">Q", told[8 : 8 + min(length, _ANSWER - 8) // 8 * 8])]


def _kind(unit: Unit) -> int | None:
    """What it is reserved for, as SCSI numbers it; None if it is not."""
    told = _in(unit, _READ_RESERVATION)
    return told[21] & 0x0F if int.from_bytes(told[4:8], "big") else None


def _is_reserved(unit: Unit) -> bool:
    try:
        return _kind(unit) is not None
    except Unsupported:
        return False


def _in(unit: Unit, action: int) -> bytes:
    try:
        return unit.command(struct.pack(">BB5xHB", _IN, action, _ANSWER, 0), reads=_ANSWER)
    except Refused as error:
        if not error.unknown:
            raise
        told = f"LUN {unit.identity()} knows no persistent reservations; use a SAN that has them"
        raise Unsupported(told, reason="NO_RESERVATIONS") from error


def _shown(keys: list[int]) -> str:
    return ", ".join(f"{key:#x}" for key in sorted({*keys})) or "none"
