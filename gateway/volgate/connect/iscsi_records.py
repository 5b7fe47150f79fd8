"""open-iscsi's records of portals, and our marks of the sessions that this host began. A record of ours says so in a line of its own.

Who changes such a record by open-iscsi's tool takes it over: the tool keeps no line that it does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from volgate.connection import IscsiPortal

__all__ = ["OURS", "RECORDS", "Record", "drop", "mark_of", "marks", "of_portal", "records", "rewrite"]

RECORDS = Path("/etc/iscsi/nodes")
OURS = Path("/run/volgate/iscsi")
_LINE = "# made by volgate"


@dataclass(frozen=True, slots=True)
class Record:
    """A record: its file, its portal, what starts its session, when it was written (UTC seconds), whether it says that it is ours."""

    path: Path
    portal: IscsiPortal
    startup: str
    since: float
    ours: bool


def records() -> Iterator[Record]:
    """All of them."""
    for path in RECORDS.rglob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # it is no record, or just going
            if path.is_file() and not path.name.startswith("."):
                lines = path.read_text(encoding="utf-8").splitlines()
                told = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
                portal = IscsiPortal(told["node.conn[0].address"], int(told["node.conn[0].port"]), told["node.name"])
                yield Record(path, portal, told.get("node.startup", "manual"), path.stat().st_mtime, _LINE in lines)


def of_portal(portal: IscsiPortal) -> Iterator[Path]:
    """The files of a portal's record, ours or not."""
    yield from (RECORDS / portal.target).glob(f"{portal.address},{portal.port},*/default")
    if (flat := RECORDS / portal.target / f"{portal.address},{portal.port}").is_file():
        yield flat


def rewrite(record: Path, settings: Mapping[str, str]) -> None:
    """Replace settings of a record, at once, and make it ours; nobody else can read it."""
    lines = record.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in settings and not line.startswith(("# END", _LINE))]
    text = "\n".join([*kept, *(f"{name} = {value}" for name, value in settings.items()), _LINE, "# END RECORD", ""])
    fresh = record.with_name(f".{record.name}.fresh")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(record)


def drop(portal: IscsiPortal) -> None:
    """Delete the record of a portal, and the folders that are empty then, as open-iscsi's tool does; success if there is none."""
    for path in list(of_portal(portal)):
        path.unlink(missing_ok=True)
        for folder in path.relative_to(RECORDS).parents[:-1]:
            with contextlib.suppress(OSError):  # others have a record in it, or make one just now
                (RECORDS / folder).rmdir()


def mark_of(portal: IscsiPortal) -> Path:
    """The file that says that the session of a portal is ours."""
    return OURS / hashlib.sha256(str(portal).encode()).hexdigest()[:32]


def marks() -> dict[IscsiPortal, float]:
    """The portals that are marked, and since when (UTC seconds)."""
    found = {}
    for path in OURS.glob("*"):
        with contextlib.suppress(OSError, ValueError):  # it is just going, or cut
            found[_portal(path.read_text(encoding="utf-8").strip())] = path.stat().st_mtime
    return found


def _portal(text: str) -> IscsiPortal:
    """Read what `str` of a portal says. Raises ValueError."""
    target, middle, place = text.partition(" at ")
    address, colon, port = place.rpartition(":")
    if not (middle and colon):
        raise ValueError(text)
    return IscsiPortal(address.strip("[]"), int(port), target)
