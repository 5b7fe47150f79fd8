"""Databases of earlier schemas, with rows, led to the one of today."""

import contextlib
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.controllers.places import OnPostgres
from volgate.model import DiskOptions
from volgate.store import attachments, journal
from volgate.store.backup import disarm
from volgate.store.database import Database
from volgate.store.records import AttachmentRecord, AttachmentState, OperationRecord, OperationState
from volgate.store.tables import SCHEMA_VERSION

ONE = """
CREATE TABLE meta ("key" VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE operation (
    id VARCHAR NOT NULL, method VARCHAR NOT NULL, target VARCHAR NOT NULL, request_id VARCHAR NOT NULL, body_hash VARCHAR NOT NULL,
    principal VARCHAR NOT NULL, state VARCHAR NOT NULL, request BLOB NOT NULL, facts BLOB NOT NULL, created_at FLOAT NOT NULL,
    trace VARCHAR NOT NULL, result BLOB NOT NULL, error_reason VARCHAR NOT NULL, error_message VARCHAR NOT NULL,
    finished_at FLOAT NOT NULL, uid VARCHAR NOT NULL, steps BLOB NOT NULL, progress FLOAT NOT NULL, PRIMARY KEY (id));
CREATE INDEX operation_by_request ON operation (request_id) WHERE request_id != '';
CREATE INDEX operation_by_state ON operation (state);
CREATE INDEX operation_by_time ON operation (created_at);
CREATE TABLE attachment (
    id VARCHAR NOT NULL, pool VARCHAR NOT NULL, volume VARCHAR NOT NULL, volume_uid VARCHAR NOT NULL, host VARCHAR NOT NULL,
    record BLOB NOT NULL, PRIMARY KEY (id));
CREATE INDEX attachment_by_volume ON attachment (pool, volume);
CREATE TABLE volume (
    pool VARCHAR NOT NULL, name VARCHAR NOT NULL, uid VARCHAR NOT NULL, record BLOB NOT NULL, observed_at FLOAT NOT NULL,
    PRIMARY KEY (pool, name));
CREATE TABLE snapshot (
    pool VARCHAR NOT NULL, volume VARCHAR NOT NULL, name VARCHAR NOT NULL, uid VARCHAR NOT NULL, record BLOB NOT NULL,
    observed_at FLOAT NOT NULL, PRIMARY KEY (pool, volume, name));
INSERT INTO meta VALUES ('schema', '1'), ('instance', 'i-1');
INSERT INTO volume VALUES ('idle', 'v', 'u', x'7b7d', 1.0);
"""
TRUST = "INSERT INTO meta VALUES ('attachments/trusted', '1')"


def attached(number: int) -> AttachmentRecord:
    """Every seventh has the host and domain of the first."""
    of = number % 7
    return AttachmentRecord(
        id=f"a{number:03}",
        pool=f"p{number % 3}",
        volume=f"v{number}",
        volume_uid=f"u{number}",
        host=f"h{of % 2}",
        domain=f"00000000-0000-0000-0000-00000000000{of}",
        domain_name=f"dé{of}",
        state=AttachmentState.ATTACHED,
        options=DiskOptions(serial=f"s{number}"),
        alias=f"ua-vg-{number}",
        source=f"/p/{number}",
        live=True,
    )


RECORDS = [attached(number) for number in range(70)]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A database as schema 1 left it."""
    path = tmp_path / "volgate.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(ONE)
        rows = [(r.id, r.pool, r.volume, r.volume_uid, r.host, msgspec.json.encode(r)) for r in RECORDS]
        connection.executemany("INSERT INTO attachment VALUES (?, ?, ?, ?, ?, ?)", rows)
    return path


def asked(path: Path, question: str, *values: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(question, values).fetchall()


def shape(path: Path) -> dict[str, object]:
    """Tables with their columns, indexes with theirs."""
    tables = asked(path, "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'index') AND name NOT LIKE 'sqlite_%'")
    return {name: [row[1:] for row in asked(path, f"PRAGMA {kind}_info({name})")] for kind, name in tables}


def test_attachments_of_schema_1_are_whole_and_found_by_their_domain(earlier: Path):
    database = Database(earlier)
    with database.read() as connection:
        assert attachments.page(connection) == RECORDS
        for number in range(7):
            like = RECORDS[number]
            assert attachments.of_domain(connection, like.host, like.domain) == RECORDS[number::7]
        assert attachments.of_domain(connection, "h0", RECORDS[1].domain) == [], "on the other host"
        assert attachments.of_volume(connection, "p1", "v1") == [RECORDS[1]]
    assert database.instance() == "i-1"
    database.close()
    assert asked(earlier, "SELECT value FROM meta WHERE key = 'schema'") == [(str(SCHEMA_VERSION),)]


def test_a_migrated_database_is_shaped_as_a_new_one(earlier: Path, tmp_path: Path):
    for path in (earlier, tmp_path / "new.db"):
        Database(path).close()
    assert shape(earlier) == shape(tmp_path / "new.db")
    assert len(shape(earlier)) > 8


@pytest.mark.parametrize("trusts", [True, False])
def test_trust_of_schema_1_is_trust_of_the_pools_it_knew(earlier: Path, *, trusts: bool):
    if trusts:
        asked(earlier, TRUST)
    database = Database(earlier)
    with database.read() as connection:
        assert attachments.trusted(connection) == ({"idle", "p0", "p1", "p2"} if trusts else set())
    database.close()


@pytest.mark.parametrize("migrated", [True, False])
def test_a_restored_backup_of_either_schema_trusts_no_pool(earlier: Path, *, migrated: bool):
    asked(earlier, TRUST)
    if migrated:
        Database(earlier).close()
    disarm(earlier)
    database = Database(earlier)
    with database.read() as connection:
        assert attachments.trusted(connection) == set()
    database.close()


def test_the_attachments_of_a_domain_are_found_by_an_index(tmp_path: Path):
    path = tmp_path / "new.db"
    database = Database(path)
    with database.read() as connection:
        written = str(attachments._OF_DOMAIN.compile(connection))  # the statement as it is run
    database.close()
    plan = asked(path, f"EXPLAIN QUERY PLAN {written}", "h", "d")
    assert "USING INDEX attachment_by_domain (host=? AND domain=?)" in plan[0][3]


def test_a_request_id_is_found_by_an_index_and_by_its_caller_alone(tmp_path: Path):
    path = tmp_path / "new.db"
    database = Database(path)
    with database.read() as connection:
        written = str(journal._BY_REQUEST.compile(connection))
    plan = asked(path, f"EXPLAIN QUERY PLAN {written}", "r", "p", "1", "0")
    assert "USING INDEX operation_by_request (principal=? AND request_id=?)" in plan[0][3]
    blank = {"body_hash": "", "state": OperationState.DONE, "request": b"{}", "facts": b"{}"}
    for number, principal in enumerate(("operator:a", "operator:b", "operator:a")):
        record = OperationRecord(id=str(number), method="M", target="t", request_id="r", principal=principal, created_at=number, **blank)
        database.write(partial(journal.begin, record=record))
    with database.read() as connection:
        for principal, expected in (("operator:a", "2"), ("operator:b", "1")):
            found = journal.by_request_id(connection, principal, "r")
            assert found is not None and found.id == expected
        assert journal.by_request_id(connection, "viewer:a", "r") is None
    database.close()


def test_a_record_that_moves_is_found_by_its_new_domain_only(tmp_path: Path):
    database = Database(tmp_path / "new.db")
    first = RECORDS[0]
    moved = replace(first, host=RECORDS[1].host, domain=RECORDS[1].domain)
    database.write(lambda commit: attachments.put(commit, first))
    database.write(lambda commit: attachments.put(commit, moved))
    with database.read() as connection:
        assert attachments.of_domain(connection, first.host, first.domain) == []
        assert attachments.of_domain(connection, moved.host, moved.domain) == [moved]
    database.close()


THREE = (
    ONE.replace(
        "CREATE INDEX operation_by_request ON operation (request_id)",
        "CREATE INDEX operation_by_request ON operation (principal, request_id)",
    )
    .replace("record BLOB NOT NULL, PRIMARY KEY (id));", "record BLOB NOT NULL, domain VARCHAR DEFAULT '' NOT NULL, PRIMARY KEY (id));")
    .replace("CREATE TABLE volume", "CREATE INDEX attachment_by_domain ON attachment (host, domain);\nCREATE TABLE volume")
    .replace("('schema', '1')", "('schema', '3'), ('attachments/trusted/p1', '1')")
)
UNFINISHED = (
    "INSERT INTO operation VALUES ('o1', 'DeleteVolume', 'pools/p1/volumes/v1', 'r1', 'b', 'local', 'running', '{}', '{}', 1.0, '', '', "
    "'', '', 0.0, '', '[]', 0.0);"
)


def in_words_of(where, words: str) -> str:
    if where.kind == "sqlite":
        return words
    for ours, theirs in (("BLOB", "BYTEA"), ("VARCHAR", 'VARCHAR COLLATE "C"'), ("FLOAT", "DOUBLE PRECISION"), ("x'7b7d'", "'{}'")):
        words = words.replace(ours, theirs)
    return words


def test_a_database_of_schema_3_keeps_its_attachments_and_what_runs(where):
    record = RECORDS[1]
    held = msgspec.json.encode(record).hex()
    data = f"x'{held}'" if where.kind == "sqlite" else f"decode('{held}', 'hex')"
    where.ask(in_words_of(where, THREE + UNFINISHED))
    row = f"'{record.id}', '{record.pool}', '{record.volume}', '{record.volume_uid}', '{record.host}', {data}, '{record.domain}'"
    where.ask(f"INSERT INTO attachment VALUES ({row});")
    database = where.open()
    with database.read() as connection:
        assert attachments.page(connection) == [record]
        assert attachments.of_domain(connection, record.host, record.domain) == [record]
        assert attachments.trusted(connection) == {"p1"}
        (left,) = journal.unfinished(connection)
        assert (left.id, left.owner, left.claim) == ("o1", "", 0)
        if where.kind == "postgresql":
            assert journal.orphans(connection) == [left], "whoever serves its pool may take it"
    assert database.instance() == "i-1"
    database.close()
    assert where.ask("SELECT value FROM meta WHERE key = 'schema'") == [(str(SCHEMA_VERSION),)]


def test_a_migrated_database_of_postgresql_is_shaped_as_a_new_one(on_postgres, postgres):
    other = OnPostgres(postgres)
    on_postgres.ask(in_words_of(on_postgres, THREE))
    shapes = []
    for place in (on_postgres, other):
        place.open().close()
        columns = place.ask(
            "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
        )
        shapes.append((columns, place.ask("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")))
    assert shapes[0] == shapes[1]
    other.close()
