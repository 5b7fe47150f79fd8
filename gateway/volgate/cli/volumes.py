"""`volgate volume ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from volgate.cli.session import SESSION, human, show, size, snapshot_name, table, volume_name
from volgate.v1 import volume_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Volumes.")
Name = Annotated[str, typer.Argument(metavar="VOLUME", help="Full resource name, or POOL/NAME.")]
Pool = Annotated[str, typer.Option("--pool", help="The pool.")]
Format = Annotated[str, typer.Option("--format", help="raw or qcow2; the pool's default if left out.")]
Labels = Annotated[Optional[list[str]], typer.Option("--label", help="KEY=VALUE, repeatable.")]  # noqa: UP045  # typer reads this form


def enum(prefix: str, word: str) -> Any:
    """A word of the command line as a value of an enum."""
    if not word:
        return 0
    try:
        return pb.VolumeFormat.Value(f"{prefix}_{word.upper()}")
    except ValueError:
        raise typer.BadParameter(f"{word!r} is not known here") from None


def labels(words: list[str] | None) -> dict[str, str]:
    """KEY=VALUE words as a map."""
    return dict(word.partition("=")[::2] for word in words or [])


def shown(volume: pb.Volume) -> None:
    """Show one volume."""
    show(
        volume,
        [
            ("name", volume.name),
            ("uid", volume.uid),
            ("size", human(volume.size_bytes)),
            ("allocated", human(volume.allocated_bytes)),
            ("format", _word(volume)),
            ("state", pb.VolumeState.Name(volume.state).removeprefix("VOLUME_STATE_").lower()),
            ("source", volume.source),
            ("labels", ", ".join(f"{k}={v}" for k, v in sorted(volume.labels.items()))),
            ("attachments", ", ".join(volume.attachments)),
            ("problem", volume.problem),
        ],
    )


def _word(volume: pb.Volume) -> str:
    return pb.VolumeFormat.Name(volume.format).removeprefix("VOLUME_FORMAT_").lower()


def _origin(text: str) -> str:
    return snapshot_name(text) if text.count("/") == 2 else volume_name(text) if text else ""  # noqa: PLR2004  # POOL/VOLUME/SNAPSHOT


@app.command()
def create(  # the options explain themselves
    name: Annotated[str, typer.Argument(help="The volume's name in the pool.")],
    pool: Pool,
    size_text: Annotated[str, typer.Option("--size", help="Such as 10GiB; with --from, the source's if left out.")] = "0",
    image_format: Format = "",
    source: Annotated[str, typer.Option("--from", help="A volume (POOL/NAME) or snapshot (POOL/VOLUME/NAME) to clone.")] = "",
    label: Labels = None,
    *,
    thick: Annotated[bool, typer.Option(help="Take the space now.")] = False,
) -> None:
    """Create a volume, empty or from another."""
    request = pb.CreateVolumeRequest(
        pool=f"pools/{pool}",
        volume_id=name,
        size_bytes=size(size_text),
        format=enum("VOLUME_FORMAT", image_format),
        provisioning=pb.PROVISIONING_THICK if thick else pb.PROVISIONING_THIN,
        source=_origin(source),
        labels=labels(label),
    )
    with SESSION.client() as client:
        answer = client.call(client.volumes.CreateVolume, request)
        if not answer.HasField("volume"):
            client.wait(answer.operation, timeout=86400)
            shown(client.get_volume(f"pools/{pool}/volumes/{name}"))
            return
        shown(answer.volume)


@app.command("list")
def list_volumes(pool: Annotated[str, typer.Option("--pool", help="Only this pool.")] = "") -> None:
    """List volumes."""
    with SESSION.client() as client:
        request = pb.ListVolumesRequest(pool=f"pools/{pool}" if pool else "")
        rows = client.pages(client.volumes.ListVolumes, request, "volumes")
        table(rows, ("NAME", "SIZE", "USED", "FORMAT", "STATE", "ATTACHED"), lambda v: (
            "/".join(v.name.split("/")[1::2]), human(v.size_bytes), human(v.allocated_bytes), _word(v),
            pb.VolumeState.Name(v.state).removeprefix("VOLUME_STATE_").lower(), str(len(v.attachments) or ""),
        ))  # fmt: skip


@app.command("show")
def show_volume(volume: Name, *, refresh: Annotated[bool, typer.Option(help="Read the storage, not the index.")] = False) -> None:
    """Show a volume."""
    with SESSION.client() as client:
        shown(client.call(client.volumes.GetVolume, pb.GetVolumeRequest(name=volume_name(volume), refresh=refresh)).volume)


@app.command()
def delete(volume: Name) -> None:
    """Delete a volume."""
    with SESSION.client() as client:
        client.call(client.volumes.DeleteVolume, pb.DeleteVolumeRequest(name=volume_name(volume)))


@app.command()
def expand(volume: Name, size_text: Annotated[str, typer.Option("--size", help="The new size.")]) -> None:
    """Grow a volume, attached or not."""
    with SESSION.client() as client:
        shown(client.call(client.volumes.ExpandVolume, pb.ExpandVolumeRequest(name=volume_name(volume), size_bytes=size(size_text))).volume)


@app.command()
def label(volume: Name, words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")]) -> None:
    """Replace a volume's labels."""
    with SESSION.client() as client:
        shown(client.call(client.volumes.UpdateVolume, pb.UpdateVolumeRequest(name=volume_name(volume), labels=labels(words))).volume)


@app.command()
def revert(volume: Name, snapshot: Annotated[str, typer.Option("--snapshot", help="The snapshot's name.")]) -> None:
    """Set a detached volume back to a snapshot."""
    with SESSION.client() as client:
        shown(client.call(client.volumes.RevertVolume, pb.RevertVolumeRequest(name=volume_name(volume), snapshot=snapshot)).volume)


@app.command()
def adopt(
    locator: Annotated[str, typer.Argument(help="The foreign object, such as a file name in the pool's directory.")],
    name: Annotated[str, typer.Option("--name", help="The volume's name.")],
    pool: Pool,
    image_format: Format,
) -> None:
    """Make a volume of an object that others made."""
    request = pb.AdoptVolumeRequest(pool=f"pools/{pool}", locator=locator, volume_id=name, format=enum("VOLUME_FORMAT", image_format))
    with SESSION.client() as client:
        shown(client.call(client.volumes.AdoptVolume, request).volume)


@app.command("import")
def import_volume(
    name: Annotated[str, typer.Argument(help="The volume's name in the pool.")],
    pool: Pool,
    file: Annotated[Path, typer.Option("--file", help="The image.")],
    source_format: Annotated[str, typer.Option("--source-format", help="raw, qcow2, vmdk or vhdx; never guessed.")],
    image_format: Format = "",
    size_text: Annotated[str, typer.Option("--size", help="Such as 10GiB; the image's if left out.")] = "0",
    *,
    on_server: Annotated[bool, typer.Option(help="The file is on the server's host.")] = False,
) -> None:
    """Make a volume of an image."""
    header = pb.ImportHeader(
        pool=f"pools/{pool}",
        volume_id=name,
        source_format=enum("VOLUME_FORMAT", source_format),
        format=enum("VOLUME_FORMAT", image_format),
        size_bytes=size(size_text),
        path=str(file) if on_server else "",
    )
    with SESSION.client() as client, _bar() as bar:
        task = bar.add_task("import", total=None)
        shown_volume = client.import_file(
            header, None if on_server else file, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    shown(shown_volume)


@app.command()
def export(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="A detached volume, or a snapshot (POOL/VOLUME/NAME).")],
    file: Annotated[Path, typer.Option("--file", help="The new file.")],
    image_format: Format = "raw",
) -> None:
    """Write a volume's content to a file."""
    request = pb.ExportVolumeRequest(name=_origin(volume), format=enum("VOLUME_FORMAT", image_format))
    with SESSION.client() as client, _bar() as bar:
        task = bar.add_task("export", total=None)
        client.export_file(request, file, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _bar() -> Progress:
    """A progress bar on a terminal; nothing for programs."""
    from rich.console import Console

    return Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True), disable=SESSION.json)
