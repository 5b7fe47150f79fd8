"""The stations between the gateway and an image: monitors, the placement groups and OSDs that hold it, and who has it open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from volgate.backend import Holder
from volgate.errors import VolgateError
from volgate.model import Path, PathState
from volgate_plugins.ceph_rbd.cluster import Link
from volgate_plugins.ceph_rbd.faults import reading
from volgate_plugins.ceph_rbd.layout import Header
from volgate_plugins.ceph_rbd.placement import group_of
from volgate_plugins.ceph_rbd.settings import CephSettings

__all__ = ["paths_of", "unanswered"]

_FIRST = 4  # data objects whose OSDs are named
_COMPUTED = 4096  # data objects whose groups are computed; a larger image is taken to be in every group
_GATEWAY = "gateway"


def unanswered(settings: CephSettings, error: VolgateError) -> list[Path]:
    """What is to be said when the cluster does not answer."""
    return [Path("monitor", _GATEWAY, one, settings.pool, PathState.FAILED, last_error=error.message) for one in settings.monitors]


def paths_of(settings: CephSettings, link: Link, image: str, header: Header, holders: Sequence[Holder]) -> list[Path]:
    """Every station of an image, now. Raises Unreachable."""
    with reading(f"look at the way to image {image}"):
        quorum, osdmap = link.ask("quorum_status"), link.ask("osd dump")
        pools = {pool["pool_name"]: pool for pool in osdmap["pools"]}
        data = settings.data_pool or settings.pool
        states = {pool: _states(link, pool) for pool in dict.fromkeys((settings.pool, data))}
    name = "/".join(part for part in (settings.pool, settings.namespace, image) if part)
    head = f"rbd_header.{header.id}"
    at = _group(pools[settings.pool], settings, head)
    held: dict[str, set[int]] = {pool: set() for pool in states}
    held[settings.pool].add(at)
    held[data] |= _groups(pools[data], settings, header)
    first = [_object(header, number) for number in range(min(_FIRST, _count(header)))]
    groups = [(settings.pool, head, at), *((data, one, _group(pools[data], settings, one)) for one in first)]
    return [
        *_monitors(quorum),
        *(_pool(pools[pool], states[pool], held[pool], name) for pool in states),
        *_osds(osdmap, pools, states, groups, name),
        *(_watcher(one, name) for one in holders),
    ]


def _monitors(quorum: Mapping[str, Any]) -> Iterator[Path]:
    members = set(quorum["quorum_names"])
    for monitor in quorum["monmap"]["mons"]:
        addresses = ",".join(one["addr"] for one in monitor["public_addrs"]["addrvec"])
        inside = monitor["name"] in members
        problem = "" if inside else f"mon.{monitor['name']} is not in quorum"
        state = PathState.ACTIVE if inside else PathState.FAILED
        facts = {"in_quorum": "yes" if inside else "no", "leader": str(monitor["name"] == quorum["quorum_leader_name"]).lower()}
        yield Path("monitor", _GATEWAY, addresses, f"mon.{monitor['name']}", state, last_error=problem, facts=facts)


def _states(link: Link, pool: str) -> dict[int, tuple[str, int]]:
    """The state and the primary OSD (-1: none) of each placement group of a pool, by its number."""
    found = link.ask("pg ls-by-pool", poolstr=pool)["pg_stats"]
    return {int(one["pgid"].partition(".")[2], 16): (one["state"], int(one["acting_primary"])) for one in found}


def _pool(pool: Mapping[str, Any], states: Mapping[int, tuple[str, int]], held: set[int], image: str) -> Path:
    """The placement groups that hold the image: it is down with one that takes no I/O, and degraded with one that is not clean."""
    said = Counter(states.get(group, ("unknown", -1))[0] for group in held)
    words = {state: set(state.split("+")) for state in said}
    stopped = [state for state, parts in words.items() if "active" not in parts or "stale" in parts]
    unclean = [state for state in words if state not in stopped and "clean" not in words[state]]
    told = "; ".join(f"{said[state]} of {len(held)} placement groups are {state}" for state in (*stopped, *unclean))
    facts = {"groups": str(len(held)), "size": str(pool["size"]), "min_size": str(pool["min_size"])}
    facts["redundant"] = "yes" if pool["size"] > pool["min_size"] else "no"
    return Path("pool", _GATEWAY, pool["pool_name"], image, PathState.FAILED if stopped else PathState.ACTIVE, last_error=told, facts=facts)


def _osds(
    osdmap: Mapping[str, Any],
    pools: Mapping[str, Any],
    states: Mapping[str, Mapping[int, tuple[str, int]]],
    groups: Sequence[tuple[str, str, int]],
    image: str,
) -> Iterator[Path]:
    """The primary OSDs of the image's first objects."""
    known = {one["osd"]: one for one in osdmap["osds"]}
    named: dict[int, list[str]] = {}
    for pool, name, group in groups:
        state, primary = states[pool].get(group, ("unknown", -1))
        named.setdefault(primary, []).append(f"{name} in {pools[pool]['pool']}.{group:x} ({state})")
    for number, objects in sorted(named.items()):
        one = known.get(number)
        up = one is not None and bool(one["up"])
        target = f"osd.{number} at {one['public_addr'].partition('/')[0]}" if one else "no OSD"
        problem = "" if up else f"{target} does not serve {', '.join(objects)}"
        yield Path("osd", _GATEWAY, target, image, PathState.ACTIVE_OPTIMIZED if up else PathState.FAILED, last_error=problem,
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
