"""A good request of every call: what is corrupted, and what serves as a control that the gateway does answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.edge.deeds import registered, registration
from tests.edge.place import MIB
from tests.edge.secured import Secured
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

__all__ = ["FOLLOWED", "GOOD", "furnish"]

A, H, O, P, S, V = attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2  # noqa: E741
FOLLOWED = ("DeleteSnapshot", "RevertVolume")  # the gateway merges layers some time after: controls are plans until the very end
NAME = "pools/main/volumes/v"
SIMULATED = "pools/sim/volumes/v"
IMAGE = b"image" + bytes(4091)


def furnish(place: Secured) -> None:
    """What the good requests speak of: volume v with snapshot s, a prepared attachment of p, a foreign file, an ended operation."""
    made = place.volume(4 * MIB, volume_id="v")
    place.snapshot(made, "s")
    place.volume(4 * MIB, volume_id="p")
    attach = A.AttachVolumeRequest(volume="pools/main/volumes/p", host="hosts/lab", domain="test", prepare_only=True)
    place.attachment = place.wire.attachments.AttachVolume(attach, timeout=30).attachment.name
    simulated = place.volume(4 * MIB, pool="sim", volume_id="v")
    for name in ("s", "t"):
        place.snapshot(simulated, name)
    (place.pool / "foreign.img").write_bytes(bytes(MIB))
    (place.images / "image.raw").write_bytes(bytes(MIB))
    (place.exports / "taken").write_bytes(b"taken")
    for host in ("fuzz", "dead"):
        registered(place, host)
    place.rest()
    place.operation = place.wire.operations.ListOperations(O.ListOperationsRequest(page_size=1), timeout=30).operations[0].name


def _options(rng: random.Random) -> A.DiskOptions:
    pick = rng.choice
    return A.DiskOptions(
        bus=A.DISK_BUS_VIRTIO_BLK,
        serial=pick(("", "S-1", "A" * 20)),
        access=pick((0, 1, 2)),
        qos={"read_bytes_sec": pick((0, 1 << 20)), "write_iops_sec": pick((0, 100))},
        cache=pick((0, 1, 4)),
        io=pick((0, 1, 2, 3)),
        no_discard=pick((True, False)),
        iothread=pick((0, 1)),
        error_policy=pick((0, 1, 2, 3)),
        passphrase="",
    )


def _import(place: Secured, rng: random.Random) -> list[Any]:
    header = V.ImportHeader(
        pool="pools/main",
        volume_id=place.name("import"),
        source_format=V.VOLUME_FORMAT_RAW,
        format=rng.choice((0, 1, 2)),
        size_bytes=rng.choice((0, 1 << 20)),
        labels={"a": "b"},
        request_id=place.name("import"),
        image_bytes=rng.choice((0, len(IMAGE))),
    )
    return [V.ImportVolumeRequest(header=header), V.ImportVolumeRequest(chunk=IMAGE)]


def _export(place: Secured, rng: random.Random) -> Any:
    path = rng.choice(("", str(place.exports / place.name("out"))))
    named = {"name": rng.choice((NAME, f"{NAME}/snapshots/s")), "request_id": place.name("export")}
    return V.ExportVolumeRequest(**named, format=rng.choice((0, 1, 2)), path=path)


def _create(place: Secured, rng: random.Random) -> Any:
    source = rng.choice(("", "", f"{NAME}/snapshots/s"))
    return V.CreateVolumeRequest(
        pool="pools/main",
        volume_id=place.name("new"),
        size_bytes=4 * MIB,
        format=V.VOLUME_FORMAT_QCOW2,
        provisioning=rng.choice((0, 1)),
        source=source,
        labels={"k8s.io/x": "ü"},
        request_id=place.name("create"),
        validate_only=True,
    )


def _revert(place: Secured, _: random.Random) -> Any:
    return V.RevertVolumeRequest(name=NAME, snapshot="s", request_id=place.name("revert"), validate_only=True)


def _expand(place: Secured, _: random.Random) -> Any:
    return V.ExpandVolumeRequest(name=NAME, size_bytes=4 * MIB, request_id=place.name("expand"))


def _update(place: Secured, rng: random.Random) -> Any:
    return V.UpdateVolumeRequest(name=NAME, labels={"n": str(rng.random())}, request_id=place.name("update"))


def _adopt(place: Secured, _: random.Random) -> Any:
    return V.AdoptVolumeRequest(
        pool="pools/main", locator="foreign.img", volume_id=place.name("adopt"), format=V.VOLUME_FORMAT_RAW, validate_only=True
    )


def _attach(_: Secured, rng: random.Random) -> Any:
    return A.AttachVolumeRequest(volume=NAME, host="hosts/lab", domain="test", options=_options(rng), validate_only=True)


GOOD: dict[str, Callable[[Secured, random.Random], Any]] = {
    "ListPools": lambda _, rng: P.ListPoolsRequest(page_size=rng.choice((0, 1, 1000))),
    "GetPool": lambda _, __: P.GetPoolRequest(name="pools/main"),
    "DrainPool": lambda _, __: P.DrainPoolRequest(name="pools/main", resume=True),
    "QuarantinePool": lambda _, __: P.QuarantinePoolRequest(name="pools/main", release=True),
    "CreateVolume": _create,
    "DeleteVolume": lambda place, _: V.DeleteVolumeRequest(name=f"pools/main/volumes/{place.name('none')}"),
    "GetVolume": lambda _, rng: V.GetVolumeRequest(name=NAME, refresh=rng.choice((True, False))),
    "ListVolumes": lambda _, rng: V.ListVolumesRequest(pool=rng.choice(("", "pools/main")), page_size=rng.choice((0, 1, 1000))),
    "ExpandVolume": _expand,
    "UpdateVolume": _update,
    "RevertVolume": _revert,
    "ImportVolume": _import,
    "ExportVolume": _export,
    "AdoptVolume": _adopt,
    "ListChangedBlocks": lambda _, rng: V.ListChangedBlocksRequest(
        name=SIMULATED,
        base_snapshot=rng.choice(("", "s")),
        snapshot=rng.choice(("", "t")),
        exact=rng.choice((True, False)),
    ),
    "CreateSnapshotGroup": lambda place, _: S.CreateSnapshotGroupRequest(
        pool="pools/sim", snapshots={"v": place.name("g")}, labels={"a": "b"}, request_id=place.name("group"), validate_only=True
    ),
    "CreateSnapshot": lambda place, _: S.CreateSnapshotRequest(volume=NAME, snapshot_id="s", request_id=place.name("cut")),
    "DeleteSnapshot": lambda place, _: S.DeleteSnapshotRequest(name=f"{NAME}/snapshots/{place.name('none')}", validate_only=True),
    "GetSnapshot": lambda _, __: S.GetSnapshotRequest(name=f"{NAME}/snapshots/s"),
    "ListSnapshots": lambda _, rng: S.ListSnapshotsRequest(parent=rng.choice(("", "pools/main", NAME)), page_size=rng.choice((0, 1))),
    "AttachVolume": _attach,
    "DetachVolume": lambda _, rng: A.DetachVolumeRequest(
        name="attachments/00000000-0000-5000-8000-000000000000", wait_seconds=rng.choice((0, 600))
    ),
    "GetAttachment": lambda place, _: A.GetAttachmentRequest(name=place.attachment),
    "ListAttachments": lambda _, rng: A.ListAttachmentsRequest(volume=rng.choice(("", NAME)), host=rng.choice(("", "hosts/lab"))),
    "ListPaths": lambda _, __: A.ListPathsRequest(name=NAME),
    "WatchPaths": lambda _, __: A.WatchPathsRequest(name=NAME),
    "ListHosts": lambda _, rng: H.ListHostsRequest(page_size=rng.choice((0, 1))),
    "GetHost": lambda _, __: H.GetHostRequest(name="hosts/lab"),
    "RegisterHost": lambda _, __: registration("fuzz"),
    "HeartbeatHost": lambda _, __: H.HeartbeatHostRequest(name="hosts/fuzz", session="of fuzz"),
    "CordonHost": lambda _, __: H.CordonHostRequest(name="hosts/lab", uncordon=True),
    "ReleaseHost": lambda _, __: H.ReleaseHostRequest(name="hosts/dead", assume_off=True),
    "RemoveHost": lambda _, __: H.RemoveHostRequest(name="hosts/none"),
    "FenceHost": lambda _, __: H.FenceHostRequest(name="hosts/dead", addresses=["192.0.2.1"], validate_only=True),
    "UnfenceHost": lambda _, __: H.UnfenceHostRequest(name="hosts/dead"),
    "GetOperation": lambda place, _: O.GetOperationRequest(name=place.operation),
    "ListOperations": lambda _, rng: O.ListOperationsRequest(page_size=rng.choice((1, 5)), unfinished_only=rng.choice((True, False))),
    "WatchOperation": lambda place, _: O.WatchOperationRequest(name=place.operation),
    "CancelOperation": lambda place, _: O.CancelOperationRequest(name=place.operation),
}
