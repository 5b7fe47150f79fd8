"""Import and export beside `qemu-img convert` of the same image with the same fsyncs."""

from __future__ import annotations

import filecmp
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.bench import MIB, Bench
from tests.bench.measure import MS, Pairs, Row
from tests.bench.mutations import KINDS, Ours
from tests.bench.native import sync
from tests.bench.processes import running, until_answered
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
    """One image, one gateway that may import it from its folder and export to it, one folder for what the reference makes."""

    def __init__(self, bench: Bench, client: Client, folder: Path) -> None:
        self.client = client
        self.calls = Ours(client)
        self.folder = folder
        self.image = folder / "image.raw"
        self.data = bench.scaled(256, 16) * MIB
        sparse_image(self.image, bench.scaled(1024, 64) * MIB, self.data)

    def header(self, name: str, kind: str, *, path: str = "") -> volume_pb2.ImportHeader:
        return volume_pb2.ImportHeader(pool=POOL, volume_id=name, source_format=KINDS["raw"], format=KINDS[kind], path=path)

    def imported(self, rounds: Iterable[int], kind: str, *, stream: bool = False) -> Row:
        """A row: into a volume of `kind`, by a path on the server or by a stream."""
        name = f"import {kind}" + (" by stream" if stream else "")

        def ours(number: int) -> None:
            header = self.header(f"{name.replace(' ', '-')}-{number}", kind, path="" if stream else str(self.image))
            self.client.import_file(header, self.image if stream else None)

        def theirs(number: int) -> None:
            convert(self.image, "raw", self.folder / f"reference-{number}.{kind}", kind)

        def clean(number: int) -> None:
            if number:  # those of round 0 are what is exported
                self.calls.delete(f"{name.replace(' ', '-')}-{number}")
                (self.folder / f"reference-{number}.{kind}").unlink()

        return _turns(rounds, ours, theirs, clean).middle(name)

    def exported(self, rounds: Iterable[int], kind: str, *, stream: bool = False) -> Row:
        """A row: the volume of round 0 as a raw file, on the server by its path or at the client by a stream; durable on both sides."""
        name = f"export {kind}" + (" by stream" if stream else "")
        source, mine, other = self.folder / f"reference-0.{kind}", self.folder / "ours", self.folder / "theirs"
        request = volume_pb2.ExportVolumeRequest(name=f"{POOL}/volumes/import-{kind}-0", format=KINDS["raw"])

        def ours(_: int) -> None:
            if stream:
                self.client.export_file(request, mine)
                sync(mine)
                sync(self.folder)
            else:
                request.path = str(mine)
                self.client.export_on_server(request)

        def clean(_: int) -> None:
            if not filecmp.cmp(mine, other, shallow=False):
                raise RuntimeError(f"the export of {kind} differs from what qemu-img made")
            mine.unlink()
            other.unlink()

        return _turns(rounds, ours, lambda _: convert(source, kind, other, "raw"), clean).middle(name)


def _turns(rounds: Iterable[int], ours: Callable[[int], object], theirs: Callable[[int], object], clean: Callable[[int], object]) -> Pairs:
    """Interleave; what a turn left dirty is written before the next one begins, and not by it."""
    pairs = Pairs()
    for number in rounds:
        os.sync()
        with pairs.our_turn():
            ours(number)
        os.sync()
        with pairs.their_turn():
            theirs(number)
        clean(number)
    return pairs


def _bare_stream(bench: Bench, size: int) -> Row:
    """How long gRPC itself takes to stream as many bytes in messages of 1 MiB."""
    folder = bench.place("stream")
    taken = []
    with running(["tests.bench.echo", str(folder / "socket")], folder / "log"), Client(f"unix:{folder}/socket") as client:
        until_answered(folder / "socket", lambda: client.volumes.GetVolume(volume_pb2.GetVolumeRequest(), timeout=5))
        for _ in bench.rounds(5):
            began = time.perf_counter()
            for _ in client.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(name=str(size))):
                pass
            taken.append(time.perf_counter() - began)
    return Row("bare stream", statistics.median(taken) * MS)


def images(bench: Bench) -> list[Row]:
    """Rows of ImportVolume and ExportVolume."""
    folder = bench.place("images")
    for opened in (bench.folder, folder):
        opened.chmod(0o711)
    config = "".join(f'[{section}]\nallowed_directories = ["{folder}"]\n' for section in ("imports", "exports"))
    with bench.serving("import", config) as server, server.client() as client:
        images = Images(bench, client, folder)
        rows = [images.imported(bench.rounds(5), kind) for kind in ("raw", "qcow2")]
        rows += [images.exported(bench.rounds(5), kind) for kind in ("raw", "qcow2")]
        rows += [images.exported(bench.rounds(3), kind, stream=True) for kind in ("raw", "qcow2")]
        rows.append(images.imported(bench.rounds(2), "raw", stream=True))
    return [*rows, _bare_stream(bench, images.data)]


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"image": images}
