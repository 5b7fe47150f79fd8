"""Backends that break one rule of level 1 each. `rule` names it: the judge must find this one, and no other."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import replace

from tests.conformance.judged.good import DISK, GRAIN, MARKER, Good, offer
from tests.conformance.judged.values import FENCES, HOSTS, OUT
from volgate.backend import PoolCheck, VolumeId, hookimpl
from volgate.errors import AlreadyExists, NotFound, Precondition, translate
from volgate.model import Format, Health

# -- volumes


class SaysItIsLayered(Good):
    rule = "a-new-volume-is-as-asked"

    def read(self, folder):
        return replace(super().read(folder), depth=1)


class RoundsDown(Good):
    rule = "sizes-round-up-to-the-grain"

    def rounded(self, size):
        return size // GRAIN * GRAIN if size % GRAIN and size < 1 << 20 | GRAIN else super().rounded(size)

    def expand_volume(self, volume, size, *, online):
        return super().expand_volume(volume, Good.rounded(self, size), online=online)


class AnswersBeforeItReads(Good):
    rule = "what-was-created-is-what-is-read"

    def create_volume(self, spec):
        return replace(super().create_volume(spec), allocated=12345)


class LosesEmptyLabels(Good):
    rule = "labels-are-kept-as-given"

    def create_volume(self, spec):
        return super().create_volume(replace(spec, labels={key: value for key, value in spec.labels.items() if value}))


class CountsMilliseconds(Good):
    rule = "times-are-utc-seconds"

    def now(self):
        return super().now() * 1000


class CountsRepeats(Good):
    rule = "a-repeated-creation-creates-nothing"

    def create_volume(self, spec):
        again = not spec.source and self.named(spec.name)
        told = super().create_volume(spec)
        return self.save(*self.find(VolumeId(spec.name, spec.uid))) if again else told


class GivesWhatHasTheName(Good):
    rule = "a-name-that-is-taken-is-refused"

    def repeated(self, spec, found):
        return found


class TakesAnyFormatForRaw(Good):
    rule = "a-format-that-is-not-offered-is-refused"

    def create_volume(self, spec):
        return super().create_volume(replace(spec, format=Format.RAW))


class HasNoUpperLimit(Good):
    rule = "a-size-beyond-the-limit-is-refused"
    limit = 0

    def require_possible(self, spec, size):
        super().require_possible(spec, 0)


class TakesUnderscoresForDashes(Good):
    rule = "every-name-is-a-name-of-its-own"

    def named(self, name):
        found = (self.volumes / entry for entry in os.listdir(self.volumes))
        return next((path for path in found if path.name.rpartition(".")[0].replace("_", "-") == name.replace("_", "-")), None)


class ListsAsItComes(Good):
    rule = "the-list-is-in-order"

    def list_volumes(self):
        yield from sorted(super().list_volumes(), key=lambda volume: volume.uid)


class KeepsNamesToItself(Good):
    rule = "what-is-not-there-is-not-found"

    def get_volume(self, name):
        try:
            return super().get_volume(name)
        except NotFound:
            raise NotFound("no such object") from None


class ListsTheDead(Good):
    rule = "a-deleted-volume-is-gone"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.dead = []

    def delete_volume(self, volume):
        with contextlib.suppress(NotFound):
            self.dead.append(self.get_volume(volume.name))
        super().delete_volume(volume)

    def list_volumes(self):
        found = {volume.name: volume for volume in self.dead if len(self.dead) == 1}
        found |= {volume.name: volume for volume in super().list_volumes()}
        yield from (found[name] for name in sorted(found))

    def promised(self):
        return sum(volume.size for volume in super().list_volumes())


class InsistsOnExistence(Good):
    rule = "a-repeated-deletion-succeeds"

    def delete_volume(self, volume):
        if self.named(volume.name) is None:
            raise NotFound(f"volume {volume.name} does not exist")
        super().delete_volume(volume)


class DeletesByName(Good):
    rule = "a-late-deletion-spares-the-newer-volume"

    def delete_volume(self, volume):
        with contextlib.suppress(NotFound):
            volume = VolumeId(volume.name, self.get_volume(volume.name).uid)
        super().delete_volume(volume)


class CallsObjectsByName(Good):
    rule = "a-new-volume-is-a-new-object"

    def read(self, folder):
        found = super().read(folder)
        return replace(found, object=found.name)


class ChattersAtChecks(Good):
    rule = "the-check-of-a-good-pool-is-ok"

    def check(self):
        found = super().check()
        return PoolCheck(found.health, "all is well") if found.health is Health.OK else found


class ChangesItsTraits(Good):
    rule = "traits-make-sense-and-stay"
    counter = itertools.count()

    @property
    def traits(self):
        return replace(super().traits, notes=(f"asked {next(self.counter)} times",))


class ConnectsToWhatHasTheName(Good):
    rule = "a-connection-belongs-to-one-volume"

    def connection(self, volume, *, host):
        return super().connection(VolumeId(volume.name, self.get_volume(volume.name).uid), host=host)


# -- volumes that grow


class GrowsToTheByte(Good):
    rule = "a-volume-grows"

    def expand_volume(self, volume, size, *, online):
        before = self.get_volume(volume.name) if self.named(volume.name) else None
        grown = super().expand_volume(volume, size, online=online)
        if before and before.size < size < grown.size:
            os.truncate(self.folder(volume) / DISK, size)
        return self.get_volume(volume.name)


class Shrinks(Good):
    rule = "a-volume-never-shrinks"

    def expand_volume(self, volume, size, *, online):
        if size < self.get_volume(volume.name).size:
            os.truncate(self.folder(volume) / DISK, self.rounded(size))
        return super().expand_volume(volume, size, online=online)


class GrowsWhatHasTheName(Good):
    rule = "only-the-meant-volume-grows"

    def expand_volume(self, volume, size, *, online):
        with contextlib.suppress(NotFound):
            volume = VolumeId(volume.name, self.get_volume(volume.name).uid)
        return super().expand_volume(volume, size, online=online)


class ComparesTheSizeNow(Good):
    rule = "a-repeated-creation-finds-a-grown-volume"

    def repeated(self, spec, found):
        if found.size != self.rounded(spec.size):
            raise AlreadyExists(f"volume {spec.name} has {found.size} bytes")
        return super().repeated(spec, found)


# -- labels


class AddsLabels(Good):
    rule = "labels-are-replaced-whole"

    def relabel_volume(self, volume, labels):
        _, tag, _ = self.find(volume)
        return super().relabel_volume(volume, {**tag.labels, **labels})


class LabelsWhatHasTheName(Good):
    rule = "only-the-meant-volume-is-labelled"

    def relabel_volume(self, volume, labels):
        with contextlib.suppress(NotFound):
            volume = VolumeId(volume.name, self.get_volume(volume.name).uid)
        return super().relabel_volume(volume, labels)


# -- space


class HasMoreFreeThanItHas(Good):
    rule = "capacity-adds-up"

    def capacity(self):
        found = super().capacity()
        return replace(found, free=found.total + 1)


class NeverForgetsAPromise(Good):
    rule = "what-is-promised-is-counted"
    limit = 0

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.gone = 0

    def delete_volume(self, volume):
        size = self.read(self.folder(volume)).size if self.folder(volume).exists() else 0
        super().delete_volume(volume)
        self.gone += size

    def promised(self):
        return super().promised() + self.gone


class CountsWhatWasAskedFirst(Good):
    rule = "growth-is-counted"

    def promised(self):
        return sum(volume.requested_size if not volume.source else volume.size for volume in self.list_volumes())


class GivesOneGrainMore(Good):
    rule = "no-more-is-promised-than-the-limit"

    @contextlib.contextmanager
    def promise(self, name, more):
        with super().promise(name, more - GRAIN if more > self.limit // 2 and not self.named(name) else more):
            yield


class GrowsBeyondItsLimit(Good):
    rule = "no-volume-grows-beyond-the-limit"

    def promise(self, name, more):
        return super().promise(name, 0 if self.named(name) else more)


class SeesNoPath(Good):
    rule = "every-path-says-what-it-is"

    def paths(self, volume):
        super().paths(volume)
        return []


class TakesAnyPool(Good):
    rule = "another-gateways-pool-is-refused"

    def prove(self):
        if not (self.root / MARKER).exists():
            raise Precondition(f"{self.root} has no marker")


# -- images


class ConnectsToTheUnfinished(Good):
    rule = "an-incomplete-volume-is-not-used"

    def connection(self, volume, *, host):
        with translate("connection"):
            folder, _, _ = self.find(volume)
            return self.location(folder, folder / DISK, volume.uid)


class CompletesOnce(Good):
    rule = "a-repeated-completion-changes-nothing"

    def complete(self, volume):
        if not self.find(volume)[2].incomplete:
            raise Precondition(f"volume {volume.name} is complete")
        return super().complete(volume)


class FillsTheComplete(Good):
    rule = "a-complete-volume-is-not-filled"

    def image(self, volume, snapshot_uid="", *, writable=False):
        return super().image(volume, snapshot_uid)


class NeverSaysItIsDone(Good):
    rule = "filling-tells-how-far-it-is"

    def fill_from_file(self, volume, path, source_format, progress):
        super().fill_from_file(volume, path, source_format, lambda done: progress(done / 2))


class ShowsTheVolumeForASnapshot(Good):
    rule = "only-what-exists-has-an-image"

    def image(self, volume, snapshot_uid="", *, writable=False):
        known = [cut.uid for cut in self.find(volume)[2].cuts]
        return super().image(volume, snapshot_uid if snapshot_uid in known else "", writable=writable)


class TidiesUp(Good):
    rule = "what-others-made-is-listed-and-let-alone"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        for path in self.root.iterdir():
            if path.is_file() and path.name not in (MARKER, FENCES, HOSTS, OUT):
                path.unlink()


class AdoptsWithoutLabels(Good):
    rule = "an-adopted-object-is-a-volume"

    def adopt_volume(self, locator, spec):
        return super().adopt_volume(locator, replace(spec, labels={}))


class AdoptsNothing(Good):
    rule = "only-what-exists-is-adopted"

    def adopt_volume(self, locator, spec):
        if not (self.root / locator).exists() and self.named(spec.name) is None:
            (self.root / locator).write_bytes(bytes(GRAIN))
        return super().adopt_volume(locator, spec)


def bad(names):
    return [kind for kind in names.values() if isinstance(kind, type) and issubclass(kind, Good) and "rule" in vars(kind)]


BAD = bad(globals())


@hookimpl
def volgate_backends():
    return [offer(kind, kind.rule) for kind in BAD]
