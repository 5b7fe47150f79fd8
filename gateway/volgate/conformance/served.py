"""The suite over the wire: `pytest --pyargs volgate.conformance.served --conformance-server ADDR --conformance-pool POOL`.

Everything that it makes has a name of its own, is small, and is taken away again; nothing else is touched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from volgate.conformance import picture
from volgate.conformance.in_process import write_image
from volgate.conformance.options import Options, Target
from volgate.conformance.picture import Picture
from volgate.conformance.remote import Remote, class_of
from volgate.conformance.subject import Subject
from volgate.conformance.suite import Conformance
from volgate.errors import Unsupported
from volgate.model import Format, Snapshot, Volume
from volgate.v1 import volume_pb2
from volgate_client import Client
from volgate_client.words import number

__all__ = ["ServedPool", "TestServed"]


class ServedPool(Subject):
    """A pool behind a gateway."""

    wire = True

    def __init__(self, backend: Remote, seed: int) -> None:
        """Take the calls."""
        super().__init__(seed, f"conform-{seed}-")
        self.backend = backend

    def filled(self, pages: Mapping[int, int], *, size: int = 0, form: Format | None = None) -> Volume:
        """Import an image by stream."""
        spec = self.spec(size=size, format=form)
        header = volume_pb2.ImportHeader(
            pool=self._remote.pool,
            volume_id=spec.name,
            source_format=volume_pb2.VOLUME_FORMAT_RAW,
            format=number(volume_pb2.VolumeFormat, str(spec.format), "format"),
            request_id=spec.uid,
        )
        with tempfile.NamedTemporaryFile(prefix="volgate-conform-") as image:
            write_image(image.fileno(), pages, spec.size)
            self._remote.client.import_file(header, Path(image.name))
        return self.get(spec.name)

    def content(self, volume: Volume, snapshot: Snapshot | None = None) -> Picture:
        """Export an image by stream."""
        name = f"{self._remote.pool}/volumes/{volume.name}" + (f"/snapshots/{snapshot.name}" if snapshot else "")
        with tempfile.TemporaryDirectory(prefix="volgate-conform-") as folder:
            path = Path(folder, "image")
            self._remote.client.export_file(volume_pb2.ExportVolumeRequest(name=name, format=volume_pb2.VOLUME_FORMAT_RAW), path)
            return picture.of_file(str(path))

    def write(self, volume: Volume, pages: Mapping[int, int]) -> None:
        """Only a guest could."""
        raise Unsupported(f"{volume.name} is not written to over the wire ({len(pages)} pages)")

    def reopen(self) -> None:
        """The gateway's pool stays open."""

    @property
    def _remote(self) -> Remote:
        assert isinstance(self.backend, Remote)
        return self.backend


class TestServed(Conformance):
    """Level 1 to 3 of the pool that the options name."""

    over_the_wire = True
    target: ClassVar[Target] = Target.of_this_run()
    backend_class: ClassVar[type[Remote]] = class_of(target.capabilities)
    kind = target.kind

    @pytest.fixture
    def subject(self, conformance_options: Options) -> Iterator[ServedPool]:
        """The pool, behind its gateway."""
        with Client(self.target.address, timeout=120.0, **self.target.files) as client:
            made = ServedPool(self.backend_class(client, self.target.pool), conformance_options.seed)
            yield made
            made.clear()
