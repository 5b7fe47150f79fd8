"""A gateway is replaced by a newer one while guests have disks of it: the state that every earlier schema left is taken over."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from tests.attachments.world import MIB, until
from tests.unit.test_migrations import ONE
from volgate.v1 import operation_pb2

DOMAINS = """
ALTER TABLE attachment ADD COLUMN domain VARCHAR DEFAULT '' NOT NULL;
CREATE INDEX attachment_by_domain ON attachment (host, domain);
"""
CALLERS = """
DROP INDEX operation_by_request;
CREATE INDEX operation_by_request ON operation (principal, request_id) WHERE request_id != '';
"""
RELEASES = {1: ONE, 2: ONE + DOMAINS, 3: ONE + DOMAINS + CALLERS}
TABLES = ("operation", "attachment", "volume", "snapshot")


def as_left_by(release: int, path: Path) -> None:
    """Put a database of an earlier schema, with the rows of this one, in its place."""
    old = path.with_suffix(".old")
    with contextlib.closing(sqlite3.connect(path)) as now, contextlib.closing(sqlite3.connect(old)) as then, then:
        then.executescript(RELEASES[release] + "DELETE FROM volume; DELETE FROM meta;")
        for table in TABLES:
            columns = ", ".join(row[1] for row in then.execute(f"PRAGMA table_info({table})"))
            for row in now.execute(f"SELECT {columns} FROM {table}"):
                then.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))})", row)
        for key, value in now.execute("SELECT key, value FROM meta WHERE key != 'schema'"):
            trust = release == 1 and key.startswith("attachments/trusted/")
            then.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", ("attachments/trusted" if trust else key, value))
        then.execute("INSERT INTO meta VALUES ('schema', ?)", (str(release),))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(old, path)


@pytest.mark.parametrize("release", RELEASES)
def test_a_disk_attached_under_an_earlier_schema_is_detached_and_an_interrupted_detach_ends(world, new_guest, release):
    steady, deaf = new_guest(), new_guest()
    for name, guest in (("data", steady), ("more", deaf)):
        world.create(name)
        world.attach(guest, f"pools/p/volumes/{name}", serial=name)
    device = steady.wait_disk("data").device
    steady.run(f"printf kept | dd of={device} conv=notrunc,fsync 2>/dev/null")
    held, leaving = sorted(world.attachments(), key=lambda one: one.volume)
    deaf.pause()
    assert world.detach(leaving.name, wait=1).attachment.state, "the guest does not answer"
    world.server.kill9()
    as_left_by(release, world.server.state / "volgate.db")
    world.again()
    assert world.state(held.name) == "ATTACHED"
    unfinished = operation_pb2.ListOperationsRequest(unfinished_only=True)
    assert [one.method for one in world.wire.operations.ListOperations(unfinished, timeout=20).operations] == ["DetachVolume"]
    deaf.resume()
    until(lambda: [one.name for one in world.attachments()] == [held.name], 60)
    assert world.attach(steady).attachment.name == held.name, "it is the same attachment"
    world.snapshot("after")
    assert steady.run(f"dd if={device} bs=1 count=4 2>/dev/null") == "kept"
    world.detach(held.name)
    assert world.attachments() == []
    assert steady.wait_disk("data", present=False) is None
    assert world.create("data", 64 * MIB).name.endswith("data"), "what it was asked for is known"
