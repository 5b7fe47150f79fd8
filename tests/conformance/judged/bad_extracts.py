"""Backends that break one rule each of extracts, and of who has a volume open."""

from __future__ import annotations

import os

from tests.conformance.judged.bad_contract import bad
from tests.conformance.judged.good import DISK, Good, offer
from volgate.backend import hookimpl
from volgate.backend.files import copy_sparse, opened
from volgate.errors import translate

# -- extracts


class ExtractsTheVolumeInstead(Good):
    rule = "only-what-exists-is-extracted"

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        known = [cut.uid for cut in self.find(volume)[2].cuts]
        super().extract_to_file(volume, snapshot_uid if snapshot_uid in known else "", path, progress)


class NeverSaysThatItIsDone(Good):
    rule = "extracting-tells-how-far-it-is"

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        super().extract_to_file(volume, snapshot_uid, path, lambda done: progress(min(done, 0.9)))


class GivesACloneTheSizeOfItsSource(Good):
    rule = "an-extract-is-the-volume-to-the-byte"

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        super().extract_to_file(volume, snapshot_uid, path, progress)
        if source := self.find(volume)[1].spec.source:
            with translate("cut the file"):
                os.truncate(path, (self.named(source.volume) / DISK).stat().st_size)


class ExtractsWhatIsThereNow(Good):
    rule = "an-extract-of-a-snapshot-is-of-its-moment"

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        if snapshot_uid:
            self.cut(self.find(volume)[2], snapshot_uid)
        super().extract_to_file(volume, "", path, progress)


class WritesIntoWhatIsThere(Good):
    rule = "an-extract-starts-again"

    def write_out(self, source, path, progress):
        with opened(str(source), os.O_RDONLY) as old, opened(path, os.O_RDWR | os.O_CREAT) as new:
            copy_sparse(old, new, progress)
            os.fsync(new)


class WritesZeroes(Good):
    rule = "an-extract-is-sparse"

    def write_out(self, source, path, progress):
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as new:
            os.write(new, source.read_bytes())
            os.fsync(new)


# -- clients


class TellsTheFirst(Good):
    rule = "every-client-that-has-a-volume-open-is-told"

    def holders(self, volume):
        return super().holders(volume)[:1]


class RemembersWhoItSaw(Good):
    rule = "who-has-let-go-of-a-volume-is-told-no-more"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.seen = {}

    def holders(self, volume):
        found = self.seen.setdefault(volume.uid, [])
        found += [holder for holder in super().holders(volume) if holder not in found]
        return found


BAD = bad(globals())


@hookimpl
def volgate_backends():
    return [offer(kind, kind.rule) for kind in BAD]
