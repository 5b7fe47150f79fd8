"""What `[pools.<name>]` of kind `memory` may say."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from volgate.errors import InvalidRequest
from volgate_plugins.memory.faults import Fault

__all__ = ["MemorySettings"]

_OF_THE_ARRAY = ("directory", "capacity_bytes", "oversubscription", "independent_clones")


@dataclass(frozen=True)
class MemorySettings:
    """`socket`: where an array listens that somebody else runs; "" starts one that lives as long as the gateway.

    `directory` (for the bytes; "": in memory), `capacity_bytes`, `oversubscription` (0: any) and `independent_clones` (children survive
    their parents) describe an array that is started; one with a `socket` has its own.
    `clients`: tell who has a volume open, by the word of the control command alone; then nothing can be attached.
    `accept_loss`: an array that lost its volumes by its end may be used again, empty. `connect_seconds`, `call_seconds` and
    `copy_seconds` bound the waits for the array, for an answer, and for one that copies a volume. `faults` are in force from the start.
    """

    socket: str = ""
    directory: str = ""
    capacity_bytes: int = 1 << 40
    oversubscription: float = 10.0
    independent_clones: bool = False
    accept_loss: bool = False
    clients: bool = False
    connect_seconds: float = 5.0
    call_seconds: float = 60.0
    copy_seconds: float = 3600.0
    faults: tuple[Fault, ...] = ()

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        for name in ("socket", "directory"):
            if (path := getattr(self, name)) and not path.startswith("/"):
                raise InvalidRequest(f"{name}: {path!r} is not absolute", field=name)
        for name in ("connect_seconds", "call_seconds", "copy_seconds", "capacity_bytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidRequest(f"{name}: must be more than 0", field=name)
        if not 0 <= self.oversubscription < math.inf:
            raise InvalidRequest("oversubscription: must not be negative", field="oversubscription")
        if self.socket:
            self._refuse_doubled()
        for fault in self.faults:
            fault.check()

    def _refuse_doubled(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name in _OF_THE_ARRAY:
            if getattr(self, name) != defaults[name]:
                told = f"{name}: the array at {self.socket} has its own; give it to the program that runs the array"
                raise InvalidRequest(told, field=name)
