"""`volgate pool|operation ...` and `volgate plugins`: what the gateway knows about itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from volgate.cli import completion
from volgate.cli.arguments import full
from volgate.cli.output import human, object_, record, short, table, when
from volgate.cli.progress import fraction
from volgate.cli.session import SESSION
from volgate.v1 import operation_pb2, pool_pb2
from volgate_client.words import word

__all__ = ["list_plugins", "operations", "pools"]

pools = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pools.")
operations = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Operations: the journal.")
Pool = Annotated[str, typer.Argument(metavar="POOL", help="Full resource name, or its id.", autocompletion=completion.pools)]
Operation = Annotated[str, typer.Argument(metavar="OPERATION", help="Full resource name, or its id.", autocompletion=completion.operations)]


@pools.command("list")
def list_pools() -> None:
    """List pools."""
    columns = ("NAME", "KIND", "HEALTH", ">FREE", ">TOTAL", ">PROVISIONED", "PROBLEM")
    with SESSION.client() as client:
        table(client.list_pools(), columns, lambda p: (
            short(p.name), p.kind, word(pool_pb2.PoolHealth, p.health), human(p.free_bytes), human(p.total_bytes),
            human(p.provisioned_bytes), p.problem,
        ))  # fmt: skip


def _show_pool(pool: pool_pb2.Pool) -> None:
    record(pool, [
        ("name", pool.name), ("kind", pool.kind), ("health", word(pool_pb2.PoolHealth, pool.health)), ("problem", pool.problem),
        ("draining", "yes" if pool.draining else ""), ("quarantine", pool.quarantine),
        ("free", human(pool.free_bytes)), ("total", human(pool.total_bytes)),
        ("provisioned", human(pool.provisioned_bytes)),
        ("provisioned limit", human(pool.provisioned_limit_bytes) if pool.provisioned_limit_bytes else "none"),
        ("capabilities", ", ".join(pool.capabilities)), ("formats", ", ".join(pool.formats)),
        ("snapshots while attached", pool.online_snapshots or "no"), ("lane", f"{pool.lane_running} running, {pool.lane_queued} waiting"),
        ("notes", "; ".join(pool.notes)),
    ])  # fmt: skip


@pools.command("show")
def show_pool(pool: Pool) -> None:
    """Show a pool, measured now."""
    with SESSION.client() as client:
        _show_pool(client.get_pool(full("pools", pool)))


@pools.command("foreign")
def list_foreign(pool: Pool) -> None:
    """List what `volume adopt` could take: files that others made, and deleted volumes that are still kept."""
    with SESSION.client() as client:
        table(client.list_foreign(full("pools", pool)), ("LOCATOR", ">SIZE", "FORMAT", "WHAT"), lambda f: (
            f.locator, human(f.size_bytes), f.format, f.reason,
        ))  # fmt: skip


@pools.command()
def drain(pool: Pool, *, resume: Annotated[bool, typer.Option("--resume", help="Accept new volumes again.")] = False) -> None:
    """Make a pool refuse new volumes."""
    with SESSION.client() as client:
        _show_pool(client.drain_pool(full("pools", pool), resume=resume))


@pools.command()
def quarantine(pool: Pool, reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the pool's problem.")]) -> None:
    """Have nothing done in a pool any more, and list the operations there that have not ended."""
    with SESSION.client() as client:
        left = client.quarantine_pool(full("pools", pool), reason)
        _show_pool(left.pool)
    if left.operations:
        sys.stderr.write(f"not ended: {', '.join(left.operations)}; those that run go on to their end\n")


@pools.command()
def release(pool: Pool) -> None:
    """Serve a pool again that was in quarantine."""
    with SESSION.client() as client:
        _show_pool(client.release_pool(full("pools", pool)))


def _show_operation(found: operation_pb2.Operation) -> None:
    record(found, [
        ("name", found.name), ("method", found.method), ("target", found.target),
        ("state", word(operation_pb2.OperationState, found.state)), ("progress", f"{found.progress:.0%}"),
        ("steps", ", ".join(f"{step.name} {step.state}" for step in found.steps)),
        ("error", f"{found.error_reason} {found.error_message}".strip()), ("request id", found.request_id),
        ("created", when(found, "created_at")), ("finished", when(found, "finished_at")),
    ])  # fmt: skip


@operations.command("list")
def list_operations(*, unfinished: Annotated[bool, typer.Option("--unfinished", help="Only those that have not ended.")] = False) -> None:
    """List operations, newest first."""
    with SESSION.client() as client:
        table(client.list_operations(unfinished_only=unfinished), ("ID", "METHOD", "TARGET", "STATE", "CREATED", "ERROR"), lambda o: (
            short(o.name), o.method, o.target, word(operation_pb2.OperationState, o.state), when(o, "created_at"), o.error_reason,
        ))  # fmt: skip


@operations.command("show")
def show_operation(operation: Operation) -> None:
    """Show an operation."""
    with SESSION.client() as client:
        _show_operation(client.get_operation(full("operations", operation)))


@operations.command("watch")
def watch_operation(operation: Operation) -> None:
    """Follow an operation to its end; its error is this command's."""
    with SESSION.client() as client, fraction(operation) as progress:
        ended = client.wait(client.get_operation(full("operations", operation)), progress=progress)
    _show_operation(ended)


@operations.command("cancel")
def cancel_operation(operation: Operation) -> None:
    """Ask an operation to stop and undo."""
    with SESSION.client() as client:
        _show_operation(client.cancel_operation(full("operations", operation)))


def list_plugins(config: Path | None) -> None:
    """Show what the registry found, and what is wrong with what it left out. Raises InvalidRequest (the configuration)."""
    from volgate.cli.serve import logs_to_stderr
    from volgate.registry import Registry
    from volgate.settings import load

    logs_to_stderr()
    registry = Registry(load(config).plugins.blocked)
    found = registry.try_all()
    registry.close()
    rows = [(p.name, p.version, p.status, ", ".join(p.kinds), p.problem) for p in found]
    width = [max([len(row[at]) for row in rows] + [0]) for at in range(4)]
    lines = list[str]()
    for row, plugin in zip(rows, found, strict=True):
        lines.append("  ".join([*(row[at].ljust(width[at]) for at in range(4)), row[4]]).rstrip())
        lines += [f"{'':{width[0]}}  do: {plugin.action}"] if plugin.action else []
    object_([{**asdict(plugin), "kinds": list(plugin.kinds)} for plugin in found], "\n".join(lines))
