"""`volgate snapshot ...`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from volgate.cli import completion
from volgate.cli.arguments import DryRun, Labels, OfVolume, OptionalPool, RequestId, Uid, labels, snapshot_name, volume_name
from volgate.cli.mutate import planned
from volgate.cli.output import human, object_, record, short, table, when
from volgate.cli.session import SESSION
from volgate.v1 import snapshot_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Snapshots.")
Name = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Full resource name, or POOL/VOLUME/NAME.", autocompletion=completion.snapshots)
]


def _show(snapshot: pb.Snapshot) -> None:
    record(
        snapshot,
        [
            ("name", snapshot.name),
            ("uid", snapshot.uid),
            ("size", human(snapshot.size_bytes)),
            ("quiesced", "yes" if snapshot.quiesced else "no"),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(snapshot.labels.items()))),
            ("created", when(snapshot, "created_at")),
        ],
    )


def _list(found: Iterable[pb.Snapshot]) -> None:
    table(found, ("NAME", ">SIZE", "QUIESCED", "CREATED"), lambda s: (
        short(s.name), human(s.size_bytes), "yes" if s.quiesced else "no", when(s, "created_at"),
    ))  # fmt: skip


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The snapshot's name.")],
    volume: OfVolume,
    label: Labels = None,
    request_id: RequestId = "",
    *,
    quiesce: Annotated[bool, typer.Option("--quiesce", help="Freeze the guest's file systems through its agent.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Cut a snapshot, of an attached volume too."""
    request = pb.CreateSnapshotRequest(
        volume=volume_name(volume), snapshot_id=name, quiesce=quiesce, labels=labels(label), request_id=request_id
    )
    with SESSION.client() as client:
        if not planned(client, client.snapshots.CreateSnapshot, request, dry_run=dry_run):
            _show(client.call(client.snapshots.CreateSnapshot, request).snapshot)


@app.command()
def group(
    words: Annotated[list[str], typer.Argument(metavar="VOLUME=NAME...", help="A volume, and the name of its snapshot.")],
    pool: OptionalPool = "",
    label: Labels = None,
    request_id: RequestId = "",
    *,
    dry_run: DryRun = False,
) -> None:
    """Cut snapshots of several volumes of a pool at one moment, all or none."""
    members = [(volume_name(volume, pool).split("/"), name) for volume, name in labels(words).items()]
    names = {parts[-1]: name for parts, name in members}
    pools = sorted({parts[1] for parts, _ in members})
    if len(pools) > 1:
        raise typer.BadParameter(f"the volumes are in the pools {', '.join(pools)}; a group is in one")
    if len(names) != len(words):
        raise typer.BadParameter("a volume is named twice")
    request = pb.CreateSnapshotGroupRequest(pool=f"pools/{pools[0]}", snapshots=names, labels=labels(label), request_id=request_id)
    with SESSION.client() as client:
        if not planned(client, client.snapshots.CreateSnapshotGroup, request, dry_run=dry_run):
            _list(client.call(client.snapshots.CreateSnapshotGroup, request).snapshots)


@app.command("list")
def list_snapshots(
    volume: Annotated[str, typer.Option("--volume", help="Only of this volume.", autocompletion=completion.volumes)] = "",
    pool: Annotated[str, typer.Option("--pool", help="Only of this pool.", autocompletion=completion.pools)] = "",
) -> None:
    """List snapshots."""
    parent = volume_name(volume) if volume else f"pools/{pool.removeprefix('pools/')}" if pool else ""
    with SESSION.client() as client:
        _list(client.list_snapshots(parent))


@app.command("show")
def show_snapshot(snapshot: Name) -> None:
    """Show a snapshot."""
    with SESSION.client() as client:
        _show(client.get_snapshot(snapshot_name(snapshot)))


@app.command()
def delete(snapshot: Name, uid: Uid = "", request_id: RequestId = "", *, dry_run: DryRun = False) -> None:
    """Delete a snapshot; success if it is gone."""
    request = pb.DeleteSnapshotRequest(name=snapshot_name(snapshot), uid=uid, request_id=request_id)
    with SESSION.client() as client:
        if not planned(client, client.snapshots.DeleteSnapshot, request, dry_run=dry_run):
            client.call(client.snapshots.DeleteSnapshot, request)
            object_({"name": request.name, "deleted": True}, f"{short(request.name)} deleted")
