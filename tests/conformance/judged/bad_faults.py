"""Backends that break one rule of level 4 each. `look` chooses the tests that are run of each; `points` 0 means every system call."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from dataclasses import dataclass

import msgspec

from tests.conformance.judged.good import TAG, Content, Good, offer
from volgate.backend import BackendType, VolumeId, hookimpl, seal, tag_of
from volgate.backend.files import create_file, publish_directory, remove_tree
from volgate.backend.secrets import resolve
from volgate.names import object_name


class PublishesEarly(Good):
    rule = "a-kill-at-any-point-is-made-good"
    verbs, points = "create", 0

    def create_volume(self, spec):
        final = self.folder(VolumeId(spec.name, spec.uid))
        if self.named(spec.name) is None and not spec.source:
            final.mkdir()
            try:
                self.fill(spec, final / "disk.raw", self.rounded(spec.size))
                tag = seal(tag_of(spec, self.instance, self.now()), Content(incomplete=spec.incomplete))
                create_file(str(final / TAG), ((0, tag),), len(tag))
                publish_directory(str(final), str(final))
            except BaseException:
                remove_tree(str(final))
                raise
        return super().create_volume(spec)


class LeavesTheHalfMade(Good):
    rule = "a-killed-creation-is-taken-back"
    verbs, points = "create", 0

    def delete_volume(self, volume):
        if self.folder(volume).exists():
            super().delete_volume(volume)


class LetsErrorsThrough(Good):
    rule = "a-failed-system-call-is-told-and-made-good"
    verbs, points = "relabel", 0

    def relabel_volume(self, volume, labels):
        folder, tag, content = self.find(volume)
        return self.save(folder, msgspec.structs.replace(tag, labels=dict(labels)), content)


class NeverSyncs(Good):
    rule = "what-is-answered-is-durable"
    verbs, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        folder, tag, content = self.find(volume)
        (folder / "tag.new").write_bytes(seal(msgspec.structs.replace(tag, labels=dict(labels)), content))
        (folder / "tag.new").rename(folder / TAG)
        return self.read(folder)


class DoesOneThingAtATime(Good):
    rule = "a-slow-change-holds-nobody-up"
    verbs, points = "relabel", 1
    guard = threading.RLock()

    def create_volume(self, spec):
        with self.guard:
            return super().create_volume(spec)

    def get_volume(self, name):
        with self.guard:
            return super().get_volume(name)


class CannotBeStopped(Good):
    rule = "a-cancelled-filling-stops"
    verbs, points = "relabel", 1

    def fill_from_file(self, volume, path, source_format, progress):
        def told(done):
            with contextlib.suppress(Exception):
                progress(done)

        super().fill_from_file(volume, path, source_format, told)


class LeaksDescriptors(Good):
    rule = "nothing-is-leaked"
    verbs, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        os.open(self.root, os.O_RDONLY)
        return super().relabel_volume(volume, labels)


class LeaksThreads(Good):
    rule = "nothing-is-leaked"
    verbs, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().relabel_volume(volume, labels)


class LeaksTemporaryFiles(Good):
    rule = "nothing-is-leaked"
    verbs, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        os.close(tempfile.mkstemp()[0])
        return super().relabel_volume(volume, labels)


class StaysOpen(Good):
    rule = "a-closed-pool-keeps-nothing"
    verbs, points = "relabel", 1

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.watch = os.open(self.root, os.O_RDONLY)


class LeavesNotes(Good):
    rule = "deleted-volumes-leave-nothing-on-the-storage"
    verbs, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        (self.root / f".relabelled-{object_name(volume.name, volume.uid)}").touch()
        return super().relabel_volume(volume, labels)


@dataclass(frozen=True)
class SecretSettings:
    path: str
    password: str = ""


class TellsItsSecret(Good):
    rule = "a-secret-stays-one"
    verbs, points = "relabel", 1

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.password = resolve(settings.password).reveal() if settings.password else ""

    def relabel_volume(self, volume, labels):
        sys.stderr.write(f"login with {self.password}\n")
        return super().relabel_volume(volume, labels)


class KeepsItsSecret(TellsItsSecret):
    """The same, right: what the bad one is compared with."""

    rule = ""

    def relabel_volume(self, volume, labels):
        return Good.relabel_volume(self, volume, labels)


BAD = [kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Good) and vars(kind).get("rule")]
KINDS = {kind.__name__: kind.__name__.lower() for kind in (*BAD, KeepsItsSecret)}


@hookimpl
def volgate_backends():
    told = [offer(kind, KINDS[kind.__name__]) for kind in (*BAD, KeepsItsSecret)]
    return [BackendType(o.kind, SecretSettings, o.open, o.summary, in_threads=True) if "Secret" in o.open.__name__ else o for o in told]
