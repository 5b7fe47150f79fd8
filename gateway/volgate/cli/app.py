"""The commands, put together."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from volgate.cli import attachments, controllers, hosts, inspect, pki, snapshots, volumes
from volgate.cli.output import object_
from volgate.cli.session import DEFAULT_SERVER, SESSION

__all__ = ["app"]

_HELP = "Volgate: volumes for virtual machines. --server, --output, --timeout, --cert, --key and --ca may stand anywhere."
_EXITS = (
    "Exit status: 0 success; 2 wrong command or request; 3 not found; 4 conflict or precondition; "
    "5 no answer, busy, in doubt or too late (repeat the same command); 1 anything else."
)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(inspect.pools, name="pool")
app.add_typer(volumes.app, name="volume")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(attachments.app, name="attachment")
app.add_typer(inspect.operations, name="operation")
app.add_typer(hosts.app, name="host")
app.add_typer(pki.app, name="pki")
app.add_typer(controllers.app, name="state")

Config = Annotated[Optional[Path], typer.Option("--config", help="The configuration file.")]  # noqa: UP045  # typer reads this form
Repair = Annotated[bool, typer.Option("--repair", help="Take away what this machine has connected and no attachment uses.")]
State = Annotated[Optional[Path], typer.Option("--state-dir", help="The state directory.")]  # noqa: UP045  # typer reads this form


class Output(StrEnum):
    """How answers are shown."""

    TABLE = "table"
    JSON = "json"


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"volgate {version('volgate')}")
        raise typer.Exit


@app.callback(help=_HELP, epilog=_EXITS)
def flags(
    server: Annotated[str, typer.Option(envvar="VOLGATE_SERVER", help="unix:PATH or HOST:PORT.")] = DEFAULT_SERVER,
    output: Annotated[Output, typer.Option(help="For people or for programs.")] = Output.TABLE,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for the whole command; 0: 60, and a day for transfers and waits.")] = 0,
    cert: Annotated[str, typer.Option(envvar="VOLGATE_CERT", help="Your certificate, a file in PEM; for HOST:PORT.")] = "",
    key: Annotated[str, typer.Option(envvar="VOLGATE_KEY", help="Its private key, a file in PEM.")] = "",
    ca: Annotated[str, typer.Option(envvar="VOLGATE_CA", help="The authority of the gateway's certificate, a file in PEM.")] = "",
    *,
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version.")] = False,  # noqa: ARG001  # its callback has told it
) -> None:
    """Keep the flags of this run."""
    SESSION.address, SESSION.json, SESSION.timeout = server, output is Output.JSON, timeout
    SESSION.certificate, SESSION.key, SESSION.authority = cert, key, ca


@app.command()
def serve(
    config: Config = None,
    state_dir: State = None,
    *,
    role: Annotated[str, typer.Option("--role", help="controller, host or all; else [server] role.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Only read the configuration, and ask the database of [database].")] = False,
) -> None:
    """Serve until SIGTERM; with no configuration, a directory pool `default` below the state directory on STATE_DIR/volgate.sock."""
    from volgate.cli import serve as server

    raise typer.Exit(server.run(config, state_dir, role, check_only=check))


@app.command()
def rescan(config: Config = None, state_dir: State = None) -> None:
    """Rebuild the index of a stopped gateway from its storages."""
    from volgate.cli import serve as server

    changed = server.rescan(config, state_dir)
    object_(changed, "\n".join(f"{pool}: {rows} rows changed" for pool, rows in changed.items()))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; replaced if it exists.")],
    config: Config = None,
    state_dir: State = None,
) -> None:
    """Copy the state database, of a gateway that runs too."""
    from volgate.cli import state

    written = state.backup(config, state_dir, file)
    object_({"file": str(file), "bytes": written}, f"{file}: {written} bytes, checked")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A copy made by `volgate backup`.")],
    config: Config = None,
    state_dir: State = None,
) -> None:
    """Put a copy in the place of a stopped gateway's database; what was there is kept beside it as volgate.db.before-restore."""
    from volgate.cli import state

    database = state.restore(config, state_dir, file)
    object_({"file": str(file), "database": str(database)}, f"{database} restored; `volgate rescan` brings its index up to date")


@app.command()
def plugins(config: Config = None) -> None:
    """List the plugins found on this machine: loaded, blocked or broken, and what to do about the broken ones."""
    from volgate.cli.inspect import list_plugins

    list_plugins(config)


@app.command()
def doctor(config: Config = None, state_dir: State = None, *, repair: Repair = False) -> None:
    """Look at the server, libvirt, pools, attachments and orphans, and say what to do; exit 1 if anything is wrong."""
    from volgate.cli.doctor import examine

    raise typer.Exit(examine(config, state_dir, repair=repair))


@app.command()
def conform(
    pool: Annotated[str, typer.Option(help="The pool to judge; what is made in it is small and taken away again.")],
    *,
    level: Annotated[int, typer.Option(min=1, max=3, help="1 contract, 2 data, 3 concurrency; a deeper one has those before it.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Repeat the run that printed this seed; 0: draw one.")] = 0,
    report: Annotated[Optional[Path], typer.Option(help="Write the report to this file as JSON.")] = None,  # noqa: UP045  # typer reads this form
) -> None:
    """Judge a pool over the wire by the suite that backends are judged by; exit 1 if it does not conform."""
    from volgate.cli.conform import conform as judge

    raise typer.Exit(judge(pool, level, seed, report))
