"""Clients kept out: their addresses on the cluster's blocklist, proven by every placement group, and their locks broken.

An entry of the blocklist keeps out every client at an IP address, on every pool of the cluster. Ceph has none without an end.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import rados
import rbd

from volgate.backend import VolumeId
from volgate.errors import Denied, InDoubt, InvalidRequest, NotFound, Precondition, Unreachable
from volgate_plugins.ceph_rbd import layout, placement
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import changing, number, reading
from volgate_plugins.ceph_rbd.store import Store

__all__ = ["SECONDS", "Fencing"]

SECONDS = 157_784_760.0
"""How long an entry stands: five years."""
_AT_ONCE = 128
_ROUNDS = 5


class Fencing:
    """What Fences asks, of one pool."""

    def __init__(self, store: Store) -> None:
        """Take the open pool."""
        self._store = store

    def fence(self, addresses: Sequence[str], volumes: Sequence[VolumeId]) -> None:
        """Keep clients at these addresses out, prove it, break their locks. Raises InvalidRequest, Precondition (FENCE_SELF)."""
        wanted = _parsed(addresses)
        doing = f"fence {', '.join(sorted(wanted))}"
        if not wanted:
            raise InvalidRequest("addresses: name those that are to be fenced", field="addresses")
        with self._store.use() as link:
            self._refuse_own(link, wanted)
            with contextlib.ExitStack() as stack:
                pools = self._pools(link, stack, doing)
                with changing(doing):
                    for address in sorted(wanted):
                        _block(link, _entry(address))
                if isinstance(pools, Unreachable):
                    raise InDoubt(f"{pools.message}; the addresses are on the blocklist, which is not proven: repeat the call") from pools
                with changing(doing):
                    _prove(link, pools, self._store.settings.namespace)
            for volume in volumes:
                self._break(link, volume, wanted, doing)

    def unfence(self, addresses: Sequence[str]) -> None:
        """Let them in again. Raises Denied if the key may not."""
        wanted = _parsed(addresses)
        with self._store.use() as link:
            listed = self._listed(link)
            for entry in sorted(_entry(address) for address in wanted if _entry(address) in listed):
                with changing(f"unfence {entry}"):
                    self._unblock(link, entry)

    def fenced(self, addresses: Sequence[str]) -> list[str]:
        """Those of the addresses that are on the blocklist."""
        with self._store.use() as link:
            listed = self._listed(link)
        return [address for address in addresses if all(_entry(one) in listed for one in _parsed([address]))]

    # -- the blocklist

    def _refuse_own(self, link: Link, wanted: set[str]) -> None:
        """Raise Precondition (FENCE_SELF) for an address of this gateway, of any of its processes and controllers."""
        own = {_ip(client) for client in self._store.pool.clients(link)}
        if found := sorted(wanted & own):
            told = f"{found[0]} is an address of this gateway: it would keep itself out; name the addresses of the host's own clients"
            raise Precondition(told, reason="FENCE_SELF")

    def _unblock(self, link: Link, entry: str) -> None:
        try:
            link.ask("osd blocklist", blocklistop="rm", addr=entry)
        except rados.Error as error:
            if number(error) not in (errno.EACCES, errno.EPERM):
                raise
            told = (
                f"unfence {entry}: the key of client.{self._store.settings.user} may not take an address off the blocklist; add to its "
                'capabilities for mon: allow command "osd blocklist" with blocklistop=rm; or run `ceph osd blocklist rm '
                f"{entry}` as an administrator; then repeat the call"
            )
            raise Denied(told, reason="CEPH_DENIED") from error

    def _listed(self, link: Link) -> set[str]:
        """The entries that the monitors have now."""
        with reading("read the blocklist"):
            code, answer, said = link.client.mon_command(json.dumps({"prefix": "osd blocklist ls", "format": "json"}), b"")
            if code:
                raise rados.OSError(said or "no answer of the monitors", abs(code))
        rows = json.JSONDecoder().raw_decode(answer.decode())[0]  # a second list, of ranges, follows in some versions
        return {str(row["addr"]) for row in rows}

    # -- the proof

    def _pools(self, link: Link, stack: contextlib.ExitStack, doing: str) -> dict[str, rados.Ioctx] | Unreachable:
        """Each pool that a client of a volume can write to: ours, and wherever an image of ours, in the trash too, has its data.

        Or why that cannot be read now: who is lost is kept out first. Raises Denied if the key may not ask one of them: such a fence
        could never be proven, and is not begun.
        """
        found = {self._store.settings.pool: link.ioctx}
        try:
            with reading(doing):
                for name in sorted(self._data_pools(link) - found.keys()):
                    found[name] = stack.enter_context(contextlib.closing(link.client.open_ioctx(name)))
                    found[name].set_namespace(self._store.settings.namespace)
                    _wait([found[name].aio_stat("volgate.probe", _heard)])
        except Unreachable as error:
            return error
        return found

    def _data_pools(self, link: Link) -> set[str]:
        """Where images have data, and where new ones will. Raises rados.Error, rbd.Error."""
        names = {self._store.settings.data_pool} - {""}
        ids = [*layout.directory(link.ioctx).values(), *(one["id"] for one in rbd.RBD().trash_list(link.ioctx))]
        for pool_id in {header.data_pool for header in layout.headers(link.ioctx, ids).values()} - {-1, link.pool_id}:
            with contextlib.suppress(rados.ObjectNotFound):  # a pool that was deleted takes no writes
                names.add(link.client.pool_reverse_lookup(pool_id))
        return names

    # -- locks

    def _break(self, link: Link, volume: VolumeId, wanted: set[str], doing: str) -> None:
        """Break the locks of these clients on a volume, and keep the very clients out that have it open, also after an unfence."""
        try:
            found = self._store.find(link, volume)
        except (NotFound, Precondition):  # deleted, or made anew: nobody of them has it
            return
        with self._store.image(link, found.header.id, doing, read_only=True) as image, reading(doing):
            lockers = [str(address) for _, _, address in (image.list_lockers() or {"lockers": ()})["lockers"]]
            watchers = [str(watcher["addr"]) for watcher in image.watchers_list()]
        ours = [client for client in {*lockers, *watchers} if _ip(client) in wanted]
        with changing(doing):
            for client in ours:
                _block(link, client)
        if held := [client for client in lockers if client in ours]:
            with self._store.image(link, found.header.id, doing) as image, changing(doing):
                for client in held:
                    with contextlib.suppress(rbd.ImageNotFound):  # another client broke it first
                        image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, client)


def _block(link: Link, entry: str) -> None:
    link.ask("osd blocklist", blocklistop="add", addr=entry, expire=SECONDS)


def _prove(link: Link, pools: Mapping[str, rados.Ioctx], namespace: str) -> None:
    """Return once every placement group works by a map that has the blocklist: it has answered a request that came with one."""
    link.client.wait_for_latest_osdmap()
    for pool, ioctx in pools.items():
        _ask_all(link, pool, ioctx, namespace)


def _ask_all(link: Link, pool: str, ioctx: rados.Ioctx, namespace: str) -> None:
    """Ask each placement group of a pool whether it has an object; again if their number grew meanwhile."""
    asked = 0
    for _ in range(_ROUNDS):
        groups = int(link.ask("osd pool get", pool=pool, var="pg_num")["pg_num"])
        if groups <= asked:
            return
        for names in _batches(placement.names(groups, namespace)):
            _wait([ioctx.aio_stat(name, _heard) for name in names])
        asked = groups
    raise rados.OSError(f"the placement groups of pool {pool} are being split; repeat the call", errno.ETIMEDOUT)


def _wait(running: Iterable[Any]) -> None:
    codes = []
    for completion in list(running):
        completion.wait_for_complete_and_cb()
        codes.append(completion.get_return_value())
    for code in codes:
        if code not in (0, -errno.ENOENT):
            raise rados.OSError("a placement group does not answer", -code)


def _heard(_completion: object, _size: object, _time: object) -> None:
    pass


def _batches(found: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(found), _AT_ONCE):
        yield found[at : at + _AT_ONCE]


def _parsed(addresses: Sequence[str]) -> set[str]:
    try:
        return {str(ipaddress.ip_address(address)) for address in addresses}
    except ValueError as error:
        raise InvalidRequest(f"addresses: {error}", field="addresses") from None


def _entry(address: str) -> str:
    """The entry of the blocklist that means every client at an IP address."""
    return f"[{address}]:0/0" if ":" in address else f"{address}:0/0"


def _ip(client: str) -> str:
    """The IP address of a client of Ceph (`10.0.0.1:0/123`, `[fd00::1]:0/123`, perhaps after `v1:`), "" if it has none."""
    place = client.rpartition("/")[0].rpartition(":")[0].strip("[]")
    for text in (place, place.partition(":")[2].strip("[]")):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text))
    return ""
