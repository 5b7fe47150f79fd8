"""A backend made of calls over the wire: what a gateway serves of a pool, with the facets that it says the pool has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn, cast

from volgate.backend import (
    Backend,
    ChangedBlocks,
    Clones,
    DataPath,
    Extent,
    GroupMember,
    Groups,
    Measures,
    PathsSeen,
    PoolCheck,
    Relabels,
    Resizes,
    Reverts,
    Snapshots,
    SnapshotSpec,
    Traits,
    VolumeId,
)
from volgate.errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Denied,
    Holder,
    InDoubt,
    InUse,
    InvalidRequest,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unreachable,
    Unsupported,
    VolgateError,
)
from volgate.model import (
    Capacity,
    Format,
    Health,
    Labels,
    Path,
    PathState,
    Provisioning,
    Snapshot,
    Source,
    SourceKind,
    Volume,
    VolumeSpec,
    VolumeState,
)
from volgate.v1 import attachment_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_client import Client
from volgate_client import VolgateError as Refused
from volgate_client.words import number, word

__all__ = ["Remote", "class_of"]

_FACETS = (Resizes, Reverts, Clones, Groups, ChangedBlocks, Snapshots, Measures, DataPath, Relabels, PathsSeen)
"""Those that can be asked over the wire, each before those that it stands on."""
_BY_CODE: dict[str, type[VolgateError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": OutOfRange,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": Precondition,
    "UNIMPLEMENTED": Unsupported,
    "RESOURCE_EXHAUSTED": OutOfSpace,
    "PERMISSION_DENIED": Denied,
    "UNAVAILABLE": Unreachable,
    "ABORTED": InDoubt,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "DATA_LOSS": DataLoss,
}
_SPECIAL: dict[str, type[VolgateError]] = {"IN_USE": InUse, "BUSY": Busy}
_GONE = "UID_MISMATCH"  # nothing of the uid that was meant exists


def class_of(capabilities: Sequence[str]) -> type[Remote]:
    """The class of a backend with these facets, as far as they can be asked for over the wire."""
    bases = [facet for facet in _FACETS if facet.__name__ in capabilities]
    kept = [facet for facet in bases if not any(other is not facet and issubclass(other, facet) for other in bases)]
    return cast("type[Remote]", type("Served", (Remote, *kept), {}))


class Remote(Backend):
    """The methods of every facet; which of them count is decided by the class that is made of it."""

    def __init__(self, client: Client, pool: str) -> None:
        """`pool` is its full name."""
        self.client = client
        self.pool = pool

    # -- the pool

    @property
    def traits(self) -> Traits:
        """What the pool says of itself; whether clones are independent it does not say, so their parents may go or stay."""
        told = self._get_pool()
        return Traits(
            formats=tuple(Format(form) for form in told.formats),
            grain=told.grain_bytes,
            minimum=told.minimum_bytes,
            maximum=told.maximum_bytes,
            shared=told.shared,
            independent_clones=True,
            online_snapshots=told.online_snapshots,
        )

    def check(self) -> PoolCheck:
        """What GetPool found."""
        told = self._get_pool()
        return PoolCheck(Health(word(pool_pb2.PoolHealth, told.health)), told.problem)

    def capacity(self) -> Capacity:
        """What GetPool measured."""
        told = self._get_pool()
        return Capacity(told.total_bytes, told.free_bytes, told.provisioned_bytes, told.provisioned_limit_bytes)

    def close(self) -> None:
        """The client is not ours."""

    def _get_pool(self) -> pool_pb2.Pool:
        with _told():
            return self.client.get_pool(self.pool)

    # -- volumes

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """CreateVolume; the uid of the specification is the id of the request."""
        with _told():
            made = self.client.create_volume(
                self.pool,
                spec.name,
                size_bytes=spec.size,
                format=str(spec.format),
                thick=spec.provisioning is Provisioning.THICK,
                source=self._origin(spec.source),
                labels=spec.labels,
                request_id=spec.uid,
            )
        return self._volume(made)

    def delete_volume(self, volume: VolumeId) -> None:
        """DeleteVolume of that uid."""
        with _told():
            try:
                self.client.delete_volume(self._name(volume.name), uid=volume.uid)
            except Refused as error:
                if error.reason != _GONE:
                    raise

    def get_volume(self, name: str) -> Volume:
        """GetVolume, from the storage."""
        with _told():
            return self._volume(self.client.get_volume(self._name(name), refresh=True))

    def list_volumes(self) -> Iterator[Volume]:
        """ListVolumes, small pages."""
        with _told():
            listed = [self._volume(row) for row in self.client.list_volumes(self.pool, page_size=7)]
        return iter(listed)

    def connection(self, volume: VolumeId, *, host: str) -> NoReturn:
        """A gateway tells no caller how a volume is reached."""
        raise Unsupported(f"{volume.name} has no connection for {host or 'anybody'} over the wire")

    def expand_volume(self, volume: VolumeId, size: int, *, online: bool) -> Volume:
        """ExpandVolume; the gateway knows by itself whether the volume is attached."""
        del online
        with _told():
            return self._volume(self.client.expand_volume(self._name(volume.name), size, uid=volume.uid))

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """UpdateVolume."""
        with _told():
            return self._volume(self.client.update_volume(self._name(volume.name), labels, uid=volume.uid))

    def paths(self, volume: VolumeId) -> Sequence[Path]:
        """ListPaths."""
        with _told():
            told = self.client.list_paths(self._name(volume.name)).paths
        states = attachment_pb2.PathState
        return [
            Path(path.transport, path.initiator, path.target, path.device, PathState(word(states, path.state)), errors=path.errors)
            for path in told
        ]

    # -- snapshots

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """CreateSnapshot; the uid of the specification is the id of the request."""
        with _told():
            told = self.client.create_snapshot(
                self._name(volume.name), spec.name, labels=spec.labels, volume_uid=volume.uid, request_id=spec.uid
            )
        return _snapshot(told)

    def create_snapshot_group(self, group_uid: str, members: Sequence[GroupMember]) -> Sequence[Snapshot]:
        """CreateSnapshotGroup; the uid of the group is the id of the request."""
        with _told():
            told = self.client.create_snapshot_group(
                self.pool,
                {member.volume.name: member.spec.name for member in members},
                labels=members[0].spec.labels,
                volume_uids={member.volume.name: member.volume.uid for member in members},
                request_id=group_uid,
            )
        found = {cut.volume: cut for cut in map(_snapshot, told)}
        return [found[member.volume.name] for member in members]

    def changed_blocks(
        self, volume: VolumeId, base_snapshot_uid: str, snapshot_uid: str, *, offset: int, length: int, exact: bool
    ) -> Iterator[Extent]:
        """ListChangedBlocks, small pages; the range is cut here."""
        base, newer = (self._snapshot_name(volume, uid) for uid in (base_snapshot_uid, snapshot_uid))
        with _told():
            found = self.client.list_changed_blocks(self._name(volume.name), base, newer, exact=exact, uid=volume.uid, page_size=7)
            told = [Extent(one.offset, one.length, data=not one.zero) for one in found]
        return iter([extent for extent in told if offset <= extent.offset < offset + length])

    def _snapshot_name(self, volume: VolumeId, uid: str) -> str:
        return next((cut.name for cut in self.list_snapshots(volume) if cut.uid == uid), f"gone-{uid}") if uid else ""

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """DeleteSnapshot of that uid."""
        found = next((cut for cut in self.list_snapshots(volume) if cut.uid == snapshot_uid), None)
        if found is not None:
            with _told():
                self.client.delete_snapshot(f"{self._name(volume.name)}/snapshots/{found.name}", uid=snapshot_uid)

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """ListSnapshots, which is by name, in the order of their times."""
        with _told():
            listed = [_snapshot(row) for row in self.client.list_snapshots(self._name(volume.name), page_size=7)]
        return sorted(listed, key=lambda cut: cut.created_at)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """RevertVolume; the token is the id of the request."""
        name = self._snapshot_name(volume, snapshot_uid)
        with _told():
            return self._volume(self.client.revert_volume(self._name(volume.name), name, uid=volume.uid, request_id=token))

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """The space that the gateway says a thin clone takes at once."""
        request = volume_pb2.CreateVolumeRequest(
            pool=self.pool,
            volume_id=spec.name,
            size_bytes=spec.size,
            format=number(volume_pb2.VolumeFormat, str(spec.format), "format"),
            source=self._origin(spec.source),
        )
        with _told():
            return self.client.plan(self.client.volumes.CreateVolume, request).space_bytes

    def children(self, volume: VolumeId) -> Sequence[str]:
        """The volumes among those that block a deletion."""
        request = volume_pb2.DeleteVolumeRequest(name=self._name(volume.name), uid=volume.uid)
        with _told():
            blockers = self.client.plan(self.client.volumes.DeleteVolume, request).blockers
        names = [name.removeprefix(f"{self.pool}/volumes/") for name in blockers if name.startswith(f"{self.pool}/volumes/")]
        return [name for name in names if "/" not in name]

    # -- bytes go by import and export, whole

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> NoReturn:
        """Not over the wire."""
        raise Unsupported(f"{volume.name} {snapshot_uid} {writable}: an image is exported over the wire")

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: object) -> NoReturn:
        """Not over the wire."""
        raise Unsupported(f"{volume.name} {path} {source_format} {progress}: an image is imported over the wire")

    def complete(self, volume: VolumeId) -> NoReturn:
        """Not over the wire."""
        raise Unsupported(f"{volume.name}: an import completes its volume")

    # -- names and values

    def _name(self, volume: str) -> str:
        return f"{self.pool}/volumes/{volume}"

    def _origin(self, source: Source | None) -> str:
        if source is None or source.kind is SourceKind.EMPTY:
            return ""
        return self._name(source.volume) + (f"/snapshots/{source.snapshot}" if source.snapshot else "")

    def _volume(self, told: volume_pb2.Volume) -> Volume:
        """What was asked for, and the object's name on the storage, are not told: the size and the uid stand for them."""
        return Volume(
            name=told.name.rpartition("/")[2],
            uid=told.uid,
            object=told.uid,
            size=told.size_bytes,
            requested_size=told.size_bytes,
            format=Format(word(volume_pb2.VolumeFormat, told.format)),
            provisioning=Provisioning(word(volume_pb2.Provisioning, told.provisioning)),
            state=VolumeState(word(volume_pb2.VolumeState, told.state)),
            allocated=told.allocated_bytes,
            source=_source(told.source),
            labels=dict(told.labels),
            created_at=told.created_at.ToNanoseconds() / 1e9,
            depth=told.depth,
            problem=told.problem,
        )


def _source(name: str) -> Source | None:
    """What a volume was made of, by name: uids are not told."""
    if not name:
        return None
    parts = name.split("/")
    kind = SourceKind.SNAPSHOT if "snapshots" in parts else SourceKind.VOLUME
    return Source(kind, parts[3], "", parts[5] if kind is SourceKind.SNAPSHOT else "")


def _snapshot(told: snapshot_pb2.Snapshot) -> Snapshot:
    _, _, _, volume, _, name = told.name.split("/")
    at = told.created_at.ToNanoseconds() / 1e9
    return Snapshot(name, told.uid, volume, told.volume_uid, told.size_bytes, dict(told.labels), at, told.quiesced)


class _told:  # noqa: N801  # a context manager that reads as a word
    """Turn the client's errors into the plugin API's, with all that they say."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Refused):
            kind = _SPECIAL.get(error.reason) or _BY_CODE.get(error.code, VolgateError)
            made = kind.__new__(kind)
            holders = tuple(Holder(*holder) for holder in error.holders)
            VolgateError.__init__(made, error.message, reason=error.reason, holders=holders, field=error.field, operation=error.operation)
            raise made from error
