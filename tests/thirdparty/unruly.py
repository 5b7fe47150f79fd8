"""A plugin that does what is ordered: `<pool>.orders/<verb>` holds a word and perhaps a path, and is obeyed once, or for as long as it lies
there if the word ends with `!`."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from volgate.backend import BackendType, PoolContext, Traits, hookimpl
from volgate.model import Provisioning
from volgate_plugins.directory import Directory, DirectorySettings


class Unruly(Directory):
    @classmethod
    def open(cls, settings: DirectorySettings, context: PoolContext) -> Unruly:
        obey(Path(f"{settings.path}.orders/open"))
        made = cls(settings, context)
        made.orders = Path(f"{settings.path}.orders")
        return made

    orders: Path

    @property
    def traits(self) -> Traits:
        return replace(super().traits, long_reverts=True, long_makings=(Provisioning.THICK,), long_deletions=True)

    def revert_volume(self, volume: Any, snapshot_uid: str, *, token: str) -> Any:
        obey(self.orders / "revert")
        return super().revert_volume(volume, snapshot_uid, token=token)

    def create_volume(self, spec: Any) -> Any:
        obey(self.orders / "create")
        made = super().create_volume(spec)
        obey(self.orders / "created")
        return made

    def expand_volume(self, volume: Any, size: int, *, online: bool) -> Any:
        obey(self.orders / "expand")
        return super().expand_volume(volume, size, online=online)

    def delete_volume(self, volume: Any) -> None:
        obey(self.orders / "delete")
        super().delete_volume(volume)

    def relabel_volume(self, volume: Any, labels: Any) -> Any:
        obey(self.orders / "relabel")
        return super().relabel_volume(volume, labels)


def obey(order: Path) -> None:
    """Do it; the file that is named is left as it was if nothing is ordered."""
    try:
        word, *more = order.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return
    if not word.endswith("!"):
        order.unlink()
    match word.rstrip("!"):
        case "segfault":
            ctypes.string_at(0)
        case "exhaust":
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            bytearray(1 << 34)
        case "killed":  # as by the kernel, out of memory
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock: no other thread of the worker runs
        case "sleep":
            time.sleep(float(more[0]))
        case "write":  # where the kernel lets nobody go
            with open(more[0], "ab", buffering=0) as file:
                file.write(b"late")
                os.fsync(file.fileno())


@hookimpl
def volgate_backends() -> list[BackendType]:
    return [BackendType(kind="unruly", settings=DirectorySettings, open=Unruly.open, summary="does what is ordered")]
