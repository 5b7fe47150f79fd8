"""Pools in an LVM volume group: thin volumes of a thin pool, and thick ones beside it."""

from __future__ import annotations

from volgate.backend import BackendType, hookimpl
from volgate_plugins.lvm.backend import Lvm
from volgate_plugins.lvm.settings import LvmSettings

__all__ = ["Lvm", "LvmSettings", "volgate_backends"]


@hookimpl
def volgate_backends() -> list[BackendType]:
    """Offer the kind `lvm`."""
    summary = "Logical volumes of a thin pool on this host"
    return [BackendType(kind="lvm", settings=LvmSettings, open=Lvm, summary=summary, width=4, machine_bound=True)]
