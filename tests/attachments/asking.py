"""A plugin whose storage lets in those alone that a volume is published to: files, and beside them a note for each host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from volgate.backend import BackendType, Initiator, Publishes, VolumeId, hookimpl
from volgate.connection import Connection
from volgate.errors import Precondition, Unreachable
from volgate_plugins.directory import Directory, DirectorySettings


class Asking(Directory, Publishes):
    """`NOTES/refuse` makes it refuse changes, `NOTES/hang` makes them last, `NOTES/lost` makes volumes unreachable."""

    def __init__(self, settings: DirectorySettings, context) -> None:
        super().__init__(settings, context)
        self.notes = Path(f"{settings.path}.notes")
        self.notes.mkdir(exist_ok=True)

    def publish(self, volume: VolumeId, initiator: Initiator) -> None:
        self.answer()
        folder = self.notes / volume.uid
        folder.mkdir(exist_ok=True)
        (folder / initiator.host).write_text(initiator.iqn)
        while (self.notes / "hang").exists():
            time.sleep(0.05)

    def unpublish(self, volume: VolumeId, host: str) -> None:
        self.answer()
        (self.notes / volume.uid / host).unlink(missing_ok=True)

    def published(self, volume: VolumeId) -> Sequence[str]:
        folder = self.notes / volume.uid
        return sorted(note.name for note in folder.iterdir()) if folder.exists() else []

    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        if host not in self.published(volume) or (self.notes / "lost").exists():
            raise Precondition(f"volume {volume.name} is not published to {host}", reason="PRECONDITION")
        return super().connection(volume, host=host)

    def answer(self) -> None:
        if (self.notes / "refuse").exists():
            raise Unreachable("the storage does not answer")


@hookimpl
def volgate_backends():
    return [BackendType(kind="asking", settings=DirectorySettings, open=Asking, summary="files that ask who comes")]
