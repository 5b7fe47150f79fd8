"""`volgate attachment ...`."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from volgate.cli import completion
from volgate.cli.arguments import DryRun, Host, OfVolume, RequestId, Uid, attachment_name, enum, full, limits_of, volume_name
from volgate.cli.failures import EXIT_LATE
from volgate.cli.mutate import planned
from volgate.cli.output import object_, plain, record, short, table, when
from volgate.cli.session import SESSION
from volgate.v1 import attachment_pb2 as pb
from volgate_client.words import word

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Volumes as disks of domains.")
Name = Annotated[str, typer.Argument(metavar="ATTACHMENT", help="Full resource name, or its id.", autocompletion=completion.attachments)]
Limits = Annotated[
    Optional[list[str]],  # noqa: UP045  # typer reads this form
    typer.Option("--limit", help="KIND=NUMBER a second, repeatable: total_bytes_sec, read_iops_sec, ..."),
]


def _show(attachment: pb.Attachment) -> None:
    options = attachment.options
    record(
        attachment,
        [
            ("name", attachment.name),
            ("volume", attachment.volume),
            ("host", attachment.host),
            ("domain", f"{attachment.domain_name} ({attachment.domain_uuid})"),
            ("state", word(pb.AttachmentState, attachment.state)),
            ("bus", word(pb.DiskBus, options.bus)),
            ("target", attachment.target),
            ("address", attachment.address),
            ("serial", options.serial),
            ("access", word(pb.AccessMode, options.access)),
            ("passphrase", options.passphrase),
            ("persistent", "yes" if attachment.persistent else "no"),
            ("created", when(attachment, "created_at")),
            ("problem", attachment.problem),
        ],
    )


@app.command()
def attach(
    volume: OfVolume,
    domain: Annotated[str, typer.Option("--domain", help="Name or uuid.")],
    host: Host = "",
    bus: Annotated[str, typer.Option("--bus", help="virtio-blk or virtio-scsi.")] = "virtio-blk",
    serial: Annotated[str, typer.Option("--serial", help="What the guest sees.")] = "",
    cache: Annotated[str, typer.Option("--cache", help="none, writeback, writethrough or directsync.")] = "",
    io: Annotated[str, typer.Option("--io", help="native, threads or io-uring.")] = "",
    error_policy: Annotated[str, typer.Option("--error-policy", help="stop, resume, report or enospace.")] = "",
    iothread: Annotated[int, typer.Option("--iothread", min=0, max=(1 << 31) - 1, help="The domain's iothread, from 1.")] = 0,
    limit: Limits = None,
    uid: Uid = "",
    request_id: RequestId = "",
    *,
    transport: Annotated[str, typer.Option("--transport", help="host, or qemu where it reaches the storage itself.")] = "",
    passphrase: Annotated[str, typer.Option("--passphrase", help="Where the host finds the LUKS passphrase: file:/path.")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="The guest cannot write.")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="Several domains write; raw only.")] = False,
    no_discard: Annotated[bool, typer.Option("--no-discard", help="Keep the guest's discards from the storage.")] = False,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Print the XML instead of giving it to libvirt.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Attach a volume to a domain."""
    if read_only and shared:
        raise typer.BadParameter("--read-only and --shared exclude each other")
    options = pb.DiskOptions(
        bus=enum(pb.DiskBus, bus, "--bus"),
        serial=serial,
        access=pb.ACCESS_MODE_READ_ONLY if read_only else pb.ACCESS_MODE_SHARED if shared else pb.ACCESS_MODE_READ_WRITE,
        qos=limits_of(limit),
        cache=enum(pb.CacheMode, cache, "--cache"),
        io=enum(pb.IoMode, io, "--io"),
        no_discard=no_discard,
        iothread=iothread,
        error_policy=enum(pb.ErrorPolicy, error_policy, "--error-policy"),
        transport=enum(pb.DiskTransport, transport, "--transport"),
        passphrase=passphrase,
    )
    request = pb.AttachVolumeRequest(
        volume=volume_name(volume),
        host=full("hosts", host),
        domain=domain,
        options=options,
        prepare_only=prepare_only,
        volume_uid=uid,
        request_id=request_id,
    )
    with SESSION.client() as client:
        if planned(client, client.attachments.AttachVolume, request, dry_run=dry_run):
            return
        answer = client.call(client.attachments.AttachVolume, request)
        if prepare_only:
            object_({**plain(answer.attachment), "disk_xml": answer.disk_xml}, answer.disk_xml)
        else:
            _show(answer.attachment)


@app.command()
def detach(
    attachment: Name,
    wait: Annotated[int, typer.Option("--wait", min=0, max=600, help="Seconds to wait for the guest.")] = 20,
    request_id: RequestId = "",
    *,
    dry_run: DryRun = False,
) -> None:
    """Detach; exit 5 if the guest has not released the disk in time: the detach goes on."""
    name = attachment_name(attachment)
    with SESSION.client() as client:
        request = pb.DetachVolumeRequest(name=name, wait_seconds=wait, request_id=request_id)
        if planned(client, client.attachments.DetachVolume, request, dry_run=dry_run):
            return
        pending = client.detach_volume(name, wait_seconds=wait, request_id=request_id)
    if pending is None:
        object_({"name": name, "detached": True, "operation": None}, f"{name} detached")
        return
    told = f"PENDING: the guest has not released the disk after {wait} s; volgate operation watch {pending.name}"
    object_({"name": name, "detached": False, "operation": pending.name}, told)
    raise typer.Exit(EXIT_LATE)


@app.command("list")
def list_attachments(
    volume: Annotated[str, typer.Option("--volume", help="Only of this volume.", autocompletion=completion.volumes)] = "",
    host: Annotated[str, typer.Option("--host", help="Only of this host.", autocompletion=completion.hosts)] = "",
) -> None:
    """List attachments."""
    columns = ("ID", "VOLUME", "HOST", "DOMAIN", "TARGET", "STATE", "PROBLEM")
    with SESSION.client() as client:
        rows = client.list_attachments(volume_name(volume) if volume else "", full("hosts", host))
        table(rows, columns, lambda a: (
            short(a.name), short(a.volume), short(a.host), a.domain_name, a.target, word(pb.AttachmentState, a.state), a.problem,
        ))  # fmt: skip


@app.command("show")
def show_attachment(attachment: Name) -> None:
    """Show an attachment."""
    with SESSION.client() as client:
        _show(client.get_attachment(attachment_name(attachment)))


@app.command()
def paths(
    name: Annotated[str, typer.Argument(metavar="ATTACHMENT|VOLUME", help="An attachment's id, or a volume as POOL/NAME.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and show them again at each change.")] = False,
) -> None:
    """List every way that the I/O can travel, its state, and what they come to."""
    whole = volume_name(name) if "/" in name and not name.startswith("attachments/") else attachment_name(name)
    with SESSION.client() as client:
        for answer in client.watch_paths(whole) if watch else (client.list_paths(whole),):
            _show_paths(whole, answer)


def _show_paths(whole: str, answer: pb.ListPathsResponse | pb.WatchPathsResponse) -> None:
    if SESSION.json:
        object_(plain(answer), "")
        return
    columns = ("TRANSPORT", "FROM", "TO", "DEVICE", "STATE", ">ERRORS", "LAST ERROR")
    table(answer.paths, columns, lambda p: (
        p.transport, p.initiator, p.target, p.device, word(pb.PathState, p.state), str(p.errors or ""), p.last_error,
    ))  # fmt: skip
    object_({}, f"{whole} is {word(pb.Redundancy, answer.redundancy)}")
    sys.stdout.flush()
