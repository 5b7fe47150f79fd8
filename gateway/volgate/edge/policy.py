"""Who may call what: one row for each method that is served. What has no row is denied to everybody.

A row also names the fields of the request that hold names of pools and hosts: a caller with a scope may name none outside of it.
What a request names by an id (an attachment, an operation) is looked up in the scope: outside of it there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from volgate.edge.identity import Principal, Role
from volgate.errors import Denied, Unsupported

__all__ = ["AGENT", "POLICY", "Rule", "require_role", "require_scope", "rule_of", "target_of"]

_ALL = frozenset(Role)
_READ = _ALL - {Role.HOST, Role.CONTROLLER}
_HOST = frozenset({Role.HOST})
_CHANGE = _READ - {Role.VIEWER}
_ADMIN = frozenset({Role.ADMIN})
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """`names`: fields with resource names, the call's target first. `paths`: fields with paths on the gateway's host, in no scope."""

    roles: frozenset[Role]
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


_V1 = "/volgate.v1."
POLICY: dict[str, Rule] = {
    f"{_V1}PoolService/ListPools": Rule(_READ),
    f"{_V1}PoolService/GetPool": Rule(_READ, ("name",)),
    f"{_V1}PoolService/DrainPool": Rule(_ADMIN, ("name",)),
    f"{_V1}PoolService/QuarantinePool": Rule(_ADMIN, ("name",)),
    f"{_V1}VolumeService/CreateVolume": Rule(_CHANGE, ("pool", "source")),
    f"{_V1}VolumeService/DeleteVolume": Rule(_CHANGE, ("name",)),
    f"{_V1}VolumeService/GetVolume": Rule(_READ, ("name",)),
    f"{_V1}VolumeService/ListVolumes": Rule(_READ, ("pool",)),
    f"{_V1}VolumeService/ExpandVolume": Rule(_CHANGE, ("name",)),
    f"{_V1}VolumeService/UpdateVolume": Rule(_CHANGE, ("name",)),
    f"{_V1}VolumeService/RevertVolume": Rule(_CHANGE, ("name",)),
    f"{_V1}VolumeService/ImportVolume": Rule(_CHANGE, ("header.pool",), ("header.path",)),
    f"{_V1}VolumeService/ExportVolume": Rule(_CHANGE, ("name",), ("path",)),  # reads, but all of a guest's data
    f"{_V1}VolumeService/AdoptVolume": Rule(_CHANGE, ("pool",)),
    f"{_V1}VolumeService/ListChangedBlocks": Rule(_READ, ("name",)),
    f"{_V1}SnapshotService/CreateSnapshot": Rule(_CHANGE, ("volume",)),
    f"{_V1}SnapshotService/DeleteSnapshot": Rule(_CHANGE, ("name",)),
    f"{_V1}SnapshotService/CreateSnapshotGroup": Rule(_CHANGE, ("pool",)),
    f"{_V1}SnapshotService/GetSnapshot": Rule(_READ, ("name",)),
    f"{_V1}SnapshotService/ListSnapshots": Rule(_READ, ("parent",)),
    f"{_V1}AttachmentService/AttachVolume": Rule(_CHANGE, ("volume", "host")),
    f"{_V1}AttachmentService/DetachVolume": Rule(_CHANGE, ("name",)),
    f"{_V1}AttachmentService/GetAttachment": Rule(_READ, ("name",)),
    f"{_V1}AttachmentService/ListAttachments": Rule(_READ, ("volume", "host")),
    f"{_V1}AttachmentService/ListPaths": Rule(_READ, ("name",)),
    f"{_V1}AttachmentService/WatchPaths": Rule(_READ, ("name",)),
    f"{_V1}HostService/ListHosts": Rule(_READ),
    f"{_V1}HostService/GetHost": Rule(_READ, ("name",)),
    f"{_V1}HostService/RegisterHost": Rule(_HOST, ("name",)),
    f"{_V1}HostService/HeartbeatHost": Rule(_HOST, ("name",)),
    f"{_V1}HostService/CordonHost": Rule(_ADMIN | {Role.OPERATOR}, ("name",)),
    f"{_V1}HostService/ReleaseHost": Rule(_ADMIN, ("name",)),  # a wrong word of its caller costs data
    f"{_V1}HostService/RemoveHost": Rule(_ADMIN, ("name",)),
    f"{_V1}HostService/FenceHost": Rule(_ADMIN | {Role.OPERATOR}, ("name",)),  # takes storage from a host, and harms no data
    f"{_V1}HostService/UnfenceHost": Rule(_ADMIN, ("name",)),  # a wrong word of its caller costs data
    f"{_V1}OperationService/GetOperation": Rule(_READ, ("name",)),
    f"{_V1}OperationService/ListOperations": Rule(_READ),
    f"{_V1}OperationService/WatchOperation": Rule(_READ, ("name",)),
    f"{_V1}OperationService/CancelOperation": Rule(_CHANGE, ("name",)),
    "/grpc.health.v1.Health/Check": Rule(_ALL),
    "/grpc.health.v1.Health/List": Rule(frozenset()),  # gRPC's library registers it and does not implement it
    "/grpc.health.v1.Health/Watch": Rule(_ALL),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(_READ),
}
AGENT: dict[str, Rule] = {
    f"{_V1}AgentService/Call": Rule(frozenset({Role.CONTROLLER})),
    f"{_V1}AgentService/Listen": Rule(frozenset({Role.CONTROLLER})),
    "/grpc.health.v1.Health/Check": POLICY["/grpc.health.v1.Health/Check"],
    "/grpc.health.v1.Health/Watch": POLICY["/grpc.health.v1.Health/Watch"],
}
"""What a host serves, to controllers."""


_ROWS = POLICY | AGENT


def rule_of(method: str) -> Rule:
    """The rule of a method. Raises KeyError."""
    return _ROWS[method]


def require_role(method: str, caller: Principal) -> Rule:
    """The rule of a method that the caller may call. Raises Denied (ROLE_TOO_SMALL), Unsupported (nobody may)."""
    rule = _ROWS.get(method)
    if rule is not None and not rule.roles:
        raise Unsupported(f"{method} is not served")
    if rule is None or caller.role not in rule.roles:
        whose = ", ".join(sorted(rule.roles)) if rule else "nobody"
        told = f"{caller} may not call {method}: it is for {whose}; use a certificate with such a role"
        raise Denied(told, reason="ROLE_TOO_SMALL")
    return rule


def require_scope(rule: Rule, caller: Principal, message: Any) -> None:
    """Raise Denied (OUT_OF_SCOPE) if a request names what the caller's certificate does not."""
    scope = caller.scope
    if scope.pools is None and scope.hosts is None:
        return
    for field, name in _named(rule.names, message):
        head, _, rest = name.partition("/")
        item = rest.partition("/")[0]
        inside = (
            scope.has_pool(item) if head == "pools" else scope.has_host(item) if head == "hosts" else head in ("attachments", "operations")
        )
        if not inside:
            told = f"{field}: {name[:_LONGEST]!r} is outside of the pools and hosts that the certificate of {caller} names; ask for another"
            raise Denied(told, reason="OUT_OF_SCOPE", field=field)
    for field, _path in _named(rule.paths, message):
        told = f"{field}: paths on the gateway's host belong to no pool; {caller} has a scope and sends or reads a stream instead"
        raise Denied(told, reason="OUT_OF_SCOPE", field=field)


def target_of(rule: Rule, message: Any) -> str:
    """What a request is about, for the log; "" where it names nothing."""
    return next((name[:_LONGEST] for _, name in _named(rule.names, message)), "")


def _named(fields: tuple[str, ...], message: Any) -> Iterator[tuple[str, str]]:
    """The fields that are filled in."""
    for field in fields:
        value = message
        for part in field.split("."):
            value = getattr(value, part)
        if value:
            yield field, value
