"""Backends that break one rule of level 2 or 3 each."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import msgspec

from tests.conformance.judged.bad_contract import bad
from tests.conformance.judged.good import DISK, GRAIN, Good, offer
from volgate.backend import VolumeId, hookimpl
from volgate.conformance.picture import PAGE
from volgate.errors import NotFound, OutOfSpace
from volgate.model import Provisioning, SourceKind

# -- bytes


def wipe(path, offset):
    with open(path, "r+b") as file:
        at = offset % os.fstat(file.fileno()).st_size
        if any(os.pread(file.fileno(), PAGE, at)):
            os.pwrite(file.fileno(), bytes(PAGE), at)


class GivesOldFilesAgain(Good):
    rule = "a-new-volume-reads-as-zeroes"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.spare = self.root / ".spare"

    def delete_volume(self, volume):
        disk = self.folder(volume) / DISK
        if disk.exists() and not self.find(volume)[2].cuts and not self.children(volume):
            self.copy(disk, self.spare)
        super().delete_volume(volume)

    def fill(self, spec, path, size):
        if self.spare.exists() and not spec.source and not spec.incomplete:
            self.spare.rename(path)
            os.truncate(path, size)
        else:
            super().fill(spec, path, size)


class LosesTheLastPageAtStart(Good):
    rule = "what-was-written-stays"
    also = ("an-extract-is-the-volume-to-the-byte",)

    def __init__(self, settings, context):
        super().__init__(settings, context)
        for folder in self.volumes.iterdir():
            wipe(folder / DISK, -PAGE)


class RemembersTimesInMemory(Good):
    rule = "all-is-there-after-a-restart"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.opened = time.time()

    def read(self, folder):
        return replace(super().read(folder), created_at=self.opened)


class LosesLabelsAsItGrows(Good):
    rule = "labels-outlive-every-verb"

    def grow(self, folder, tag, size):
        super().grow(folder, tag, size)
        self.save(folder, msgspec.structs.replace(tag, labels={}), self.find(VolumeId(tag.name, tag.uid))[2])


class RemembersNoLabelsInMemory(Good):
    rule = "verbs-in-any-order-come-to-what-a-model-says"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.bare = set()

    def read(self, folder):
        found = super().read(folder)
        return replace(found, labels={}) if found.uid in self.bare else found

    def relabel_volume(self, volume, labels):
        self.bare.discard(volume.uid)
        if labels:
            return super().relabel_volume(volume, labels)
        self.bare.add(self.find(volume)[1].uid)
        return self.get_volume(volume.name)


class LosesThePageAtTheSeam(Good):
    rule = "growth-keeps-what-is-there"

    def grow(self, folder, tag, size):
        wipe(folder / DISK, -PAGE)
        super().grow(folder, tag, size)


class SharesTheThirdSnapshot(Good):
    rule = "a-snapshot-is-frozen"

    def create_snapshot(self, volume, spec):
        told = super().create_snapshot(volume, spec)
        if len(self.list_snapshots(volume)) == 3:
            folder = self.folder(volume)
            (folder / f"{spec.uid}.snapshot").unlink()
            (folder / f"{spec.uid}.snapshot").hardlink_to(folder / DISK)
        return told


class TakesAPageFromTheNext(Good):
    rule = "a-deleted-snapshot-takes-nothing-along"

    def delete_snapshot(self, volume, snapshot_uid):
        cuts = [cut.uid for cut in self.list_snapshots(volume)]
        if snapshot_uid in cuts[:-1]:
            wipe(self.folder(volume) / f"{cuts[cuts.index(snapshot_uid) + 1]}.snapshot", 8 * PAGE)
        super().delete_snapshot(volume, snapshot_uid)


class RevertsToTheOldest(Good):
    rule = "a-revert-brings-back-the-content"

    def put_back(self, folder, cut):
        oldest = min(folder.glob("*.snapshot"), key=lambda path: path.stat().st_mtime_ns)
        size = (folder / f"{cut.uid}.snapshot").stat().st_size
        self.copy(oldest, folder / DISK, size)


class HidesWhatIsBehindTheEnd(Good):
    rule = "a-revert-over-a-growth-leaves-zeroes"

    def put_back(self, folder, cut):
        self.copy(folder / DISK, folder / "tail.snapshot")
        super().put_back(folder, cut)

    def grow(self, folder, tag, size):
        before = (folder / DISK).stat().st_size
        super().grow(folder, tag, size)
        tail = folder / "tail.snapshot"
        if tail.exists():
            data = tail.read_bytes()[before:]
            with (folder / DISK).open("r+b") as disk:
                os.pwrite(disk.fileno(), data, before)


class CutsTheLastPageOff(Good):
    rule = "a-snapshot-is-read-as-it-was"
    also = ("an-extract-of-a-snapshot-is-of-its-moment",)

    def create_snapshot(self, volume, spec):
        told = super().create_snapshot(volume, spec)
        wipe(self.folder(volume) / f"{spec.uid}.snapshot", -PAGE)
        return told


class ClonesWithAHole(Good):
    rule = "a-clone-holds-what-its-origin-held"

    def fill(self, spec, path, size):
        super().fill(spec, path, size)
        if spec.source:
            wipe(path, 5 * PAGE)


class SharesTheSecondClone(Good):
    rule = "a-clone-and-its-origin-go-their-own-ways"

    def fill(self, spec, path, size):
        second = spec.source and spec.source.kind is SourceKind.VOLUME and len(self.clones(spec.source.volume)) == 1
        if second and spec.size == self.origin(spec).stat().st_size:
            path.hardlink_to(self.origin(spec))
        else:
            super().fill(spec, path, size)

    def clones(self, name):
        return [v for v in self.list_volumes() if v.source and v.source.volume == name and not v.source.snapshot]


class HurtsSiblings(Good):
    rule = "a-clone-of-a-clone-outlives-its-siblings"

    def delete_volume(self, volume):
        folder = self.folder(volume)
        source = self.read(folder).source if folder.exists() else None
        super().delete_volume(volume)
        for other in self.list_volumes():
            if source and other.source and other.source.volume_uid == source.volume_uid:
                wipe(self.folder(VolumeId(other.name, other.uid)) / DISK, 0)


class ImportsWithAHole(Good):
    rule = "an-image-comes-in-whole"

    def take_in(self, source, folder):
        super().take_in(source, folder)
        wipe(folder / DISK, 3 * PAGE)


class FillsOverTheOld(Good):
    rule = "filling-begins-anew"

    def take_in(self, source, folder):
        before = (folder / DISK).read_bytes()
        super().take_in(source, folder)
        with (folder / DISK).open("r+b") as disk:
            for at in range(0, len(before), PAGE):
                if any(before[at : at + PAGE]) and not any(os.pread(disk.fileno(), PAGE, at)):
                    os.pwrite(disk.fileno(), before[at : at + PAGE], at)


class AdoptsWithAHole(Good):
    rule = "adoption-keeps-the-data"

    def adopt_volume(self, locator, spec):
        told = super().adopt_volume(locator, spec)
        wipe(self.folder(VolumeId(spec.name, spec.uid)) / DISK, -PAGE)
        return told


class PromisesThickness(Good):
    rule = "a-thick-volume-has-its-space"

    def thick(self, path, size):
        with path.open("wb") as disk:
            disk.truncate(size)

    def grow(self, folder, tag, size):
        spec = msgspec.structs.replace(tag.spec, provisioning=Provisioning.THIN)
        super().grow(folder, msgspec.structs.replace(tag, spec=spec), size)


class FillsThinly(Good):
    rule = "a-thick-volume-that-was-filled-has-its-space"

    def keep_thick(self, path, size):
        pass


class TakesAllAtOnce(Good):
    rule = "a-thin-volume-takes-what-is-written"

    def fill(self, spec, path, size):
        if spec.source or spec.incomplete:
            super().fill(spec, path, size)
        else:
            self.thick(path, size)


class SaysThatItTakesAll(Good):
    rule = "a-thin-volume-takes-what-is-written"

    @property
    def traits(self):
        return replace(super().traits, whole=True)


# -- calls at once


def await_rival(come):
    """Wait a while for another call to come along, in a race only: a bad backend loses it on the busiest machine too."""
    until = time.monotonic() + (2 if threading.current_thread() is not threading.main_thread() else 0)
    while not come() and time.monotonic() < until:
        time.sleep(0.002)


class LosesOneOfMany(Good):
    rule = "volumes-made-at-once-are-all-made"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.busy = 0

    def create_volume(self, spec):
        self.busy += 1
        try:
            if spec.size <= 1 << 20:
                await_rival(lambda: self.busy > 6)
            if self.busy > 6 and spec.size <= 1 << 20:
                raise OutOfSpace(f"create volume {spec.name}: too many at once")
            return super().create_volume(spec)
        finally:
            self.busy -= 1


class TripsOverTheDeleted(Good):
    rule = "lists-are-whole-while-volumes-come-and-go"

    def list_volumes(self):
        seen: set[str] = set()

        def one_is_gone():
            there = set(os.listdir(self.volumes))
            seen.update(there)
            return seen - there

        await_rival(one_is_gone)
        for name in sorted(seen):
            try:
                yield self.read(self.volumes / name)
            except FileNotFoundError:
                raise NotFound(f"{name} is gone") from None

    def promised(self):
        return sum(volume.size for volume in super().list_volumes())

    def children(self, volume):
        return [child.name for child in super().list_volumes() if child.source and child.source.volume_uid == volume.uid]

    def delete_snapshot(self, volume, snapshot_uid):
        folder, tag, content = self.find(volume)
        others = [child for child in super().list_volumes() if child.source and child.source.snapshot_uid == snapshot_uid]
        if others:
            super().delete_snapshot(volume, snapshot_uid)
        kept = tuple(cut for cut in content.cuts if cut.uid != snapshot_uid)
        self.save(folder, tag, msgspec.structs.replace(content, cuts=kept))
        (folder / f"{snapshot_uid}.snapshot").unlink(missing_ok=True)


class HidesWhatItGrows(Good):
    rule = "a-volume-is-read-while-it-changes"

    def grow(self, folder, tag, size):
        aside = self.work / f"grown-{folder.name}"
        folder.rename(aside)
        time.sleep(0.02)
        super().grow(aside, tag, size)
        aside.rename(folder)


class MixesCallsUp(Good):
    rule = "volumes-that-change-at-once-stay-apart"

    def relabel_volume(self, volume, labels):
        self.meant = labels
        await_rival(lambda: self.meant is not labels)
        return super().relabel_volume(volume, self.meant)


class ChecksThenActs(Good):
    rule = "the-limit-holds-when-many-come-at-once"

    def promise(self, name, more):
        if self.limit and more > 0 and self.promised() + more > self.limit:
            raise OutOfSpace(f"{name}: {more} bytes are more than the pool's limit leaves")
        time.sleep(0.2 if more > GRAIN * 64 else 0)
        return super().promise(name, 0)


BAD = bad(globals())
KINDS = {kind.__name__: kind.__name__.lower() for kind in BAD}  # two of them may break one rule


@hookimpl
def volgate_backends():
    return [offer(kind, KINDS[kind.__name__]) for kind in BAD]
