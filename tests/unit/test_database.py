import threading

import pytest
from sqlalchemy import text

from volgate.errors import OutOfSpace, Precondition
from volgate.model import Format, Provisioning, Volume
from volgate.store import attachments, index, pool_notes
from volgate.store.database import Database, StateLock


def volume(name: str) -> Volume:
    return Volume(name=name, uid=name * 2, object=name, size=1, requested_size=1, format=Format.RAW, provisioning=Provisioning.THIN)


def test_a_commit_is_seen_by_the_next_read_and_survives_reopening(where):
    database = where.open()
    instance = database.instance()
    database.write(lambda commit: index.put_volume(commit, "p", volume("a"), 1.0))
    database.close()
    again = where.open()
    assert again.instance() == instance
    with again.read() as connection:
        assert index.find_volume(connection, "p", "a").volume == volume("a")
    again.close()


def test_writers_share_commits_and_one_failure_is_its_own(where):
    database = where.open()
    gate = threading.Event()
    database.submit(lambda commit: gate.wait(5))
    good = [database.submit(lambda commit, n=n: index.put_volume(commit, "p", volume(f"v{n:03}"), 1.0)) for n in range(200)]

    def fails(commit):
        index.put_volume(commit, "p", volume("never"), 1.0)
        raise KeyError("mine")

    bad = database.submit(fails)
    gate.set()
    for future in good:
        future.result(10)
    with pytest.raises(KeyError):
        bad.result(10)
    with database.read() as connection:
        names = [row.volume.name for row in index.page_volumes(connection, "p", ("p", ""), 1000)]
    assert names == [f"v{n:03}" for n in range(200)]
    database.close()


def test_rows_are_in_the_order_of_their_code_points_whatever_the_server_speaks(where):
    database = where.open()
    names = ["B", "a", "Z", "_", "é", "ab", "a-b", "a.b", "1"]
    for name in names:
        database.write(lambda commit, name=name: index.put_volume(commit, "p", volume(name), 1.0))
    with database.read() as connection:
        assert [row.name for row in index.page_volumes(connection, "p", ("p", ""), 99)] == sorted(names)
    database.close()


def test_a_row_that_is_written_again_is_the_new_one_and_a_mark_that_stands_stays(where):
    database = where.open()
    for at in (1.0, 2.0):
        database.write(lambda commit, at=at: index.put_volume(commit, "p", volume("a"), at))
        database.write(lambda commit: pool_notes.drain(commit, "p", drains=True))
        database.write(lambda commit: attachments.trust(commit, "p"))
    with database.read() as connection:
        assert index.find_volume(connection, "p", "a").observed_at == 2.0
        assert (pool_notes.draining(connection), attachments.trusted(connection)) == ({"p"}, {"p"})
    database.write(lambda commit: pool_notes.drain(commit, "p", drains=False))
    with database.read() as connection:
        assert pool_notes.draining(connection) == set()
    database.close()


def test_the_first_instance_stays_whoever_comes_later(where):
    first, second = where.open(), where.open() if where.kind == "postgresql" else None
    assert first.instance("one") == "one"
    assert (second or first).instance("two") == "one"
    for database in filter(None, (first, second)):
        database.close()


def test_paging_over_pools_sees_every_row_once(where):
    database = where.open()
    wanted = [(pool, f"v{n:02}") for pool in ("a", "b", "c") for n in range(23)]
    for pool, name in wanted:
        database.write(lambda commit, p=pool, n=name: index.put_volume(commit, p, volume(n), 1.0))
    seen, after = [], ("", "")
    while True:
        with database.read() as connection:
            rows = index.page_volumes(connection, "", after, 7)
        if not rows:
            break
        seen += [(row.pool, row.volume.name) for row in rows]
        after = seen[-1]
    assert seen == wanted
    database.close()


def test_a_newer_schema_is_refused(where):
    where.open().close()
    where.ask("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(Precondition) as refused:
        where.open()
    assert refused.value.reason == "SCHEMA_NEWER"


def test_a_state_directory_has_one_user(tmp_path):
    lock = StateLock(tmp_path)
    with pytest.raises(Precondition, match="used by process"):
        StateLock(tmp_path)
    lock.release()
    StateLock(tmp_path).release()


def test_a_full_disk_is_a_clear_error_and_service_goes_on(tmp_path):
    database = Database(tmp_path / "v.db")

    def limit(commit, pages):
        commit.execute(text(f"PRAGMA max_page_count={pages}"))

    with database.read() as connection:
        used = connection.execute(text("PRAGMA page_count")).scalar()

    def fill(commit):
        limit(commit, used + 1)
        for n in range(2000):
            index.put_volume(commit, "p", volume(f"big{n}"), 1.0)

    with pytest.raises(OutOfSpace) as refused:
        database.write(fill)
    assert refused.value.reason == "STATE_FULL"
    database.write(lambda commit: limit(commit, 1 << 30))
    database.write(lambda commit: index.put_volume(commit, "p", volume("after"), 1.0))
    with database.read() as connection:
        assert [r.volume.name for r in index.page_volumes(connection, "p", ("p", ""), 9)] == ["after"]
    database.close()


def test_the_log_is_carried_over_beside_the_commits_and_stays_small(tmp_path):
    database = Database(tmp_path / "volgate.db")
    before = (tmp_path / "volgate.db").stat().st_size
    log = tmp_path / "volgate.db-wal"
    largest = 0
    for n in range(2000):
        database.write(lambda commit, n=n: index.put_volume(commit, "p", volume(f"v{n:05}"), 1.0))
        largest = max(largest, log.stat().st_size)
    assert largest < 12 << 20 and (tmp_path / "volgate.db").stat().st_size > before + 2000 * 64
    database.close()
    assert not log.exists()
