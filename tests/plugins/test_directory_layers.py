"""Data integrity through trees of snapshots, reverts, clones and merges: real bytes against a model of dictionaries."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.plugins.directory_rig import MIB, Rig, io
from volgate.backend import SnapshotSpec, VolumeId
from volgate.errors import InUse, Precondition


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "pool")


def test_a_tree_of_reverts_keeps_every_branch(rig):
    one = rig.create("a")
    rig.write(one, 1)
    first = rig.snapshot(one, "s1")
    rig.write(one, 2)
    second = rig.snapshot(one, "s2")
    rig.write(one, 3)
    rig.backend.revert_volume(one, first, token="t1")
    rig.reads(one, 1)
    rig.write(one, 4)
    third = rig.snapshot(one, "s3")
    for snapshot, pattern in ((first, 1), (second, 2), (third, 4)):
        rig.reads(one, pattern, snapshot=snapshot)
    rig.backend.revert_volume(one, second, token="t2")
    rig.write(one, 9)
    rig.backend.revert_volume(one, second, token="t2")
    rig.reads(one, 9)
    assert [s.name for s in rig.backend.list_snapshots(one)] == ["s1", "s2", "s3"]
    rig.backend.delete_snapshot(one, third)
    rig.backend.delete_snapshot(one, first)
    assert rig.backend.collapse_layers(one) == 1
    rig.reads(one, 2, snapshot=second)
    rig.reads(one, 9)
    rig.backend.delete_snapshot(one, second)
    assert rig.backend.collapse_layers(one) == 1 and rig.backend.get_volume("a").depth == 0
    rig.reads(one, 9)
    rig.checked()


def test_revert_brings_the_size_back(rig):
    one = rig.create("a", MIB)
    first = rig.snapshot(one, "s")
    rig.backend.expand_volume(one, 4 * MIB, online=False)
    rig.write(one, 3, 3 * MIB)
    assert rig.backend.revert_volume(one, first, token="t").size == MIB
    assert rig.backend.expand_volume(one, 4 * MIB, online=False).size == 4 * MIB
    rig.reads(one, 0, 0, 4 * MIB)


def test_layers_with_clones_are_never_merged(rig):
    one = rig.create("a")
    rig.write(one, 1)
    first = rig.snapshot(one, "s1")
    rig.write(one, 2, MIB)
    second = rig.snapshot(one, "s2")
    child = rig.clone("c", one, second)
    grandchild = rig.clone("g", child)
    rig.backend.delete_snapshot(one, first)
    before = {p: p.read_bytes() for p in rig.path.glob("volumes/a.*/*.qcow2")}
    assert rig.backend.collapse_layers(one) == 0
    assert {p: p.read_bytes() for p in before} == before
    rig.write(child, 3, 2 * MIB)
    for volume in (child, grandchild):
        rig.reads(volume, 1)
        rig.reads(volume, 2, MIB)
    rig.reads(grandchild, 0, 2 * MIB)
    rig.backend.delete_volume(grandchild)
    assert rig.backend.collapse_layers(child) == 1
    rig.backend.delete_volume(child)
    rig.backend.delete_snapshot(one, second)
    assert rig.backend.collapse_layers(one) == 2
    rig.reads(one, 1)
    rig.reads(one, 2, MIB)
    rig.checked()


def test_deleting_snapshots_leaves_alone_what_an_open_chain_holds(rig):
    one = rig.create("a")
    rig.write(one, 1)
    first = rig.snapshot(one, "s1")
    held = rig.backend.connection(one, host="h")
    command = ["qemu-io", "-f", "qcow2", held.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        guest.stdin.write("write -P 5 1M 1M\n")
        guest.stdin.flush()
        while "wrote" not in guest.stdout.readline():
            pass
        stamps = {p: p.stat().st_ino for p in rig.path.glob("volumes/a.*/*.qcow2")}
        rig.backend.delete_snapshot(one, first)
        assert {p: p.stat().st_ino for p in rig.path.glob("volumes/a.*/*.qcow2")} == stamps
        with pytest.raises(InUse):
            rig.backend.collapse_layers(one)
        guest.communicate("read -P 1 0 1M\nflush\nquit\n")
    assert rig.backend.collapse_layers(one) == 1
    rig.reads(one, 1)
    rig.reads(one, 5, MIB)


def test_overlays_of_an_attached_volume(rig):
    one = rig.create("a")
    rig.write(one, 1)
    spec = SnapshotSpec("s", str(uuid.uuid4()), {"k": "v"}, quiesced=True)
    prepared = rig.backend.prepare_overlay(one, spec)
    assert prepared.base == rig.backend.connection(one, host="h").path != prepared.top.path
    assert prepared.top.chain[0][0] == prepared.base
    assert rig.backend.prepare_overlay(one, spec) == prepared
    with pytest.raises(Precondition) as caught:
        rig.backend.prepare_overlay(one, SnapshotSpec("t", str(uuid.uuid4())))
    assert caught.value.reason == "OVERLAY_PENDING"
    rig.backend.abandon_overlay(one, str(uuid.uuid4()))
    rig.backend.abandon_overlay(one, spec.uid)
    rig.backend.abandon_overlay(one, spec.uid)
    assert not Path(prepared.top.path).exists()
    prepared = rig.backend.prepare_overlay(one, spec)
    io("qcow2", f"write -P 2 0 {MIB}", prepared.top.path)
    done = rig.backend.finish_overlay(one, spec)
    assert rig.backend.finish_overlay(one, spec) == done and done.quiesced and done.labels == {"k": "v"}
    rig.backend.abandon_overlay(one, spec.uid)
    rig.reads(one, 2)
    rig.reads(one, 1, snapshot=spec.uid)


class Tree(RuleBasedStateMachine):
    """Volumes and snapshots are dictionaries of blocks in the model, layers on disk in the plugin."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.rig = Rig(Path(self.scratch.name) / "pool", max_depth=30)
        self.empty = self.rig.files()
        self.numbers = itertools.count(1)
        self.volumes: dict[VolumeId, dict[int, int]] = {}
        self.snapshots: dict[VolumeId, dict[str, dict[int, int]]] = {}
        self._add(self.rig.create("v0"), {})

    def _add(self, volume: VolumeId, blocks: dict[int, int]) -> None:
        self.volumes[volume] = dict(blocks)
        self.snapshots[volume] = {}

    @rule(data=st.data(), block=st.integers(0, 7))
    def write(self, data, block):
        volume = data.draw(st.sampled_from(list(self.volumes)))
        pattern = next(self.numbers) % 255 + 1
        self.rig.write(volume, pattern, block * 65536, 65536)
        self.volumes[volume][block] = pattern

    @rule(data=st.data())
    def snapshot(self, data):
        volume = data.draw(st.sampled_from(list(self.volumes)))
        uid = self.rig.snapshot(volume, f"s{next(self.numbers)}")
        self.snapshots[volume][uid] = dict(self.volumes[volume])

    @rule(data=st.data())
    def revert(self, data):
        volume, uid = data.draw(st.sampled_from(self._cuts()))
        self.rig.backend.revert_volume(volume, uid, token=str(next(self.numbers)))
        self.volumes[volume] = dict(self.snapshots[volume][uid])

    @rule(data=st.data(), whole=st.booleans())
    def clone(self, data, whole):
        volume, uid = data.draw(st.sampled_from(self._cuts()))
        blocks = self.volumes[volume] if whole else self.snapshots[volume][uid]
        self._add(self.rig.clone(f"v{next(self.numbers)}", volume, "" if whole else uid), blocks)

    @rule(data=st.data())
    def delete_snapshot(self, data):
        volume, uid = data.draw(st.sampled_from(self._cuts()))
        try:
            self.rig.backend.delete_snapshot(volume, uid)
        except InUse:
            assert self.rig.backend.children(volume)
        else:
            del self.snapshots[volume][uid]

    @precondition(lambda self: len(self.volumes) > 1)
    @rule(data=st.data())
    def delete_volume(self, data):
        volume = data.draw(st.sampled_from(list(self.volumes)))
        try:
            self.rig.backend.delete_volume(volume)
        except InUse:
            assert self.snapshots[volume] or self.rig.backend.children(volume)
        else:
            del self.volumes[volume], self.snapshots[volume]

    @rule(data=st.data())
    def collapse(self, data):
        self.rig.backend.collapse_layers(data.draw(st.sampled_from(list(self.volumes))))

    @rule()
    def reopen(self):
        self.rig.reopen()

    @invariant()
    def bytes_are_right(self):
        for volume, blocks in self.volumes.items():
            self._compare(volume, "", blocks)

    def _cuts(self) -> list[tuple[VolumeId, str]]:
        if not any(self.snapshots.values()):
            volume = next(iter(self.volumes))
            self.snapshots[volume][self.rig.snapshot(volume, f"s{next(self.numbers)}")] = dict(self.volumes[volume])
        return [(volume, uid) for volume, cuts in self.snapshots.items() for uid in cuts]

    def _compare(self, volume: VolumeId, uid: str, blocks: dict[int, int]) -> None:
        found = self.rig.backend.image(volume, uid)
        commands = [p for b in range(8) for p in ("-c", f"read -P {blocks.get(b, 0)} {b * 65536} 65536")]
        done = subprocess.run(["qemu-io", "-r", "-f", "qcow2", *commands, found.path], check=False, capture_output=True, text=True)
        assert done.returncode == 0 and "failed" not in done.stdout, done.stdout

    def teardown(self):
        for volume, cuts in self.snapshots.items():
            for uid, blocks in cuts.items():
                self._compare(volume, uid, blocks)
        self.rig.checked()
        for _ in range(len(self.volumes) + 1):
            for volume in list(self.volumes):
                try:
                    for uid in list(self.snapshots[volume]):
                        self.rig.backend.delete_snapshot(volume, uid)
                    self.rig.backend.delete_volume(volume)
                except InUse:
                    continue
                self.volumes.pop(volume)
        assert self.rig.files() == self.empty
        self.scratch.cleanup()


TestTree = Tree.TestCase
TestTree.settings = settings(
    max_examples=12, stateful_step_count=18, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
