"""`volgate pki ...`: a small authority for laboratories and single sites, made with the `cryptography` package; no server, no state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from volgate.cli.output import object_

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A test authority, and certificates of the gateway and its clients.")
Folder = Annotated[Path, typer.Option("--authority", help="The authority's folder; the files are put there too.")]
Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long it lasts; never longer than the authority.")]
Names = Optional[list[str]]  # noqa: UP045  # typer reads this form


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    days: Annotated[int, typer.Option("--days", min=1, max=7300, help="How long the authority lasts.")] = 3650,
) -> None:
    """Make an authority: authority.crt for [tls] client_authority and --ca, and authority.key, which stays secret."""
    from volgate.cli.authority import Authority

    _show(Authority.create(folder, days))


@app.command()
def server(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Names and addresses that clients reach the gateway by.")],
    authority: Folder,
    days: Days = 90,
) -> None:
    """Issue the gateway's certificate: HOST.crt and HOST.key for [tls] certificate and key."""
    from volgate.cli.authority import Authority

    _show(Authority.load(authority).server(hosts, days))


@app.command()
def controller(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The controller's name, as the logs of hosts call it.")],
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Names and addresses that clients and hosts reach it by.")],
    authority: Folder,
    days: Days = 90,
) -> None:
    """Issue the certificate of a gateway that hosts register at: controller-NAME.crt and controller-NAME.key for its [tls]."""
    from volgate.cli.authority import Authority

    _show(Authority.load(authority).both("controller", name, hosts, days))


@app.command()
def host(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The host's name, as in hosts/NAME; it may register no other.")],
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Its names and addresses.")],
    authority: Folder,
    days: Days = 90,
) -> None:
    """Issue the certificate of a host that registers: host-NAME.crt and host-NAME.key for its [tls]."""
    from volgate.cli.authority import Authority

    _show(Authority.load(authority).both("host", name, hosts, days))


@app.command()
def client(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is, as logs and the journal call it.")],
    role: Annotated[str, typer.Option("--role", help="admin, operator, viewer, orchestrator, host or controller.")],
    authority: Folder,
    pool: Annotated[Names, typer.Option("--pool", help="Of an orchestrator: a pool that it may use, repeatable.")] = None,
    host: Annotated[Names, typer.Option("--host", help="Of an orchestrator: a host that it may use, repeatable.")] = None,
    days: Days = 90,
) -> None:
    """Issue a client's certificate: ROLE-NAME.crt and ROLE-NAME.key for --cert and --key."""
    from volgate.cli.authority import Authority

    _show(Authority.load(authority).client(role, name, pool or [], host or [], days))


def _show(made: tuple[Path, Path]) -> None:
    certificate, key = made
    object_({"certificate": str(certificate), "key": str(key)}, f"{certificate}\n{key} (secret)")
