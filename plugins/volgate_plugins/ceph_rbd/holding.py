"""Who has an image open: those that watch its header."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rados
import rbd

from volgate.backend import Holder
from volgate.errors import Holder as Named
from volgate.errors import InUse, NotFound
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading

if TYPE_CHECKING:
    from volgate_plugins.ceph_rbd.store import Found, Store

__all__ = ["bury", "bury_all", "bury_at", "holders_of", "refuse_open"]

_BURIED_SECONDS = 3600
_LOCK, _OF_WATCH = "rbd_lock", "auto"
"""librbd's lock of a header, and the first word of its cookie; the second is the cookie of the watch that its holder has."""


def holders_of(store: Store, link: Link, image: Any, doing: str) -> Sequence[Holder]:
    """Who else has an open image open. The gateway's own clients are left out: its locks keep them apart, and one that died is nobody.

    A lock without a watch is that of a client that died too: librbd breaks it, and keeps that client out, when it needs the lock.
    """
    with reading(doing):
        watchers = {str(one["addr"]): f"client.{one['id']}" for one in image.watchers_list()}
        lockers = image.list_lockers()
    locks = {str(address) for _, _, address in lockers["lockers"]} if lockers else set()
    own = store.pool.clients(link) if watchers else set()
    return [Holder(watchers[address], address, address in locks) for address in sorted(watchers) if address not in own]


def bury(store: Store, link: Link, image: Any, *, alone: bool = False) -> bool:
    """Shut out clients of the gateway that died and still hold this open image; say whether there were any.

    The cluster would wait half a minute for them; shut out, what they had sent can no longer land. `alone`: nobody else in this
    process has the image open for a change, but perhaps librbd itself, as to purge a clone of it. A lock of this very client that no
    watch goes with was left by a handle that closed without an answer.
    """
    lockers, watchers = image.list_lockers(), list(image.watchers_list())
    held = {str(address): (str(client), str(cookie)) for client, cookie, address in lockers["lockers"]} if lockers else {}
    there = {*held, *(str(one["addr"]) for one in watchers)} - {link.address}
    if alone and link.address in held and (cookie := held[link.address][1]) not in {f"{_OF_WATCH} {one['cookie']}" for one in watchers}:
        with contextlib.suppress(rados.ObjectNotFound):  # it was taken away meanwhile
            link.ioctx.unlock(f"rbd_header.{image.id()}", _LOCK, cookie)  # to break it would shut out this very client
    dead = there & store.pool.dead_clients(link) if there else set()
    _shut_out(store, link, dead)
    for address in dead & held.keys():
        with contextlib.suppress(rbd.ImageNotFound, rbd.ReadOnlyImage):  # librbd then breaks it when it wants the lock
            image.break_lock(*held[address])
    return bool(dead)


def bury_at(store: Store, link: Link, image_id: str) -> None:
    """As `bury`, for an image that is not open; it costs next to nothing if no client of the gateway died lately."""
    doing = f"look who holds image {image_id}"
    if store.pool.dead_clients(link):
        with contextlib.suppress(NotFound), store.image(link, image_id, doing, read_only=True) as image, changing(doing):
            bury(store, link, image)


def bury_all(store: Store, link: Link) -> None:
    """Shut out every client of the gateway that died: nobody then waits for what it held."""
    with changing("shut out clients that died"):
        _shut_out(store, link, store.pool.dead_clients(link) - {link.address})


def _shut_out(store: Store, link: Link, dead: set[str]) -> None:
    """Once for each; their notes stay a while, for the cluster shows what they watched a little longer."""
    new = dead - store.pool.shut_out
    for address in new:
        link.client.blocklist_add(address, _BURIED_SECONDS)
    if new:
        link.client.wait_for_latest_osdmap()
        store.pool.note_shut_out(link, new)


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
