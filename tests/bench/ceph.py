"""RBD volumes beside the same calls on bare librbd in one process, tag included, and beside the `rbd` command."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rbd

from tests.bench.bench import GIB, MIB, Bench
from tests.bench.images import sparse_image
from tests.bench.measure import MS, Pairs, Row, interleave
from tests.bench.native import sync
from tests.labs.ceph import POOL, CephCluster
from volgate.v1 import volume_pb2
from volgate_client import Client

TAG = '{"checksum": "%s"}' % ("0" * 600)  # as long as a tag of ours
KEY = "volgate.tag"
AT_ONCE = 25
LISTED = 1000


class Bare:
    """The calls on librbd: one connection, one process, no gateway."""

    def __init__(self, cluster: CephCluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.client = cluster.connect(rbd_default_clone_format="2", rbd_cache="false")
        self.ioctx = self.client.open_ioctx(POOL)
        self.ioctx.set_namespace(namespace)

        self.gone: list[str] = []

    def close(self) -> None:
        self.ioctx.close()
        self.client.shutdown()

    def tag(self, name: str) -> None:
        with rbd.Image(self.ioctx, name) as image:
            image.metadata_set(KEY, TAG)

    def create(self, name: str) -> None:
        rbd.RBD().create(self.ioctx, name, GIB)
        self.tag(name)

    def delete(self, name: str) -> None:
        with rbd.Image(self.ioctx, name, read_only=True) as image:
            list(image.watchers_list())
            gone = image.id()
        rbd.RBD().trash_move(self.ioctx, name, 0)
        self.gone.append(gone)  # to be purged later, as ours

    def purge(self) -> None:
        while self.gone:
            rbd.RBD().trash_remove(self.ioctx, self.gone.pop(), force=True)

    def snapshot(self, name: str, snapshot: str) -> None:
        with rbd.Image(self.ioctx, name) as image:
            image.metadata_set(f"volgate.snapshot.{snapshot}", TAG)
            image.create_snap(snapshot)

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        rbd.RBD().clone(self.ioctx, name, snapshot, self.ioctx, clone)
        self.tag(clone)

    def listed(self) -> int:
        def look(name: str) -> int:
            with rbd.Image(self.ioctx, name, read_only=True) as image:
                return len(image.metadata_get(KEY)) and int(image.size())

        with ThreadPoolExecutor(8) as threads:
            return len(list(threads.map(look, rbd.RBD().list(self.ioctx))))

    def command(self, *words: str) -> None:
        subprocess.run(self.cluster.tool("rbd", *words, user="volgate"), check=True, capture_output=True)

    def spec(self, name: str) -> str:
        return f"{POOL}/{self.namespace}/{name}"


class Ours:
    """The calls of a gateway."""

    def __init__(self, client: Client, pool: str) -> None:
        self.client, self.pool = client, f"pools/{pool}"

    def create(self, name: str) -> None:
        self.client.create_volume(self.pool, name, size_bytes=GIB)

    def delete(self, name: str) -> None:
        self.client.delete_volume(f"{self.pool}/volumes/{name}")

    def snapshot(self, name: str, snapshot: str) -> None:
        self.client.create_snapshot(f"{self.pool}/volumes/{name}", snapshot)

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        self.client.create_volume(self.pool, clone, source=f"{self.pool}/volumes/{name}/snapshots/{snapshot}")


def _mutations(bench: Bench, ours: Ours, bare: Bare) -> list[Row]:
    rows = interleave(bench.rounds(100), lambda n: ours.create(f"c{n}"), lambda n: bare.create(f"c{n}")).rows("rbd create")
    rows += interleave(bench.rounds(40), lambda n: ours.snapshot("c0", f"s{n}"), lambda n: bare.snapshot("c0", f"s{n}")).rows(
        "rbd snapshot"
    )
    rows += interleave(bench.rounds(60), lambda n: ours.clone("c0", "s0", f"k{n}"), lambda n: bare.clone("c0", "s0", f"k{n}")).rows(
        "rbd clone"
    )
    made = min(len([name for name in rbd.RBD().list(bare.ioctx) if name.startswith("c")]), bench.scaled(100) + 1)
    deleted = iter(range(1, made))
    pairs = Pairs()
    for number in deleted:
        with pairs.our_turn():
            ours.delete(f"c{number}")
        with pairs.their_turn():
            bare.delete(f"c{number}")
    bare.purge()
    return rows + pairs.rows("rbd delete")


def _at_once(bench: Bench, ours: Ours, bare: Bare) -> list[Row]:
    """25 creations at the same moment, and 25 deletions."""
    creates, deletes = Pairs(), Pairs()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for number in bench.rounds(8):
            names = [f"p{number}-{one}" for one in range(AT_ONCE)]
            for turn, call in ((creates.our_turn, ours.create), (creates.their_turn, bare.create)):
                with turn():
                    list(threads.map(call, names))
            for turn, call in ((deletes.our_turn, ours.delete), (deletes.their_turn, bare.delete)):
                with turn():
                    list(threads.map(call, names))
            bare.purge()
            time.sleep(1.0)  # and ours
    return [creates.middle("rbd create 25 at once"), deletes.middle("rbd delete 25 at once")]


def _commands(bench: Bench, bare: Bare) -> list[Row]:
    """The same by the `rbd` command."""
    taken: dict[str, list[float]] = {"create": [], "snapshot": [], "clone": [], "delete": []}
    for number in range(bench.scaled(10, 2)):
        image, clone = bare.spec(f"cli{number}"), bare.spec(f"clik{number}")
        for name, words in (
            ("create", ("create", "--size", "1024", image)),
            ("snapshot", ("snap", "create", f"{image}@s")),
            ("clone", ("clone", "--rbd-default-clone-format", "2", f"{image}@s", clone)),
            ("delete", ("rm", clone)),
        ):
            began = time.perf_counter()
            bare.command(*words)
            taken[name].append(time.perf_counter() - began)
    return [Row(f"rbd command {name}", statistics.median(times) * MS) for name, times in taken.items()]


def _listing(bench: Bench, backend: Any, bare: Bare) -> Row:
    """All volumes of a pool of 1,000, as a scan reads them, beside opening each in eight threads."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: backend.create_volume(_spec(n)), range(bench.scaled(LISTED, 20))))
    return interleave(bench.rounds(3), lambda _n: list(backend.list_volumes()), lambda _n: bare.listed()).middle("rbd list 1,000")


def _spec(number: int) -> Any:
    import uuid

    from volgate.model import Format, VolumeSpec

    return VolumeSpec(f"l{number}", str(uuid.uuid4()), GIB, Format.RAW)


def _images(bench: Bench, ours: Ours, bare: Bare, folder: Path) -> list[Row]:
    image = folder / "image.raw"
    sparse_image(image, bench.scaled(1024, 64) * MIB, bench.scaled(256, 16) * MIB)
    url = f"rbd:{bare.spec('{}')}:conf={bare.cluster.config}:keyring={bare.cluster.base}/volgate.keyring:id=volgate"
    imports, converted, exports = Pairs(), Pairs(), Pairs()
    raw = volume_pb2.VOLUME_FORMAT_RAW
    for number in bench.rounds(3):
        header = volume_pb2.ImportHeader(pool=ours.pool, volume_id=f"i{number}", source_format=raw, path=str(image))
        began = time.perf_counter()
        ours.client.import_file(header, None)
        taken = time.perf_counter() - began
        for pairs in (imports, converted):
            pairs.ours.append(taken)
        with imports.their_turn():
            bare.command("import", str(image), bare.spec(f"i{number}"))
        with converted.their_turn():
            subprocess.run(["qemu-img", "convert", "-W", "-O", "raw", image, url.format(f"q{number}")], check=True)
        with exports.our_turn():
            target = folder / f"ours{number}"
            ours.client.export_on_server(
                volume_pb2.ExportVolumeRequest(name=f"{ours.pool}/volumes/i{number}", format=raw, path=str(target))
            )
        with exports.their_turn():
            bare.command("export", bare.spec(f"i{number}"), str(folder / f"theirs{number}"))
            sync(folder / f"theirs{number}")
        for left in ("ours", "theirs"):
            (folder / f"{left}{number}").unlink()
    return [imports.middle("rbd import"), converted.middle("rbd import, qemu-img"), exports.middle("rbd export")]


def ceph(bench: Bench) -> list[Row]:
    """Rows of a pool of RBD images."""
    from volgate.backend import PoolContext
    from volgate_plugins.ceph_rbd import CephSettings, volgate_backends

    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(CephCluster())
        mine, listed, theirs = (cluster.new_namespace() for _ in range(3))
        folder = bench.place("rbd")
        allowed = "".join(f'[{section}]\nallowed_directories = ["{folder}"]\n' for section in ("imports", "exports"))
        for opened in (bench.folder, folder):
            opened.chmod(0o711)
        server = stack.enter_context(bench.serving("ceph", allowed + cluster.toml("rbd", namespace=mine)))
        ours, bare = Ours(stack.enter_context(server.client()), "rbd"), Bare(cluster, theirs)
        stack.callback(bare.close)
        rows = [*_mutations(bench, ours, bare), *_at_once(bench, ours, bare), *_commands(bench, bare), *_images(bench, ours, bare, folder)]
        table = cluster.table(namespace=listed)
        backend = volgate_backends()[0].open(CephSettings(**{**table, "monitors": tuple(table["monitors"])}), PoolContext("l", "bench"))
        stack.callback(backend.close)
        seen = Bare(cluster, listed)
        stack.callback(seen.close)
        return [*rows, _listing(bench, backend, seen)]


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"ceph": ceph}
