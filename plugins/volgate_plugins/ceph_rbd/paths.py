"""The stations between the gateway and an image: monitors, the placement groups and OSDs that hold it, and who has it open."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rados

from volgate.backend import Holder
from volgate.errors import VolgateError
from volgate.model import Path, PathState
from volgate_plugins.ceph_rbd import monitors
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import number, reading
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.monitors import GATEWAY
from volgate_plugins.ceph_rbd.placement import group_of
from volgate_plugins.ceph_rbd.settings import CephSettings

__all__ = ["paths_of", "unanswered"]

_FIRST = 4  # data objects whose OSDs are named
_COMPUTED = 4096  # data objects whose groups are computed; a larger image is taken to be in every group
_UNKNOWN = "unknown"
_States = Mapping[int, tuple[str, int]]
"""The state and the primary OSD (-1: none) of each placement group of a pool, by its number."""


def unanswered(settings: CephSettings, error: VolgateError) -> list[Path]:
    """What is to be said when the cluster does not answer: it is down, whichever of the monitors greet."""
    down = Path("pool", GATEWAY, settings.pool, settings.pool, PathState.FAILED, last_error=error.message)
    return [*monitors.greeted(settings.monitors, settings.pool), down]


def paths_of(settings: CephSettings, link: Link, image: str, header: Header, holders: Sequence[Holder]) -> list[Path]:
    """Every station of an image, now. Raises Unreachable."""
    with reading(f"look at the way to image {image}"):
        quorum, osdmap = link.ask("quorum_status"), link.ask("osd dump")
        pools = {pool["pool_name"]: pool for pool in osdmap["pools"]}
        data = next((pool["pool_name"] for pool in osdmap["pools"] if pool["pool"] == header.data_pool), settings.pool)
        states = _states(link, list(dict.fromkeys((settings.pool, data))))
    name = "/".join(part for part in (settings.pool, settings.namespace, image) if part)
    head = f"rbd_header.{header.id}"
    at = _group(pools[settings.pool], settings, head)
    held: dict[str, set[int]] = {pool: set() for pool in states}
    held[settings.pool].add(at)
    held[data] |= _groups(pools[data], settings, header)
    first = [_object(header, number) for number in range(min(_FIRST, _count(header)))]
    groups = [(settings.pool, head, at), *((data, one, _group(pools[data], settings, one)) for one in first)]
    return [
        *monitors.told(quorum),
        *(_pool(pools[pool], states[pool], held[pool], name) for pool in states),
        *_osds(osdmap, pools, states, groups, name),
        *(_watcher(one, name) for one in holders),
    ]


def _states(link: Link, pools: Sequence[str]) -> dict[str, _States]:
    """Of each pool, nothing while no manager answers: the monitors alone do not know. Raises rados.Error."""
    try:
        return {pool: _listed(link.ask("pg ls-by-pool", poolstr=pool)["pg_stats"]) for pool in pools}
    except rados.Error as error:
        if number(error) != errno.ETIMEDOUT:
            raise
        return {pool: {} for pool in pools}


def _listed(found: Sequence[Mapping[str, Any]]) -> _States:
    return {int(one["pgid"].partition(".")[2], 16): (one["state"], int(one["acting_primary"])) for one in found}


def _pool(pool: Mapping[str, Any], states: _States, held: set[int], image: str) -> Path:
    """The placement groups that hold the image: it is down with one that takes no I/O, and degraded with one that is not clean."""
    if not states:
        told = "no manager answers: the state of the placement groups is not known; start one (ceph-mgr)"
        return Path("pool", GATEWAY, pool["pool_name"], image, PathState.ACTIVE, last_error=told, facts=_facts(pool, held))
    said = Counter(states.get(group, (_UNKNOWN, -1))[0] for group in held)
    words = {state: set(state.split("+")) for state in said}
    stopped = [state for state, parts in words.items() if "active" not in parts or "stale" in parts]
    unclean = [state for state in words if state not in stopped and "clean" not in words[state]]
    told = "; ".join(f"{said[state]} of {len(held)} placement groups are {state}" for state in (*stopped, *unclean))
    state = PathState.FAILED if stopped else PathState.ACTIVE
    return Path("pool", GATEWAY, pool["pool_name"], image, state, last_error=told, facts=_facts(pool, held))


def _facts(pool: Mapping[str, Any], held: set[int]) -> dict[str, str]:
    redundant = "yes" if pool["size"] > pool["min_size"] else "no"
    return {"groups": str(len(held)), "size": str(pool["size"]), "min_size": str(pool["min_size"]), "redundant": redundant}


def _osds(
    osdmap: Mapping[str, Any],
    pools: Mapping[str, Any],
    states: Mapping[str, _States],
    groups: Sequence[tuple[str, str, int]],
    image: str,
) -> Iterator[Path]:
    """The primary OSDs of the image's first objects."""
    known = {one["osd"]: one for one in osdmap["osds"]}
    named: dict[int, list[str]] = {}
    for pool, name, group in groups if all(states.values()) else ():
        state, primary = states[pool].get(group, (_UNKNOWN, -1))
        named.setdefault(primary, []).append(f"{name} in {pools[pool]['pool']}.{group:x} ({state})")
    for osd, objects in sorted(named.items()):
        one = known.get(osd)
        up = one is not None and bool(one["up"])
        target = f"osd.{osd} at {one['public_addr'].partition('/')[0]}" if one else "no OSD"
        problem = "" if up else f"{target} does not serve {', '.join(objects)}"
        yield Path("osd", GATEWAY, target, image, PathState.ACTIVE_OPTIMIZED if up else PathState.FAILED, last_error=problem,
                   facts={"objects": ", ".join(objects)})  # fmt: skip


def _watcher(holder: Holder, image: str) -> Path:
    return Path("watcher", holder.address, image, holder.client, PathState.ACTIVE, facts={"locks": "yes" if holder.locks else "no"})


def _groups(pool: Mapping[str, Any], settings: CephSettings, header: Header) -> set[int]:
    count, groups = _count(header), int(pool["pg_num"])
    if count > _COMPUTED:
        return set(range(groups))
    return {_group(pool, settings, _object(header, number)) for number in range(count)}


def _group(pool: Mapping[str, Any], settings: CephSettings, name: str) -> int:
    return group_of(name, int(pool["pg_num"]), settings.namespace)


def _count(header: Header) -> int:
    return -(-header.size // header.object_size)


def _object(header: Header, number: int) -> str:
    return f"{header.prefix}.{number:016x}"
