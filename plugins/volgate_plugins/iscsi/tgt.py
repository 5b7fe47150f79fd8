"""Targets of tgtd, in user space: each volume a target with that one unit. For machines without the kernel's target.

Every method looks at what is there and does what is missing, so that it may have died anywhere before, and tgtd as well. What does not
bear the name of a volume of ours is never touched. Callers have the unit's turn.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator

from volgate.backend.files import opened
from volgate.errors import Denied, Precondition, Unreachable, VolgateError, translate
from volgate_plugins.iscsi.accounts import Accounts, Turn
from volgate_plugins.iscsi.identity import LUN, Unit
from volgate_plugins.iscsi.settings import IscsiSettings
from volgate_plugins.iscsi.tgtd import Mode, Op, Refused, Seen, Tgtd, despite

__all__ = ["Tgt"]

_ID, _SERIAL, _PATH, _ONLINE, _READ_ONLY = "SCSI ID", "SCSI SN", "Backing store path", "Online", "Readonly"
_OF_SERIAL = 20  # digits; behind them the size as tgtd opened it, which it tells nowhere else
_READY, _OFFLINE = "ready", "offline"
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  # looked for, not listened at
_PAUSE = 0.05
_LOOK_SECONDS = 5.0
_FRESH_SECONDS = 1.0  # a listing is of all targets: many questions about sizes are one listing
_NUMBERS = 1 << 30


class Tgt:
    """The targets of one pool."""

    def __init__(self, settings: IscsiSettings, pool: str, turn: Turn) -> None:
        """Ask nothing yet: tgtd may come later."""
        self._settings, self._tgtd = settings, Tgtd(settings.tgtd)
        self._accounts = Accounts(self._tgtd, settings, pool, turn)
        self._prefix = Unit.of("0" * 32, settings.iqn, pool).target.removesuffix("00000000-0000-0000-0000-000000000000")
        self._listed: tuple[float, dict[str, Seen], set[str]] = (0.0, {}, set())

    def lacks(self) -> list[str]:
        """Nothing: tgtd keeps registrations in its memory."""
        return []

    def put(self, unit: Unit, initiators: Iterable[str], source: Callable[[], str], *, anew: bool = False) -> None:
        """Have the unit reachable by these initiators and no others; `source` tells the path of its file or device, if that is needed.

        `anew`: nobody may be left who began to log in before. tgtd asks its list when a login begins, and finds the target by its number
        when it ends: a target of another number is another one. Whoever stays logs in again.

        Raises Unreachable (TGT_DOWN), Precondition (TGT_ACCOUNT_TAKEN), InvalidRequest, Denied.
        """
        with self._changing(f"publish {unit.target}") as deadline:
            self._listen(deadline)
            seen = self._find(unit, deadline)
            if seen is None or anew or not _whole(unit, seen) or not self._accounts.fit(seen):
                self._withdraw(seen, deadline)
                seen = self._make(unit, source(), deadline)
            self._accounts.bind(seen, lambda: self._ours(deadline), deadline=deadline)
            self._admit(seen, {*initiators}, deadline)
            self._state(seen, _READY, deadline)

    def remove(self, unit: Unit) -> None:
        """Take all of the unit away, with the sessions that there are; success if nothing is there. Raises Unreachable."""
        with self._changing(f"withdraw {unit.target}") as deadline:
            self._withdraw(self._find(unit, deadline), deadline)

    def initiators(self, unit: Unit) -> set[str]:
        """Those that reach the unit now: none if it is not wholly there. Raises Unreachable."""
        with _told(f"look at {unit.target}"):
            return _admitted(unit, self._find(unit, _soon()))

    def stands(self, unit: Unit, initiators: Iterable[str]) -> bool:
        """Whether the unit is reachable by these initiators alone, with the secrets of now. Raises Unreachable, InvalidRequest."""
        with _told(f"look at {unit.target}"):
            listed, accounts = self._listing(_soon())
            seen = listed.get(unit.target)
            if seen is None or not self._accounts.stand(seen, accounts):
                return False
            return _admitted(unit, seen) == {*initiators} and not self._unheard(_soon())

    def sessions(self, unit: Unit) -> Iterator[tuple[str, str]]:
        """Initiator and address of each that is logged in. Raises Unreachable."""
        with _told(f"look at {unit.target}"):
            seen = self._find(unit, _soon())
        yield from ((one.initiator, one.address) for one in seen.sessions) if seen else ()

    def size(self, unit: Unit) -> int:
        """What hosts are told that the unit has, bytes; 0 if it is not there: also where tgtd is not, for it opens what there is then."""
        try:
            seen = self._listing(_soon())[0].get(unit.target)
        except (Unreachable, Refused):
            self._listed = (time.monotonic() + _LOOK_SECONDS, {}, set())
            return 0
        return _size(seen) if seen else 0

    def grow(self, unit: Unit) -> None:
        """Have the unit look how large what lies below it is; nothing to do if it is not there.

        tgtd looks when it opens: its sessions end for that, once what they have under way is done, and hosts log in again at once. Raises
        Unreachable: it keeps its size.
        """
        with self._changing(f"grow {unit.target}") as deadline:
            seen = self._find(unit, deadline)
            if seen is None or not _whole(unit, seen) or _length(seen.unit[_PATH]) <= _size(seen):
                return
            try:
                self._empty(seen, lambda _session: True, deadline)
            except VolgateError:
                self._state(seen, _READY, _soon())
                raise
            with despite(Refused.NO_UNIT):
                self._tgtd.ask(Mode.UNIT, Op.DELETE, target=seen.number, unit=LUN, deadline=deadline)
            self._open(unit, seen, seen.unit[_PATH], deadline)  # until then it stays offline: hosts wait, and the next check makes it whole
            self._state(seen, _READY, deadline)

    # -- inside

    @contextlib.contextmanager
    def _changing(self, doing: str) -> Iterator[float]:
        """Give the deadline of a change; what was listed before it is not believed after it."""
        try:
            with _told(doing):
                yield time.monotonic() + self._settings.seconds
        finally:
            self._listed = (0.0, {}, set())

    def _find(self, unit: Unit, deadline: float) -> Seen | None:
        return self._tgtd.targets(LUN, deadline=deadline).get(unit.target)

    def _ours(self, deadline: float) -> list[Seen]:
        return [seen for name, seen in self._tgtd.targets(LUN, deadline=deadline).items() if name.startswith(self._prefix)]

    def _listing(self, deadline: float) -> tuple[dict[str, Seen], set[str]]:
        """All targets and accounts, as they were a moment ago."""
        if self._listed[0] < time.monotonic():
            found = self._tgtd.targets(LUN, deadline=deadline), self._tgtd.accounts(deadline=deadline)
            self._listed = (time.monotonic() + _FRESH_SECONDS, *found)
        return self._listed[1:]

    def _unheard(self, deadline: float) -> list[str]:
        """The portals of the settings that tgtd does not listen at."""
        heard = self._tgtd.portals(deadline=deadline)
        wanted = {way.place: (way.address, way.port) for way in self._settings.ways("")}
        return [place for place, (address, port) in wanted.items() if not any((one, port) in heard for one in {address, *_WILDCARDS})]

    def _listen(self, deadline: float) -> None:
        for place in self._unheard(deadline):
            try:
                self._tgtd.ask(Mode.PORTAL, Op.NEW, f"portal={place}", deadline=deadline)
            except Refused as error:
                told = f"tgtd cannot listen at {place}: {error}; is the address on this machine, and the port free?"
                raise Unreachable(told, reason="TGT_DOWN", retry_after=5.0) from error

    def _make(self, unit: Unit, source: str, deadline: float) -> Seen:
        """A target that lets nobody in. Its number is drawn: a login that began at an earlier one never ends at this one."""
        while True:
            number = 1 + secrets.randbelow(_NUMBERS)
            try:
                self._tgtd.ask(Mode.TARGET, Op.NEW, f"targetname={unit.target}", target=number, deadline=deadline)
            except Refused as error:
                if error.code != Refused.TARGET_EXISTS:
                    raise
            else:
                break
        made = Seen(number, unit.target, _READY)
        self._open(unit, made, source, deadline)
        seen = self._find(unit, deadline)
        if seen is None or not _whole(unit, seen):
            self._withdraw(seen, deadline)
            told = f"tgtd cannot open {source} for writing; let the user that it runs as read and write it"
            raise Denied(told)
        return seen

    def _open(self, unit: Unit, seen: Seen, source: str, deadline: float) -> None:
        """Give a target its unit, with our name and the size that it has at least."""
        if "," in source:
            raise Precondition(f"tgtd takes no path with a comma: {source}; give the pool another directory")
        serial = f"{unit.serial[:_OF_SERIAL]}{_length(source):016x}"
        self._tgtd.ask(Mode.UNIT, Op.NEW, f"path={source},bstype=rdwr", target=seen.number, unit=LUN, deadline=deadline)
        named = f"scsi_id={unit.wwid[1:]},scsi_sn={serial}"
        self._tgtd.ask(Mode.UNIT, Op.UPDATE, named, target=seen.number, unit=LUN, deadline=deadline)

    def _admit(self, seen: Seen, wanted: set[str], deadline: float) -> None:
        """Let these initiators in, and no others; return once nothing of the others is under way any more."""
        for name in sorted(seen.names - wanted):
            self._refuse(seen, name, deadline)
        if any(session.initiator not in wanted for session in seen.sessions):
            self._end(seen, lambda name: name not in wanted, deadline)
        for name in sorted(wanted - seen.names):
            with despite(Refused.ENTRY_EXISTS):
                self._tgtd.ask(Mode.TARGET, Op.BIND, f"initiator-name={name}", target=seen.number, deadline=deadline)

    def _refuse(self, seen: Seen, name: str, deadline: float) -> None:
        """Take an entry of the list away, be it a name or an address."""
        for kind in ("initiator-name", "initiator-address"):
            with despite(Refused.NO_ENTRY, Refused.NO_TARGET):
                self._tgtd.ask(Mode.TARGET, Op.UNBIND, f"{kind}={name}", target=seen.number, deadline=deadline)

    def _empty(self, seen: Seen, of: Callable[[str], bool], deadline: float) -> None:
        """Take no logins and no commands any more, and end the sessions of these."""
        self._state(seen, _OFFLINE, deadline)
        self._end(seen, of, deadline)

    def _end(self, seen: Seen, of: Callable[[str], bool], deadline: float) -> None:
        """End sessions; return when they are gone, which they are once nothing of them is under way."""
        while True:
            found = self._tgtd.targets(LUN, deadline=deadline).get(seen.name)
            left = [session for session in found.sessions if of(session.initiator)] if found else []
            if not left:
                return
            if time.monotonic() > deadline:
                told = f"{seen.name}: a command of {left[0].initiator} does not end; what lies below does not answer, repeat the call"
                raise Unreachable(told, reason="TARGET_BUSY", retry_after=5.0)
            for session in left:
                with despite(Refused.NO_SESSION, Refused.NO_CONNECTION, Refused.NO_TARGET):
                    self._tgtd.ask(Mode.CONNECTION, Op.DELETE, target=seen.number, session=session, deadline=deadline)
            time.sleep(_PAUSE)

    def _withdraw(self, seen: Seen | None, deadline: float) -> None:
        """Never by force: tgtd ends itself where a session outlives its target."""
        if seen is None:
            return
        for name in sorted(seen.names):
            self._refuse(seen, name, deadline)
        while True:
            self._empty(seen, lambda _session: True, deadline)
            try:
                with despite(Refused.NO_TARGET):
                    self._tgtd.ask(Mode.TARGET, Op.DELETE, target=seen.number, deadline=deadline)
            except Refused as error:
                if error.code not in (Refused.TARGET_ACTIVE, Refused.UNIT_ACTIVE) or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def _state(self, seen: Seen, state: str, deadline: float) -> None:
        with despite(Refused.NO_TARGET):
            self._tgtd.ask(Mode.TARGET, Op.UPDATE, f"state={state}", target=seen.number, deadline=deadline)


def _whole(unit: Unit, seen: Seen) -> bool:
    """Whether a target has its unit, open for writing, under our name."""
    of = seen.unit
    named = of.get(_ID) == unit.wwid[1:] and of.get(_SERIAL, "").startswith(unit.serial[:_OF_SERIAL])
    return named and of.get(_ONLINE) == "Yes" and of.get(_READ_ONLY) == "No"


def _admitted(unit: Unit, seen: Seen | None) -> set[str]:
    return seen.names if seen and seen.state == _READY and _whole(unit, seen) else set()


def _size(seen: Seen) -> int:
    try:
        return int(seen.unit.get(_SERIAL, "")[_OF_SERIAL:], 16)
    except ValueError:
        return 0


def _length(path: str) -> int:
    with opened(os.path.realpath(path), os.O_RDONLY) as descriptor:
        return os.lseek(descriptor, 0, os.SEEK_END)


def _soon() -> float:
    return time.monotonic() + _LOOK_SECONDS


@contextlib.contextmanager
def _told(doing: str) -> Iterator[None]:
    """Say what was being done."""
    try:
        with translate(doing):
            yield
    except Refused as error:
        raise Unreachable(f"{doing}: tgtd says: {error}; repeat the call", reason="TGT_DOWN", retry_after=1.0) from error
