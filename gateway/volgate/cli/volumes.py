"""`volgate volume ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volgate.cli import completion
from volgate.cli.arguments import (
    DryRun,
    Format,
    Labels,
    OptionalPool,
    RequestId,
    Uid,
    Volume,
    enum,
    full,
    labels,
    limits_of,
    origin,
    size,
    volume_name,
)
from volgate.cli.mutate import planned
from volgate.cli.output import human, object_, record, short, table, when
from volgate.cli.progress import fraction, transfer
from volgate.cli.session import SESSION
from volgate.errors import NotFound
from volgate.v1 import volume_pb2 as pb
from volgate_client.words import word

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Volumes.")
New = Annotated[str, typer.Argument(metavar="NAME", help="The new volume: NAME beside --pool, or POOL/NAME.")]


def _show(volume: pb.Volume) -> None:
    record(
        volume,
        [
            ("name", volume.name),
            ("uid", volume.uid),
            ("size", human(volume.size_bytes)),
            ("allocated", human(volume.allocated_bytes)),
            ("format", word(pb.VolumeFormat, volume.format)),
            ("provisioning", word(pb.Provisioning, volume.provisioning)),
            ("state", word(pb.VolumeState, volume.state)),
            ("source", volume.source),
            ("layers below", str(volume.depth or "")),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(volume.labels.items()))),
            ("attachments", ", ".join(volume.attachments)),
            ("created", when(volume, "created_at")),
            ("observed", when(volume, "observed_at")),
            ("problem", volume.problem),
        ],
    )


def _split(name: str, pool: str) -> tuple[str, str]:
    """The pool and the id of a new volume."""
    whole = volume_name(name, pool)
    parent, _, identifier = whole.rpartition("/")
    return parent.removesuffix("/volumes"), identifier


@app.command()
def create(
    name: New,
    size_text: Annotated[str, typer.Option("--size", help="Such as 10GiB; with --from, the source's if left out.")] = "0",
    pool: OptionalPool = "",
    image_format: Format = "",
    source: Annotated[str, typer.Option("--from", help="A volume (POOL/NAME) or snapshot (POOL/VOLUME/NAME) to clone.")] = "",
    label: Labels = None,
    request_id: RequestId = "",
    *,
    thick: Annotated[bool, typer.Option("--thick", help="Take the space now.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Create a volume, empty or from another."""
    parent, identifier = _split(name, pool)
    request = pb.CreateVolumeRequest(
        pool=parent,
        volume_id=identifier,
        size_bytes=size(size_text),
        format=enum(pb.VolumeFormat, image_format, "--format"),
        provisioning=pb.PROVISIONING_THICK if thick else pb.PROVISIONING_THIN,
        source=origin(source),
        labels=labels(label),
        request_id=request_id,
    )
    with SESSION.client() as client:
        if planned(client, client.volumes.CreateVolume, request, dry_run=dry_run):
            return
        answer = client.call(client.volumes.CreateVolume, request)
        if answer.HasField("volume"):
            _show(answer.volume)
            return
        with fraction(f"copy {short(request.source)}") as progress:
            client.wait(answer.operation, progress=progress)
        _show(client.get_volume(f"{parent}/volumes/{identifier}"))


@app.command("list")
def list_volumes(
    pool: Annotated[str, typer.Option("--pool", help="Only this pool.", autocompletion=completion.pools)] = "",
) -> None:
    """List volumes."""
    columns = ("NAME", ">SIZE", ">USED", "FORMAT", "STATE", "ATTACHED", "PROBLEM")
    with SESSION.client() as client:
        table(client.list_volumes(full("pools", pool)), columns, lambda v: (
            short(v.name), human(v.size_bytes), human(v.allocated_bytes), word(pb.VolumeFormat, v.format),
            word(pb.VolumeState, v.state), "yes" if v.attachments else "", v.problem,
        ))  # fmt: skip


@app.command("show")
def show_volume(
    volume: Volume, *, refresh: Annotated[bool, typer.Option("--refresh", help="Read the storage, not the index.")] = False
) -> None:
    """Show a volume."""
    with SESSION.client() as client:
        _show(client.get_volume(volume_name(volume), refresh=refresh))


@app.command()
def delete(volume: Volume, uid: Uid = "", request_id: RequestId = "", *, dry_run: DryRun = False) -> None:
    """Delete a volume; success if it is gone."""
    request = pb.DeleteVolumeRequest(name=volume_name(volume), uid=uid, request_id=request_id)
    with SESSION.client() as client:
        if not planned(client, client.volumes.DeleteVolume, request, dry_run=dry_run):
            client.call(client.volumes.DeleteVolume, request)
            object_({"name": request.name, "deleted": True}, f"{short(request.name)} deleted")


@app.command()
def expand(
    volume: Volume,
    size_text: Annotated[str, typer.Option("--size", help="The new size, such as 20GiB.")],
    uid: Uid = "",
    request_id: RequestId = "",
    *,
    dry_run: DryRun = False,
) -> None:
    """Grow a volume, attached or not."""
    request = pb.ExpandVolumeRequest(name=volume_name(volume), size_bytes=size(size_text), uid=uid, request_id=request_id)
    with SESSION.client() as client:
        if not planned(client, client.volumes.ExpandVolume, request, dry_run=dry_run):
            _show(client.call(client.volumes.ExpandVolume, request).volume)


@app.command()
def label(
    volume: Volume,
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="All labels; none removes them.")] = None,
    uid: Uid = "",
    request_id: RequestId = "",
) -> None:
    """Replace a volume's labels."""
    with SESSION.client() as client:
        _show(client.update_volume(volume_name(volume), labels(words), uid=uid, request_id=request_id))


@app.command()
def limit(
    volume: Volume,
    words: Annotated[list[str], typer.Argument(metavar="KIND=NUMBER...", help="Such as total_iops_sec=500; the rest is lifted.")],
    uid: Uid = "",
    request_id: RequestId = "",
) -> None:
    """Limit the disks that a volume is now, at once; give the limits of a new one to attach."""
    with SESSION.client() as client:
        _show(client.update_volume(volume_name(volume), qos=limits_of(words), uid=uid, request_id=request_id))


@app.command()
def revert(
    volume: Volume,
    snapshot: Annotated[str, typer.Option("--snapshot", help="The snapshot's name.")],
    uid: Uid = "",
    request_id: RequestId = "",
    *,
    dry_run: DryRun = False,
) -> None:
    """Set a detached volume back to a snapshot."""
    name = volume_name(volume)
    request = pb.RevertVolumeRequest(name=name, snapshot=snapshot.rpartition("/")[2], uid=uid, request_id=request_id)
    with SESSION.client() as client:
        if dry_run:
            request.request_id = request_id or "dry-run"
        if planned(client, client.volumes.RevertVolume, request, dry_run=dry_run):
            return
        answer = client.call(client.volumes.RevertVolume, request)
        if not answer.HasField("volume"):
            with fraction(f"revert {short(name)}") as progress:
                client.wait(answer.operation, progress=progress)
        _show(answer.volume if answer.HasField("volume") else client.get_volume(name))


@app.command("changes")
def list_changes(
    volume: Volume,
    base: Annotated[str, typer.Option("--base", help="The older snapshot's name; all that was ever written if left out.")] = "",
    snapshot: Annotated[str, typer.Option("--snapshot", help="The newer snapshot's name; the volume as it is now if left out.")] = "",
    uid: Uid = "",
    *,
    exact: Annotated[bool, typer.Option("--exact", help="Not whole objects of the storage; slower.")] = False,
) -> None:
    """List what differs between two snapshots of a volume."""
    names = [name.rpartition("/")[2] for name in (base, snapshot)]
    columns = (">OFFSET", ">LENGTH", "CONTENT")
    with SESSION.client() as client:
        found = client.list_changed_blocks(volume_name(volume), *names, exact=exact, uid=uid, page_size=1000)
        table(found, columns, lambda e: (str(e.offset), str(e.length), "zero" if e.zero else "data"))


@app.command()
def adopt(
    name: New,
    locator: Annotated[str, typer.Option("--locator", help="The foreign object, such as a file name in the pool's directory.")],
    image_format: Annotated[str, typer.Option("--format", help="raw or qcow2; never guessed.")],
    pool: OptionalPool = "",
    label: Labels = None,
    request_id: RequestId = "",
) -> None:
    """Make a volume of an object that others made; its data is not touched."""
    parent, identifier = _split(name, pool)
    enum(pb.VolumeFormat, image_format, "--format")
    with SESSION.client() as client:
        _show(client.adopt_volume(parent, locator, identifier, image_format, labels=labels(label), request_id=request_id))


@app.command()
def undelete(
    name: New,
    pool: OptionalPool = "",
    locator: Annotated[
        str, typer.Option("--locator", help="Which one, as `volgate pool foreign` lists it; the last deleted if left out.")
    ] = "",
    request_id: RequestId = "",
) -> None:
    """Bring a deleted volume back, as long as its pool keeps it, with its snapshots and under a new uid."""
    parent, identifier = _split(name, pool)
    with SESSION.client() as client:
        kept = {found.locator: found for found in client.list_foreign(parent)}
        chosen = locator or max((key for key in kept if _deleted_name(key) == identifier), key=_moment, default="")
        if chosen not in kept:
            raise NotFound(f"{parent} keeps no deleted volume {locator or identifier}; `volgate pool foreign` lists what it keeps")
        _show(client.adopt_volume(parent, chosen, identifier, kept[chosen].format, request_id=request_id))


def _deleted_name(locator: str) -> str:
    """The volume's name in trash:NAME.UID.MOMENT; "" for any other locator."""
    scheme, _, rest = locator.partition(":")
    return rest.rsplit(".", 2)[0] if scheme == "trash" else ""


def _moment(locator: str) -> int:
    """When it was deleted, nanoseconds."""
    return int(locator.rpartition(".")[2])


@app.command("import")
def import_volume(
    name: New,
    file: Annotated[Path, typer.Option("--file", help="The image.")],
    source_format: Annotated[str, typer.Option("--source-format", help="raw, qcow2, vmdk or vhdx; never guessed.")],
    pool: OptionalPool = "",
    image_format: Format = "",
    size_text: Annotated[str, typer.Option("--size", help="Such as 10GiB; the image's if left out.")] = "0",
    label: Labels = None,
    request_id: RequestId = "",
    *,
    on_server: Annotated[bool, typer.Option("--on-server", help="The file is on the server's host, below a directory it allows.")] = False,
) -> None:
    """Make a volume of an image."""
    parent, identifier = _split(name, pool)
    if not on_server and not file.is_file() and not file.is_block_device():
        raise typer.BadParameter(f"--file: {file} is no file on this machine; --on-server names one on the server's host")
    header = pb.ImportHeader(
        pool=parent,
        volume_id=identifier,
        source_format=enum(pb.VolumeFormat, source_format, "--source-format"),
        format=enum(pb.VolumeFormat, image_format, "--format"),
        size_bytes=size(size_text),
        path=str(file) if on_server else "",
        labels=labels(label),
        request_id=request_id,
    )
    with SESSION.client() as client, transfer(f"import {identifier}") as progress:
        volume = client.import_file(header, None if on_server else file, progress=progress)
    _show(volume)


@app.command()
def export(
    volume: Annotated[
        str,
        typer.Argument(metavar="VOLUME", help="A detached volume, or a snapshot (POOL/VOLUME/NAME).", autocompletion=completion.volumes),
    ],
    file: Annotated[Path, typer.Option("--file", help="The new file.")],
    image_format: Annotated[str, typer.Option("--format", help="raw or qcow2.")] = "raw",
    request_id: RequestId = "",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="Make the file on the server's host, below a directory it allows; never replaces one.")
    ] = False,
) -> None:
    """Write a volume's content to a sparse file."""
    request = pb.ExportVolumeRequest(name=origin(volume), format=enum(pb.VolumeFormat, image_format, "--format"))
    if on_server:
        _export_on_server(request, file, request_id, force=force)
        return
    if file.exists() and not (force and file.is_file()):
        raise typer.BadParameter(f"--file: {file} exists; " + ("--force replaces it" if file.is_file() else "it is no regular file"))
    with SESSION.client() as client, transfer(f"export {volume}") as progress:
        total = client.export_file(request, file, progress=progress, overwrite=force)
    object_({"name": request.name, "file": str(file), "bytes": total}, f"{file}: {human(total)}")


def _export_on_server(request: pb.ExportVolumeRequest, file: Path, request_id: str, *, force: bool) -> None:
    if force:
        raise typer.BadParameter("--force: a file on the server's host is never replaced; remove it there")
    request.path, request.request_id = str(file), request_id
    with SESSION.client() as client, fraction(f"export {request.name}") as progress:
        total = client.export_on_server(request, progress=progress)
    object_({"name": request.name, "file": str(file), "bytes": total}, f"{file}: {human(total)}")
