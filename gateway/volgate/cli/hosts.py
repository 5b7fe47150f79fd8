"""`volgate host ...`: hypervisors, and what an operator does with one: maintenance, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from volgate.cli import completion
from volgate.cli.arguments import DryRun, RequestId, full
from volgate.cli.mutate import planned
from volgate.cli.output import object_, plain, record, short, table, when
from volgate.cli.session import SESSION
from volgate.v1 import host_pb2

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Hosts.")
Host = Annotated[str, typer.Argument(metavar="HOST", help="Full resource name, or its id.", autocompletion=completion.hosts)]


@app.command("list")
def list_hosts() -> None:
    """List hosts."""
    with SESSION.client() as client:
        table(client.list_hosts(), ("NAME", "STATE", "LIBVIRT", "QEMU", "ADDRESS", "HEARD", "PROBLEM"), lambda h: (
            short(h.name), _state(h), h.libvirt_version, h.qemu_version, h.address or "local", when(h, "last_heartbeat"), h.problem,
        ))  # fmt: skip


@app.command("show")
def show_host(host: Host) -> None:
    """Show a host and its domains."""
    with SESSION.client() as client:
        found: host_pb2.Host = client.get_host(full("hosts", host))
    record(found, [
        ("name", found.name), ("state", _state(found)), ("address", found.address or "local"), ("heard", when(found, "last_heartbeat")),
        ("version", found.version), ("uri", found.uri), ("connected", "yes" if found.connected else "no"),
        ("libvirt", found.libvirt_version), ("qemu", found.qemu_version), ("features", ", ".join(found.features)),
        ("machine id", found.machine_id), ("boot id", found.boot_id), ("iqn", found.iqn), ("nqn", found.nqn),
        ("nvme host id", found.nvme_host_id), ("fenced in", ", ".join(map(short, found.fenced_pools))), ("problem", found.problem),
        ("domains", ", ".join(f"{d.name} ({'running' if d.active else 'off'})" for d in found.domains)),
    ])  # fmt: skip


@app.command()
def cordon(host: Host) -> None:
    """Close a host to new attachments, and list those that must move before its maintenance."""
    with SESSION.client() as client:
        answer = client.cordon_host(full("hosts", host))
    _tell(answer.attachments, plain(answer), f"{host} is cordoned; nothing is attached there", f"{host} is cordoned; to be moved")


@app.command()
def uncordon(host: Host) -> None:
    """Open a host to new attachments again."""
    with SESSION.client() as client:
        answer = client.cordon_host(full("hosts", host), uncordon=True)
    object_(plain(answer), f"{host} is open")


@app.command()
def release(
    host: Host,
    *,
    assume_off: Annotated[bool, typer.Option("--assume-off", help="You know that the machine is off or fenced.")] = False,
) -> None:
    """Let go of the attachments of a dead host, so that their volumes can be attached elsewhere."""
    with SESSION.client() as client:
        answer = client.release_host(full("hosts", host), assume_off=assume_off)
    _tell(answer.attachments, plain(answer), f"{host} is released; it had no attachments", f"{host} is released; let go")


@app.command()
def remove(host: Host) -> None:
    """Forget a host without attachments; its identity is free for another."""
    with SESSION.client() as client:
        client.remove_host(full("hosts", host))
    object_({"name": full("hosts", host)}, f"{host} is removed")


@app.command()
def fence(
    host: Host,
    addresses: Annotated[
        list[str] | None, typer.Option("--address", help="An IP address of its clients, repeatable; else those seen.")
    ] = None,
    request_id: RequestId = "",
    *,
    dry_run: DryRun = False,
) -> None:
    """Keep a lost host out of the storage, so that its volumes can be attached elsewhere."""
    request = host_pb2.FenceHostRequest(name=full("hosts", host), addresses=addresses, request_id=request_id)
    with SESSION.client() as client:
        if planned(client, client.hosts.FenceHost, request, dry_run=dry_run):
            return
        answer = client.call(client.hosts.FenceHost, request)
    done = f"{host} is fenced in {', '.join(map(short, answer.host.fenced_pools))} ({', '.join([*answer.addresses, *answer.initiators])})"
    _tell(answer.unfenced_attachments, plain(answer), done, f"{done}; attachments that it still holds, in other pools")


@app.command()
def unfence(
    host: Host,
    request_id: RequestId = "",
    *,
    assume_restarted: Annotated[bool, typer.Option("--assume-restarted", help="You know that all that ran there was stopped.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Let a fenced host in again, after what ran on it was stopped."""
    request = host_pb2.UnfenceHostRequest(name=full("hosts", host), assume_restarted=assume_restarted, request_id=request_id)
    with SESSION.client() as client:
        if not planned(client, client.hosts.UnfenceHost, request, dry_run=dry_run):
            answer = client.call(client.hosts.UnfenceHost, request)
            object_(plain(answer), f"{host} is let in; start anew what ran there")


def _tell(attachments: Sequence[str], facts: dict[str, object], none: str, some: str) -> None:
    object_(facts, "\n".join([f"{some}:", *(short(name) for name in attachments)]) if attachments else none)


def _state(host: host_pb2.Host) -> str:
    """One word, the most urgent first, and whether it is fenced or closed."""
    word = "released" if host.released else "dead" if not host.live else "up" if host.connected else "no libvirt"
    word += ", fenced" if host.fenced_pools else ""
    return f"{word}, cordoned" if host.cordoned else word
