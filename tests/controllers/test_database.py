"""PostgreSQL as the store: restarts, hangs, cut links, lost answers, and what no log and no other may see."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.controllers.fleet import until
from tests.controllers.places import identity
from tests.labs.postgres import PostgresServer, free_port
from volgate.cli.authority import Authority
from volgate.errors import InvalidRequest, Unreachable, VolgateError
from volgate.secret import Secret
from volgate.store import controllers
from volgate.store.database import Database
from volgate.store.link import ANSWER_SECONDS, Link, parse
from volgate.store.postgres import Postgres

COUNT = "UPDATE meta SET value = CAST(CAST(value AS integer) + 1 AS varchar) WHERE key = 'count'"
LIMIT = ANSWER_SECONDS + 20.0
"""What an answer may take that must come although nobody serves, on a busy machine, seconds."""


def count(commit) -> None:
    commit.exec_driver_sql(COUNT)


def counted(database: Database) -> int:
    with database.read() as connection:
        return int(connection.exec_driver_sql("SELECT value FROM meta WHERE key = 'count'").scalar())


def counted_controllers(database: Database) -> int:
    with database.read() as connection:
        return len(controllers.living(connection))


@contextlib.contextmanager
def counting(on_postgres, port: int = 0):
    database = on_postgres.open(port=port)
    database.write(lambda commit: commit.exec_driver_sql("INSERT INTO meta VALUES ('count', '0')"))
    yield database
    database.close()


def refused(act) -> VolgateError:
    with pytest.raises(Unreachable) as caught:
        act()
    assert caught.value.reason == "DATABASE_DOWN" and caught.value.retry_after
    return caught.value


def test_controllers_that_start_at_once_make_the_tables_once(on_postgres):
    with ThreadPoolExecutor(6) as threads:
        opened = list(threads.map(lambda number: on_postgres.open(name=f"c{number}"), range(6)))
    assert {database.instance() for database in opened} == {opened[0].instance()}
    assert on_postgres.ask("SELECT count(*) FROM controller") == [(6,)]
    for database in opened:
        database.close()
    assert on_postgres.ask("SELECT count(*) FROM controller") == [(0,)], "who ends in order leaves nothing"


def test_a_restarted_server_is_used_again_at_once(on_postgres, postgres):
    with counting(on_postgres) as database:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: counted(database), range(32)))  # several connections lie in the pool
        postgres.restart()
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: counted(database), range(32))) == {0}
        database.write(count)
        postgres.kill9()
        assert "does not serve" in refused(lambda: database.write(count)).message
        refused(lambda: counted(database))
        postgres.start()
        until(lambda: contextlib.suppress(VolgateError) and _tried(database), "the server")
        database.write(count)
        assert counted(database) == 2


def _tried(database: Database) -> bool:
    try:
        return counted(database) == 1
    except VolgateError:  # it recovers from its crash
        return False


@pytest.mark.parametrize("delivered", [True, False], ids=["committed", "never arrived"])
def test_a_commit_whose_answer_is_lost_happens_once(on_postgres, wire, delivered):
    with counting(on_postgres, wire.port) as database:
        wire.lose_answers(1, delivered=delivered)
        writing = database.submit(count)
        until(lambda: wire.lost, "the loss")
        time.sleep(0.3)
        assert not writing.done(), "nobody knows yet, and nobody guesses"
        refused(lambda: counted(database))
        wire.mend()
        writing.result(30)
        assert counted(database) == 1
        database.write(count)
        assert counted(database) == 2


def test_all_that_shared_a_lost_commit_happen_once_and_those_behind_them_are_told(on_postgres, wire):
    with counting(on_postgres, wire.port) as database:
        database.place.patience = 1.0
        gate = threading.Event()
        first = database.submit(lambda commit: gate.wait(4))
        until(first.running, "the commit before")
        together = [database.submit(count) for _ in range(20)]
        wire.lose_answers(2, delivered=True)
        gate.set()
        until(lambda: wire.lost, "the loss")
        assert "nothing was changed" in refused(lambda: database.write(count)).message
        wire.mend()
        first.result(30)
        until(lambda: wire.lost == 2, "the second loss")
        wire.mend()
        assert [future.result(30) for future in together] == [None] * 20
        assert counted(database) == 20


def test_a_connection_in_use_while_the_others_were_lost_is_closed_when_it_is_given_back(on_postgres):
    with counting(on_postgres) as database:
        with database.read() as held:
            driver = held.connection.driver_connection
            with database.read() as idle:
                lost = idle.connection.driver_connection.info.backend_pid
            assert on_postgres.ask(f"SELECT pg_terminate_backend({lost}, 5000)") == [(True,)]
            assert counted(database) == 0, "the lost one was noticed, and the pool renewed"
        assert driver.closed


def test_a_server_that_hangs_is_an_answer_and_serves_again_after_it(on_postgres, postgres):
    with counting(on_postgres) as database:
        postgres.freeze()
        try:
            began = time.monotonic()
            with ThreadPoolExecutor(2) as threads:
                asked = [threads.submit(refused, act) for act in (lambda: counted(database), lambda: database.write(count))]
                asked[0].result(LIMIT)
            assert time.monotonic() - began < LIMIT
        finally:
            postgres.thaw()
        asked[1].result(LIMIT)
        database.write(count)
        assert counted(database) == 1, "the commit that was given up was given up for good"


def test_a_controller_that_freezes_in_a_commit_does_not_hold_up_the_others(on_postgres, postgres):
    with counting(on_postgres) as database, psycopg.connect(postgres.url(on_postgres.name), password=postgres.password) as frozen:
        link = Link(postgres.url(on_postgres.name), lambda: Secret(postgres.password), "frozen")
        with contextlib.suppress(psycopg.Error), link.connect() as held:
            held.execute(f"BEGIN; SELECT pg_advisory_xact_lock({0x766F6C67617465})")
            began = time.monotonic()
            database.write(count)
            assert 1 < time.monotonic() - began < LIMIT, "the server has ended the idle transaction"
        assert counted(database) == 1
        frozen.rollback()


@pytest.mark.parametrize("written", [False, True], ids=["read", "write"])
def test_whoever_stood_still_in_the_middle_of_a_transaction_is_told_to_repeat_it(on_postgres, written: bool):
    def dawdle(connection) -> None:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
        time.sleep(1.0)
        connection.exec_driver_sql(COUNT if written else "SELECT 1")

    def read() -> None:
        with database.read() as connection:
            dawdle(connection)

    with counting(on_postgres) as database:
        assert "idle-in-transaction" in refused(lambda: database.write(dawdle) if written else read()).message
        database.write(count)
        assert counted(database) == 1


def test_a_commit_whose_transaction_the_server_ended_before_it_is_made_again(on_postgres):
    tried = []

    def dawdle_once(commit) -> None:
        count(commit)
        tried.append(commit)
        if len(tried) == 1:
            commit.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
            time.sleep(1.0)

    with counting(on_postgres) as database:
        database.write(dawdle_once)
        assert (counted(database), len(tried)) == (1, 2)


def test_a_cut_link_is_made_again(on_postgres, wire):
    with counting(on_postgres, wire.port) as database:
        for _ in range(3):
            wire.cut()
            refused(lambda: counted(database))
            wire.mend()
            database.write(count)
        assert counted(database) == 3


def test_who_was_taken_over_writes_nothing_more(on_postgres):
    one, other = on_postgres.open(name="one"), on_postgres.open(name="other")
    told = threading.Event()
    one.place.lost = told.set
    one.write(lambda commit: commit.exec_driver_sql("INSERT INTO meta VALUES ('count', '0')"))
    assert other.write(lambda commit: controllers.bury(commit, one.owner))
    with pytest.raises(Unreachable) as late:
        one.write(count)
    assert late.value.reason == "TAKEN_OVER"
    assert told.is_set() and counted(one) == 0, "it may look"
    assert not other.write(lambda commit: controllers.bury(commit, one.owner)), "once"
    one.close()
    other.close()


def test_the_password_is_read_for_each_connection_and_shown_nowhere(on_postgres, postgres, caplog, capfd):
    secret = "canary-\N{SNOWMAN}-of-a-password"
    with postgres.admin() as admin:
        admin.execute(f"CREATE ROLE rotating LOGIN PASSWORD '{secret}'")
        admin.execute(f"GRANT ALL ON DATABASE {on_postgres.name} TO rotating")
        admin.execute("GRANT volgate TO rotating")
    given = ["wrong-" + secret]
    url = postgres.url(on_postgres.name).replace("volgate@", "rotating@")
    error = refused(lambda: Postgres(url, lambda: Secret(given[0]), identity()))
    assert "password authentication failed" in error.message and secret not in error.message
    on_postgres.open().close()
    given[0] = secret
    database = Database(Postgres(url, lambda: Secret(given[0]), identity()))
    with database.read() as connection:
        seen = connection.exec_driver_sql("SELECT application_name, query FROM pg_stat_activity").all()
    assert any(name == "volgate c" for name, _ in seen) and secret not in str(seen)
    database.close()
    assert secret not in caplog.text + "".join(capfd.readouterr()) + postgres.log()
    on_postgres.close()
    with postgres.admin() as admin:
        admin.execute("DROP ROLE rotating")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter22@h/d",
        "postgresql://u@h/d?password=hunter22",
        "mysql://u:hunter22@h/d",
        "postgresql://u@h/d?nonsense=hunter22",
    ],
)
def test_a_url_with_a_password_or_of_another_kind_is_refused_without_repeating_it(url):
    with pytest.raises(InvalidRequest) as wrong:
        parse(url)
    assert wrong.value.field == "database.url" and "hunter22" not in wrong.value.message


def test_the_link_is_by_tls_where_the_url_asks_for_it(on_postgres, postgres, tmp_path):
    for folder in ("ours", "another"):
        Authority.create(tmp_path / folder, 1)
    postgres.use_tls(*Authority.load(tmp_path / "ours").server(["127.0.0.1"], 1))
    try:
        where = f"{postgres.url(on_postgres.name)}?sslmode=verify-full&sslrootcert={tmp_path}/{{}}/authority.crt"
        database = Database(Postgres(where.format("ours"), lambda: Secret(postgres.password), identity()))
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar() is True
        database.close()
        error = refused(lambda: Postgres(where.format("another"), lambda: Secret(postgres.password), identity()))
        assert "certificate verify failed" in error.message
    finally:
        postgres.use_tls()


def test_a_standby_takes_over_and_the_url_names_both(tmp_path):
    with PostgresServer(more="wal_level = replica\nmax_wal_senders = 4") as first:
        name = first.create()
        second = first.standby()
        try:
            where = f"postgresql://volgate@127.0.0.1:{first.port},127.0.0.1:{second.port}/{name}?target_session_attrs=read-write"
            database = Database(Postgres(where, lambda: Secret(first.password), identity()))
            database.write(lambda commit: commit.exec_driver_sql("INSERT INTO meta VALUES ('count', '0')"))
            database.write(count)
            assert second.port != first.port
            until(lambda: second.caught_up(first), "the standby")
            first.kill9()
            refused(lambda: database.write(count))
            second.promote()
            until(lambda: _tried(database), "the standby")
            database.write(count)
            assert counted(database) == 2
            database.close()
        finally:
            second.__exit__()


def test_a_port_where_nobody_is_costs_no_patience(on_postgres, postgres):
    where = f"postgresql://volgate@127.0.0.1:{free_port()},127.0.0.1:{postgres.port}/{on_postgres.name}"
    database = Database(Postgres(where, lambda: Secret(postgres.password), identity()))
    assert counted_controllers(database) == 1
    database.close()
