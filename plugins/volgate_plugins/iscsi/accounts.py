"""CHAP in tgtd, whose accounts are common to all its targets, tell no secret, and can be changed by taking them away alone.

An account of ours that nobody knows the secret of is bound to every target of the pool: without any, a target would let in whoever has
the right name. Another one is bound to nothing; its name says of which secrets the others are, and that they are all there.

tgtd 1.0.85 dies when it lists a target from which another account than the last was unbound. Ours that stays is therefore the first.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import lru_cache

from volgate.backend.secrets import resolve
from volgate.errors import InvalidRequest, Precondition
from volgate_plugins.iscsi.settings import IscsiSettings
from volgate_plugins.iscsi.tgtd import Mode, Op, Refused, Seen, Tgtd, despite

__all__ = ["Accounts"]

_USER = re.compile(r"[A-Za-z0-9._:@-]{1,200}")
_ROUNDS = 20_000
_OUTGOING, _INCOMING = True, False
Turn = Callable[[str, str], AbstractContextManager[None]]


class Accounts:
    """Those of one pool. Any thread, any process that has the pool open: changes are made in a turn of the pool."""

    def __init__(self, tgtd: Tgtd, settings: IscsiSettings, pool: str, turn: Turn) -> None:
        """`turn` gives the pool to oneself."""
        self._tgtd, self._chap, self._turn, self._pool = tgtd, settings.chap, turn, pool
        self._base = f"volgate-{hashlib.sha256(f'{settings.iqn} {pool}'.encode()).hexdigest()[:12]}"
        self._closed = f"{self._base}-closed"
        self._wanted = [self._closed, settings.chap.user] if settings.chap else []
        self._outgoing = settings.chap.target_user if settings.chap else ""

    def stand(self, seen: Seen, known: set[str]) -> bool:
        """Whether a target asks for the secrets of now, if `known` are all accounts of tgtd. Raises InvalidRequest."""
        bound = seen.users == self._wanted and seen.outgoing == self._outgoing
        return bound and (self._chap is None or self._mark(self._secrets()) in known)

    def fit(self, seen: Seen) -> bool:
        """Whether it is enough to bind accounts to a target; else it is to be made anew."""
        return seen.users == self._wanted[: len(seen.users)] and seen.outgoing in {"", self._outgoing}

    def bind(self, seen: Seen, ours: Callable[[], Iterable[Seen]], *, deadline: float) -> None:
        """Have a target that fits ask for the secrets of now; `ours` are all targets of the pool.

        Raises InvalidRequest, Precondition (TGT_ACCOUNT_TAKEN), Unreachable.
        """
        wanted = self._secrets()
        with self._turn("accounts", f"set the accounts of {seen.name}"):
            if wanted and self._mark(wanted) not in self._tgtd.accounts(deadline=deadline):
                self._renew(wanted, list(ours()), deadline)
            for name in self._wanted[len(seen.users) :]:
                self._link(seen, name, _INCOMING, deadline)
            if self._outgoing and not seen.outgoing:
                self._link(seen, self._outgoing, _OUTGOING, deadline)

    # -- inside

    def _secrets(self) -> dict[str, str]:
        """The secret of each user. Raises InvalidRequest."""
        chap = self._chap
        if chap is None:
            return {}
        references = {chap.user: chap.secret} | ({chap.target_user: chap.target_secret} if chap.target_user else {})
        found = {user: resolve(reference).reveal() for user, reference in references.items()}
        for user, secret in found.items():
            if not _USER.fullmatch(user) or not secret or "\0" in secret:
                raise InvalidRequest(f"chap: {user!r} is no name that tgtd can take, or its secret is empty", field="chap")
        return found

    def _mark(self, wanted: dict[str, str]) -> str:
        return f"{self._base}-{_fingerprint(self._base, tuple(sorted(wanted.items())))}"

    def _renew(self, wanted: dict[str, str], ours: list[Seen], deadline: float) -> None:
        """Each step may be the last: the mark comes when all of them are done, and goes before."""
        known = self._tgtd.accounts(deadline=deadline)
        if self._closed not in known:
            if taken := sorted(known & {*wanted}):
                told = f"tgtd has an account {taken[0]} that pool {self._pool} did not make; its accounts are common to all its targets"
                raise Precondition(f"{told}: give the pool a user of its own, or delete that account", reason="TGT_ACCOUNT_TAKEN")
            self._add(self._closed, secrets.token_hex(16), deadline)
        for seen in ours:
            self._link(seen, self._closed, _INCOMING, deadline)
        for name in sorted(known):
            if name in wanted or (name.startswith(f"{self._base}-") and name != self._closed):
                with despite(Refused.NO_ACCOUNT):
                    self._tgtd.ask(Mode.ACCOUNT, Op.DELETE, f"user={name}", deadline=deadline)
        for name, secret in wanted.items():
            self._add(name, secret, deadline)
        self._add(self._mark(wanted), secrets.token_hex(16), deadline)
        for seen in ours:
            self._link(seen, self._wanted[-1], _INCOMING, deadline)
            if self._outgoing:
                self._link(seen, self._outgoing, _OUTGOING, deadline)

    def _add(self, name: str, secret: str, deadline: float) -> None:
        self._tgtd.ask(Mode.ACCOUNT, Op.NEW, f"user={name},password={secret}", deadline=deadline)

    def _link(self, seen: Seen, name: str, outgoing: bool, deadline: float) -> None:
        """Bind an account to a target; success if it is so, or the target is gone."""
        with despite(Refused.ACCOUNT_EXISTS, Refused.OUTGOING_EXISTS, Refused.NO_TARGET):
            self._tgtd.ask(Mode.ACCOUNT, Op.BIND, f"user={name}", target=seen.number, outgoing=outgoing, deadline=deadline)


@lru_cache(maxsize=8)
def _fingerprint(base: str, wanted: tuple[tuple[str, str], ...]) -> str:
    """Thirty-two bits of a slow digest: enough to see that a secret changed, too few to tell which one it is."""
    return hashlib.pbkdf2_hmac("sha256", repr(wanted).encode(), base.encode(), _ROUNDS, 4).hex()
