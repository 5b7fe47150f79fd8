"""What a pool and a database hold, as hashes: equal before and after means that nothing changed."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

__all__ = ["of_database", "of_pool"]


def of_pool(path: Path) -> str:
    """Every entry below a directory with its kind, mode, owner, size and bytes."""
    found = hashlib.sha256()
    for entry in sorted(path.rglob("*")):
        facts = entry.lstat()
        found.update(f"{entry.relative_to(path)} {facts.st_mode} {facts.st_uid} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        if entry.is_file() and not entry.is_symlink():
            found.update(hashlib.sha256(entry.read_bytes()).digest())
    return found.hexdigest()


def of_database(state: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Every table's rows, by its name."""
    connection = sqlite3.connect(f"file:{state}/volgate.db?mode=ro", uri=True)
    try:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        tables = {}
        for name in names:
            if name not in without:
                rows = sorted(repr(row) for row in connection.execute(f"SELECT * FROM {name}"))
                tables[name] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return tables
    finally:
        connection.close()
