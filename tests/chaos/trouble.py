"""What happens to the parts of a site, one after the other and at random: killed, stopped, cut off; each is well again after a while."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

from tests.labs.network import Port
from tests.labs.site import Process, Site

__all__ = ["Trouble", "revive"]

LONGEST = 4.0
"""Seconds that a link is cut, a process or the database is away: longer than a host's or a lease's patience, sometimes."""


def revive(site: Site) -> None:
    """What a service manager does: a controller whose lease ran out at work has ended itself."""
    for process in (*site.controllers.values(), *site.hosts.values()):
        if not process.runs:
            process.spawn()


class Trouble:
    """A thread that draws what to do; `log` tells what was done and when."""

    def __init__(self, site: Site, generator: random.Random) -> None:
        self.log: list[str] = []
        self._site, self._random = site, generator
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._go, name="trouble", daemon=True)
        self.failure: BaseException | None = None

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """While this lasts; everything runs and is joined again afterwards."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(120)
        assert self.failure is None, f"{self.failure!r} after {self.log}"
        assert not self._thread.is_alive(), self.log

    def _go(self) -> None:
        try:
            while not self._stop.wait(self._random.uniform(0.1, 0.8)):
                revive(self._site)
                name, act = self._random.choice(self._possible())
                self.log.append(f"{time.monotonic() - self._began:.1f} {name}")
                act(self._random.uniform(0.2, LONGEST))
        except BaseException as error:  # told by the test's own thread
            self.failure = error

    def _possible(self) -> list[tuple[str, Callable[[float], None]]]:
        site = self._site
        found: list[tuple[str, Callable[[float], None]]] = []
        for process in (*site.controllers.values(), *site.hosts.values()):
            found.append((f"kill {process.base.name}", lambda away, one=process: self._kill(one, away)))
            found.append((f"stop {process.base.name}", lambda away, one=process: self._freeze(one, away)))
            found.append((f"cut {process.base.name}", lambda away, one=process: self._cut(one.port, away)))
        assert site.database
        database = site.database
        found.append(("kill the database", self._restart))
        found.append(("cut the database", lambda away: self._cut(database.link, away)))
        return found

    def _kill(self, process: Process, away: float) -> None:
        process.kill9()
        self._stop.wait(away)
        revive(self._site)

    def _freeze(self, process: Process, away: float) -> None:
        """A controller that is stopped for longer than its lease is killed meanwhile, by its helper or by the other one."""
        process.freeze()
        self._stop.wait(away * 2)
        with contextlib.suppress(ProcessLookupError):
            process.thaw()

    def _cut(self, port: Port, away: float) -> None:
        port.cut()
        self._stop.wait(away * 2)
        port.heal()

    def _restart(self, away: float) -> None:
        assert self._site.database
        self._site.database.kill9()
        self._stop.wait(away)
        self._site.database.start()
