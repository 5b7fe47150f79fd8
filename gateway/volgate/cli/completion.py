"""Names from the server for the shell, within a second; a server that does not answer completes nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from volgate.cli.output import short
from volgate.cli.session import DEFAULT_SERVER

if TYPE_CHECKING:
    from volgate_client import Client

__all__ = ["attachments", "hosts", "operations", "pools", "snapshots", "volumes"]

_SECONDS = 1.0
_MOST = 1000


def pools(incomplete: str) -> list[str]:
    """Pools."""
    return _complete(incomplete, lambda client: (short(pool.name) for pool in client.list_pools()))


def volumes(incomplete: str) -> list[str]:
    """POOL/NAME of volumes."""
    return _complete(incomplete, lambda client: (short(volume.name) for volume in client.list_volumes()))


def snapshots(incomplete: str) -> list[str]:
    """POOL/VOLUME/NAME of snapshots."""
    return _complete(incomplete, lambda client: (short(snapshot.name) for snapshot in client.list_snapshots()))


def attachments(incomplete: str) -> list[str]:
    """Ids of attachments."""
    return _complete(incomplete, lambda client: (short(attachment.name) for attachment in client.list_attachments()))


def hosts(incomplete: str) -> list[str]:
    """Hosts."""
    return _complete(incomplete, lambda client: (short(host.name) for host in client.list_hosts()))


def operations(incomplete: str) -> list[str]:
    """Ids of operations that have not ended."""
    return _complete(incomplete, lambda client: (short(o.name) for o in client.list_operations(unfinished_only=True)))


def _complete(incomplete: str, names: Callable[[Client], Iterable[str]]) -> list[str]:
    from volgate_client import Client, VolgateError
    from volgate_client.target import Files

    try:
        files: Files = {"certificate": _flag("cert"), "key": _flag("key"), "authority": _flag("ca")}
        with Client(_flag("server") or DEFAULT_SERVER, timeout=_SECONDS, **files) as client:
            return [name for name in islice(names(client), _MOST) if name.startswith(incomplete)]
    except VolgateError:
        return []


def _flag(wanted: str) -> str:
    """A flag of the line that is being completed, which no parser has read; else its environment variable, else ""."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == f"--{wanted}" and (value or following):
            return value if equals else following
    return os.environ.get(f"VOLGATE_{wanted.upper()}", "")
