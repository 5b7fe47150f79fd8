"""The mutations of a backend as the faults of level 4 make them: what must be there before, the call, and what must be true after."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from volgate.backend import (
    Adopts,
    Clones,
    DataPath,
    Extracts,
    FencesHosts,
    GroupMember,
    Groups,
    Initiator,
    Overlays,
    Publishes,
    Relabels,
    Resizes,
    Reverts,
    Snapshots,
    VolumeId,
)
from volgate.conformance import picture
from volgate.conformance.cases import READABLE, Need
from volgate.conformance.contract_publishes import HOSTS
from volgate.conformance.in_process import Opened
from volgate.conformance.picture import PAGE, Picture
from volgate.errors import NotFound
from volgate.model import Format, Snapshot, Volume, VolumeSpec, VolumeState

__all__ = ["FOREIGN", "VERBS", "Call", "Verb"]

PAGES = {0: 1, 3 * PAGE: 2}
FOREIGN = 0xAD
"""What the first and the last page of an object of others hold."""
_LOST = Initiator("conformance-lost", "iqn.2026-01.org.volgate:lost", "nqn.2026-01.org.volgate:lost")


@dataclass(slots=True)
class Call:
    """One call. `check` looks through a pool that was opened anew whether its effect is there, whole; `undo` is what takes it back."""

    method: str
    arguments: tuple[Any, ...]
    check: Callable[[Opened], None]
    keywords: dict[str, Any] = field(default_factory=dict)
    undo: VolumeId | None = None
    files: tuple[str, ...] = ()
    """What it writes beside the volume: paths."""
    about: str = ""
    """The name of the volume that it is about, where no argument tells."""

    @property
    def volume(self) -> str:
        """The name of the volume that it is about, of several the first."""
        if self.about:
            return self.about
        first = next(argument for argument in self.arguments if not isinstance(argument, str))
        return str(first[0].volume.name if isinstance(first, list) else first.name)


@dataclass(frozen=True, slots=True)
class Verb:
    """A mutation: the facets that it needs, and how one call of it is prepared; `foreign`: of an object that is not ours."""

    name: str
    needs: tuple[Need, ...]
    prepare: Callable[[Opened], Call]
    foreign: bool = False

    def applies(self, pool: Opened) -> bool:
        """Whether a call of it can be prepared."""
        return all(isinstance(pool.backend, need) for need in self.needs) and (pool.make_foreign is not None or not self.foreign)

    def __str__(self) -> str:
        return self.name


def _create(pool: Opened) -> Call:
    spec = pool.spec(labels={"a": "b"})
    return Call("create_volume", (spec,), lambda now: _is(now, spec, {}), undo=VolumeId(spec.name, spec.uid))


def _is(pool: Opened, spec: VolumeSpec, pages: Picture) -> None:
    found = pool.get(spec.name)
    assert (found.uid, found.requested_size, found.labels, found.state) == (spec.uid, spec.size, spec.labels, VolumeState.READY)
    assert [volume.name for volume in pool.listed()].count(spec.name) == 1
    assert pool.content(found) == pages


def _delete(pool: Opened) -> Call:
    made = pool.filled(PAGES)

    def check(now: Opened) -> None:
        with now.refused(NotFound):
            now.get(made)
        assert made.name not in [volume.name for volume in now.listed()]

    return Call("delete_volume", (pool.id(made),), check)


def _expand(pool: Opened) -> Call:
    made = pool.filled(PAGES)

    def check(now: Opened) -> None:
        assert now.get(made).size == now.size(2)
        assert now.content(made) == PAGES

    return Call("expand_volume", (pool.id(made), pool.size(2)), check, {"online": False})


def _relabel(pool: Opened) -> Call:
    made = pool.create(labels={"old": "1"})

    def check(now: Opened) -> None:
        assert now.get(made).labels == {"new": "2"}

    return Call("relabel_volume", (pool.id(made), {"new": "2"}), check)


def _snapshot(pool: Opened) -> Call:
    made, cut = pool.filled(PAGES), pool.cut(labels={"a": "b"})

    def check(now: Opened) -> None:
        (told,) = now.snapshots(made)
        assert (told.uid, told.name, told.labels, told.size) == (cut.uid, cut.name, cut.labels, made.size)
        assert now.content(made) == PAGES
        now.write(made, {PAGE: 9})
        assert now.content(made, told) == PAGES

    return Call("create_snapshot", (pool.id(made), cut), check)


def _snapshot_group(pool: Opened) -> Call:
    volumes = [pool.filled(PAGES) for _ in range(2)]
    members = [GroupMember(pool.id(volume), pool.cut(labels={"a": "b"})) for volume in volumes]

    def check(now: Opened) -> None:
        for volume, member in zip(volumes, members, strict=True):
            (told,) = now.snapshots(volume)
            assert (told.uid, told.name, told.labels, told.size) == (member.spec.uid, member.spec.name, member.spec.labels, volume.size)
            now.write(volume, {PAGE: 9})
            assert now.content(volume, told) == PAGES

    return Call("create_snapshot_group", (str(uuid.uuid4()), members), check)


def _unsnapshot(pool: Opened) -> Call:
    made = pool.filled(PAGES)
    older = pool.snapshot(made)
    pool.write(made, {PAGE: 5})
    gone = pool.snapshot(made)
    pool.write(made, {2 * PAGE: 6})

    def check(now: Opened) -> None:
        assert now.snapshots(made) == [older]
        assert now.content(made) == {**PAGES, PAGE: 5, 2 * PAGE: 6}
        assert now.content(made, older) == PAGES

    return Call("delete_snapshot", (pool.id(made), gone.uid), check)


def _revert(pool: Opened) -> Call:
    made = pool.filled(PAGES)
    cut = pool.snapshot(made)
    pool.write(made, {PAGE: 5})

    def check(now: Opened) -> None:
        assert now.snapshots(made) == [cut]
        assert now.content(made) == now.content(made, cut) == PAGES

    return Call("revert_volume", (pool.id(made), cut.uid), check, {"token": str(uuid.uuid4())})


def _clone_of(pool: Opened, made: Volume, cut: Snapshot | None) -> Call:
    spec = pool.spec(source=pool.origin(made, cut), size=made.size, format=made.format)

    def check(now: Opened) -> None:
        _is(now, spec, PAGES)
        assert now.content(made) == PAGES and not now.get(made).problem

    return Call("create_volume", (spec,), check, undo=VolumeId(spec.name, spec.uid))


def _clone_volume(pool: Opened) -> Call:
    return _clone_of(pool, pool.filled(PAGES), None)


def _clone_snapshot(pool: Opened) -> Call:
    made = pool.filled(PAGES)
    return _clone_of(pool, made, pool.snapshot(made))


def _fill(pool: Opened) -> Call:
    made = pool.create(incomplete=True)
    path = pool.image(PAGES, made.size)

    def check(now: Opened) -> None:
        assert now.get(made).state is VolumeState.CREATING
        done = now.facet(DataPath).complete(now.id(made))
        assert now.content(done) == PAGES

    return Call("fill_from_file", (pool.id(made), path, Format.RAW, lambda _done: None), check, undo=pool.id(made))


def _extract(pool: Opened) -> Call:
    made, path = pool.filled(PAGES), f"{pool.folder()}/extract"

    def check(now: Opened) -> None:
        assert picture.of_file(path) == now.content(made) == PAGES
        assert Path(path).stat().st_size == made.size

    return Call("extract_to_file", (pool.id(made), "", path, lambda _done: None), check, files=(path,))


def _adopt(pool: Opened) -> Call:
    assert pool.make_foreign is not None
    locator, spec = pool.make_foreign(pool.size()), pool.spec(labels={"a": "b"}, format=Format.RAW)

    def check(now: Opened) -> None:
        _is(now, spec, {0: FOREIGN, spec.size - PAGE: FOREIGN})
        assert locator not in {foreign.locator for foreign in now.facet(Adopts).list_foreign()}

    return Call("adopt_volume", (locator, spec), check)


def _complete(pool: Opened) -> Call:
    made = pool.create(incomplete=True)

    def check(now: Opened) -> None:
        assert now.get(made).state is VolumeState.READY
        assert now.content(made) == {}

    return Call("complete", (pool.id(made),), check, undo=pool.id(made))


def _collapse(pool: Opened) -> Call:
    made = pool.create(format=Format.QCOW2)
    pool.write(made, PAGES)
    cut = pool.snapshot(made)
    pool.write(made, {PAGE: 5})
    pool.facet(Snapshots).delete_snapshot(pool.id(made), cut.uid)

    def check(now: Opened) -> None:
        assert now.get(made).depth == 0
        assert now.content(made) == {**PAGES, PAGE: 5}

    return Call("collapse_layers", (pool.id(made),), check)


def _overlay(pool: Opened) -> Call:
    made, cut = pool.create(format=Format.QCOW2), pool.cut()
    pool.write(made, PAGES)

    def check(now: Opened) -> None:
        top = now.facet(Overlays).prepare_overlay(now.id(made), cut).top
        now.facet(Overlays).finish_overlay(now.id(made), cut)
        assert now.backend.connection(now.id(made), host="conformance").source == top.source
        assert now.content(made) == PAGES

    return Call("prepare_overlay", (pool.id(made), cut), check)


def _finish(pool: Opened) -> Call:
    call = _overlay(pool)
    volume, cut = call.arguments
    pool.facet(Overlays).prepare_overlay(volume, cut)

    def check(now: Opened) -> None:
        assert [told.uid for told in now.facet(Snapshots).list_snapshots(volume)] == [cut.uid]
        assert now.content(now.get(volume.name)) == PAGES

    return replace(call, method="finish_overlay", check=check)


def _publish(pool: Opened) -> Call:
    made = pool.filled(PAGES)

    def check(now: Opened) -> None:
        assert [*now.facet(Publishes).published(now.id(made))] == [HOSTS[0].host]
        assert now.content(made) == PAGES
        now.facet(Publishes).unpublish(now.id(made), HOSTS[0].host)

    return Call("publish", (pool.id(made), HOSTS[0]), check)


def _unpublish(pool: Opened) -> Call:
    made = pool.filled(PAGES)
    pool.facet(Publishes).publish(pool.id(made), HOSTS[0])

    def check(now: Opened) -> None:
        assert [*now.facet(Publishes).published(now.id(made))] == []
        assert now.content(made) == PAGES

    return Call("unpublish", (pool.id(made), HOSTS[0].host), check)


def _fence_host(pool: Opened) -> Call:
    made, fences = pool.filled(PAGES), pool.facet(FencesHosts)
    fences.unfence_host(_LOST.host)  # a call before may have fenced it
    if published := isinstance(pool.backend, Publishes):
        for initiator in (HOSTS[1], _LOST):
            pool.facet(Publishes).publish(pool.id(made), initiator)

    def check(now: Opened) -> None:
        assert not published or [*now.facet(Publishes).published(now.id(made))] == [HOSTS[1].host]
        assert [*now.facet(FencesHosts).fenced_hosts()] == [_LOST.host]
        assert now.content(made) == PAGES
        now.facet(FencesHosts).unfence_host(_LOST.host)
        if published:
            now.facet(Publishes).unpublish(now.id(made), HOSTS[1].host)

    return Call("fence_host", (_LOST, [pool.id(made)]), check, about=made.name)


VERBS = (
    Verb("create", (), _create),
    Verb("delete", (), _delete),
    Verb("expand", (Resizes,), _expand),
    Verb("relabel", (Relabels,), _relabel),
    Verb("snapshot", (Snapshots, READABLE), _snapshot),
    Verb("snapshot-group", (Groups, READABLE), _snapshot_group),
    Verb("unsnapshot", (Snapshots, READABLE), _unsnapshot),
    Verb("revert", (Reverts, READABLE), _revert),
    Verb("clone-volume", (Clones,), _clone_volume),
    Verb("clone-snapshot", (Clones,), _clone_snapshot),
    Verb("fill", (DataPath,), _fill),
    Verb("extract", (Extracts,), _extract),
    Verb("complete", (DataPath,), _complete),
    Verb("adopt", (Adopts,), _adopt, foreign=True),
    Verb("prepare-overlay", (Overlays,), _overlay),
    Verb("finish-overlay", (Overlays,), _finish),
    Verb("collapse", (Overlays,), _collapse),
    Verb("publish", (Publishes,), _publish),
    Verb("unpublish", (Publishes,), _unpublish),
    Verb("fence-host", (FencesHosts,), _fence_host),
)
