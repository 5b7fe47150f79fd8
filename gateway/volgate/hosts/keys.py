"""The keys by which domains of this host open volumes: found by reference when they are needed, given to libvirt alone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from volgate.connection import Connection, LibiscsiLun, RbdImage
from volgate.errors import Unreachable
from volgate.hypervisor import secrets
from volgate.hypervisor.calls import Libvirt
from volgate.secret import Secret

__all__ = ["Key", "Keys"]

T = TypeVar("T")
_log = structlog.get_logger()
_PROMISED_SECONDS = 600.0  # the record of a prepared disk is there long before


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the name of the libvirt secret that holds it."""

    usage: str
    secret: Secret


class Keys:
    """Any thread. A secret is removed once no domain names it: libvirt is asked, not a count that a crash would lose."""

    def __init__(self, resolve: Callable[[str], Secret]) -> None:
        """`resolve` gets what a reference names, and raises InvalidRequest."""
        self._resolve = resolve
        self._lock = threading.Lock()
        self._attaching: Counter[str] = Counter()
        self._promised: dict[str, float] = {}  # by name, monotonic: since when
        self._expected: frozenset[str] = frozenset()
        self._given: dict[str, Secret] = {}

    def of(self, connection: Connection) -> Key | None:
        """The key of now, None for what needs none; files are read. Raises InvalidRequest."""
        if isinstance(connection, LibiscsiLun) and connection.chap:
            chap = connection.chap
            return Key(secrets.chap_usage_of(connection.portal.target, chap.user), self._resolve(chap.secret))
        if not isinstance(connection, RbdImage):
            return None
        found = self._resolve(connection.key)
        secrets.decoded(found, f"key: {connection.key}")
        return Key(secrets.usage_of(connection.fsid, connection.user), found)

    def passphrase(self, reference: str) -> Key:
        """The passphrase of now; a file is read. Raises InvalidRequest."""
        return Key(secrets.passphrase_usage_of(reference), self._resolve(reference))

    def renew(self, libvirt: Libvirt, key: Key) -> None:
        """Give libvirt the key of now."""
        secrets.put(libvirt, key.usage, key.secret)
        self._given[key.usage] = key.secret

    def forget(self) -> None:
        """Libvirt started anew, and knows no key."""
        self._given.clear()

    def promise(self, libvirt: Libvirt, key: Key | None) -> None:
        """Give libvirt the key for a disk that is in no domain yet, and keep it for a while: until `expect` tells of the disk."""
        if key is not None:
            with self._lock:
                self._promised[key.usage] = time.monotonic()
            self.renew(libvirt, key)

    def expect(self, prepared: Sequence[str]) -> None:
        """These disks (XML) are in no domain yet, and no others, except those promised lately. Raises InvalidRequest."""
        named = frozenset[str]().union(*map(secrets.named, prepared))
        with self._lock:
            self._expected = named
            oldest = time.monotonic() - _PROMISED_SECONDS
            self._promised = {usage: since for usage, since in self._promised.items() if since > oldest}

    def attach(self, libvirt: Libvirt, key: Key | None, act: Callable[[], T]) -> T:
        """Attach a disk that needs the key; once more if libvirt lost it: it started anew, or another gateway removed it."""
        if key is None:
            return act()
        with self._lock:
            self._attaching[key.usage] += 1
        try:
            if self._given.get(key.usage) != key.secret:
                self.renew(libvirt, key)
            try:
                return act()
            except Unreachable as error:
                if error.reason != "SECRET_LOST":
                    raise
            self.renew(libvirt, key)
            return act()
        finally:
            with self._lock:
                self._attaching[key.usage] -= 1

    def sweep(self, libvirt: Libvirt) -> None:
        """Remove what no domain needs any more."""
        with self._lock:
            kept = {usage for usage, count in self._attaching.items() if count} | self._promised.keys() | self._expected
        for usage in secrets.sweep(libvirt, kept):
            self._given.pop(usage, None)
            _log.info("a secret is removed from libvirt: no domain needs it", secret=usage)
