"""Calls that do something, one for each method that is served: what a test of roles lets through or sees denied."""

from __future__ import annotations

import time
from dataclasses import dataclass

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.edge.place import MIB, parts
from tests.edge.secured import Secured
from tests.edge.wire import Wire, refusal, refused
from volgate.hosts.wire import PROTOCOL
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

__all__ = ["Deed", "deed", "prepared", "registered", "registration", "streaming"]

RAW = volume_pb2.VOLUME_FORMAT_RAW


@dataclass
class Deed:
    """A call that does something, were it let through."""

    stub: str
    request: object

    def method(self, wire: Wire):
        service, _, verb = self.stub.partition(".")
        return getattr(getattr(wire, service), verb)

    def refused(self, wire: Wire, **options):
        return refused(self.method(wire), self.request, **options)

    def done(self, wire: Wire) -> str:
        """ "OK", or the code; of a watch the first answer is enough."""
        try:
            answer = self.method(wire)(self.request, timeout=30)
            if hasattr(answer, "__next__"):
                next(answer)
                answer.cancel()
        except Exception as error:  # gRPC raises a class of its own for each kind of call
            return refusal(error).code
        return "OK"


def deed(place: Secured, method: str) -> Deed:
    """One of its own for each method, on objects made for it."""
    service, _, verb = method.removeprefix("/volgate.v1.").rpartition("/")
    if not method.startswith("/volgate"):
        return _standard(method)
    name, v, s, a, o = place.name(), volume_pb2, snapshot_pb2, attachment_pb2, operation_pb2
    several = verb in ("ListChangedBlocks", "CreateSnapshotGroup")
    made = place.volume(pool="sim" if several else "shallow") if "Pool" not in verb and "Host" not in verb else None
    full = made.name if made else ""
    cut = place.snapshot(made).name if verb in ("DeleteSnapshot", "GetSnapshot", "RevertVolume") else ""
    held = prepared(place, full) if verb in ("DetachVolume", "GetAttachment") else None
    last = place.wire.operations.ListOperations(o.ListOperationsRequest(page_size=1)).operations
    if verb == "AdoptVolume":
        (place.top / "shallow" / f"{name}.img").write_bytes(b"\1" * MIB)
    host = registered(place, name) if verb in ("ReleaseHost", "RemoveHost", "FenceHost", "UnfenceHost") else ""
    if verb in ("RegisterHost", "HeartbeatHost"):
        registered(place, "someone")
    requests = {
        "ListPools": pool_pb2.ListPoolsRequest,
        "GetPool": lambda: pool_pb2.GetPoolRequest(name="pools/main"),
        "DrainPool": lambda: pool_pb2.DrainPoolRequest(name="pools/main", resume=True),
        "QuarantinePool": lambda: pool_pb2.QuarantinePoolRequest(name="pools/main", release=True),
        "CreateVolume": lambda: v.CreateVolumeRequest(pool="pools/shallow", volume_id=name, size_bytes=MIB),
        "DeleteVolume": lambda: v.DeleteVolumeRequest(name=full),
        "GetVolume": lambda: v.GetVolumeRequest(name=full, refresh=True),
        "ListVolumes": lambda: v.ListVolumesRequest(pool="pools/shallow"),
        "ExpandVolume": lambda: v.ExpandVolumeRequest(name=full, size_bytes=8 * MIB),
        "UpdateVolume": lambda: v.UpdateVolumeRequest(name=full, labels={"a": "b"}),
        "RevertVolume": lambda: v.RevertVolumeRequest(name=full, snapshot="s1", request_id=name),
        "ImportVolume": lambda: list(parts(v.ImportHeader(pool="pools/shallow", volume_id=name, source_format=RAW), b"\1" * MIB)),
        "ExportVolume": lambda: v.ExportVolumeRequest(name=full),
        "AdoptVolume": lambda: v.AdoptVolumeRequest(pool="pools/shallow", locator=f"{name}.img", volume_id=name, format=RAW),
        "ListChangedBlocks": lambda: v.ListChangedBlocksRequest(name=full),
        "CreateSnapshotGroup": lambda: s.CreateSnapshotGroupRequest(pool="pools/sim", snapshots={made.name.rpartition("/")[2]: "s1"}),
        "CreateSnapshot": lambda: s.CreateSnapshotRequest(volume=full, snapshot_id="s1"),
        "DeleteSnapshot": lambda: s.DeleteSnapshotRequest(name=cut),
        "GetSnapshot": lambda: s.GetSnapshotRequest(name=cut),
        "ListSnapshots": lambda: s.ListSnapshotsRequest(parent="pools/shallow"),
        "AttachVolume": lambda: a.AttachVolumeRequest(volume=full, host="hosts/lab", domain="test", prepare_only=True),
        "DetachVolume": lambda: a.DetachVolumeRequest(name=held),
        "GetAttachment": lambda: a.GetAttachmentRequest(name=held),
        "ListAttachments": lambda: a.ListAttachmentsRequest(host="hosts/lab"),
        "ListPaths": lambda: a.ListPathsRequest(name=full),
        "WatchPaths": lambda: a.WatchPathsRequest(name=full),
        "ListHosts": host_pb2.ListHostsRequest,
        "GetHost": lambda: host_pb2.GetHostRequest(name="hosts/lab"),
        "RegisterHost": lambda: registration("someone"),
        "HeartbeatHost": lambda: host_pb2.HeartbeatHostRequest(name="hosts/someone", session="of someone"),
        "CordonHost": lambda: host_pb2.CordonHostRequest(name="hosts/lab", uncordon=True),
        "ReleaseHost": lambda: host_pb2.ReleaseHostRequest(name=host, assume_off=True),
        "FenceHost": lambda: host_pb2.FenceHostRequest(name=host, addresses=["192.0.2.1"]),
        "UnfenceHost": lambda: host_pb2.UnfenceHostRequest(name=host, assume_restarted=True),
        "RemoveHost": lambda: host_pb2.RemoveHostRequest(name=host),
        "GetOperation": lambda: o.GetOperationRequest(name=last[0].name),
        "ListOperations": o.ListOperationsRequest,
        "WatchOperation": lambda: o.WatchOperationRequest(name=last[0].name),
        "CancelOperation": lambda: o.CancelOperationRequest(name=last[0].name),
    }
    return Deed(f"{service.removesuffix('Service').lower()}s.{verb}", requests[verb]())


def _standard(method: str) -> Deed:
    if "reflection" in method:
        return Deed("reflection.ServerReflectionInfo", [reflection_pb2.ServerReflectionRequest(list_services="")])
    kind = health_pb2.HealthListRequest if method.endswith("List") else health_pb2.HealthCheckRequest
    return Deed(f"health.{method.rpartition('/')[2]}", kind())


def registration(host: str) -> host_pb2.RegisterHostRequest:
    """What a host says that nobody can reach."""
    identity = host_pb2.HostIdentity(machine_id=f"machine of {host}", boot_id="1")
    return host_pb2.RegisterHostRequest(
        name=f"hosts/{host}", address="127.0.0.1:1", session=f"of {host}", protocol=PROTOCOL, identity=identity
    )


def registered(place: Secured, host: str) -> str:
    """A host that registered, and is dead once the answer is there; the gateway has looked for it, and at its pools beside that."""
    place.by("host", host).hosts.RegisterHost(registration(host), timeout=30)
    deadline = time.monotonic() + 20
    while place.wire.hosts.GetHost(host_pb2.GetHostRequest(name=f"hosts/{host}"), timeout=30).host.live:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    place.line("disks cannot be listed", host=host)
    return f"hosts/{host}"


def prepared(place: Secured, volume: str, host: str = "lab") -> str:
    """An attachment that is no disk of a domain yet."""
    request = attachment_pb2.AttachVolumeRequest(volume=volume, host=f"hosts/{host}", domain="test", prepare_only=True)
    return place.wire.attachments.AttachVolume(request, timeout=30).attachment.name


def streaming(request):
    """A request that is a stream is one again at each call."""
    return iter(request) if isinstance(request, list) else request
