"""Import and export beside `qemu-img convert` of the same image with the same fsyncs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.bench import GIB, MIB, Bench
from tests.bench.measure import Row, interleave
from tests.bench.mutations import KINDS, Ours
from tests.bench.native import sync
from volgate.v1 import volume_pb2
from volgate_client import Client

POOL = "pools/default"
EXTENTS = 16


def sparse_image(path: Path, size: int, data: int) -> None:
    """Write an image of `size` bytes that holds `data` random bytes in runs of equal length and distance, readable by all."""
    with path.open("wb") as image:
        for number in range(EXTENTS):
            image.seek(number * size // EXTENTS)
            image.write(os.urandom(data // EXTENTS))
        image.truncate(size)
    path.chmod(0o644)
    sync(path)


def convert(source: Path, kind: str, target: Path, target_kind: str) -> None:
    """Run the reference: convert, then make the file and its name durable."""
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", target_kind, source, target], check=True)
    sync(target)
    sync(target.parent)


class Images:
    """One image, one gateway that may import it from its folder, one folder for what the reference makes."""

    def __init__(self, bench: Bench, client: Client, folder: Path) -> None:
        self.client = client
        self.calls = Ours(client)
        self.folder = folder
        self.image = folder / "image.raw"
        sparse_image(self.image, bench.scaled(GIB, 64 * MIB), bench.scaled(256 * MIB, 16 * MIB))

    def header(self, name: str, kind: str, *, path: str = "") -> volume_pb2.ImportHeader:
        return volume_pb2.ImportHeader(pool=POOL, volume_id=name, source_format=KINDS["raw"], format=KINDS[kind], path=path)

    def imported(self, rounds: int, kind: str, *, stream: bool) -> list[Row]:
        """One row: into a volume of `kind`, by a path on the server or by a stream."""
        name = f"import {kind}" + (" by stream" if stream else "")

        def ours(number: int) -> None:
            header = self.header(f"{name.replace(' ', '-')}-{number}", kind, path="" if stream else str(self.image))
            self.client.import_file(header, self.image if stream else None)

        def theirs(number: int) -> None:
            convert(self.image, "raw", self.folder / f"reference-{number}.{kind}", kind)

        row = interleave(rounds, ours, theirs).middle(name)
        for number in range(1, rounds + 1):
            self.calls.delete(f"{name.replace(' ', '-')}-{number}")
            (self.folder / f"reference-{number}.{kind}").unlink()
        return [row]

    def exported(self, rounds: int, kind: str) -> list[Row]:
        """One row: the volume of round 0 as a raw file at the client, durable on both sides."""
        volume = f"import-{kind}-0"
        request = volume_pb2.ExportVolumeRequest(name=f"{POOL}/volumes/{volume}", format=KINDS["raw"])
        source = self.folder / f"reference-0.{kind}"

        def ours(number: int) -> None:
            target = self.folder / f"ours-{number}"
            self.client.export_file(request, target)
            sync(target)
            sync(self.folder)

        def theirs(number: int) -> None:
            convert(source, kind, self.folder / f"theirs-{number}", "raw")

        row = interleave(rounds, ours, theirs).middle(f"export {kind}")
        for number in range(rounds + 1):
            for side in ("ours", "theirs"):
                (self.folder / f"{side}-{number}").unlink()
        return [row]


def images(bench: Bench) -> list[Row]:
    """Rows of ImportVolume and ExportVolume."""
    folder = bench.place("images")
    for opened in (bench.folder, folder):
        opened.chmod(0o711)
    rounds = bench.scaled(5)
    with bench.serving("import", f'[imports]\nallowed_directories = ["{folder}"]\n') as server, server.client() as client:
        images = Images(bench, client, folder)
        rows = images.imported(rounds, "raw", stream=False) + images.imported(rounds, "qcow2", stream=False)
        rows += images.exported(rounds, "raw") + images.exported(rounds, "qcow2")
        return rows + images.imported(min(rounds, 2), "raw", stream=True)


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"image": images}
