"""Who has an image open: those that watch its header, and those that hold its lock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from volgate.backend import Holder
from volgate.errors import Holder as Named
from volgate.errors import InUse
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import reading
from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["holders_of", "refuse_open"]


def holders_of(store: Store, link: Link, image: Any, doing: str) -> Sequence[Holder]:
    """Who else has an open image open. The gateway's own clients are left out: its locks keep them apart, and one that died is nobody."""
    with reading(doing):
        watchers = {str(one["addr"]): f"client.{one['id']}" for one in image.watchers_list()}
        lockers = image.list_lockers()
    locks = {str(address): str(client) for client, _, address in lockers["lockers"]} if lockers else {}
    own = store.pool.clients(link) if watchers or locks else set()
    every = {**locks, **watchers}
    return [Holder(every[address], address, address in locks) for address in sorted(every) if address not in own]


def refuse_open(store: Store, link: Link, found: Found, image: Any, doing: str) -> None:
    """Raise InUse naming who has the image open."""
    holders = holders_of(store, link, image, doing)
    if holders:
        told = ", ".join(f"{holder.client} at {holder.address}" for holder in holders)
        raise InUse(
            f"{doing}: image {found.image} is open at {told}; close it there; a client that died is let go after half a minute, or at once"
            " when its host is fenced",
            holders=tuple(Named("watcher", holder.client, holder.address) for holder in holders),
        )
