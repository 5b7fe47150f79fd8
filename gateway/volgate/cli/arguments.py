"""Words of the command line as the contract's values; a wrong one is a usage error that says what is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Optional

import typer

from volgate.cli import completion
from volgate.v1.volume_pb2 import Qos
from volgate_client.errors import InvalidRequest
from volgate_client.words import number

__all__ = [
    "MOST",
    "DryRun",
    "Format",
    "Host",
    "Labels",
    "OfVolume",
    "OptionalPool",
    "Pool",
    "RequestId",
    "Uid",
    "Volume",
    "attachment_name",
    "enum",
    "full",
    "labels",
    "limits_of",
    "origin",
    "size",
    "snapshot_name",
    "volume_name",
]

Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="Full resource name, or POOL/NAME.", autocompletion=completion.volumes)]
OfVolume = Annotated[str, typer.Option("--volume", help="Full resource name, or POOL/NAME.", autocompletion=completion.volumes)]
Pool = Annotated[str, typer.Option("--pool", help="The pool.", autocompletion=completion.pools)]
OptionalPool = Annotated[str, typer.Option("--pool", help="The pool, unless VOLUME names it.", autocompletion=completion.pools)]
Host = Annotated[str, typer.Option("--host", help="The host; the only one if left out.")]
Format = Annotated[str, typer.Option("--format", help="raw or qcow2; the pool's default if left out.")]
Labels = Annotated[Optional[list[str]], typer.Option("--label", help="KEY=VALUE, repeatable.")]  # noqa: UP045  # typer reads this form
RequestId = Annotated[str, typer.Option("--request-id", help="Your id of this request: a repeat with the same id is the same call.")]
Uid = Annotated[str, typer.Option("--uid", help="Only the object of this uid is meant.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps, the space and who blocks it; change nothing.")]

_UNITS = {"": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40, "tib": 40, "p": 50, "pib": 50}
MOST = (1 << 63) - 1
"""The largest number that the contract can carry."""
_POOL_AND_NAME = 2
_POOL_VOLUME_AND_NAME = 3


def size(text: str) -> int:
    """Read 10GiB, 1.5T or a number of bytes; units are binary."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].lower() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not a size; write 10GiB, 512MiB or a number of bytes")
    shift = _UNITS[found[2].lower()]
    amount = int(float(found[1]) * (1 << shift)) if "." in found[1] else int(found[1]) << shift
    if amount > MOST:
        raise typer.BadParameter(f"{text!r} is more than any volume can have")
    return amount


def enum(kind: Any, text: str, option: str) -> Any:
    """A word as a value of an enum."""
    try:
        return number(kind, text.lower(), option)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None


def labels(words: Sequence[str] | None) -> dict[str, str]:
    """KEY=VALUE words as a map."""
    found = dict(word.partition("=")[::2] for word in words or ())
    if wrong := [word for word in words or () if "=" not in word]:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    return found


def full(collection: str, text: str) -> str:
    """`pools/default` for `default`; a full name stays, "" stays."""
    return text if not text or "/" in text else f"{collection}/{text}"


def volume_name(text: str, pool: str = "") -> str:
    """A full name, POOL/NAME, or NAME beside --pool."""
    parts = text.split("/")
    if len(parts) == 1 and pool:
        return f"{full('pools', pool)}/volumes/{text}"
    if len(parts) == _POOL_AND_NAME:
        if pool and full("pools", pool) != f"pools/{parts[0]}":
            raise typer.BadParameter(f"{text} is in pool {parts[0]}, not in {pool}")
        return f"pools/{parts[0]}/volumes/{parts[1]}"
    if len(parts) == 1:
        raise typer.BadParameter(f"{text!r}: write POOL/NAME, or pools/POOL/volumes/NAME")
    return text


def snapshot_name(text: str) -> str:
    """A full name, or POOL/VOLUME/NAME."""
    parts = text.split("/")
    if len(parts) == _POOL_VOLUME_AND_NAME:
        return f"pools/{parts[0]}/volumes/{parts[1]}/snapshots/{parts[2]}"
    if len(parts) < _POOL_VOLUME_AND_NAME:
        raise typer.BadParameter(f"{text!r}: write POOL/VOLUME/SNAPSHOT")
    return text


def origin(text: str) -> str:
    """A volume or a snapshot; "" stays."""
    if not text:
        return ""
    return snapshot_name(text) if text.count("/") == _POOL_VOLUME_AND_NAME - 1 else volume_name(text)


def attachment_name(text: str) -> str:
    """A full name, or the id."""
    return full("attachments", text)


def limits_of(words: list[str] | None) -> Qos:
    """KIND=NUMBER words as limits."""
    limits, kinds = Qos(), Qos.DESCRIPTOR.fields_by_name
    for text in words or []:
        kind, _, amount = text.partition("=")
        if kind not in kinds or not amount.isdecimal() or int(amount) > MOST:
            raise typer.BadParameter(f"{text!r} is not KIND=NUMBER with one of {', '.join(kinds)}")
        setattr(limits, kind, int(amount))
    return limits
