"""Connections to PostgreSQL: where it is, who we are there, and how long anything may take.

The server's limits are shorter than ours, and an idle transaction's is the shortest: a controller that froze in the middle of a
commit lets go of the writers' lock before the others give up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from volgate.errors import Busy, DataLoss, InvalidRequest, OutOfSpace, Unreachable, VolgateError
from volgate.secret import Secret

__all__ = ["ANSWER_SECONDS", "Link", "parse"]

ANSWER_SECONDS = 10.0
_SERVER_SECONDS = {"statement_timeout": 8, "lock_timeout": 8, "idle_in_transaction_session_timeout": 5}
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "target_session_attrs": "read-write",
    "client_encoding": "utf8",
}
_SETTINGS = "; ".join(
    [
        *(f"SET {name} = '{seconds}s'" for name, seconds in _SERVER_SECONDS.items()),
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
    ]
)
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,  # we, or the link, stood still for longer than the server waits
    psycopg.errors.TransactionTimeout,
)


def parse(url: str) -> dict[str, Any]:
    """Read a URL of libpq. Raises InvalidRequest; its text never repeats the URL, which may hold a password by mistake."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise InvalidRequest("configuration: database.url: it begins with postgresql://", field="database.url")
    try:
        found = conninfo_to_dict(url)
    except psycopg.Error:
        raise InvalidRequest("configuration: database.url: libpq cannot read it", field="database.url") from None
    if "password" in found:
        told = "configuration: database.url: it holds a password; take it out, and name it in database.password as file:PATH or env:NAME"
        raise InvalidRequest(told, field="database.url")
    return found


class _Bounded(psycopg.Connection[Any]):
    """Gives up a server that says nothing: one that is stopped or cut off acknowledges for ever what is sent to it."""

    patience = ANSWER_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's, with a limit; the connection is closed when it has passed."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.patience)
        except psycopg.OperationalError as error:
            if not self.closed and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"no answer within {self.patience:g} s") from error
            raise


class Link:
    """Makes connections; the password is read anew for each."""

    def __init__(self, url: str, password: Callable[[], Secret] | None, name: str) -> None:
        """`name` is shown in pg_stat_activity. Raises InvalidRequest."""
        self._parameters = {**_DEFAULTS, "application_name": f"volgate {name}"[:63], **parse(url)}
        self._password = password
        hosts = str(self._parameters.get("host") or self._parameters.get("hostaddr") or "the local socket")
        self.where = f"the database {self._parameters.get('dbname', '')} at {hosts}"

    def connect(self) -> _Bounded:
        """Connect, in autocommit: transactions are begun by words of ours. Raises psycopg.Error, InvalidRequest (no such secret)."""
        secret = {"password": self._password().reveal()} if self._password else {}
        made = _Bounded.connect(make_conninfo("", **self._parameters, **secret), autocommit=True)
        try:
            made.execute(_SETTINGS, prepare=False)
        except BaseException:  # whatever it was, no connection stays
            made.close()
            raise
        return made

    def engine(self, size: int, more: int) -> Engine:
        """A pool of at most `size` + `more` connections."""
        return create_engine("postgresql+psycopg://", creator=self.connect, pool_size=size, max_overflow=more, pool_timeout=ANSWER_SECONDS)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the driver raises into ours; what is a bug stays as it is."""
        try:
            yield
        except DBAPIError as error:
            if (ours := self._ours(error.orig, gone=error.connection_invalidated)) is None:
                raise
            raise ours from error
        except psycopg.Error as error:
            if (ours := self._ours(error)) is None:
                raise
            raise ours from error
        except PoolTimeoutError as error:
            raise Busy(f"all connections to {self.where} are in use; come back later") from error

    def _ours(self, error: BaseException | None, *, gone: bool = False) -> VolgateError | None:
        """`gone`: the connection is, whatever class the driver has for the server's last word."""
        text = (str(error).strip().splitlines() or ["no reason is told"])[0]
        if isinstance(error, psycopg.errors.DiskFull):
            return OutOfSpace(f"{self.where} is out of space ({text}): free space there and repeat", reason="STATE_FULL")
        if isinstance(error, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
            return DataLoss(f"{self.where} is damaged ({text}): restore a backup")
        if gone or isinstance(error, _AWAY):
            told = f"{self.where} does not serve now ({text}); nothing was changed: repeat the call when it is back"
            return Unreachable(told, reason="DATABASE_DOWN", retry_after=2.0)
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            told = f"{self.where} lets us not do what we must ({text}); make its user the owner of the database"
            return Unreachable(told, reason="DATABASE_DOWN", retry_after=30.0)
        return None
