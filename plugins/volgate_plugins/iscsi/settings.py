"""What `[pools.<name>]` of kind `iscsi` may say."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from volgate.connection import Chap, IscsiPortal
from volgate.errors import InvalidRequest
from volgate_plugins.directory import DirectorySettings
from volgate_plugins.lvm import LvmSettings

__all__ = ["ChapSettings", "IscsiSettings", "LunSettings", "portal_of"]

_AUTHORITY = re.compile(r"iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9-]+(\.[a-z0-9-]+)+(:[a-z0-9.:-]+)?")
_NAME = re.compile(r"(iqn|eui|naa)\.[a-z0-9][a-z0-9:.-]{1,218}")
_WWID = re.compile(r"3[0-9a-f]{16}([0-9a-f]{16})?")
_LONGEST = 150  # an IQN has at most 223 characters; the pool's name and the volume's uid come behind
_PORT, _PORTS = 3260, 65536


@dataclass(frozen=True)
class ChapSettings:
    """How hosts prove themselves: a name, and a reference to the secret. With `target_user` the target proves itself to them too."""

    user: str
    secret: str
    target_user: str = ""
    target_secret: str = ""


@dataclass(frozen=True)
class LunSettings:
    """A LUN that an administrator made: its identity as multipath writes it, its size in bytes, its target's IQN and its number there."""

    wwid: str
    size: int
    target: str
    lun: int


@dataclass(frozen=True)
class IscsiSettings:
    """`portals`: where targets listen, `ADDRESS` or `ADDRESS:PORT`. `records`: a directory of the pool's own, absolute.

    `target` is `lio` or `tgt`: then `iqn` is the naming authority that its targets' names begin with, and `directory` or `lvm` the pool
    that the volumes lie in, with the settings of that kind; `tgtd` is the socket of the daemon of `tgt`. Or it is `inventory`: then
    `luns` are what there is, and `initiator` the name by which this machine itself logs in. `multipath`: hosts use all portals.
    `seconds`: how long one change may wait for another, and a SAN or tgtd for an answer. `expect_marker`: the pool has been used, so
    that `records` without its marker is a missing mount.
    """

    portals: tuple[str, ...]
    records: str
    target: str = "lio"
    iqn: str = ""
    directory: DirectorySettings | None = None
    lvm: LvmSettings | None = None
    tgtd: str = "/run/tgtd/socket.0"
    chap: ChapSettings | None = None
    multipath: bool = True
    seconds: float = 60.0
    luns: tuple[LunSettings, ...] = ()
    initiator: str = ""
    expect_marker: bool = False

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        checks = {"lio": self._check_own, "tgt": self._check_own, "inventory": self._check_inventory}
        if self.target not in checks:
            raise InvalidRequest(f"target: {self.target!r} is not known; there are {', '.join(checks)}", field="target")
        checks[self.target]()
        if not self.portals:
            raise InvalidRequest("portals: name at least one address", field="portals")
        for text in self.portals:
            portal_of(text, "")
        for field, path in (("records", self.records), ("tgtd", self.tgtd)):
            if not path.startswith("/"):
                raise InvalidRequest(f"{field}: {path!r} is not absolute", field=field)
        if self.chap and not (self.chap.user and self.chap.secret and bool(self.chap.target_user) == bool(self.chap.target_secret)):
            raise InvalidRequest("chap: a user has a secret, and target_user has target_secret", field="chap")
        if self.seconds <= 0:
            raise InvalidRequest("seconds: must be positive", field="seconds")

    def _check_own(self) -> None:
        if not _AUTHORITY.fullmatch(self.iqn) or len(self.iqn) > _LONGEST:
            told = (
                f"iqn: {self.iqn!r} is no beginning of an iSCSI name, such as iqn.2026-01.org.example (lower case, a domain turned around)"
            )
            raise InvalidRequest(told, field="iqn")
        if (self.directory is None) == (self.lvm is None):
            raise InvalidRequest("directory, lvm: the volumes lie in one of them; give the pool one such table", field="directory")
        if self.luns or self.initiator:
            raise InvalidRequest("luns, initiator: these are for target inventory", field="luns")

    def _check_inventory(self) -> None:
        if self.directory or self.lvm or self.iqn:
            raise InvalidRequest("directory, lvm, iqn: these are for targets lio and tgt", field="directory")
        if not _NAME.fullmatch(self.initiator):
            told = f"initiator: {self.initiator!r} is no iSCSI name; say by which one this machine logs in to the SAN"
            raise InvalidRequest(told, field="initiator")
        wwids = [lun.wwid for lun in self.luns]
        for lun in self.luns:
            if not _WWID.fullmatch(lun.wwid) or wwids.count(lun.wwid) > 1:
                raise InvalidRequest(
                    f"luns: {lun.wwid!r} is no WWID as multipath writes it (3 and 16 or 32 digits), or is there twice", field="luns"
                )
            if lun.size <= 0 or lun.lun <= 0 or not _NAME.fullmatch(lun.target):
                raise InvalidRequest(f"luns: {lun.wwid}: a size, a number (never 0) and the IQN of a target are needed", field="luns")
        if not self.luns:
            raise InvalidRequest("luns: name at least one", field="luns")

    def ways(self, target: str) -> tuple[IscsiPortal, ...]:
        """The portals of a target."""
        return tuple(portal_of(text, target) for text in self.portals)

    def proof(self) -> Chap | None:
        """What hosts are told of CHAP: references, no secrets."""
        return Chap(self.chap.user, self.chap.secret, self.chap.target_user, self.chap.target_secret) if self.chap else None


def portal_of(text: str, target: str) -> IscsiPortal:
    """Read `ADDRESS` or `ADDRESS:PORT`, IPv6 with a port in brackets. Raises InvalidRequest."""
    address, port = text, str(_PORT)
    if text.startswith("[") or text.count(":") == 1:
        address, _, port = text.rpartition(":")
    try:
        found, number = ipaddress.ip_address(address.strip("[]")), int(port)
    except ValueError:
        number = 0
    if not 0 < number < _PORTS:
        raise InvalidRequest(f"portals: {text!r} is no ADDRESS or ADDRESS:PORT; hosts log in by IP addresses", field="portals")
    return IscsiPortal(str(found), number, target)
