"""Which use case serves which request, what it locks, what its answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from volgate.operations import attachments, exports, fencing, groups, imports, plans, requests, snapshots, volumes
from volgate.operations.context import Context
from volgate.operations.requests import Plan
from volgate.operations.world import World
from volgate.store.records import IndexedSnapshot, IndexedVolume
from volgate.worker.learning import learn

__all__ = ["HANDLERS", "Handler", "lock_keys"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A use case. `answer` is the type of what `body` returns. `joins`: equal requests that run at once are one operation."""

    body: Callable[[Context, Any], object]
    plan: Callable[[World, Any], Plan]
    answer: Any
    joins: bool = True
    long: bool = False


def lock_keys(request: requests.Request) -> tuple[str, ...]:
    """Every object that a request locks."""
    if isinstance(request, requests.CreateSnapshotGroup):
        return tuple(sorted(request.volumes))
    keys = {request.target}
    if isinstance(request, requests.CreateVolume) and request.source:
        keys.add("/".join(request.source.split("/")[:4]))  # the volume of a snapshot, or the volume itself
    return tuple(sorted(keys))


HANDLERS: dict[str, Handler] = {
    "CreateVolume": Handler(volumes.create_volume, volumes.plan_create, IndexedVolume),
    "DeleteVolume": Handler(volumes.delete_volume, volumes.plan_delete, type(None)),
    "ExpandVolume": Handler(volumes.expand_volume, volumes.plan_expand, IndexedVolume),
    "UpdateVolume": Handler(volumes.update_volume, plans.plan_update, IndexedVolume),
    "RevertVolume": Handler(volumes.revert_volume, plans.plan_revert, IndexedVolume, joins=False, long=True),
    "AdoptVolume": Handler(volumes.adopt_volume, plans.plan_adopt, IndexedVolume),
    "ImportVolume": Handler(imports.import_volume, volumes.plan_simple, IndexedVolume, long=True),
    "ExportVolume": Handler(exports.export_volume, volumes.plan_simple, int, long=True),
    "CreateSnapshot": Handler(snapshots.create_snapshot, plans.plan_snapshot, IndexedSnapshot),
    "DeleteSnapshot": Handler(snapshots.delete_snapshot, plans.plan_snapshot_deletion, type(None)),
    "CreateSnapshotGroup": Handler(groups.create_group, groups.plan_group, tuple[IndexedSnapshot, ...]),
    "CollapseLayers": Handler(snapshots.collapse_layers, volumes.plan_simple, type(None), long=True),
    "AttachVolume": Handler(attachments.attach_volume, attachments.plan_attach, attachments.Attached),
    "DetachVolume": Handler(attachments.detach_volume, plans.plan_detach, type(None)),
    "FenceHost": Handler(fencing.fence_host, fencing.plan_fence, fencing.Fenced),
    "UnfenceHost": Handler(fencing.unfence_host, fencing.plan_unfence, type(None)),
}
learn(handler.answer for handler in HANDLERS.values())
