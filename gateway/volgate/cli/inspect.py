"""`volgate pool|host|operation ...`: what the gateway knows about itself."""

from __future__ import annotations

from typing import Annotated

import typer

from volgate.cli.session import SESSION, human, show, table
from volgate.v1 import host_pb2, operation_pb2, pool_pb2

__all__ = ["hosts", "operations", "pools"]

pools = typer.Typer(no_args_is_help=True, help="Pools.")
hosts = typer.Typer(no_args_is_help=True, help="Hosts.")
operations = typer.Typer(no_args_is_help=True, help="Operations: the journal.")
Operation = Annotated[str, typer.Argument(metavar="OPERATION", help="Full resource name, or its id.")]


def _health(pool: pool_pb2.Pool) -> str:
    return pool_pb2.PoolHealth.Name(pool.health).removeprefix("POOL_HEALTH_").lower()


@pools.command("list")
def list_pools() -> None:
    """List pools."""
    with SESSION.client() as client:
        rows = client.pages(client.pools.ListPools, pool_pb2.ListPoolsRequest(), "pools")
        table(rows, ("NAME", "KIND", "HEALTH", "FREE", "TOTAL", "PROVISIONED"), lambda p: (
            p.name.split("/")[1], p.kind, _health(p), human(p.free_bytes), human(p.total_bytes), human(p.provisioned_bytes),
        ))  # fmt: skip


@pools.command("show")
def show_pool(pool: Annotated[str, typer.Argument(metavar="POOL")]) -> None:
    """Show a pool."""
    with SESSION.client() as client:
        name = pool if "/" in pool else f"pools/{pool}"
        found = client.call(client.pools.GetPool, pool_pb2.GetPoolRequest(name=name)).pool
        show(found, [
            ("name", found.name), ("kind", found.kind), ("health", _health(found)), ("problem", found.problem),
            ("free", human(found.free_bytes)), ("total", human(found.total_bytes)), ("provisioned", human(found.provisioned_bytes)),
            ("capabilities", ", ".join(found.capabilities)), ("formats", ", ".join(found.formats)), ("notes", "; ".join(found.notes)),
        ])  # fmt: skip


@hosts.command("list")
def list_hosts() -> None:
    """List hosts."""
    with SESSION.client() as client:
        rows = client.pages(client.hosts.ListHosts, host_pb2.ListHostsRequest(), "hosts")
        table(rows, ("NAME", "CONNECTED", "LIBVIRT", "QEMU", "PROBLEM"), lambda h: (
            h.name.split("/")[1], "yes" if h.connected else "no", h.libvirt_version, h.qemu_version, h.problem,
        ))  # fmt: skip


@hosts.command("show")
def show_host(host: Annotated[str, typer.Argument(metavar="HOST")]) -> None:
    """Show a host and its domains."""
    with SESSION.client() as client:
        found = client.call(client.hosts.GetHost, host_pb2.GetHostRequest(name=host if "/" in host else f"hosts/{host}")).host
        show(found, [
            ("name", found.name), ("uri", found.uri), ("libvirt", found.libvirt_version), ("qemu", found.qemu_version),
            ("problem", found.problem), ("domains", ", ".join(d.name for d in found.domains)),
        ])  # fmt: skip


def _state(operation: operation_pb2.Operation) -> str:
    return operation_pb2.OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()


def _full(name: str) -> str:
    return name if "/" in name else f"operations/{name}"


def _shown(found: operation_pb2.Operation) -> None:
    show(found, [
        ("name", found.name), ("method", found.method), ("target", found.target), ("state", _state(found)),
        ("progress", f"{found.progress:.0%}"), ("steps", ", ".join(f"{s.name} {s.state}" for s in found.steps)),
        ("error", f"{found.error_reason} {found.error_message}".strip()),
    ])  # fmt: skip


@operations.command("list")
def list_operations(*, unfinished: Annotated[bool, typer.Option(help="Only those that have not ended.")] = False) -> None:
    """List operations, newest first."""
    with SESSION.client() as client:
        request = operation_pb2.ListOperationsRequest(unfinished_only=unfinished)
        rows = client.pages(client.operations.ListOperations, request, "operations")
        table(rows, ("ID", "METHOD", "TARGET", "STATE", "ERROR"), lambda o: (
            o.name.split("/")[1], o.method, o.target, _state(o), o.error_reason,
        ))  # fmt: skip


@operations.command("show")
def show_operation(operation: Operation) -> None:
    """Show an operation."""
    with SESSION.client() as client:
        _shown(client.call(client.operations.GetOperation, operation_pb2.GetOperationRequest(name=_full(operation))).operation)


@operations.command("watch")
def watch_operation(operation: Operation) -> None:
    """Follow an operation to its end."""
    with SESSION.client() as client:
        found = client.call(client.operations.GetOperation, operation_pb2.GetOperationRequest(name=_full(operation))).operation
        _shown(client.wait(found, timeout=86400))


@operations.command("cancel")
def cancel_operation(operation: Operation) -> None:
    """Ask an operation to stop and undo."""
    with SESSION.client() as client:
        _shown(client.call(client.operations.CancelOperation, operation_pb2.CancelOperationRequest(name=_full(operation))).operation)
