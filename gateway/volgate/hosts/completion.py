"""LUNs that were attached while a portal did not answer get their missing ways by themselves once it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from volgate.connect import reservations
from volgate.connect.iscsi import Iscsi
from volgate.connection import IscsiLun
from volgate.errors import Unsupported, VolgateError
from volgate.secret import Secret

__all__ = ["Completion"]

_log = structlog.get_logger()
_EVERY_SECONDS = 60.0
_EACH_SECONDS = 30.0  # other work on the target waits meanwhile
_LONGEST_PAUSE = 600.0


class Completion:
    """Rounds over what this host has connected. One thread, from `start` on."""

    def __init__(self, iscsi: Iscsi, secrets_of: Callable[[IscsiLun], Mapping[str, Secret]]) -> None:
        """`secrets_of` gets what a login to a LUN's target needs, and raises InvalidRequest."""
        self._iscsi, self._secrets_of = iscsi, secrets_of
        self._stop = threading.Event()
        self._tries: dict[str, tuple[float, float]] = {}  # of what failed: when it is tried again (monotonic), and the pause before

    def start(self) -> None:
        """Make a round each minute."""
        threading.Thread(target=self._keep, name="completion", daemon=True).start()

    def close(self) -> None:
        """Begin no round more."""
        self._stop.set()

    def run(self) -> list[str]:
        """Make a round; return the LUNs (as libvirt names them) that have another way now. What fails is tried again later and later."""
        found, tries, now = [], dict[str, tuple[float, float]](), time.monotonic()
        for lun in self._iscsi.incomplete():
            due, pause = self._tries.get(lun.source, (0.0, _EVERY_SECONDS / 2))
            if now < due:
                tries[lun.source] = (due, pause)
                continue
            try:
                if self._completed(lun):
                    _log.info("a LUN has a way more", lun=lun.source)
                    found.append(lun.source)
            except VolgateError as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                tries[lun.source] = (now + pause, pause)
                _log.info("a LUN has fewer ways than portals", lun=lun.source, error=error.message, again_seconds=pause)
        self._tries = tries
        return found

    def _completed(self, lun: IscsiLun) -> bool:
        deadline = time.monotonic() + _EACH_SECONDS
        if not self._iscsi.answers(lun.source, deadline) or _is_reserved(lun):
            return False
        return self._iscsi.complete(lun, self._secrets_of(lun), deadline=deadline)

    def _keep(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            try:
                self.run()
            except (VolgateError, OSError) as error:  # devices come and go while they are looked at
                _log.warning("what this host has connected cannot be looked at", error=str(error))


def _is_reserved(lun: IscsiLun) -> bool:
    """A way that is new has no key: what is written by it would fail, and multipathd takes it before it can be given one."""
    try:
        with reservations.opened(lun.source) as disk:
            return disk.reservation() is not None
    except Unsupported:
        return False
