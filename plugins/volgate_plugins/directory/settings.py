"""What `[pools.<name>]` of kind `directory` may say."""

from __future__ import annotations

from dataclasses import dataclass

from volgate.errors import InvalidRequest
from volgate.model import Format

__all__ = ["DirectorySettings"]


@dataclass(frozen=True)
class DirectorySettings:
    """`path`: the pool's directory, absolute; `create` it if it is missing (with the parents that it lacks).

    `oversubscription` times the space may be promised to volumes (0: any); `reserve_bytes` are never given out.
    `trash_seconds`: how long deleted volumes are kept. `max_depth`: layers below the writable one, at most.
    `expect_marker`: the pool exists already, so that a directory without its marker is a missing mount.
    """

    path: str
    create: bool = True
    default_format: str = "qcow2"
    oversubscription: float = 10.0
    reserve_bytes: int = 0
    trash_seconds: float = 0
    max_depth: int = 20
    expect_marker: bool = False

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        if not self.path.startswith("/"):
            raise InvalidRequest(f"path: {self.path!r} is not absolute", field="path")
        if self.default_format not in (Format.RAW, Format.QCOW2):
            raise InvalidRequest(f"default_format: {self.default_format!r} is neither qcow2 nor raw", field="default_format")
        for name in ("oversubscription", "reserve_bytes", "trash_seconds", "max_depth"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"{name}: must not be negative", field=name)
