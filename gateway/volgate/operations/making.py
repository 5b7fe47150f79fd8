"""Volumes are made, grown and deleted by their pool; what writes over all of one has no limit of time, and a worker of its own."""

from __future__ import annotations

from volgate.backend import Clones, Resizes, VolumeId
from volgate.model import Volume, VolumeSpec
from volgate.operations import lookups
from volgate.pools import Pool

__all__ = ["copied", "delete", "grow", "make"]


def copied(pool: Pool, spec: VolumeSpec) -> int:
    """How many bytes of its source the making of a volume copies."""
    return pool.call(pool.facet(Clones).bytes_to_copy, spec) if spec.source is not None else 0


def make(pool: Pool, spec: VolumeSpec) -> Volume:
    """Make one. Raises what the backend does."""
    backend = pool.backend()
    long = copied(pool, spec) or spec.provisioning in backend.traits.long_makings
    return (pool.call_long if long else pool.call)(backend.create_volume, spec)


def grow(pool: Pool, volume: Volume, size: int, *, online: bool) -> Volume:
    """Grow one to `size` bytes; `online`: a guest has it. Raises Unsupported, and what the backend does."""
    resizes = pool.facet(Resizes)
    long = volume.provisioning in resizes.traits.long_makings
    return (pool.call_long if long else pool.call)(resizes.expand_volume, lookups.identity(volume), size, online=online)


def delete(pool: Pool, volume: VolumeId) -> None:
    """Delete one. Raises what the backend does."""
    backend = pool.backend()
    (pool.call_long if backend.traits.long_deletions else pool.call)(backend.delete_volume, volume)
