"""Backends that break one rule of level 4 each. `look` chooses the tests that are run of each; `points` 0 means every system call."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.conformance.judged.good import TAG, Good, offer
from volgate.backend import BackendType, Holder, hookimpl, seal
from volgate.backend.files import copy_sparse, opened, sync_directory
from volgate.backend.secrets import resolve
from volgate.errors import Precondition, translate
from volgate.names import object_name

INTERRUPTIONS = {
    "a-kill-at-any-point-is-made-good",
    "a-call-that-hangs-is-made-good",
    "a-failed-system-call-is-told-and-made-good",
    "a-killed-creation-is-taken-back",
}
"""All of these end in a repeat after a call was cut off; what breaks one may break another."""


class StumblesOverItsOwn(Good):
    """What an attempt that died had begun is in the way of the next: so are kills, and hangs that end in one."""

    rule, kin = "a-kill-at-any-point-is-made-good", INTERRUPTIONS
    verb, points = "create", 0

    def create_volume(self, spec):
        if (self.work / object_name(spec.name, spec.uid)).exists():
            raise Precondition(f"volume {spec.name} is being created already", reason="NOT_READY")
        return super().create_volume(spec)


class KeepsItsLock(Good):
    rule, kin = "a-call-that-hangs-is-made-good", INTERRUPTIONS
    verb, points = "relabel", 0

    def relabel_volume(self, volume, labels):
        lock = self.work / f"{volume.uid}.lock"
        with translate(f"relabel volume {volume.name}"):
            try:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                raise Precondition(f"volume {volume.name} is being labelled already", reason="NOT_READY") from None
        try:
            return super().relabel_volume(volume, labels)
        finally:
            lock.unlink()


class LeavesTheHalfMade(Good):
    rule = "a-killed-creation-is-taken-back"
    verb, points = "create", 0

    def delete_volume(self, volume):
        if self.folder(volume).exists():
            super().delete_volume(volume)


class LetsErrorsThrough(Good):
    rule = "a-failed-system-call-is-told-and-made-good"
    verb, points = "relabel", 0

    def relabel_volume(self, volume, labels):
        folder, tag, content = self.find(volume)
        return self.save(folder, msgspec.structs.replace(tag, labels=dict(labels)), content)


class NeverSyncs(Good):
    rule = "what-is-answered-is-durable"
    verb, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        with translate(f"relabel volume {volume.name}"):
            folder, tag, content = self.find(volume)
            (folder / "tag.new").write_bytes(seal(msgspec.structs.replace(tag, labels=dict(labels)), content))
            (folder / "tag.new").rename(folder / TAG)
            return self.read(folder)


class DoesOneThingAtATime(Good):
    rule = "a-slow-change-holds-nobody-up"
    verb, points = "relabel", 1
    guard = threading.RLock()

    def create_volume(self, spec):
        with self.guard:
            return super().create_volume(spec)

    def get_volume(self, name):
        with self.guard:
            return super().get_volume(name)


class CannotBeStopped(Good):
    rule = "a-cancelled-filling-stops"
    verb, points = "relabel", 1

    def fill_from_file(self, volume, path, source_format, progress):
        def told(done):
            with contextlib.suppress(Exception):
                progress(done)

        super().fill_from_file(volume, path, source_format, told)


class CannotBeStoppedToExtract(Good):
    rule = "a-cancelled-extract-stops"
    verb, points = "relabel", 1

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        def told(done):
            with contextlib.suppress(Exception):
                progress(done)

        super().extract_to_file(volume, snapshot_uid, path, told)


class LeavesItsWork(Good):
    rule = "a-killed-extract-leaves-nothing-beside-its-file"
    verb, points = "relabel", 0

    def extract_to_file(self, volume, snapshot_uid, path, progress):
        part = Path(f"{path}.part")
        with translate(f"extract volume {volume.name}"):
            try:
                super().extract_to_file(volume, snapshot_uid, str(part), progress)
                part.rename(path)
                sync_directory(str(part.parent))
            finally:
                part.unlink(missing_ok=True)


class NeverSyncsExtracts(Good):
    rule = "what-is-answered-is-durable"
    verb, points = "extract", 1

    def write_out(self, source, path, progress):
        with opened(str(source), os.O_RDONLY) as old, opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
            copy_sparse(old, new, progress)


class TellsTheDead(Good):
    """Whoever died in an expansion has the volume open for ever."""

    rule = "a-call-that-died-holds-no-volume"
    verb, points = "relabel", 0

    def expand_volume(self, volume, size, *, online):
        busy = self.work / f"{volume.uid}.busy"
        with translate(f"expand volume {volume.name}"):
            busy.touch()
            try:
                return super().expand_volume(volume, size, online=online)
            finally:
                busy.unlink()

    def holders(self, volume):
        busy = [Holder("client", "127.0.0.1")] if (self.work / f"{volume.uid}.busy").exists() else []
        return [*super().holders(volume), *busy]


class LeaksDescriptors(Good):
    rule = "nothing-is-leaked"
    verb, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        with translate(f"relabel volume {volume.name}"):
            os.open(self.root, os.O_RDONLY)
        return super().relabel_volume(volume, labels)


class LeaksThreads(Good):
    rule = "nothing-is-leaked"
    verb, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().relabel_volume(volume, labels)


class LeaksTemporaryFiles(Good):
    rule = "nothing-is-leaked"
    verb, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        with translate(f"relabel volume {volume.name}"):
            os.close(tempfile.mkstemp()[0])
        return super().relabel_volume(volume, labels)


class StaysOpen(Good):
    rule = "a-closed-pool-keeps-nothing"
    verb, points = "relabel", 1

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.watch = os.open(self.root, os.O_RDONLY)


class LeavesNotes(Good):
    rule = "deleted-volumes-leave-nothing-on-the-storage"
    verb, points = "relabel", 1

    def relabel_volume(self, volume, labels):
        with translate(f"relabel volume {volume.name}"):
            (self.work / f"relabelled-{volume.uid}").touch()
        return super().relabel_volume(volume, labels)


@dataclass(frozen=True)
class SecretSettings:
    path: str
    password: str = ""


class TellsItsSecret(Good):
    rule = "a-secret-stays-one"
    verb, points = "relabel", 1

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
