"""Images made and taken away, so that a death at any point is made good by the repeat."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable

import rbd

from volgate.errors import InDoubt, OutOfSpace, VolgateError
from volgate_plugins.ceph_rbd import layout
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, number, reading
from volgate_plugins.ceph_rbd.holding import bury_at
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.pool import Note
from volgate_plugins.ceph_rbd.store import Store

__all__ = ["create", "discard", "header_of", "take_away"]


def create(store: Store, link: Link, image: str, note: Note, make: Callable[[], None]) -> Header:
    """Make an image whose name is noted first; a half-made one of the same name and uid is made anew. It has no tag yet."""
    store.pool.note_client(link)  # librbd opens images by itself
    store.pool.begin(link, image, note)
    try:
        with changing(f"create image {image}"):
            try:
                make()
            except rbd.ImageExists:
                discard(store, link, image)
                make()
        return header_of(link, image)
    except VolgateError as error:
        if not isinstance(error, InDoubt) and not error.retryable:  # it is known that nothing stays
            with contextlib.suppress(VolgateError):
                discard(store, link, image)
                store.pool.made(link, image)
        raise


def discard(store: Store, link: Link, image: str) -> None:
    """Take away an image that is half-made; success if there is nothing."""
    doing = f"take away the half-made image {image}"
    with reading(doing):
        image_id = layout.directory(link.ioctx, image).get(image, "")
    if image_id and take_away(store, link, image, image_id, 0):
        return
    with changing(doing), contextlib.suppress(rbd.ImageNotFound):
        rbd.RBD().remove(link.ioctx, image)  # its header is missing: this clears the names


def take_away(store: Store, link: Link, image: str, image_id: str, delay: float) -> bool:
    """Move an image to the trash, to be purged `delay` seconds later; False if there is no such image. Raises OutOfSpace, InDoubt."""
    doing = f"delete image {image}"
    store.pool.note_client(link)  # librbd opens the image by itself
    bury_at(store, link, image_id)
    store.pool.doom(link, image_id, time.time() + delay)
    with changing(doing):
        try:
            rbd.RBD().trash_move(link.ioctx, image, int(delay))
            return True
        except rbd.ImageNotFound:
            there = layout.directory(link.ioctx, image).get(image) == image_id and layout.headers(link.ioctx, [image_id])
        except rbd.ImageBusy as error:  # nobody had it open a moment ago
            with contextlib.suppress(VolgateError), store.image(link, image_id, doing):
                pass  # opened for a change, it loses the lock that a handle of this client left behind
            raise InDoubt(f"{doing}: its lock cannot be taken now; repeat the call, which names who has it open") from error
        except rbd.Error as error:
            if number(error) not in (errno.EDQUOT, errno.ENOSPC):
                raise
            raise OutOfSpace(f"{doing}: the pool is so full that nothing can be deleted; raise its quota for a moment") from error
    if there:  # what the library says is not true
        raise InDoubt(f"{doing}: the cluster says that it does not exist, and lists it; repeat the call")
    return False


def header_of(link: Link, image: str) -> Header:
    """The header of an image that was just made. Raises InDoubt if it is gone."""
    with reading(f"read image {image}"):
        image_id = layout.directory(link.ioctx, image).get(image, "")
        found = layout.headers(link.ioctx, [image_id], whole=True).get(image_id)
    if found is None:
        raise InDoubt(f"image {image} is gone right after it was made; repeat the call")
    return found
