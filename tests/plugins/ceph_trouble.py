"""What happens to the daemons of a cluster in the middle of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.labs.ceph import CephCluster

__all__ = ["TROUBLES", "Trouble"]


@dataclass(frozen=True)
class Trouble:
    """What happens to a daemon, and what ends it."""

    name: str
    daemon: str
    begin: Callable[[CephCluster], None]
    end: Callable[[CephCluster], None]

    def __str__(self) -> str:
        return self.name


def _restart(cluster: CephCluster, daemon: str) -> None:
    cluster.kill(daemon)
    cluster.restart(daemon, wait=False)


TROUBLES = [
    Trouble(f"{daemon[:3]}-{name}", daemon, begin, end)
    for daemon in ("osd.0", "mon.a")
    for name, begin, end in (
        ("frozen", lambda c, d=daemon: c.freeze(d), lambda c, d=daemon: c.thaw(d)),
        ("killed", lambda c, d=daemon: c.kill(d), lambda c, d=daemon: c.restart(d, wait=False)),
        ("restarted", lambda c, d=daemon: _restart(c, d), lambda _c: None),
    )
]
