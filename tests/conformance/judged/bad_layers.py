"""Backends that break one rule of layers under a guest each: they differ from the directory plugin."""

from __future__ import annotations

from dataclasses import replace

from volgate.backend import BackendType, SnapshotSpec, VolumeId, hookimpl
from volgate.backend.run import run_checked
from volgate.errors import Precondition
from volgate.model import Format
from volgate_plugins.directory import Directory, DirectorySettings


class GuessesTheFormatOfWhatIsEmpty(Directory):
    rule = "every-format-can-be-made"

    @staticmethod
    def guess(volume):
        return volume if volume.allocated else replace(volume, format=Format.QCOW2)

    def create_volume(self, spec):
        return self.guess(super().create_volume(spec))

    def get_volume(self, name):
        return self.guess(super().get_volume(name))

    def list_volumes(self):
        yield from map(self.guess, super().list_volumes())


class FinishesOnce(Directory):
    rule = "an-overlay-becomes-the-top"

    def finish_overlay(self, volume: VolumeId, spec: SnapshotSpec):
        if spec.uid in [cut.uid for cut in self.list_snapshots(volume)]:
            raise Precondition(f"snapshot {spec.name} of volume {volume.name} is finished")
        return super().finish_overlay(volume, spec)


class NeverAbandons(Directory):
    rule = "an-abandoned-overlay-leaves-nothing"

    def abandon_overlay(self, volume: VolumeId, snapshot_uid: str) -> None:
        pass


class FinishesWhatNobodyPrepared(Directory):
    rule = "an-overlay-that-was-not-prepared-is-not-finished"

    def finish_overlay(self, volume: VolumeId, spec: SnapshotSpec):
        try:
            return super().finish_overlay(volume, spec)
        except Precondition:
            return self.create_snapshot(volume, spec)


class MergesNothing(Directory):
    rule = "layers-that-nothing-needs-are-merged"

    def collapse_layers(self, volume: VolumeId) -> int:
        return 0


class WritesToTheBase(Directory):
    rule = "layers-keep-what-a-guest-wrote"

    def finish_overlay(self, volume: VolumeId, spec: SnapshotSpec):
        base = self.connection(volume, host="here").path
        if spec.uid not in [cut.uid for cut in self.list_snapshots(volume)]:
            run_checked(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 4096", base], doing="spoil", timeout=20)
        return super().finish_overlay(volume, spec)


BAD = [kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Directory) and "rule" in vars(kind)]


@hookimpl
def volgate_backends():
    return [BackendType(kind=kind.rule, settings=DirectorySettings, open=kind.open, summary="bad", in_threads=True) for kind in BAD]
