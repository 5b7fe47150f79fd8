"""What is wrong, and what to do about it."""

from __future__ import annotations

from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2
from volgate_client import Client

__all__ = ["examine"]


def examine(client: Client) -> list[str]:
    """Return a line for each problem."""
    pools = client.pages(client.pools.ListPools, pool_pb2.ListPoolsRequest(), "pools")
    problems = [f"{pool.name}: {pool.problem}" for pool in pools if pool.health != pool_pb2.POOL_HEALTH_OK]
    hosts = client.pages(client.hosts.ListHosts, host_pb2.ListHostsRequest(), "hosts")
    hint = "is libvirtd running, and may this user connect to"
    problems += [f"{host.name}: {host.problem}; {hint} {host.uri}?" for host in hosts if not host.connected]
    held = client.pages(client.attachments.ListAttachments, attachment_pb2.ListAttachmentsRequest(), "attachments")
    problems += [f"{a.name} ({a.volume} on {a.domain_name}): {a.problem}; detach it to release the volume" for a in held if a.problem]
    waiting = operation_pb2.ListOperationsRequest(unfinished_only=True)
    unfinished = client.pages(client.operations.ListOperations, waiting, "operations")
    doubt = operation_pb2.OPERATION_STATE_IN_DOUBT
    problems += [f"{o.name} ({o.method} {o.target}) is in doubt, retried: {o.error_message}" for o in unfinished if o.state == doubt]
    return problems
