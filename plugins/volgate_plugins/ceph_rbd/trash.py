"""What was deleted: purged in the background when its time has come, or taken back before."""

from __future__ import annotations

import contextlib
import threading
import time

import rbd

from volgate.errors import VolgateError
from volgate_plugins.ceph_rbd import layout
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import reading
from volgate_plugins.ceph_rbd.groups import Grouping
from volgate_plugins.ceph_rbd.holding import bury_all, bury_at
from volgate_plugins.ceph_rbd.store import Store

__all__ = ["Sweeper"]

_NEVER_MOVED_SECONDS = 3600.0
_REST_SECONDS = 0.25


class Sweeper:
    """A thread that purges while there is something to purge; what it does not get done is done after the next look at the pool."""

    def __init__(self, store: Store, groups: Grouping) -> None:
        """Nothing runs yet."""
        self._store, self._groups = store, groups
        self._lock = threading.Lock()
        self._awake = False
        self._again = False
        self._closed = threading.Event()

    def wake(self) -> None:
        """Purge what is due, in the background."""
        with self._lock:
            self._again = True
            if self._awake or self._closed.is_set():
                return
            self._awake = True
        threading.Thread(target=self._run, name="ceph-rbd-purge", daemon=True).start()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._again or self._closed.is_set():
                    self._awake = False
                    return
                self._again = False
            self._closed.wait(_REST_SECONDS)  # deletes that follow one another are not slowed down
            with contextlib.suppress(VolgateError):  # the next look at the pool tells what is wrong, and wakes this again
                self._sweep()

    def _sweep(self) -> None:
        with self._store.use() as link:
            bury_all(self._store, link)
        while self._round():
            pass
        with self._store.use() as link:
            self._store.pool.forget_clients(link)
            self._groups.sweep(link)

    def _round(self) -> bool:
        """Try all that is due once; say whether another round may get more done: with a clone, what it lay on can go."""
        with self._store.use() as link:
            due = [image_id for image_id, when in self._store.pool.doomed(link).items() if when <= time.time()]
        gone = 0
        for image_id in due:
            if self._closed.is_set():
                return False
            with contextlib.suppress(VolgateError), self._store.use() as link:
                gone += self._purge(link, image_id)
        return gone > 0

    def _purge(self, link: Link, image_id: str) -> bool:
        """Say whether something was done, so that another round may do more."""
        self._store.pool.note_client(link)  # librbd opens the image by itself
        with reading(f"purge image {image_id}"):
            bury_at(self._store, link, image_id)
            try:
                rbd.RBD().trash_remove(link.ioctx, image_id, force=True)
            except rbd.ImageNotFound:
                if not self._is_gone(link, image_id):
                    return False
            except rbd.ImageHasSnapshots:
                return self._drop_snapshots(link, image_id)
            except rbd.ImageBusy:
                return False  # somebody has it open, or died on another machine and is let go after half a minute
        self._store.pool.purged(link, image_id)
        return True

    def _is_gone(self, link: Link, image_id: str) -> bool:
        """Whether an image that is not in the trash is purged, or was never moved there and is a volume."""
        if image_id not in layout.directory(link.ioctx).values():
            return image_id not in layout.headers(link.ioctx, [image_id])
        since = self._store.pool.doomed(link).get(image_id, 0.0)
        return time.time() - since > _NEVER_MOVED_SECONDS  # the call that was to move it is long over

    def _drop_snapshots(self, link: Link, image_id: str) -> bool:
        """Remove the snapshots that no clone needs any more; say whether the image can go now."""
        with self._store.image(link, image_id, "purge snapshots") as image:
            for snapshot in list(image.list_snaps()):
                with contextlib.suppress(rbd.ImageBusy):
                    image.remove_snap_by_id(snapshot["id"])
            return not list(image.list_snaps())
