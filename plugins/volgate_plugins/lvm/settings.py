"""What `[pools.<name>]` of kind `lvm` may say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from volgate.errors import InvalidRequest

__all__ = ["LvmSettings"]

_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}")
_WHOLE = 100


@dataclass(frozen=True)
class LvmSettings:
    """`vg` and `thin_pool`: the volume group and the thin pool in it, which exist. `devices`: the physical volumes that LVM may look at.

    Without `devices` the host's devices file decides. `alert_percent`: of data or metadata of the thin pool, from which on the pool is
    degraded; `refuse_percent`: from which on nothing is made or grown. `oversubscription` times the thin pool's size may be
    promised (0: any). `command_seconds`: how long a command of LVM may take.
    """

    vg: str
    thin_pool: str
    devices: tuple[str, ...] = ()
    alert_percent: float = 80.0
    refuse_percent: float = 95.0
    oversubscription: float = 0.0
    command_seconds: float = 120.0

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        for name in ("vg", "thin_pool"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise InvalidRequest(f"{name}: {getattr(self, name)!r} is no name of LVM's", field=name)
        for device in self.devices:
            if not device.startswith("/dev/") or "," in device:
                raise InvalidRequest(f"devices: {device!r} is no path below /dev", field="devices")
        if not 0 < self.alert_percent <= self.refuse_percent <= _WHOLE:
            raise InvalidRequest(
                "alert_percent and refuse_percent: the first is not above the second, both are in 0 to 100", field="alert_percent"
            )
        if self.oversubscription < 0 or self.command_seconds <= 0:
            raise InvalidRequest("oversubscription is not negative, command_seconds is positive", field="oversubscription")
