"""`volgate snapshot ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from volgate.cli.session import SESSION, human, show, snapshot_name, table, volume_name
from volgate.v1 import snapshot_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Snapshots.")
Name = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Full resource name, or POOL/VOLUME/NAME.")]
Of = Annotated[str, typer.Option("--volume", help="Full resource name, or POOL/NAME.")]


def shown(snapshot: pb.Snapshot) -> None:
    """Show one snapshot."""
    show(
        snapshot,
        [("name", snapshot.name), ("uid", snapshot.uid), ("size", human(snapshot.size_bytes)), ("quiesced", str(snapshot.quiesced))],
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The snapshot's name.")],
    volume: Of,
    *,
    quiesce: Annotated[bool, typer.Option(help="Freeze the guest's file systems through its agent.")] = False,
) -> None:
    """Cut a snapshot, of an attached volume too."""
    with SESSION.client() as client:
        request = pb.CreateSnapshotRequest(volume=volume_name(volume), snapshot_id=name, quiesce=quiesce)
        shown(client.call(client.snapshots.CreateSnapshot, request).snapshot)


@app.command("list")
def list_snapshots(volume: Annotated[str, typer.Option("--volume", help="Only of this volume.")] = "") -> None:
    """List snapshots."""
    with SESSION.client() as client:
        request = pb.ListSnapshotsRequest(parent=volume_name(volume) if volume else "")
        rows = client.pages(client.snapshots.ListSnapshots, request, "snapshots")
        table(
            rows,
            ("NAME", "SIZE", "CREATED"),
            lambda s: ("/".join(s.name.split("/")[1::2]), human(s.size_bytes), s.created_at.ToJsonString()),
        )


@app.command("show")
def show_snapshot(snapshot: Name) -> None:
    """Show a snapshot."""
    with SESSION.client() as client:
        shown(client.call(client.snapshots.GetSnapshot, pb.GetSnapshotRequest(name=snapshot_name(snapshot))).snapshot)


@app.command()
def delete(snapshot: Name) -> None:
    """Delete a snapshot."""
    with SESSION.client() as client:
        client.call(client.snapshots.DeleteSnapshot, pb.DeleteSnapshotRequest(name=snapshot_name(snapshot)))
