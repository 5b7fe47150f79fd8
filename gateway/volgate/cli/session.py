"""What all commands share: the connection, how answers are shown, how failures are told, how words become names and sizes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from volgate.errors import VolgateError as ServerError
from volgate_client import Client, VolgateError

__all__ = ["SESSION", "attachment_name", "human", "report", "show", "size", "snapshot_name", "table", "volume_name"]

_UNITS = {"": 1, "b": 1, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40, "tib": 40, "p": 50, "pib": 50}
_EXITS = {
    "INVALID_ARGUMENT": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "FAILED_PRECONDITION": 4,
    "ABORTED": 5,
    "UNAVAILABLE": 5,
    "DEADLINE_EXCEEDED": 5,
}


@dataclass
class Session:
    """The flags of this run."""

    address: str = ""
    json: bool = False

    def client(self) -> Client:
        """A connection to the server."""
        return Client(self.address)


SESSION = Session()


def show(message: Message, rows: Sequence[tuple[str, str]]) -> None:
    """Show one object: JSON for programs, lines of field and value for people."""
    if SESSION.json:
        typer.echo(json.dumps(plain(message), indent=2))
        return
    grid = Table(show_header=False, box=None, pad_edge=False)
    for field, value in rows:
        if value:
            grid.add_row(f"[bold]{field}[/bold]", value)
    Console().print(grid)


def table(messages: Iterable[Message], columns: Sequence[str], row: Any) -> None:
    """Show a list: a JSON array for programs, a table for people."""
    if SESSION.json:
        typer.echo(json.dumps([plain(message) for message in messages], indent=2))
        return
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for message in messages:
        shown.add_row(*row(message))
    Console().print(shown)


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON with the contract's field names; 64-bit numbers are numbers."""
    tree = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return dict(_numbers(tree))


def _numbers(tree: Any, key: str = "") -> Any:
    if isinstance(tree, dict):
        return {name: _numbers(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_numbers(value, key) for value in tree]
    if isinstance(tree, str) and re.fullmatch(r"-?\d+", tree) and key.endswith(("_bytes", "_sec", "errors")):
        return int(tree)
    return tree


def report(error: Exception) -> int:
    """Tell a person what failed, who holds it and what to do; return the exit status."""
    console = Console(stderr=True)
    if isinstance(error, VolgateError | ServerError):
        code = error.code if isinstance(error, VolgateError) else error.status
        console.print(f"[red]{error.reason}[/red]: {error.message}", highlight=False)
        for holder in error.holders:
            kind, name, detail = holder if isinstance(holder, tuple) else (holder.kind, holder.name, holder.detail)
            console.print(f"  held by {kind} {name} {detail}", highlight=False)
        if error.operation:
            console.print(f"  see: volgate operation show {error.operation}", highlight=False)
        if code == "UNAVAILABLE":
            console.print(f"  server: {SESSION.address}; is `volgate serve` running? `volgate doctor` says more", highlight=False)
        return _EXITS.get(code, 1)
    console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
    return 1


def size(text: str) -> int:
    """Read 10GiB, 512M or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].lower() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not a size; write 10GiB, 512MiB or a number of bytes")
    unit = _UNITS[found[2].lower()]
    return int(float(found[1]) * (1 if unit == 1 else 1 << unit)) if "." in found[1] else int(found[1]) * (1 if unit == 1 else 1 << unit)


def human(amount: int) -> str:
    """Bytes for people."""
    number = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":  # noqa: PLR2004  # the step of binary units
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
        number /= 1024
    return str(amount)


def volume_name(text: str) -> str:
    """A full name, or POOL/NAME."""
    parts = text.split("/")
    return f"pools/{parts[0]}/volumes/{parts[1]}" if len(parts) == 2 else text  # noqa: PLR2004  # POOL/NAME


def snapshot_name(text: str) -> str:
    """A full name, or POOL/VOLUME/NAME."""
    parts = text.split("/")
    return f"pools/{parts[0]}/volumes/{parts[1]}/snapshots/{parts[2]}" if len(parts) == 3 else text  # noqa: PLR2004  # POOL/VOLUME/NAME


def attachment_name(text: str) -> str:
    """A full name, or the id."""
    return text if "/" in text else f"attachments/{text}"


def say(text: str) -> None:
    """A line for people, on standard error so that programs do not see it."""
    if sys.stderr.isatty():
        Console(stderr=True).print(text, highlight=False)
