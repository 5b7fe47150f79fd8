"""`volgate attachment ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from volgate.cli.session import SESSION, attachment_name, show, table, volume_name
from volgate.v1 import attachment_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Volumes as disks of domains.")
Name = Annotated[str, typer.Argument(metavar="ATTACHMENT", help="Full resource name, or its id.")]


def shown(attachment: pb.Attachment) -> None:
    """Show one attachment."""
    show(
        attachment,
        [
            ("name", attachment.name),
            ("volume", attachment.volume),
            ("host", attachment.host),
            ("domain", f"{attachment.domain_name} ({attachment.domain_uuid})"),
            ("state", _state(attachment)),
            ("target", attachment.target),
            ("address", attachment.address),
            ("serial", attachment.options.serial),
            ("problem", attachment.problem),
        ],
    )


def _state(attachment: pb.Attachment) -> str:
    return pb.AttachmentState.Name(attachment.state).removeprefix("ATTACHMENT_STATE_").lower()


@app.command()
def attach(
    volume: Annotated[str, typer.Option("--volume", help="Full resource name, or POOL/NAME.")],
    domain: Annotated[str, typer.Option("--domain", help="Name or uuid.")],
    host: Annotated[str, typer.Option("--host", help="The host; the only one if left out.")] = "",
    bus: Annotated[str, typer.Option("--bus", help="virtio-blk or virtio-scsi.")] = "virtio-blk",
    serial: Annotated[str, typer.Option("--serial", help="What the guest sees.")] = "",
    *,
    read_only: Annotated[bool, typer.Option(help="The guest cannot write.")] = False,
    shared: Annotated[bool, typer.Option(help="Several domains write; raw only.")] = False,
) -> None:
    """Attach a volume to a domain."""
    buses = {"virtio-blk": pb.DISK_BUS_VIRTIO_BLK, "virtio-scsi": pb.DISK_BUS_VIRTIO_SCSI}
    if bus not in buses:
        raise typer.BadParameter("--bus: virtio-blk or virtio-scsi")
    access = pb.ACCESS_MODE_READ_ONLY if read_only else pb.ACCESS_MODE_SHARED if shared else pb.ACCESS_MODE_READ_WRITE
    request = pb.AttachVolumeRequest(
        volume=volume_name(volume),
        host=f"hosts/{host}" if host else "",
        domain=domain,
        options=pb.DiskOptions(bus=buses[bus], serial=serial, access=access),
    )
    with SESSION.client() as client:
        shown(client.call(client.attachments.AttachVolume, request).attachment)


@app.command()
def detach(attachment: Name, wait: Annotated[int, typer.Option("--wait", help="Seconds to wait for the guest.")] = 20) -> None:
    """Detach; exit 5 if the guest has not released the disk in time."""
    with SESSION.client() as client:
        request = pb.DetachVolumeRequest(name=attachment_name(attachment), wait_seconds=wait)
        answer = client.call(client.attachments.DetachVolume, request, timeout=wait + 40.0)
        if answer.HasField("attachment"):
            typer.echo(f"PENDING: the guest has not released it; volgate operation watch {answer.operation.name}", err=True)
            raise typer.Exit(5)


@app.command("list")
def list_attachments(volume: Annotated[str, typer.Option("--volume", help="Only of this volume.")] = "") -> None:
    """List attachments."""
    with SESSION.client() as client:
        request = pb.ListAttachmentsRequest(volume=volume_name(volume) if volume else "")
        rows = client.pages(client.attachments.ListAttachments, request, "attachments")
        columns = ("ID", "VOLUME", "HOST", "DOMAIN", "TARGET", "STATE")
        table(rows, columns, lambda a: (
            a.name.split("/")[1], "/".join(a.volume.split("/")[1::2]), a.host.split("/")[-1], a.domain_name, a.target, _state(a),
        ))  # fmt: skip


@app.command()
def paths(name: Annotated[str, typer.Argument(metavar="ATTACHMENT|VOLUME")]) -> None:
    """List every way that the I/O can travel, and its state."""
    full = volume_name(name) if name.count("/") == 1 and not name.startswith("attachments/") else attachment_name(name)
    with SESSION.client() as client:
        answer = client.call(client.attachments.ListPaths, pb.ListPathsRequest(name=full))
        table(answer.paths, ("TRANSPORT", "FROM", "TO", "DEVICE", "STATE", "ERRORS", "LAST ERROR"), lambda p: (
            p.transport, p.initiator, p.target, p.device, pb.PathState.Name(p.state).removeprefix("PATH_STATE_").lower(),
            str(p.errors or ""), p.last_error,
        ))  # fmt: skip
        if not SESSION.json:
            typer.echo(pb.Redundancy.Name(answer.redundancy).removeprefix("REDUNDANCY_").lower())
