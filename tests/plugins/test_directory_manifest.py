"""The tree of layers: what each change makes of it."""

from __future__ import annotations

import msgspec
import pytest

from volgate.backend import tag_of
from volgate.errors import DataLoss
from volgate.model import Format, VolumeSpec
from volgate_plugins.directory.manifest import Child, Content, Cut, Layer, Manifest, Merge

BASE, MIDDLE, TOP, SIDE = ("0000.qcow2", "0001.qcow2", "0002.qcow2", "0003.qcow2")


def cut(layer: str, uid: str = "s") -> Cut:
    return Cut(uid=uid, name=f"name of {uid}", layer=layer, size=4096)


def manifest(**fields) -> Manifest:
    """A chain of three layers, and one beside the top."""
    layers = (Layer(BASE), Layer(MIDDLE, BASE), Layer(TOP, MIDDLE), Layer(SIDE, MIDDLE))
    content = Content(**{"layers": layers, "active": TOP, "promised": 8192, "next": 4, **fields})
    return Manifest(tag_of(VolumeSpec("a", "uid", 8192, Format.QCOW2, labels={"k": "v"}), "instance", 1.0), content)


def files(found: Manifest) -> list[str]:
    return [layer.file for layer in found.content.layers]


def test_what_is_read_is_what_was_written_and_damage_is_told():
    before = manifest(snapshots=(cut(BASE),), children=(Child("b.1", BASE, "s"),), merging=Merge(BASE, MIDDLE), reverts=("t",))
    data = before.encode()
    assert Manifest.read(data) == before
    with pytest.raises(DataLoss):
        Manifest.read(data.replace(b"8192", b"8193"))


def test_a_manifest_that_says_least_is_of_a_complete_volume_without_snapshots():
    found = Content(layers=(Layer(BASE),), active=BASE, promised=1)
    assert (found.next, found.incomplete, found.snapshots, found.pending) == (1, False, (), None)
    assert (found.reverts, found.children, found.merging) == ((), (), None)
    taken = cut(BASE)
    assert (taken.labels, taken.created, taken.quiesced) == ({}, 0.0, False)


def test_what_was_read_is_not_changed_in_place():
    for one, field in (
        (Layer(BASE), "file"),
        (cut(BASE), "uid"),
        (Child("b.1", BASE), "object"),
        (Merge(BASE, TOP), "gone"),
        (manifest().content, "active"),
        (manifest(), "tag"),
    ):
        with pytest.raises(AttributeError):
            setattr(one, field, "other")


def test_every_change_is_the_next_generation():
    found = manifest()
    assert found.tag.generation == 1
    for _ in range(3):
        before, found = found, found.change(promised=found.content.promised + 1)
        assert found.tag.generation == before.tag.generation + 1 and found.content.promised == before.content.promised + 1
        assert msgspec.structs.replace(found.tag, generation=before.tag.generation) == before.tag
    labelled = found.labelled({"other": "1"})
    assert (labelled.tag.generation, labelled.tag.labels, labelled.content) == (found.tag.generation + 1, {"other": "1"}, found.content)


def test_files_are_numbered_and_no_number_comes_twice():
    found = manifest()
    assert found.next_file() == "0004.qcow2"
    topped = found.topped("0004.qcow2", incomplete=True)
    assert (topped.content.active, topped.layer("0004.qcow2"), topped.content.incomplete) == ("0004.qcow2", Layer("0004.qcow2", TOP), True)
    assert topped.content.next == 5 and topped.next_file() == "0005.qcow2"
    beside = topped.with_layer("0009.qcow2", BASE, active=TOP)
    assert (beside.content.active, beside.layer("0009.qcow2").parent, beside.content.next) == (TOP, BASE, 10)
    assert beside.with_layer("0003.qcow2", "").content.next == 10
    assert files(beside) == [*files(found), "0004.qcow2", "0009.qcow2"]


def test_a_chain_goes_down_to_the_root_and_no_further():
    found = manifest(layers=(Layer(BASE, "../b.1/0000.qcow2"), Layer(MIDDLE, BASE), Layer(TOP, MIDDLE)))
    assert [layer.file for layer in found.chain(TOP)] == [TOP, MIDDLE, BASE]
    assert [layer.file for layer in found.chain(BASE)] == [BASE]
    with pytest.raises(KeyError):
        found.chain(SIDE)


def test_a_snapshot_is_found_by_its_uid():
    found = manifest(snapshots=(cut(BASE, "1"), cut(MIDDLE, "2")))
    assert found.snapshot("2") == cut(MIDDLE, "2") and found.snapshot("3") is None


@pytest.mark.parametrize(
    ("needs", "left"),
    [
        ({}, [BASE, MIDDLE, TOP]),
        ({"snapshots": (cut(SIDE),)}, [BASE, MIDDLE, TOP, SIDE]),
        ({"pending": cut(SIDE)}, [BASE, MIDDLE, TOP, SIDE]),
        ({"children": (Child("b.1", SIDE),)}, [BASE, MIDDLE, TOP, SIDE]),
        ({"active": MIDDLE}, [BASE, MIDDLE]),
        ({"active": BASE, "snapshots": (cut(SIDE),)}, [BASE, MIDDLE, SIDE]),
    ],
)
def test_what_nothing_needs_is_pruned(needs, left):
    found = manifest(**needs).pruned()
    assert files(found) == left
    assert found.tag == manifest().tag


def test_a_merge_is_remembered_while_both_of_its_layers_are_there():
    assert manifest(merging=Merge(BASE, MIDDLE)).pruned().content.merging == Merge(BASE, MIDDLE)
    assert manifest(merging=Merge(MIDDLE, SIDE)).pruned().content.merging is None
    assert manifest(merging=Merge(SIDE, TOP)).pruned().content.merging is None


@pytest.mark.parametrize(
    ("fields", "merge"),
    [
        ({}, Merge(BASE, MIDDLE)),  # the middle one has two above it
        ({"snapshots": (cut(BASE),)}, None),
        ({"children": (Child("b.1", BASE),)}, None),
        ({"children": (Child("b.1", MIDDLE),)}, None),
        ({"children": (Child("b.1", SIDE),)}, None),
        ({"snapshots": (cut(MIDDLE),)}, Merge(BASE, MIDDLE)),
        ({"pending": cut(BASE)}, None),
        ({"active": BASE}, None),
        ({"layers": (Layer(BASE), Layer(MIDDLE, BASE), Layer(TOP, MIDDLE)), "snapshots": (cut(BASE),)}, Merge(MIDDLE, TOP)),
        ({"layers": (Layer(TOP), Layer(SIDE))}, None),
    ],
)
def test_only_what_serves_one_layer_alone_is_merged(fields, merge):
    assert manifest(**fields).mergeable() == merge


def test_after_a_merge_the_upper_layer_lies_on_what_the_gone_one_lay_on():
    found = manifest(merging=Merge(MIDDLE, TOP)).merged(Merge(MIDDLE, TOP))
    assert found.content.layers == (Layer(BASE), Layer(TOP, BASE), Layer(SIDE, MIDDLE))
    assert found.content.merging is None and found.tag.generation == 2


def test_the_newest_64_reverts_are_remembered():
    found = manifest()
    for number in range(70):
        found = found.change(reverts=found.reverted_by(str(number)))
    assert found.content.reverts == tuple(str(number) for number in range(6, 70))
