"""Secrets by reference: `file:/path`, `env:NAME`, `credential:NAME` (systemd), or a scheme that a plugin's `volgate_secrets` knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from volgate.errors import InvalidRequest
from volgate.secret import Secret

__all__ = ["built_in", "install", "resolve"]

_MOST = 64 << 10
_others: list[Callable[[str], Secret]] = []


def install(source: Callable[[str], Secret] | None) -> None:
    """Say who resolves references for this process: a worker's own environment is not the gateway's. None forgets it."""
    _others[:] = [source] if source else []


def resolve(reference: str) -> Secret:
    """Return the secret that `reference` names. Raises InvalidRequest naming the reference, never the secret."""
    if _others:
        return _others[0](reference)
    found = built_in(reference)
    if found is None:
        raise InvalidRequest(f"secret {reference!r}: no plugin knows this scheme; built in are file:, env: and credential:", field="secret")
    return found


def built_in(reference: str) -> Secret | None:
    """A secret of a file, an environment variable or a systemd credential; None for another scheme. Raises InvalidRequest."""
    scheme, colon, rest = reference.partition(":")
    if not colon or not rest:
        raise InvalidRequest(f"secret {reference!r} is no reference: write file:/path, env:NAME or credential:NAME", field="secret")
    if scheme == "env":
        if rest not in os.environ:
            raise InvalidRequest(f"secret {reference}: the gateway's environment has no {rest}", field="secret")
        return Secret(os.environ[rest])
    if scheme == "credential":
        folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder or "/" in rest:
            raise InvalidRequest(f"secret {reference}: the unit loads no such credential (LoadCredential=)", field="secret")
        return _read(Path(folder, rest), reference)
    return _read(Path(rest), reference) if scheme == "file" else None


def _read(path: Path, reference: str) -> Secret:
    try:
        with path.open(encoding="utf-8") as file:
            return Secret(file.read(_MOST).rstrip("\n"))
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidRequest(f"secret {reference}: {told}", field="secret") from None
