"""Values to messages and messages to values: the only module that knows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from volgate.backend import Extent, Foreign
from volgate.edge import validate
from volgate.errors import InvalidRequest
from volgate.hosts.interface import Domain, HostInfo
from volgate.model import (
    Access,
    Bus,
    CacheMode,
    DiskOptions,
    ErrorPolicy,
    Format,
    Health,
    IoMode,
    Path,
    PathState,
    Provisioning,
    Qos,
    Redundancy,
    Transport,
    VolumeState,
)
from volgate.names import SnapshotName, VolumeName
from volgate.operations.requests import Plan
from volgate.pools import PoolStatus
from volgate.secret import redacted
from volgate.store.records import (
    AttachmentRecord,
    AttachmentState,
    IndexedSnapshot,
    IndexedVolume,
    OperationRecord,
    OperationState,
    VolumeRow,
)
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

__all__ = [
    "FORMATS_ALL",
    "FORMATS_OPTIONAL",
    "PROVISIONING",
    "attachment",
    "disk_options",
    "extent",
    "foreign",
    "host",
    "limits",
    "operation",
    "path",
    "plan",
    "pool",
    "redundancy",
    "snapshot",
    "volume",
    "volumes",
]

_PAGED_ROWS = 1 << 14  # at about 1 KiB each
_V = volume_pb2
_A = attachment_pb2
FORMATS_ALL: dict[int, Format] = {
    _V.VOLUME_FORMAT_RAW: Format.RAW,
    _V.VOLUME_FORMAT_QCOW2: Format.QCOW2,
    _V.VOLUME_FORMAT_VMDK: Format.VMDK,
    _V.VOLUME_FORMAT_VHDX: Format.VHDX,
}
FORMATS_OPTIONAL: dict[int, Format | None] = {
    _V.VOLUME_FORMAT_UNSPECIFIED: None,
    _V.VOLUME_FORMAT_RAW: Format.RAW,
    _V.VOLUME_FORMAT_QCOW2: Format.QCOW2,
}
PROVISIONING: dict[int, Provisioning] = {
    _V.PROVISIONING_UNSPECIFIED: Provisioning.THIN,
    _V.PROVISIONING_THIN: Provisioning.THIN,
    _V.PROVISIONING_THICK: Provisioning.THICK,
}
_FORMAT_OUT: dict[Any, Any] = {ours: theirs for theirs, ours in FORMATS_ALL.items()}
_PROVISIONING_OUT: dict[Any, Any] = {Provisioning.THIN: _V.PROVISIONING_THIN, Provisioning.THICK: _V.PROVISIONING_THICK}
_VOLUME_STATE: dict[Any, Any] = {
    VolumeState.READY: _V.VOLUME_STATE_READY,
    VolumeState.CREATING: _V.VOLUME_STATE_CREATING,
    VolumeState.DELETING: _V.VOLUME_STATE_DELETING,
    VolumeState.FAILED: _V.VOLUME_STATE_FAILED,
    VolumeState.FOREIGN: _V.VOLUME_STATE_FAILED,
}
_OPERATION_STATE: dict[Any, Any] = {state: operation_pb2.OperationState.Value(f"OPERATION_STATE_{state.name}") for state in OperationState}
_ATTACHMENT_STATE: dict[Any, Any] = {state: _A.AttachmentState.Value(f"ATTACHMENT_STATE_{state.name}") for state in AttachmentState}
_HEALTH: dict[Any, Any] = {health: pool_pb2.PoolHealth.Value(f"POOL_HEALTH_{health.name}") for health in Health}
_PATH_STATE: dict[Any, Any] = {state: _A.PathState.Value(f"PATH_STATE_{state.name}") for state in PathState}
_REDUNDANCY: dict[Any, Any] = {value: _A.Redundancy.Value(f"REDUNDANCY_{value.name}") for value in Redundancy}
_BUS: dict[Any, Any] = {_A.DISK_BUS_UNSPECIFIED: Bus.VIRTIO_BLK} | {_A.DiskBus.Value(f"DISK_BUS_{bus.name}"): bus for bus in Bus}
_ACCESS: dict[Any, Any] = {_A.ACCESS_MODE_UNSPECIFIED: Access.READ_WRITE} | {
    _A.AccessMode.Value(f"ACCESS_MODE_{a.name}"): a for a in Access
}
_CACHE: dict[Any, Any] = {_A.CACHE_MODE_UNSPECIFIED: CacheMode.NONE} | {
    _A.CacheMode.Value(f"CACHE_MODE_{mode.name}"): mode for mode in CacheMode
}
_IO: dict[Any, Any] = {_A.IoMode.Value(f"IO_MODE_{mode.name}"): mode for mode in IoMode}
_TRANSPORT: dict[Any, Any] = {_A.DISK_TRANSPORT_UNSPECIFIED: Transport.HOST} | {
    _A.DiskTransport.Value(f"DISK_TRANSPORT_{transport.name}"): transport for transport in Transport
}
_POLICY: dict[Any, Any] = {_A.ERROR_POLICY_UNSPECIFIED: ErrorPolicy.STOP} | {
    _A.ErrorPolicy.Value(f"ERROR_POLICY_{p.name}"): p for p in ErrorPolicy
}


def _out(table: Mapping[int, object], value: object) -> Any:
    return next(number for number, ours in table.items() if ours == value and number != 0)


def stamp(seconds: float) -> Timestamp | None:
    """A time, None for never."""
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)) if seconds else None


def volumes(rows: Sequence[VolumeRow], next_page_token: str) -> volume_pb2.ListVolumesResponse:
    """A page. Encoded messages put one after another are one message that has all their repeated fields."""
    page = volume_pb2.ListVolumesResponse.FromString(b"".join(map(_encoded, rows)))
    page.next_page_token = next_page_token
    return page


@lru_cache(_PAGED_ROWS)
def _encoded(row: VolumeRow) -> bytes:
    """A page of one, kept: a caller that polls the same list pays for what changed."""
    return volume_pb2.ListVolumesResponse(volumes=[volume(row)]).SerializeToString()


def volume(row: IndexedVolume | VolumeRow) -> volume_pb2.Volume:
    """A volume."""
    found = row.volume
    source = ""
    if found.source is not None:
        source = f"pools/{row.pool}/volumes/{found.source.volume}"
        source += f"/snapshots/{found.source.snapshot}" if found.source.snapshot else ""
    return volume_pb2.Volume(
        name=f"pools/{row.pool}/volumes/{found.name}",
        uid=found.uid,
        size_bytes=found.size,
        format=_FORMAT_OUT[found.format],
        provisioning=_PROVISIONING_OUT[found.provisioning],
        state=_VOLUME_STATE[found.state],
        allocated_bytes=found.allocated,
        source=source,
        labels=found.labels,
        created_at=stamp(found.created_at),
        observed_at=stamp(row.observed_at),
        problem=found.problem,
        depth=found.depth,
        attachments=[f"attachments/{identifier}" for identifier in row.attachments],
    )


def snapshot(row: IndexedSnapshot) -> snapshot_pb2.Snapshot:
    """A snapshot."""
    found = row.snapshot
    return snapshot_pb2.Snapshot(
        name=str(SnapshotName(row.pool, found.volume, found.name)),
        uid=found.uid,
        volume_uid=found.volume_uid,
        size_bytes=found.size,
        labels=found.labels,
        created_at=stamp(found.created_at),
        quiesced=found.quiesced,
    )


def extent(found: Extent) -> volume_pb2.ChangedExtent:
    """A run that changed."""
    return volume_pb2.ChangedExtent(offset=found.offset, length=found.length, zero=not found.data)


def operation(record: OperationRecord) -> operation_pb2.Operation:
    """An operation."""
    return operation_pb2.Operation(
        name=f"operations/{record.id}",
        method=record.method,
        target=record.target,
        uid=record.uid,
        state=_OPERATION_STATE[record.state],
        progress=record.progress,
        steps=[operation_pb2.Step(name=step.name, state=step.state) for step in record.steps],
        error_reason=record.error_reason,
        error_message=redacted(record.error_message),
        created_at=stamp(record.created_at),
        finished_at=stamp(record.finished_at),
        request_id=record.request_id,
    )


def pool(status: PoolStatus) -> pool_pb2.Pool:
    """A pool."""
    traits, capacity = status.traits, status.capacity
    message = pool_pb2.Pool(
        name=f"pools/{status.name}",
        kind=status.kind,
        capabilities=status.capabilities,
        health=_HEALTH[status.health],
        problem=status.problem,
        draining=status.draining,
        quarantine=status.quarantine,
        lane_running=status.lane_running,
        lane_queued=status.lane_queued,
    )
    if capacity is not None:
        message.total_bytes, message.free_bytes = capacity.total, capacity.free
        message.provisioned_bytes, message.provisioned_limit_bytes = capacity.provisioned, capacity.limit
    if traits is not None:
        message.formats.extend(traits.formats)
        message.grain_bytes, message.minimum_bytes, message.maximum_bytes = traits.grain, traits.minimum, traits.maximum
        message.online_snapshots, message.shared = traits.online_snapshots, traits.shared
        message.notes.extend(traits.notes)
    return message


def foreign(found: Foreign) -> pool_pb2.ForeignObject:
    """A foreign object."""
    return pool_pb2.ForeignObject(locator=found.locator, size_bytes=found.size, format=found.format or "", reason=found.reason)


def host(info: HostInfo, domains: Sequence[Domain] = ()) -> host_pb2.Host:
    """A host."""
    return host_pb2.Host(
        name=f"hosts/{info.name}",
        uri=info.uri,
        connected=info.connected,
        problem=info.problem,
        libvirt_version=info.libvirt_version,
        qemu_version=info.qemu_version,
        boot_id=info.identity.boot_id,
        machine_id=info.identity.machine_id,
        features=info.features,
        domains=[host_pb2.Domain(uuid=d.uuid, name=d.name, active=d.active, persistent=d.persistent) for d in domains],
        address=info.address,
        live=info.live,
        last_heartbeat=stamp(info.last_heartbeat),
        cordoned=info.cordoned,
        iqn=info.identity.iqn,
        nqn=info.identity.nqn,
        nvme_host_id=info.identity.nvme_host_id,
        version=info.version,
        released=info.released,
        fenced_pools=[f"pools/{pool}" for pool in info.fenced],
    )


def attachment(record: AttachmentRecord) -> attachment_pb2.Attachment:
    """An attachment."""
    return attachment_pb2.Attachment(
        name=f"attachments/{record.id}",
        volume=str(VolumeName(record.pool, record.volume)),
        volume_uid=record.volume_uid,
        host=f"hosts/{record.host}",
        domain_uuid=record.domain,
        domain_name=record.domain_name,
        state=_ATTACHMENT_STATE[record.state],
        options=_options_out(record.options, record.qos),
        alias=record.alias,
        target=record.target,
        address=record.address,
        persistent=record.config,
        created_at=stamp(record.created_at),
        problem=record.problem,
    )


def _options_out(options: DiskOptions, qos: Qos) -> attachment_pb2.DiskOptions:
    return attachment_pb2.DiskOptions(
        bus=_out(_BUS, options.bus),
        serial=options.serial,
        access=_out(_ACCESS, options.access),
        qos=volume_pb2.Qos(**{name: getattr(qos, name) for name in Qos.__dataclass_fields__}),
        cache=_out(_CACHE, options.cache),
        io=_out(_IO, options.io),
        no_discard=not options.discard,
        iothread=options.iothread,
        error_policy=_out(_POLICY, options.error_policy),
        transport=_out(_TRANSPORT, options.transport),
        passphrase=options.passphrase,
    )


def disk_options(message: attachment_pb2.DiskOptions, field: str = "options") -> DiskOptions:
    """Read and check how a guest is to see a disk."""
    bus = validate.choice(message.bus, _BUS, f"{field}.bus")
    cache = validate.choice(message.cache, _CACHE, f"{field}.cache")
    direct = cache in (CacheMode.NONE, CacheMode.DIRECTSYNC)
    default_io = {0: IoMode.NATIVE if direct else IoMode.THREADS}
    io = validate.choice(message.io, default_io | _IO, f"{field}.io")
    if io is IoMode.NATIVE and not direct:
        raise InvalidRequest(f"{field}.io: native needs cache none or directsync, not {cache}", field=f"{field}.io")
    iothread = validate.bounded(message.iothread, f"{field}.iothread", 0, 1024)
    if iothread and bus is not Bus.VIRTIO_BLK:
        raise InvalidRequest(f"{field}.iothread: belongs to the controller on {bus}, not to the disk", field=f"{field}.iothread")
    return DiskOptions(
        bus=bus,
        serial=validate.serial(message.serial, f"{field}.serial"),
        access=validate.choice(message.access, _ACCESS, f"{field}.access"),
        qos=limits(message.qos, f"{field}.qos"),
        cache=cache,
        io=io,
        discard=not message.no_discard,
        iothread=iothread,
        error_policy=validate.choice(message.error_policy, _POLICY, f"{field}.error_policy"),
        transport=validate.choice(message.transport, _TRANSPORT, f"{field}.transport"),
        passphrase=validate.reference(message.passphrase, f"{field}.passphrase"),
    )


def limits(message: volume_pb2.Qos, field: str) -> Qos:
    """Read and check limits."""
    values = {name: validate.bounded(getattr(message, name), f"{field}.{name}", 0, 1 << 50) for name in Qos.__dataclass_fields__}
    for unit in ("bytes", "iops"):
        if values[f"total_{unit}_sec"] and (values[f"read_{unit}_sec"] or values[f"write_{unit}_sec"]):
            name = f"{field}.total_{unit}_sec"
            raise InvalidRequest(f"{name}: a total excludes the read and write limits of its kind", field=name)
    return Qos(**values)


def path(found: Path) -> attachment_pb2.Path:
    """One way or station."""
    return attachment_pb2.Path(
        transport=found.transport,
        initiator=found.initiator,
        target=found.target,
        device=found.device,
        state=_PATH_STATE[found.state],
        priority_group=found.priority_group,
        last_error=found.last_error,
        errors=found.errors,
        facts=found.facts,
    )


def redundancy(value: Redundancy) -> Any:
    """What paths come to."""
    return _REDUNDANCY[value]


def plan(found: Plan) -> volume_pb2.Plan:
    """A plan."""
    return volume_pb2.Plan(steps=found.steps, space_bytes=found.space, blockers=found.blockers)
