"""Volumes on a real Ceph cluster beside the same calls on bare librbd, tag included, in one process, and beside Ceph's own `rbd`."""

from __future__ import annotations

import contextlib
import filecmp
import subprocess
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import rados
import rbd

from tests.bench.bench import GIB, MIB, Bench
from tests.bench.images import sparse_image
from tests.bench.measure import Pairs, Row, interleave
from tests.bench.native import sync
from tests.labs.ceph import POOL, CephCluster
from volgate.backend import Backend, PoolContext
from volgate.model import Format, VolumeSpec
from volgate.v1 import volume_pb2
from volgate_client import Client
from volgate_plugins.ceph_rbd.backend import CephRbd
from volgate_plugins.ceph_rbd.settings import CephSettings

SERVED = "pools/ceph"
TAG = b"x" * 600
AT_ONCE = 25
MANY = 1000
RAW = volume_pb2.VOLUME_FORMAT_RAW
FEATURES = sum((rbd.RBD_FEATURE_LAYERING, rbd.RBD_FEATURE_EXCLUSIVE_LOCK, rbd.RBD_FEATURE_OBJECT_MAP))
FEATURES += rbd.RBD_FEATURE_FAST_DIFF + rbd.RBD_FEATURE_DEEP_FLATTEN


class Native:
    """Bare librbd: one connection, the calls that do the work, a tag of the usual length in the image's metadata."""

    def __init__(self, cluster: CephCluster, namespace: str) -> None:
        self._client = cluster.connect(rbd_default_clone_format="2")
        self._namespace = namespace
        self._own = threading.local()
        self._rbd = rbd.RBD()

    @property
    def ioctx(self) -> rados.Ioctx:
        """Each thread's own."""
        if not hasattr(self._own, "ioctx"):
            self._own.ioctx = self._client.open_ioctx(POOL)
            self._own.ioctx.set_namespace(self._namespace)
        return self._own.ioctx

    def create(self, name: str) -> None:
        self._rbd.create(self.ioctx, name, GIB, old_format=False, features=FEATURES)
        self._tag(name)

    def delete(self, name: str) -> None:
        self._rbd.remove(self.ioctx, name)

    def snapshot(self, name: str, snapshot: str) -> None:
        with rbd.Image(self.ioctx, name) as image:
            image.create_snap(snapshot)
            image.metadata_set(f"volgate.snapshot.{snapshot}", TAG[:200].decode())

    def clone(self, name: str, snapshot: str, child: str) -> None:
        self._rbd.clone(self.ioctx, name, snapshot, self.ioctx, child, features=FEATURES)
        self._tag(child)

    def sizes(self) -> int:
        """What a list needs, by opening each image."""
        found = 0
        for name in self._rbd.list(self.ioctx):
            with rbd.Image(self.ioctx, name, read_only=True) as image:
                image.metadata_list()
                found += image.size()
        return found

    def close(self) -> None:
        self._client.shutdown()

    def _tag(self, name: str) -> None:
        with rbd.Image(self.ioctx, name) as image:
            image.metadata_set("volgate.tag", TAG.decode())


class Ours:
    """The calls, by short names."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def create(self, name: str) -> None:
        self.client.create_volume(SERVED, name, size_bytes=GIB)

    def delete(self, name: str) -> None:
        self.client.delete_volume(f"{SERVED}/volumes/{name}")

    def snapshot(self, name: str, snapshot: str) -> None:
        self.client.create_snapshot(f"{SERVED}/volumes/{name}", snapshot)

    def clone(self, name: str, snapshot: str, child: str) -> None:
        self.client.create_volume(SERVED, child, source=f"{SERVED}/volumes/{name}/snapshots/{snapshot}")


class Sides:
    """Ours, bare librbd and `rbd`: a namespace for each, on one cluster."""

    def __init__(self, bench: Bench, cluster: CephCluster, client: Client) -> None:
        self.bench, self.cluster = bench, cluster
        self.ours, self.native = Ours(client), Native(cluster, cluster.new_namespace())
        self._shown = cluster.new_namespace()

    def rbd(self, *words: str) -> None:
        """Run Ceph's own command; `{}` stands for the pool and namespace of this side."""
        command = self.cluster.tool("rbd", *(word.replace("{}", f"{POOL}/{self._shown}") for word in words))
        subprocess.run(command, check=True, capture_output=True)

    def mutations(self) -> list[Row]:
        """One call after the other."""
        ours, native, rounds = self.ours, self.native, self.bench.rounds
        rows = interleave(rounds(60), lambda n: ours.create(f"v{n}"), lambda n: native.create(f"v{n}")).rows("ceph create")
        done = len(list(native._rbd.list(native.ioctx)))  # the same rounds for the calls that follow
        numbers = range(done)
        rows += interleave(numbers, lambda n: ours.snapshot(f"v{n}", "s"), lambda n: native.snapshot(f"v{n}", "s")).rows("ceph snapshot")
        cloned = interleave(numbers, lambda n: ours.clone(f"v{n}", "s", f"c{n}"), lambda n: native.clone(f"v{n}", "s", f"c{n}"))
        rows += cloned.rows("ceph clone")
        rows += interleave(numbers, lambda n: ours.delete(f"c{n}"), lambda n: native.delete(f"c{n}")).rows("ceph delete")
        return rows

    def beside_the_command(self) -> list[Row]:
        """The same beside `rbd`, which connects anew each time."""
        ours, rounds = self.ours, list(self.bench.rounds(12))
        create = interleave(rounds, lambda n: ours.create(f"r{n}"), lambda n: self.rbd("create", "--size", "1G", f"{{}}/r{n}"))
        cut = interleave(rounds, lambda n: ours.snapshot(f"r{n}", "s"), lambda n: self.rbd("snap", "create", f"{{}}/r{n}@s"))
        cloned = interleave(
            rounds,
            lambda n: ours.clone(f"r{n}", "s", f"rc{n}"),
            lambda n: self.rbd("clone", "--rbd-default-clone-format", "2", f"{{}}/r{n}@s", f"{{}}/rc{n}"),
        )
        deleted = interleave(rounds, lambda n: ours.delete(f"rc{n}"), lambda n: self.rbd("rm", "--no-progress", f"{{}}/rc{n}"))
        named = {"create": create, "snapshot": cut, "clone": cloned, "delete": deleted}
        return [pairs.middle(f"ceph {what} beside rbd") for what, pairs in named.items()]

    def at_once(self) -> list[Row]:
        """25 at a time."""
        with ThreadPoolExecutor(AT_ONCE) as threads:

            def all_of(call: Callable[[str], object], what: str) -> Callable[[int], object]:
                return lambda n: list(threads.map(call, [f"{what}{n}-{one}" for one in range(AT_ONCE)]))

            rounds = list(self.bench.rounds(6))
            made = interleave(rounds, all_of(self.ours.create, "p"), all_of(self.native.create, "p"))
            named = interleave(
                rounds, all_of(self.ours.create, "q"), all_of(lambda name: self.rbd("create", "--size", "1G", f"{{}}/{name}"), "q")
            )
            gone = interleave(rounds, all_of(self.ours.delete, "p"), all_of(self.native.delete, "p"))
        return [
            made.middle("ceph 25 creates at once"),
            named.middle("ceph 25 creates at once beside rbd"),
            gone.middle("ceph 25 deletes at once"),
        ]

    def listing(self) -> list[Row]:
        """A thousand: the pages that a caller gets, and the storage itself read anew."""
        there = len(list(self.ours.client.list_volumes(SERVED)))
        wanted = self.bench.scaled(MANY, 20)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self.ours.create, [f"l{n}" for n in range(wanted - there)]))
            native = len(self.native._rbd.list(self.native.ioctx))  # as above
            list(threads.map(self.native.create, [f"l{n}" for n in range(wanted - native)]))
        rounds = range(3)
        pages = interleave(rounds, lambda _: list(self.ours.client.list_volumes(SERVED)), lambda _: self.native.sizes())
        with contextlib.closing(self._backend()) as backend:
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(backend.create_volume, [_spec(f"l{n}") for n in range(wanted)]))
            shown = interleave(rounds, lambda _: list(backend.list_volumes()), lambda _: self.native.sizes())
        return [pages.middle("ceph list 1000"), shown.middle("ceph read 1000 from the storage")]

    def _backend(self) -> Backend:
        """The plugin alone, as a scan of its pool asks it."""
        table = self.cluster.table(namespace=self.cluster.new_namespace())
        return CephRbd(CephSettings(**table | {"monitors": tuple(table["monitors"])}), PoolContext("bench", "bench"))

    # -- images

    def images(self, folder: Path) -> list[Row]:
        """1 GiB with 256 MiB of data, from a file on the server and to one, beside `rbd` and beside `qemu-img convert`."""
        image = folder / "image.raw"
        sparse_image(image, self.bench.scaled(1024, 64) * MIB, self.bench.scaled(256, 16) * MIB)
        rows, rounds = [], list(self.bench.rounds(4))
        for name, imported, exported in (
            ("rbd", lambda n: self.rbd("import", "--no-progress", str(image), f"{{}}/i{n}"), lambda _: self._rbd_export(folder)),
            ("qemu-img", lambda n: self._convert(image, n), lambda _: self._convert_back(folder)),
        ):
            pairs = interleave(rounds, partial(self._import, image, name), imported)
            rows.append(pairs.middle(f"ceph import beside {name}"))
            pairs = Pairs()
            for number in rounds:
                with pairs.our_turn():
                    self._export(folder, f"i-{name}-{rounds[0]}")
                with pairs.their_turn():
                    exported(number)
                if not filecmp.cmp(folder / "ours", folder / "theirs", shallow=False):
                    raise RuntimeError(f"the export differs from what {name} made")
                (folder / "ours").unlink()
                (folder / "theirs").unlink()
            rows.append(pairs.middle(f"ceph export beside {name}"))
        return rows

    def _import(self, image: Path, name: str, number: int) -> None:
        header = volume_pb2.ImportHeader(pool=SERVED, volume_id=f"i-{name}-{number}", source_format=RAW, path=str(image))
        self.ours.client.import_file(header, None)

    def _export(self, folder: Path, name: str) -> None:
        request = volume_pb2.ExportVolumeRequest(name=f"{SERVED}/volumes/{name}", format=RAW, path=str(folder / "ours"))
        self.ours.client.export_on_server(request)

    def _rbd_export(self, folder: Path) -> None:
        self.rbd("export", "--no-progress", "{}/i0", str(folder / "theirs"))
        sync(folder / "theirs")

    def _named(self, name: str) -> str:
        """An image as QEMU names it."""
        return f"rbd:{POOL}/{self._shown}/{name}:id=admin:conf={self.cluster.config}:keyring={self.cluster.base}/admin.keyring"

    def _convert(self, image: Path, number: int) -> None:
        self.rbd("create", "--size", f"{image.stat().st_size}B", f"{{}}/q{number}")
        subprocess.run(
            ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, self._named(f"q{number}")], check=True, stderr=subprocess.DEVNULL
        )

    def _convert_back(self, folder: Path) -> None:
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "raw", self._named("q0"), folder / "theirs"], check=True, stderr=subprocess.DEVNULL
        )
        sync(folder / "theirs")

    def close(self) -> None:
        self.native.close()


def _spec(name: str) -> VolumeSpec:
    return VolumeSpec(name=name, uid=str(uuid.uuid4()), size=GIB, format=Format.RAW)


def ceph(bench: Bench) -> list[Row]:
    """All rows: one cluster in memory, one gateway."""
    folder = bench.place("ceph-images")
    for opened in (bench.folder, folder):
        opened.chmod(0o711)
    with CephCluster() as cluster:
        config = "".join(f'[{section}]\nallowed_directories = ["{folder}"]\n' for section in ("imports", "exports"))
        config += cluster.toml("ceph", namespace=cluster.new_namespace())
        with bench.serving("ceph", config) as server, server.client() as client:
            sides = Sides(bench, cluster, client)
            try:
                return [*sides.mutations(), *sides.beside_the_command(), *sides.at_once(), *sides.listing(), *sides.images(folder)]
            finally:
                sides.close()


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {"ceph": ceph}
