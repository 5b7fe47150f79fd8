"""Volumes that hosts reach by iSCSI: files or logical volumes behind targets of this machine, or LUNs of a SAN that there is."""

from __future__ import annotations

from dataclasses import replace

from volgate.backend import Backend, BackendType, PoolContext, hookimpl
from volgate.backend.files import can_share
from volgate.model import Format
from volgate_plugins.directory import Directory
from volgate_plugins.iscsi.inventory import Inventory
from volgate_plugins.iscsi.published import Published
from volgate_plugins.iscsi.settings import ChapSettings, IscsiSettings, LunSettings
from volgate_plugins.iscsi.snapshots import PublishedLogical, PublishedWithSnapshots
from volgate_plugins.lvm import Lvm

__all__ = [
    "ChapSettings",
    "Inventory",
    "IscsiSettings",
    "LunSettings",
    "Published",
    "PublishedLogical",
    "PublishedWithSnapshots",
    "open_pool",
    "volgate_backends",
]


def open_pool(settings: IscsiSettings, context: PoolContext) -> Backend:
    """Open what the volumes lie in, then publish it. Raises what that pool raises, InvalidRequest, Precondition (LIO_MISSING)."""
    settings.check()
    if settings.target == "inventory":
        return Inventory(settings, context)
    if settings.lvm is not None:
        return PublishedLogical(settings, context, Lvm(settings.lvm, context))
    assert settings.directory is not None
    below = Directory.open(replace(settings.directory, default_format=str(Format.RAW)), context)
    kind = PublishedWithSnapshots if can_share(settings.directory.path) else Published
    return kind(settings, context, below)


@hookimpl
def volgate_backends() -> list[BackendType]:
    """Offer the kind `iscsi`."""
    summary = "iSCSI LUNs: of this machine, by LIO or tgt, or of a SAN"
    return [BackendType(kind="iscsi", settings=IscsiSettings, open=open_pool, summary=summary, machine_bound=True)]
