"""What a volume is called on the network, all of it made of its uid: nothing of that is drawn, kept or used again."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass

from volgate.backend import Initiator
from volgate.errors import NotFound, Precondition

__all__ = ["LUN", "Unit", "initiator_of"]

LUN = 1
"""Each volume has a target of its own, so that no number is ever another volume's; never 0, which LIO answers for without a volume."""
_LIO_NAA = (
    "36001405"  # multipath's `3` for a registered name, and LIO's company; tgt takes what it is told, so a pool may change its target
)
_INITIATOR = re.compile(r"iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9:.-]{1,210}|eui\.[0-9a-f]{16}|naa\.[0-9a-f]{16}([0-9a-f]{16})?")
_DIGITS = 25  # of a serial number are all that LIO puts into a name


@dataclass(frozen=True, slots=True)
class Unit:
    """A volume as a target's only unit."""

    uid: str
    target: str

    @classmethod
    def of(cls, uid: str, authority: str, pool: str) -> Unit:
        """Name it. Raises NotFound for what is no uid."""
        try:
            plain = str(uuid.UUID(uid))
        except ValueError:
            raise NotFound(f"there is no volume of uid {uid!r}") from None
        mark = "." if ":" in authority else ":"
        return cls(plain, f"{authority}{mark}{pool.replace('_', '-')}.{plain}")

    @property
    def serial(self) -> str:
        """The unit serial number: as many digits as LIO uses, of a digest, for uids may differ in their last digits alone."""
        return hashlib.sha256(self.uid.encode()).hexdigest()[:_DIGITS]

    @property
    def wwid(self) -> str:
        """Its identity, as multipath writes it."""
        return _LIO_NAA + self.serial

    @property
    def number(self) -> int:
        """A number for LIO's adapter, which is to be this volume's alone; another that has it too does no harm."""
        return int(self.serial[:7], 16)

    @property
    def store(self) -> str:
        """What it is called among LIO's backing stores."""
        return f"volgate-{self.uid}"


def initiator_of(host: Initiator) -> str:
    """The name by which a host logs in, in lower case, as such names are compared. Raises Precondition (INITIATOR_MISSING)."""
    name = host.iqn.lower()
    if not _INITIATOR.fullmatch(name):
        told = f"hosts/{host.host} has {f'{host.iqn[:80]!r} for' if name else 'no'} iSCSI initiator name"
        fix = (
            "install open-iscsi there, and look at InitiatorName in /etc/iscsi/initiatorname.iscsi; its volgate tells it at its next start"
        )
        raise Precondition(f"{told}: {fix}", reason="INITIATOR_MISSING")
    return name
