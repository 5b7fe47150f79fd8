"""A long random walk against a model, while answers are lost, calls fail and callers give up: every repeat ends where one call would."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from random import Random

from tests.plugins.memory_rig import Array, Pool
from tests.soaking import count, draw
from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import InDoubt, InUse, Unreachable
from volgate_plugins.memory.faults import VERBS

SIZE = 64 << 10


@dataclass
class Known:
    """A volume as it must be."""

    identity: VolumeId
    data: bytes
    size: int
    parent: tuple[str, str] = ("", "")
    labels: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, tuple[bytes, int]] = field(default_factory=dict)


class Walk:
    def __init__(self, pool: Pool, random: Random) -> None:
        self.pool, self.random = pool, random
        self.known: dict[str, Known] = {}

    def until_done(self, call):
        """Repeat as the gateway does: the same call, with the same uid and token."""
        while True:
            try:
                return call()
            except (InDoubt, Unreachable):
                continue

    def step(self) -> None:
        verbs = [self.create, self.create, self.clone, self.write, self.cut, self.uncut, self.revert, self.grow, self.label, self.delete]
        act = self.random.choice(verbs[3:] if len(self.known) >= 30 else verbs)
        if act == self.create:
            act()
        elif self.known:
            act(self.known[self.random.choice(sorted(self.known))])

    def spare(self) -> str:
        return next(name for name in (f"v{n}" for n in range(1000)) if name not in self.known)

    def create(self) -> None:
        spec = self.pool.spec(self.spare(), SIZE)
        self.until_done(lambda: self.pool.backend.create_volume(spec))
        self.known[spec.name] = Known(VolumeId(spec.name, spec.uid), bytes(8), SIZE)

    def clone(self, of: Known) -> None:
        cut = self.random.choice(["", *of.cuts])
        data, size = of.cuts.get(cut, (of.data, of.size))
        spec = self.pool.spec(self.spare(), size, source=self.pool.source(of.identity, cut))
        self.until_done(lambda: self.pool.backend.create_volume(spec))
        self.known[spec.name] = Known(VolumeId(spec.name, spec.uid), data, size, parent=(of.identity.uid, cut))

    def write(self, one: Known) -> None:
        one.data = self.random.randbytes(8)
        connection = self.until_done(lambda: self.pool.backend.connection(one.identity, host="h"))
        with open(connection.path, "r+b") as file:
            file.write(one.data)

    def cut(self, one: Known) -> None:
        spec = SnapshotSpec(f"s{len(one.cuts)}-{uuid.UUID(int=self.random.getrandbits(128))}", str(uuid.uuid4()))
        self.until_done(lambda: self.pool.backend.create_snapshot(one.identity, spec))
        one.cuts[spec.uid] = (one.data, one.size)

    def uncut(self, one: Known) -> None:
        for uid in list(one.cuts)[:1]:
            holders = {name for name, other in self.known.items() if other.parent[1] == uid}
            if self.refused(lambda uid=uid: self.pool.backend.delete_snapshot(one.identity, uid)) == holders:
                if not holders:
                    del one.cuts[uid]
            else:
                raise AssertionError("it was held by others than its clones")

    def revert(self, one: Known) -> None:
        for uid in list(one.cuts)[-1:]:
            token = str(uuid.uuid4())
            found = self.until_done(lambda uid=uid, token=token: self.pool.backend.revert_volume(one.identity, uid, token=token))
            one.data, one.size = one.cuts[uid]
            assert found.size == one.size

    def grow(self, one: Known) -> None:
        size = one.size + 4096 * self.random.randrange(3)
        one.size = self.until_done(lambda: self.pool.backend.expand_volume(one.identity, size, online=False)).size
        assert one.size == size

    def label(self, one: Known) -> None:
        one.labels = {"n": str(self.random.randrange(100))}
        self.until_done(lambda: self.pool.backend.relabel_volume(one.identity, one.labels))

    def delete(self, one: Known) -> None:
        holders = {name for name, other in self.known.items() if other.parent[0] == one.identity.uid}
        cuts = {cut.name for cut in self.until_done(lambda: self.pool.backend.list_snapshots(one.identity))}
        assert self.refused(lambda: self.pool.backend.delete_volume(one.identity)) == holders | cuts
        if not holders | cuts:
            del self.known[one.identity.name]

    def refused(self, call) -> set[str]:
        try:
            self.until_done(call)
        except InUse as error:
            return {holder.name for holder in error.holders}
        return set()

    def compare(self) -> None:
        found = {volume.name: volume for volume in self.until_done(lambda: list(self.pool.backend.list_volumes()))}
        assert found.keys() == self.known.keys()
        for name, one in self.known.items():
            volume = found[name]
            assert (volume.uid, volume.size, volume.labels, volume.problem) == (one.identity.uid, one.size, one.labels, "")
            assert self.until_done(lambda one=one: self.pool.read(one.identity, 8)) == one.data
            cuts = self.until_done(lambda one=one: self.pool.backend.list_snapshots(one.identity))
            assert [cut.uid for cut in cuts] == list(one.cuts), "oldest first"
            for uid, (data, _) in one.cuts.items():
                assert self.until_done(lambda one=one, uid=uid: self.pool.read(one.identity, 8, snapshot=uid)) == data
        assert self.until_done(self.pool.backend.capacity).provisioned == sum(one.size for one in self.known.values())


def test_a_walk_with_faults_ends_where_one_without_would(tmp_path):
    random, array = draw(), Array(tmp_path / "array")
    pool = array.pool(call_seconds=0.5, copy_seconds=0.5)
    for effect, chance in (("lose", 0.1), ("error", 0.05), ("hang", 0.005)):
        for verb in VERBS[1:]:
            array.fault(effect, verb, probability=chance, seed=random.getrandbits(32))
            if effect != "lose":
                array.fault(effect, verb, probability=chance / 2, seed=random.getrandbits(32), after=True)
    walk = Walk(pool, random)
    for number in range(count(400, soak=5000)):
        walk.step()
        if number % 50 == 0:
            walk.compare()
    array.ask("clear_faults", int, verb="*")
    walk.compare()
    named = set()
    for one in walk.known.values():
        named |= {pool.backend.connection(one.identity, host="h").path, pool.backend.connection(one.identity, host="h").tag}
        named |= {pool.backend.image(one.identity, uid).path for uid in one.cuts}
    assert {str(array.root / name) for name in array.objects()} == named
    assert walk.known
    array.stop()
    assert "Traceback" not in array.said()
