"""Hosts: who they are and how an operator wants them. Each function runs inside a commit or a read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, or_, select, update

from volgate.store.records import HostRecord
from volgate.store.tables import host
from volgate.store.upserts import Upsert

__all__ = ["UNIQUE", "everything", "find", "forget", "heard", "put", "twins"]

UNIQUE = ("machine_id", "iqn", "nqn", "nvme_host_id")
"""What no two hosts may share; "" is shared by all that have none."""

_decoder = msgspec.json.Decoder(HostRecord)
_PUT = Upsert(host, ["name"], (*UNIQUE, "record", "session", "last_heartbeat"))
_READ = select(host.c.record, host.c.last_heartbeat)
_FIND = _READ.where(host.c.name == bindparam("of"))
_HEARD = (
    update(host)
    .where(host.c.name == bindparam("of"), host.c.session == bindparam("by"), host.c.last_heartbeat < bindparam("at"))
    .values(last_heartbeat=bindparam("at"))
)


def put(connection: Connection, record: HostRecord) -> None:
    """Write or overwrite one."""
    values = {name: getattr(record, name) for name in (*UNIQUE, "session", "last_heartbeat")}
    _PUT.run(connection, {"name": record.name, "record": msgspec.json.encode(record), **values})


def heard(connection: Connection, records: list[HostRecord]) -> None:
    """Write when hosts were heard, unless the row is newer; of one that has another session by now, nothing."""
    if records:
        connection.execute(_HEARD, [{"of": record.name, "by": record.session, "at": record.last_heartbeat} for record in records])


def find(connection: Connection, name: str) -> HostRecord | None:
    """Read one."""
    found = connection.execute(_FIND, {"of": name}).first()
    return _record(found) if found else None


def everything(connection: Connection) -> list[HostRecord]:
    """Every host by name."""
    return [_record(found) for found in connection.execute(_READ.order_by(host.c.name))]


def twins(connection: Connection, record: HostRecord) -> list[HostRecord]:
    """The other hosts that have something of this one that no two may share."""
    same = [host.c[name] == value for name in UNIQUE if (value := getattr(record, name))]
    if not same:
        return []
    query = _READ.where(host.c.name != record.name, or_(*same)).order_by(host.c.name)
    return [_record(found) for found in connection.execute(query)]


def forget(connection: Connection, name: str) -> None:
    """Remove one; no error if it is gone."""
    connection.execute(delete(host).where(host.c.name == name))


def _record(row: Row[Any, Any]) -> HostRecord:
    return replace(_decoder.decode(row[0]), last_heartbeat=row[1])
