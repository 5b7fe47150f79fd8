"""The commands, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from volgate.cli import attachments, inspect, snapshots, volumes
from volgate.cli.session import SESSION

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Volgate: volumes for virtual machines.", rich_markup_mode=None
)
app.add_typer(inspect.pools, name="pool")
app.add_typer(volumes.app, name="volume")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(attachments.app, name="attachment")
app.add_typer(inspect.operations, name="operation")
app.add_typer(inspect.hosts, name="host")

Config = Annotated[Optional[Path], typer.Option("--config", help="The configuration file.")]  # noqa: UP045  # typer reads this form
State = Annotated[Optional[Path], typer.Option("--state-dir", help="The state directory.")]  # noqa: UP045  # typer reads this form


@app.command()
def serve(
    config: Config = None, state_dir: State = None, *, check: Annotated[bool, typer.Option(help="Only read the configuration.")] = False
) -> None:
    """Serve until stopped."""
    from volgate.cli import serve as server

    raise typer.Exit(server.run(config, state_dir, check_only=check))


@app.command()
def rescan(config: Config = None, state_dir: State = None) -> None:
    """Rebuild the index of a stopped gateway from its storages."""
    from volgate.cli import serve as server

    for pool, changed in server.rescan(config, state_dir).items():
        typer.echo(f"{pool}: {changed} rows changed")


@app.command()
def plugins() -> None:
    """List the plugins found on this machine, loaded or not."""
    from volgate.registry import Registry

    for plugin in Registry().plugins():
        typer.echo(f"{plugin.name:16} {plugin.version:12} {plugin.status:8} {', '.join(plugin.kinds)} {plugin.problem}".rstrip())


@app.command()
def doctor() -> None:
    """Look at the server, its pools, hosts and attachments, and say what to do; exit 1 if anything is wrong."""
    from volgate.cli.doctor import examine

    with SESSION.client() as client:
        problems = examine(client)
    for problem in problems:
        typer.echo(f"- {problem}")
    typer.echo("all is well" if not problems else f"{len(problems)} problem(s)")
    raise typer.Exit(1 if problems else 0)
