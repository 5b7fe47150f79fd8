"""The hooks: questions that every plugin may answer. A call is never dispatched through a hook.

Example of a whole plugin module::

    from volgate.backend import BackendType, hookimpl

    @hookimpl
    def volgate_backends():
        return [BackendType(kind="acme", settings=AcmeSettings, open=Acme.open, summary="Acme arrays over iSCSI")]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from volgate.backend.facets import Backend
from volgate.secret import Secret

__all__ = ["PROJECT", "AdmitRequest", "BackendType", "DiskContext", "FinishedRecord", "PoolContext", "hookimpl", "hookspec"]

PROJECT = "volgate"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What `open` is told beside the pool's settings: its name and the gateway instance that owns it."""

    pool: str
    instance: str


@dataclass(frozen=True, slots=True)
class BackendType:
    """An offer: pools of `kind`.

    `settings` is a frozen dataclass (or msgspec struct) that `[pools.<name>]` is read into, strictly. `open(settings, context)`
    returns the backend, picking the class by the pool's mode; it raises Unreachable, Precondition or InvalidRequest.
    `width` calls run at once and `depth` wait. `in_threads`: threads of the gateway instead of a worker process (`directory` alone).
    `machine_bound`: the storage is of the machine that serves it; of several controllers those of one machine alone serve such a pool.
    `written_for` names facets and hooks with the versions that the plugin was written for, such as `{"Clones": 2}`: a volgate that is
    too old or too new for it then says so. What is not named is found out from the methods.
    """

    kind: str
    settings: type[Any]
    open: Callable[[Any, PoolContext], Backend]
    summary: str
    in_threads: bool = False
    width: int = 8
    depth: int = 256
    machine_bound: bool = False
    written_for: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """A call that is about to be accepted: method (`CreateVolume`), object name, principal, labels, size in bytes.

    `size` is what is asked for: of an expansion the new size; 0 where nothing is said, which for a clone or an import is its source's.
    """

    method: str
    name: str
    principal: str
    labels: Mapping[str, str]
    size: int = 0


@dataclass(frozen=True, slots=True)
class DiskContext:
    """What `volgate_disk` is told: the attachment, the domain and the host."""

    attachment: str
    volume: str
    domain: str
    host: str


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """A mutation that ended: operation name, method, object, uid, principal, outcome (`ok` or the reason), seconds."""

    operation: str
    method: str
    name: str
    uid: str
    principal: str
    outcome: str
    seconds: float


@hookspec
def volgate_backends() -> Sequence[BackendType]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the kinds of pools that this plugin offers; asked once at start."""


@hookspec
def volgate_admit(request: AdmitRequest) -> None:
    """Raise a VolgateError to refuse a mutation before anything is recorded (quota, policy)."""


@hookspec
def volgate_disk(disk: str, context: DiskContext) -> str | None:
    """Return an amended `<disk>` XML, or None to leave it: how the disk is driven may change, not what it is (`volgate.amendment`)."""


@hookspec
def volgate_finished(record: FinishedRecord) -> None:
    """Told after a mutation ended, for audit and billing; what it raises is logged and ignored."""


@hookspec(firstresult=True)
def volgate_secrets(reference: str, pool: str) -> Secret | None:
    """Return the secret that `reference` (`scheme:rest`) names, or None if the scheme is not this plugin's.

    `pool`: the name of the pool whose settings name it; "" for the gateway's own. Since version 2.
    """
