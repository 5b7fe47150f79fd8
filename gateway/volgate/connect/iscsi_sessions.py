"""Sessions of open-iscsi: told by the kernel, begun and ended by its own tool, one for each target and portal.

A session is ours if this host began it, which a file below /run says: it ends with the host's boot, as sessions do.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from volgate.backend.run import Completed, run
from volgate.connect.iscsi_records import OURS, RECORDS, drop, mark_of, of_portal, rewrite
from volgate.connect.scsi import SYS, Address
from volgate.connection import Chap, IscsiPortal
from volgate.errors import Denied, NotFound, Precondition, Unreachable, VolgateError, translate
from volgate.secret import Secret

__all__ = ["OURS", "RECORDS", "Session", "Sessions"]

_LOGIN_SECONDS = 10
_LATE_SECONDS = 25.0  # iscsid has given a login up by then, also on a machine that is busy
_LISTEN_SECONDS = 3.0
_FAST_ENOUGH = {  # so that a dead path is told to multipath in seconds, and a login that cannot be ends
    "node.startup": "manual",  # a session of a volume that was detached must not come back with the next boot
    "node.session.scan": "manual",  # else every LUN of the target comes in
    "node.session.timeo.replacement_timeout": "5",
    "node.conn[0].timeo.noop_out_interval": "2",
    "node.conn[0].timeo.noop_out_timeout": "3",
    "node.conn[0].timeo.login_timeout": str(_LOGIN_SECONDS),
    "node.conn[0].timeo.logout_timeout": "5",
    "node.session.initial_login_retry_max": "1",
}
_TIMED_OUT, _REFUSED = 8, 24
_SILENT = (4, _TIMED_OUT, 11)
_NO_DAEMON = (18, 20)
_DATA_BASE = (6, 28, 29)
_TRIES = 5
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Session:
    """One session: its number, its target and portal, and the kernel's word for how it is (`LOGGED_IN`, `FAILED`, `FREE`)."""

    number: int
    portal: IscsiPortal
    host: int
    state: str
    initiator: str

    @property
    def failed(self) -> bool:
        """Whether it is over, or has not come back in time since its connection broke; that is looked up."""
        try:
            return _read(SYS / f"class/iscsi_session/session{self.number}/state") == "FREE"
        except OSError:
            return True

    def devices(self) -> list[Address]:
        """The SCSI devices that came through it; none of one that has ended. Raises OSError: it is just changing."""
        folder = SYS / f"class/iscsi_session/session{self.number}/device"
        for left in reversed(range(_TRIES)):
            try:
                return sorted(Address.parse(path.name) for path in folder.glob("target*/*:*:*:*"))
            except OSError:  # a device, or all of it, went while it was listed
                if not folder.exists():
                    return []
                if not left:
                    raise
                time.sleep(_LOOK_SECONDS)
        return []


class Sessions:
    """The sessions of this host. Blocking; one call at a time for each target is the caller's to keep."""

    def all(self) -> Iterator[Session]:
        """Every session that the kernel has, ours or not."""
        for folder in (SYS / "class/iscsi_session").glob("session*"):
            if (found := _settled_session(folder)) is not None:
                yield found

    def find(self, portal: IscsiPortal) -> Session | None:
        """The session with a target by a portal."""
        return next((session for session in self.all() if session.portal == portal), None)

    def stands(self, portal: IscsiPortal) -> bool:
        """Whether there is a session by a portal, and it works, as far as the kernel knows."""
        found = self.find(portal)
        return found is not None and found.state == "LOGGED_IN"

    def settled(self, portal: IscsiPortal, *, timeout: float) -> list[Session]:
        """The sessions by a portal, all of them. iscsid goes on with a login whose caller died: that one is waited for.

        Raises Unreachable if it is not over in `timeout` seconds.
        """
        mark, until = mark_of(portal), time.monotonic() + timeout
        while not (found := [session for session in self.all() if session.portal == portal]):
            try:
                late = mark.stat().st_mtime + _LATE_SECONDS < time.time()
            except FileNotFoundError:
                return []
            if late:
                self.forget(portal)
                return []
            if time.monotonic() > until:
                raise Unreachable(f"a login to {portal} that was given up may still succeed; repeat the call", retry_after=1.0)
            time.sleep(_LOOK_SECONDS)
        return found

    def begin(self, portal: IscsiPortal, chap: Chap | None, secrets: Mapping[str, Secret], *, timeout: float) -> Session:
        """Log in, or take the session that is there.

        `secrets`: those that `chap` refers to; they go into open-iscsi's own record, mode 0600, and into nothing else.
        Raises Denied (ISCSI_DENIED), NotFound (ISCSI_TARGET_MISSING), Unreachable (ISCSI_UNREACHABLE), Precondition (NO_ISCSID).
        """
        if (found := self.find(portal)) is not None:
            return found
        doing = f"log in to {portal}"
        _require_listening(portal, min(_LISTEN_SECONDS, timeout), doing)
        record = self._record(portal, timeout)
        with translate(doing):
            rewrite(record, _settings(chap, secrets))
            mark_of(portal).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark_of(portal).write_text(f"{portal}\n", encoding="ascii")  # before the login: what this process begins and dies on is ours
        done = _iscsiadm(portal, "--login", timeout=timeout)
        found = self.find(portal)
        if found is None and done.timed_out:  # iscsid goes on with it: `settled` knows it by its mark
            raise _refusal(done, doing)
        if found is None:
            self.forget(portal)
            if done.returncode == _TIMED_OUT and not _is_shown(portal, timeout):  # open-iscsi tries a target that is not there until then
                told = f"{doing}: the portal shows this host no such target; correct its name, or its access list"
                raise NotFound(told, reason="ISCSI_TARGET_MISSING")
            raise _refusal(done, doing)
        return found

    def end(self, session: Session, *, timeout: float) -> bool:
        """Log out of a session of ours that has no device left; say whether it is over. One of others, or in use, goes on."""
        if not mark_of(session.portal).exists() or session.devices():
            return False
        _iscsiadm(session.portal, "--logout", timeout=timeout)
        if any(one.number == session.number for one in self.all()):
            raise Unreachable(f"log out of {session.portal}: the session is still there; repeat the call", retry_after=1.0)
        self.forget(session.portal)
        return True

    def _record(self, portal: IscsiPortal, timeout: float) -> Path:
        """open-iscsi's record of a portal; made with what its administrator has set for all."""
        for _ in range(_TRIES):
            done = _iscsiadm(portal, "-o", "new", timeout=timeout)
            if done.returncode not in _DATA_BASE:
                break
        found = next(of_portal(portal), None)
        if done.returncode or found is None:
            raise _refusal(done, f"make a record of {portal}")
        return found

    def forget(self, portal: IscsiPortal) -> None:
        """Delete the record and the mark of a portal that has no session. Raises VolgateError."""
        with translate(f"delete the record of {portal}"):
            drop(portal)
            mark_of(portal).unlink(missing_ok=True)


def _settled_session(folder: Path) -> Session | None:
    """A session; None for one that ends meanwhile: for a moment the kernel tells only parts of it, in errors of several kinds."""
    for _ in range(_TRIES):
        try:
            return _session(folder)
        except (OSError, StopIteration, ValueError):
            if not folder.exists():
                return None
            time.sleep(_LOOK_SECONDS)
    return None


def _session(folder: Path) -> Session:
    number = int(folder.name.removeprefix("session"))
    connection = next((SYS / "class/iscsi_connection").glob(f"connection{number}:*"))
    place, port = (_read(connection / name) for name in ("persistent_address", "persistent_port"))
    host = next(int(part.removeprefix("host")) for part in (folder / "device").resolve().parts if re.fullmatch(r"host\d+", part))
    target, state, initiator = (_read(folder / name) for name in ("targetname", "state", "initiatorname"))
    return Session(number, IscsiPortal(place, int(port), target), host, state, initiator)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _settings(chap: Chap | None, secrets: Mapping[str, Secret]) -> dict[str, str]:
    if chap is None:
        return {**_FAST_ENOUGH, "node.session.auth.authmethod": "None"}
    found = {
        "node.session.auth.authmethod": "CHAP",
        "node.session.auth.username": chap.user,
        "node.session.auth.password": secrets[chap.secret].reveal(),
    }
    if chap.target_user:
        found |= {"node.session.auth.username_in": chap.target_user, "node.session.auth.password_in": secrets[chap.target_secret].reveal()}
    for name, value in found.items():
        if any(character in value for character in "\r\n\0"):
            raise Precondition(f"{name}: a name or a secret of CHAP has no line ends", reason="PRECONDITION")
    return {**_FAST_ENOUGH, **found}


def _require_listening(portal: IscsiPortal, seconds: float, doing: str) -> None:
    """Raise Unreachable (ISCSI_UNREACHABLE) if nobody takes connections there: open-iscsi would try until its own time is over."""
    try:
        with socket.create_connection((portal.address, portal.port), timeout=max(0.1, seconds)):
            pass
    except OSError as error:
        told = f"{doing}: the portal takes no connection ({error}); look at the network and the target"
        raise Unreachable(told, reason="ISCSI_UNREACHABLE") from error


def _is_shown(portal: IscsiPortal, timeout: float) -> bool:
    """Whether a portal tells this host of the target; True if it does not say. Nothing of it is kept."""
    argv = ["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal.place, "-o", "nonpersistent"]
    done = run(argv, timeout=max(1.0, min(timeout, _LOGIN_SECONDS)))
    return done.returncode != 0 or portal.target in done.stdout.decode(errors="replace").split()


def _iscsiadm(portal: IscsiPortal, *words: str, timeout: float) -> Completed:
    """Run the tool for one target and portal. No secret is among the words."""
    return run(["iscsiadm", "-m", "node", "-T", portal.target, "-p", portal.place, *words], timeout=max(1.0, timeout))


def _refusal(done: Completed, doing: str) -> VolgateError:
    said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    if done.returncode == _REFUSED:
        return Denied(
            f"{doing}: the target refuses this initiator or its CHAP secret; compare both with its access list", reason="ISCSI_DENIED"
        )
    if done.timed_out or done.returncode in _SILENT:
        return Unreachable(f"{doing}: the portal does not answer; look at the network and the target", reason="ISCSI_UNREACHABLE")
    if done.returncode in _NO_DAEMON:
        return Precondition(f"{doing}: iscsid does not run on this host; start it (`systemctl start iscsid`)", reason="NO_ISCSID")
    return Unreachable(f"{doing}: {said[0]}", reason="ISCSI_UNREACHABLE")
