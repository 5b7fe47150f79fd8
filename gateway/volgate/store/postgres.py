"""PostgreSQL: several controllers, one of which writes at a time, and a commit whose answer was lost is looked up, never guessed.

Every transaction that writes takes one advisory lock first and then stamps its controller's row with its own number. After a lost
answer the lock says that the old transaction is over, and the stamp whether it is in. A controller that others took the operations
of has no such row any more: whatever it still wants to write is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import structlog
from sqlalchemy import Connection, Engine, Pool
from sqlalchemy.exc import DBAPIError

from volgate.errors import InDoubt, Precondition, Unreachable, VolgateError
from volgate.secret import Secret
from volgate.store import controllers, turns
from volgate.store.controllers import Identity
from volgate.store.link import Link
from volgate.store.migrations import migrate, refuse_newer

__all__ = ["CHANNEL", "Postgres", "desk", "probe"]

T = TypeVar("T")
CHANNEL = "volgate"
_LOCK = 0x766F6C67617465  # the writers' lock: one number for everybody
_LOCKED = f"SELECT pg_advisory_xact_lock({_LOCK})"
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MIGRATION = (
    "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '60s'; {_LOCKED}"
)
_MIGRATION_SECONDS = 600.0
_AGAIN_SECONDS = 0.5
_OLDEST = 140000
_log = structlog.get_logger()


class Postgres:
    """The place of tables in a database that controllers share."""

    patience: float | None = 10.0
    """How long a change may wait for its turn, seconds; then its caller is told that the database is down."""

    def __init__(self, url: str, password: Callable[[], Secret] | None, identity: Identity) -> None:
        """Connect, bring the schema up to date, register. Raises Unreachable (DATABASE_DOWN), Precondition, InvalidRequest."""
        self.owner, self.identity = identity.id, identity
        self.link = Link(url, password, identity.name)
        self._writers, self._readers = self.link.engine(1, 1), self.link.engine(8, 24)
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        self.lost: Callable[[], object] = lambda: None
        """Called when others have taken over what was ours."""
        try:
            with self.link.translated():
                self._migrate()
                with begun(self._writers, f"BEGIN; {_LOCKED}") as connection:
                    controllers.register(connection, identity)
                    connection.commit()
        except BaseException:  # whatever it was, no connection stays
            self._dispose()
            raise

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one commit, again if the first one is known not to have been.

        Raises Unreachable (DATABASE_DOWN, TAKEN_OVER: nothing is written), InDoubt (closed before it was known).
        """
        number = next(self._numbers)
        with self.link.translated():
            while True:
                try:
                    return self._attempt(work, number)
                except _Lost as lost:
                    if self._is_in(number):
                        return lost.answer  # type: ignore[no-any-return]  # it is what `work` returned

    def _attempt(self, work: Callable[[Connection], T], number: int) -> T:
        words = f"BEGIN; {_LOCKED}; {controllers.stamp(self.owner, number)}"
        with begun(self._writers, words) as connection:
            if _rows(connection) != 1:
                self.lost()
                told = "others took this controller for dead and went on with its operations: it begins anew; repeat the call"
                raise Unreachable(told, reason="TAKEN_OVER", retry_after=2.0)
            answer = work(connection)
            try:
                connection.commit()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise  # an answer, and it was no: nothing is written
                raise _Lost(answer) from error
            return answer

    def _is_in(self, number: int) -> bool:
        """Whether a transaction whose answer was lost is committed; waits for a database that can tell."""
        _log.warning("the answer to a commit was lost", commit=number)
        while not self._closed.wait(_AGAIN_SECONDS):
            try:
                with self.link.translated(), begun(self._writers, f"BEGIN; {_LOCKED}") as connection:
                    found = controllers.stamped(connection, self.owner) >= number
            except VolgateError as error:
                _log.warning("whether a commit happened is not known yet", commit=number, error=error.message)
            else:
                _log.warning("a commit whose answer was lost is settled", commit=number, happened=found)
                return found
        raise InDoubt("the gateway stops before the database told whether a change was written; repeat the call")

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment after the last commit. Raises Unreachable (DATABASE_DOWN), Busy."""
        with self.link.translated(), begun(self._readers, _READ) as connection:
            yield connection

    def listen(self, hear: Callable[[str], None], stop: threading.Event) -> None:
        """Tell `hear` what controllers tell each other, and "" whenever something may have been missed; until `stop`."""
        while not stop.is_set():
            try:
                with self.link.connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    hear("")
                    while not stop.is_set():
                        for said in connection.notifies(timeout=1.0):
                            hear(said.payload)
                        connection.execute("SELECT 1")  # a link that was cut in silence is noticed
            except (psycopg.Error, VolgateError):
                stop.wait(1.0)

    def close(self) -> None:
        """Give the controller's row up and close the connections."""
        self._closed.set()
        with contextlib.suppress(VolgateError), self.link.translated(), begun(self._writers, f"BEGIN; {_LOCKED}") as connection:
            turns.clear(connection, self.owner)
            controllers.leave(connection, self.owner)
            connection.commit()
        self._dispose()

    def abandon(self) -> None:
        """Wait no longer for what is not known."""
        self._closed.set()

    def _dispose(self) -> None:
        _renew(self._writers)
        _renew(self._readers)

    def _migrate(self) -> None:
        """One controller leads the schema to the next version, the others wait for it."""
        with begun(self._writers, _MIGRATION) as connection:
            driver: Any = connection.connection.driver_connection
            if driver.info.server_version < _OLDEST:
                raise Precondition(f"{self.link.where} is older than PostgreSQL 14; bring it up to date")
            with _patient(connection):
                migrate(connection)
                connection.commit()


@contextlib.contextmanager
def begun(engine: Engine, words: str) -> Iterator[Connection]:
    """A connection on which `words` have begun a transaction; rolled back at the end unless it was committed."""
    connection, pool = _begin(engine, words)
    try:
        yield connection
    finally:
        with contextlib.suppress(DBAPIError):  # the link is gone, and the transaction with it
            connection.close()
        if engine.pool is not pool:
            pool.dispose()  # it was renewed meanwhile: nobody else closes what was in use then


def _begin(engine: Engine, words: str) -> tuple[Connection, Pool]:
    """The connection, and the pool that it goes back to."""
    for last in (False, True):
        pool, connection = engine.pool, engine.connect()
        try:
            connection.begin()
            driver: Any = connection.connection.driver_connection
            connection.info["rows"] = 0
            with driver.cursor() as cursor:
                cursor.execute(words, prepare=False)
                while cursor.nextset():
                    connection.info["rows"] = cursor.rowcount
        except psycopg.Error as error:
            connection.invalidate()
            connection.close()
            if last or not isinstance(error, psycopg.OperationalError) or error.sqlstate == "55P03":
                raise
            _renew(engine)  # the server was restarted perhaps: those that lie in the pool are no better
        else:
            return connection, pool
    raise AssertionError("unreachable")


def _renew(engine: Engine) -> None:
    """A new pool first, then the end of the old one: what is given back to that in between is closed here, later ones by `begun`."""
    old = engine.pool
    engine.dispose(close=False)
    old.dispose()


@contextlib.contextmanager
def desk(url: str, password: Callable[[], Secret] | None) -> Iterator[Connection]:
    """One commit by hand, of whoever is no controller: the schema is led to today's, nobody writes beside it.

    Raises Unreachable (DATABASE_DOWN), Precondition (SCHEMA_NEWER), InvalidRequest.
    """
    link = Link(url, password, "desk")
    engine = link.engine(1, 0)
    try:
        with link.translated(), begun(engine, _MIGRATION) as connection, _patient(connection):
            migrate(connection)
            yield connection
            connection.commit()
    finally:
        engine.dispose()


@contextlib.contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """What is done once may take longer than what is done all the time."""
    driver: Any = connection.connection.driver_connection
    driver.patience = _MIGRATION_SECONDS
    try:
        yield
    finally:
        del driver.patience


def probe(url: str, password: Callable[[], Secret] | None) -> str:
    """Connect and look, and change nothing; return what is there. Raises Unreachable (DATABASE_DOWN), Precondition, InvalidRequest."""
    link = Link(url, password, "check")
    engine = link.engine(1, 0)
    try:
        with link.translated(), engine.connect() as connection:
            found = refuse_newer(connection)
    finally:
        engine.dispose()
    return f"{link.where}: schema {found or 'not made yet'}"


class _Lost(Exception):
    """The answer to COMMIT did not come."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


def _rows(connection: Connection) -> int:
    """How many rows the last of the words that began the transaction changed."""
    return int(connection.info["rows"])
