"""Space: what the pool has, what is promised, and a lock that lets one at a time promise more where that is limited."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator

import rados

from volgate.errors import Busy, OutOfSpace
from volgate.model import Capacity
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, reading
from volgate_plugins.ceph_rbd.pool import OBJECT
from volgate_plugins.ceph_rbd.store import Store

__all__ = ["Space"]

_LOCK = "volgate.promise"
_HELD_SECONDS = 60
_PAUSE = 0.02


class Space:
    """The space of one pool."""

    def __init__(self, store: Store) -> None:
        """Use the pool's store."""
        self._store = store

    def capacity(self, link: Link) -> Capacity:
        """Measure the pool that holds the data, within its quota."""
        total, free = self._measured(link)
        return Capacity(total, free, self._promised(link), self._limit(total))

    @contextlib.contextmanager
    def promising(self, link: Link, more: int, what: str) -> Iterator[None]:
        """Have the right to promise so many bytes more, until the block has made them. Raises OutOfSpace, Busy."""
        if not self._store.settings.oversubscription or more <= 0:
            yield
            return
        with self._alone(link, what):
            limit, promised = self._limit(self._measured(link)[0]), self._promised(link)
            if promised + more > limit:
                raise OutOfSpace(
                    f"{what}: {more} bytes more are not promised: {promised} of {limit} are already; delete volumes, or raise"
                    " `oversubscription`"
                )
            yield

    def _limit(self, total: int) -> int:
        return int(total * self._store.settings.oversubscription)

    def _promised(self, link: Link) -> int:
        return sum(volume.size for volume in self._store.every(link)[1])

    def _measured(self, link: Link) -> tuple[int, int]:
        settings = self._store.settings
        name = settings.data_pool or settings.pool
        with reading(f"measure pool {name}"):
            told = next(pool["stats"] for pool in link.ask("df", detail="detail")["pools"] if pool["name"] == name)
        used, free = int(told["stored"]), int(told["max_avail"])
        total = used + free
        if quota := int(told["quota_bytes"]):
            total = min(total, quota)
            free = max(0, min(free, quota - used))
        return total, free

    @contextlib.contextmanager
    def _alone(self, link: Link, what: str) -> Iterator[None]:
        cookie = str(uuid.uuid4())
        deadline = time.monotonic() + self._store.settings.operation_seconds + _HELD_SECONDS
        while True:
            with changing(what):
                try:
                    link.ioctx.lock_exclusive(OBJECT, _LOCK, cookie, duration=_HELD_SECONDS)
                    break
                except rados.ObjectBusy:
                    if time.monotonic() > deadline:
                        raise Busy(f"{what}: another call promises space of the pool for too long") from None
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            with contextlib.suppress(rados.Error):  # it ends by itself
                link.ioctx.unlock(OBJECT, _LOCK, cookie)
