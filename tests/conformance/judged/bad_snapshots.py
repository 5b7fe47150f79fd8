"""Backends that break one rule of level 1 each, of snapshots, reverts and clones."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import replace

import msgspec

from tests.conformance.judged.bad_contract import bad
from tests.conformance.judged.good import DISK, Good, offer
from volgate.backend import VolumeId, hookimpl
from volgate.errors import AlreadyExists, InUse, NotFound
from volgate.model import SourceKind

# -- snapshots


class SaysItWasFrozen(Good):
    rule = "a-snapshot-is-as-asked"

    def create_snapshot(self, volume, spec):
        return replace(super().create_snapshot(volume, spec), quiesced=True)


class CutsAgain(Good):
    rule = "a-repeated-snapshot-cuts-nothing"

    def create_snapshot(self, volume, spec):
        folder, tag, content = self.find(volume)
        again = [cut for cut in content.cuts if cut.uid == spec.uid]
        if again:
            kept = tuple(cut for cut in content.cuts if cut.uid != spec.uid)
            self.save(folder, tag, msgspec.structs.replace(content, cuts=kept))
        return super().create_snapshot(volume, spec)


class HasNamesTwice(Good):
    rule = "a-snapshot-name-that-is-taken-is-refused"

    def create_snapshot(self, volume, spec):
        try:
            return super().create_snapshot(volume, spec)
        except AlreadyExists:
            told = super().create_snapshot(volume, replace(spec, name=f"x-{uuid.uuid4()}"))
            return replace(told, name=spec.name)


class ListsTheNewestFirst(Good):
    rule = "snapshots-are-listed-oldest-first"

    def list_snapshots(self, volume):
        return list(reversed(super().list_snapshots(volume)))


class InsistsOnSnapshots(Good):
    rule = "a-deleted-snapshot-is-gone"

    def delete_snapshot(self, volume, snapshot_uid):
        _, _, content = self.find(volume)
        if snapshot_uid not in [cut.uid for cut in content.cuts] and len(content.cuts) > 1:
            raise NotFound(f"snapshot {snapshot_uid} does not exist")
        super().delete_snapshot(volume, snapshot_uid)


class DeletesSnapshotsByName(Good):
    rule = "a-late-deletion-spares-the-newer-snapshot"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.names = {}

    def delete_snapshot(self, volume, snapshot_uid):
        self.names |= {cut.uid: cut.name for cut in self.list_snapshots(volume)}
        name = self.names.get(snapshot_uid, "")
        now = [cut.uid for cut in self.list_snapshots(volume) if cut.name == name]
        super().delete_snapshot(volume, now[0] if now else snapshot_uid)


class CutsWhatHasTheName(Good):
    rule = "only-the-meant-volume-is-snapshotted"

    def create_snapshot(self, volume, spec):
        with contextlib.suppress(NotFound):
            volume = VolumeId(volume.name, self.get_volume(volume.name).uid)
        return super().create_snapshot(volume, spec)


class DoesNotSayWhoHolds(Good):
    rule = "snapshots-hold-their-volume"

    def refuse_held(self, volume):
        try:
            super().refuse_held(volume)
        except InUse as error:
            raise InUse(error.message, holders=tuple(h for h in error.holders if h.kind != "snapshot")) from None


class StretchesSnapshots(Good):
    rule = "a-snapshot-keeps-its-size"

    def told(self, tag, cut):
        folder = self.folder(VolumeId(tag.name, tag.uid))
        return replace(super().told(tag, cut), size=(folder / DISK).stat().st_size)


# -- reverts


class KeepsTheSize(Good):
    rule = "a-revert-sets-the-size-back"

    def put_back(self, folder, cut):
        now = (folder / DISK).stat().st_size
        super().put_back(folder, cut)
        if cut.size * 3 <= now:
            os.truncate(folder / DISK, now)


class RevertsAgain(Good):
    rule = "a-repeated-revert-changes-nothing-more"

    def revert_volume(self, volume, snapshot_uid, *, token):
        return super().revert_volume(volume, snapshot_uid, token=str(uuid.uuid4()))


class DropsNewerSnapshots(Good):
    rule = "a-revert-keeps-snapshots-or-names-them"

    def revert_volume(self, volume, snapshot_uid, *, token):
        newer = [cut.uid for cut in self.list_snapshots(volume)]
        told = super().revert_volume(volume, snapshot_uid, token=token)
        for uid in newer[newer.index(snapshot_uid) + 1 :]:
            super().delete_snapshot(volume, uid)
        return told


class RevertsToNothing(Good):
    rule = "only-a-snapshot-that-exists-is-reverted-to"

    def revert_volume(self, volume, snapshot_uid, *, token):
        try:
            return super().revert_volume(volume, snapshot_uid, token=token)
        except NotFound:
            return self.get_volume(volume.name)


# -- clones


class ForgetsItsOrigin(Good):
    rule = "a-clone-knows-its-origin"

    def create_volume(self, spec):
        return self.get_volume(super().create_volume(spec).name)

    def get_volume(self, name):
        found = super().get_volume(name)
        return replace(found, source=replace(found.source, volume="somewhere")) if found.source else found


class CopiesMoreThanThereIs(Good):
    rule = "what-a-clone-copies-is-told"

    def bytes_to_copy(self, spec):
        return spec.size


class ClonesTwice(Good):
    rule = "a-repeated-clone-clones-nothing"

    def repeated(self, spec, found):
        if spec.source:
            raise AlreadyExists(f"volume {spec.name} exists")
        return super().repeated(spec, found)


class CutsClonesShort(Good):
    rule = "a-clone-may-be-larger"

    def fill(self, spec, path, size):
        if spec.source and spec.source.kind is not SourceKind.EMPTY:
            self.copy(self.origin(spec), path, size)
        else:
            super().fill(spec, path, size)


class ClonesWhatIsNotThere(Good):
    rule = "a-missing-origin-is-not-found"

    def create_volume(self, spec):
        try:
            return super().create_volume(spec)
        except NotFound:
            return super().create_volume(replace(spec, source=None))


class RemembersChildren(Good):
    rule = "clones-are-told-as-children"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.ever = {}

    def children(self, volume):
        self.ever.setdefault(volume.uid, set()).update(super().children(volume))
        return sorted(self.ever[volume.uid])

    def refuse_held(self, volume):
        if super().children(volume) or self.list_snapshots(volume):
            super().refuse_held(volume)


class OrphansClones(Good):
    rule = "clones-hold-their-origin-or-stand-alone"

    def refuse_held(self, volume):
        if self.list_snapshots(volume):
            super().refuse_held(volume)

    def delete_snapshot(self, volume, snapshot_uid):
        folder, tag, content = self.find(volume)
        kept = tuple(cut for cut in content.cuts if cut.uid != snapshot_uid)
        self.save(folder, tag, msgspec.structs.replace(content, cuts=kept))
        (folder / f"{snapshot_uid}.snapshot").unlink(missing_ok=True)


BAD = bad(globals())


@hookimpl
def volgate_backends():
    return [offer(kind, kind.rule) for kind in BAD]
