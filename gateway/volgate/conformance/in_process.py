"""A pool that its backend serves in the process of the tests."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from volgate.backend import Adopts, Backend, BackendType, DataPath, Measures, PoolContext
from volgate.conformance import picture
from volgate.conformance.picture import PAGE, Picture
from volgate.conformance.subject import Subject
from volgate.connection import Connection, IscsiLun
from volgate.model import Format, Snapshot, Volume
from volgate.settings import convert_strictly
from volgate.worker import loading

__all__ = ["HOST", "INSTANCE", "POOL", "Opened", "find_offer", "write_image"]

HOST = "conformance"
INSTANCE = "00000000-0000-4000-8000-00000c0f0000"
POOL = "conformance"


def find_offer(backend_class: type[Backend], plugin: str = "", kind: str = "") -> tuple[str, BackendType]:
    """The entry point of a backend's plugin and its offer.

    Without `plugin`, the module of the class or the nearest package around it that has `volgate_backends`; without `kind`, its only
    offer. Raises LookupError in words for the author.
    """
    module = backend_class.__module__
    around = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    for value in [plugin] if plugin else around:
        offers = loading.offers(loading.load(value) if ":" in value else importlib.import_module(value))
        found = [offer for offer in offers if kind in ("", offer.kind)]
        if len(found) == 1:
            return value, found[0]
        if found or plugin:
            kinds = ", ".join(offer.kind for offer in offers) or "nothing"
            raise LookupError(f"plugin {value} offers {kinds}: say which `kind` the test class is about")
    told = f"neither {module} nor a package around it has a volgate_backends with @hookimpl that offers anything"
    raise LookupError(f"{told}: mark it, or set `plugin` of the test class to the entry point")


class Opened(Subject):
    """A pool that is open in this process."""

    wire = False

    def __init__(self, offer: BackendType, table: Mapping[str, Any], seed: int, litter: Callable[[], Iterable[str]] = tuple) -> None:
        """Open the pool that `table` describes, as `[pools.<name>]` would. Raises what the plugin raises.

        `litter` names what lies on the storage, so that what no volume accounts for is found. `make_foreign`, set if there is a way to
        make one, makes an object of so many bytes that is not ours, and returns its locator.
        """
        super().__init__(seed, "c-")
        self.offer = offer
        self.table = table
        self.backend = self.open()
        self.make_foreign: Callable[[int], str] | None = None
        self._litter = litter
        self._before = self._there()
        self._images: list[str] = []
        self._folders: list[str] = []

    def open(self, instance: str = INSTANCE) -> Backend:
        """Open the pool once more, perhaps for another gateway."""
        settings = convert_strictly(dict(self.table), self.offer.settings, f"pools.{POOL}")
        return self.offer.open(settings, PoolContext(POOL, instance))

    def reopen(self) -> None:
        """Close and open."""
        self.backend.close()
        self.backend = self.open()

    def nothing_is_left(self) -> None:
        """See that the storage has what it had when the pool was opened: nothing more is promised, no object is there."""
        assert self.listed() == []
        assert self._there() == self._before

    def _there(self) -> object:
        promised = self.backend.capacity().provisioned if isinstance(self.backend, Measures) else 0
        foreign = sorted(found.locator for found in self.backend.list_foreign()) if isinstance(self.backend, Adopts) else []
        return promised, foreign, sorted(self._litter())

    def write(self, volume: Volume, pages: Mapping[int, int]) -> None:
        """Write through the connection."""
        picture.write(self.there(volume), pages)

    def there(self, volume: Volume) -> Connection:
        """Where this process has the bytes of a volume: as a host, or, where hosts have them by a target, as the backend."""
        told = self.backend.connection(self.id(volume), host=HOST)
        return self.facet(DataPath).image(self.id(volume)) if isinstance(told, IscsiLun) else told

    def content(self, volume: Volume, snapshot: Snapshot | None = None) -> Picture:
        """Read through the connection; a snapshot through the data path, or a clone of it."""
        if snapshot is not None and not isinstance(self.backend, DataPath):
            volume, snapshot = self.clone(volume, snapshot), None
        if snapshot is None:
            return picture.read(self.there(volume))
        return picture.read(self.facet(DataPath).image(self.id(volume), snapshot.uid))

    def filled(self, pages: Mapping[int, int], *, size: int = 0, form: Format | None = None) -> Volume:
        """Import an image where the backend can, else write."""
        size = size or self.size()
        if not isinstance(self.backend, DataPath):
            volume = self.create(size=size, format=form)
            self.write(volume, pages)
            return volume
        volume = self.create(size=size, format=form, incomplete=True)
        self.backend.fill_from_file(self.id(volume), self.image(pages, size), Format.RAW, lambda _done: None)
        return self.backend.complete(self.id(volume))

    def image(self, pages: Mapping[int, int], size: int) -> str:
        """Make a raw image and return its path; it goes with what the test made."""
        descriptor, path = tempfile.mkstemp(prefix="volgate-conform-")
        self._images.append(path)
        try:
            write_image(descriptor, pages, size)
        finally:
            os.close(descriptor)
        return path

    def folder(self) -> str:
        """Make an empty folder, which lies in no pool, and return its path; it goes with what the test made."""
        self._folders.append(tempfile.mkdtemp(prefix="volgate-conform-"))
        return self._folders[-1]

    def clear(self) -> None:
        """Take away the images and folders too."""
        super().clear()
        while self._folders:
            shutil.rmtree(self._folders.pop())
        while self._images:
            Path(self._images.pop()).unlink(missing_ok=True)


def write_image(descriptor: int, pages: Mapping[int, int], size: int) -> None:
    """Make an empty file a raw image."""
    os.ftruncate(descriptor, size)
    for offset, value in pages.items():
        os.pwrite(descriptor, bytes([value]) * PAGE, offset)
