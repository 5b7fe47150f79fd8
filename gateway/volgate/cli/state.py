"""`volgate backup` and `volgate restore`: the state database, copied while in use, put back while stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from volgate.errors import NotFound, Precondition
from volgate.settings import Settings, load

__all__ = ["backup", "restore"]

_NAME = "volgate.db"
_KEPT = "volgate.db.before-restore"
_WAIT = 30.0


def backup(config: Path | None, state_dir: Path | None, target: Path) -> int:
    """Copy the database to `target`, check the copy, return its size in bytes. Raises NotFound, Precondition, OSError."""
    settings = load(config, state_dir)
    _require_file(settings)
    source = settings.state_dir / _NAME
    if not source.is_file():
        raise NotFound(f"there is no database {source}; --state-dir or --config names the gateway's state directory")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with _opened(source, "rw") as live, _opened(partial, "rw") as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself
        _instance(partial)
        _durable(partial)
        partial.replace(target)
        _durable(target.parent)
    except BaseException:  # whatever it was, half a copy does not stay
        partial.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def restore(config: Path | None, state_dir: Path | None, source: Path) -> Path:
    """Put a backup in the place of the database and return its path; the old one is kept as volgate.db.before-restore.

    The gateway's identity comes with it: the pools of the backup's gateway accept it. Raises Precondition while a gateway uses
    the state directory, or for a file that is no whole backup.
    """
    from volgate.store.backup import disarm
    from volgate.store.database import StateLock
    from volgate.store.tables import SCHEMA_VERSION

    if not source.is_file():
        raise NotFound(f"there is no backup {source}")
    settings = load(config, state_dir)
    _require_file(settings)
    folder = settings.state_dir
    lock = StateLock(folder)
    try:
        instance, schema = _instance(source)
        if schema > SCHEMA_VERSION:
            raise Precondition(
                f"{source} has schema {schema}, this program knows {SCHEMA_VERSION}: run the newer volgate", reason="SCHEMA_NEWER"
            )
        fresh = folder / (_NAME + ".partial")
        shutil.copyfile(source, fresh)
        fresh.chmod(0o600)
        disarm(fresh)
        _durable(fresh)
        _set_aside(folder)
        fresh.replace(folder / _NAME)
        (folder / "instance").write_text(instance, encoding="ascii")
        _durable(folder / "instance")
        _durable(folder)
    finally:
        lock.release()
    return folder / _NAME


def _require_file(settings: Settings) -> None:
    if settings.database.url:
        raise Precondition("the database is PostgreSQL: use pg_dump, and after pg_restore `volgate state disarm`")


def _set_aside(folder: Path) -> None:
    """Keep the old database as one file; a write-ahead log must never meet another database."""
    old = folder / _NAME
    if old.exists():
        with contextlib.suppress(sqlite3.Error), _opened(old, "rw") as database:  # a damaged one is kept as it is
            database.execute("PRAGMA journal_mode=DELETE")
        old.replace(folder / _KEPT)
    for tail in ("-wal", "-shm"):
        (folder / (_NAME + tail)).unlink(missing_ok=True)


def _instance(path: Path) -> tuple[str, int]:
    """The identity and schema version in a database, checked for damage."""
    try:
        with _opened(path, "ro") as database:
            damage = database.execute("PRAGMA integrity_check").fetchone()[0]
            meta = dict(database.execute("SELECT key, value FROM meta"))
    except sqlite3.Error as error:
        raise Precondition(f"{path} is no backup of a Volgate database: {error}") from error
    if damage != "ok" or "instance" not in meta:
        raise Precondition(f"{path} is damaged: {damage}" if damage != "ok" else f"{path} names no gateway: it is no whole backup")
    return str(meta["instance"]), int(meta.get("schema", "0"))


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=_WAIT)
    try:
        yield connection
    finally:
        connection.close()


def _durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
