"""`volgate state ...`: the database that controllers share, worked on by hand; none of it asks a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from volgate.cli.output import object_

if TYPE_CHECKING:
    from volgate.secret import Secret

__all__ = ["app"]

_ALIVE = 3.0  # who was heard of so lately is not gone, seconds
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The database, where controllers share one.")
Config = Annotated[Optional[Path], typer.Option("--config", help="The configuration file.")]  # noqa: UP045  # typer reads this form
State = Annotated[Optional[Path], typer.Option("--state-dir", help="The state directory.")]  # noqa: UP045  # typer reads this form


@app.command()
def move(
    to: Annotated[str, typer.Option("--to", help="An empty database, postgresql://USER@HOST/NAME.")],
    password: Annotated[str, typer.Option("--password", help="Where its password is: file:PATH or env:NAME.")] = "",
    config: Config = None,
    state_dir: State = None,
) -> None:
    """Move a stopped gateway from SQLite to PostgreSQL; guests keep their disks. The file stays as volgate.db.moved."""
    from volgate.errors import NotFound
    from volgate.settings import load
    from volgate.store.database import StateLock
    from volgate.store.moving import move as moved
    from volgate.store.postgres import desk

    folder = load(config, state_dir).state_dir
    source = folder / "volgate.db"
    if not source.is_file():
        raise NotFound(f"there is no database {source}; --state-dir or --config names the gateway's state directory")
    lock = StateLock(folder)
    try:
        with desk(to, _secret(password)) as connection:
            rows = moved(source, connection)
        source.replace(folder / "volgate.db.moved")
        for tail in ("-wal", "-shm"):
            (folder / f"volgate.db{tail}").unlink(missing_ok=True)
    finally:
        lock.release()
    told = "; ".join(f"{count} rows of {table}" for table, count in rows.items())
    object_(rows, f"{told}: moved. Write the URL, and where the password is, into [database] before you start the gateway")


@app.command()
def disarm(config: Config = None) -> None:
    """After pg_restore, before the first start: cancel what was unfinished then, and believe no attachment unseen."""
    from volgate.store.backup import disarm_shared
    from volgate.store.postgres import desk

    with desk(*_database(config)) as connection:
        cancelled = disarm_shared(connection)
    object_({"cancelled": cancelled}, f"{cancelled} unfinished operations are cancelled; attachments are compared with libvirt first")


@app.command()
def controllers(config: Config = None) -> None:
    """List the controllers that share the database, with how long each has been silent."""
    from volgate.store import controllers as known
    from volgate.store.postgres import desk

    with desk(*_database(config)) as connection:
        found = known.all_of(connection)
    facts, lines = [], []
    for one in found:
        who, silent = one.identity, round(one.silent, 1)
        facts.append({"id": who.id, "name": who.name, "version": who.version, "silent": silent, "gone": one.gone})
        lines.append(f"{who.name}  {who.id}  {who.version}  {'gone' if one.gone else f'silent for {silent} s'}")
    object_(facts, "\n".join(lines))


@app.command()
def gone(
    controller: Annotated[str, typer.Argument(metavar="CONTROLLER", help="Its name or id.")],
    config: Config = None,
) -> None:
    """Say that a controller's machine is surely off: others go on with its operations at once. Never of one that may live."""
    from volgate.errors import NotFound, Precondition
    from volgate.store import controllers as known
    from volgate.store import turns
    from volgate.store.postgres import desk

    with desk(*_database(config)) as connection:
        named = [one for one in known.all_of(connection) if controller in (one.identity.id, one.identity.name)]
        wanted = [one.identity.id for one in named if one.silent > _ALIVE]
        if not named:
            raise NotFound(f"no controller {controller!r} is known; `volgate state controllers` lists them")
        if not wanted:
            raise Precondition(f"controller {controller} was heard of {named[0].silent:.1f} s ago: it lives")
        buried = [identifier for identifier in wanted if known.bury(connection, identifier)]
        for identifier in buried:
            turns.clear(connection, identifier)
        turns.tell(connection, "")
    object_({"gone": buried}, f"{controller} writes nothing any more; what it was at goes on at the next heartbeat of another one")


def _database(config: Path | None) -> tuple[str, Callable[[], Secret] | None]:
    from volgate.errors import InvalidRequest
    from volgate.settings import load

    found = load(config).database
    if not found.url:
        told = "the configuration names no [database] url: the gateway has SQLite, and `volgate backup` and `volgate restore` are for that"
        raise InvalidRequest(told, field="database.url")
    return found.url, _secret(found.password)


def _secret(reference: str) -> Callable[[], Secret] | None:
    from volgate.backend import secrets

    return (lambda: secrets.resolve(reference)) if reference else None
