"""Whether an operation may touch its pool now: none but a detach does while the pool is in quarantine."""

from __future__ import annotations

from volgate.operations.requests import DetachVolume, Request
from volgate.operations.world import World

__all__ = ["WAIT_SECONDS", "refuse", "waits"]

WAIT_SECONDS = 5.0  # between two looks of an operation that waits; a release of the pool comes sooner


def waits(world: World, request: Request) -> bool:
    """Whether an operation that was accepted has to wait."""
    head, _, rest = request.target.partition("/")
    name = rest.partition("/")[0]
    return head == "pools" and name in world.pools and bool(world.pools.get(name).quarantine) and not isinstance(request, DetachVolume)


def refuse(world: World, request: Request) -> None:
    """Raise Precondition (POOL_QUARANTINED) for a new one that would have to wait."""
    if waits(world, request):
        world.pools.get(request.target.split("/")[1]).require_served()
