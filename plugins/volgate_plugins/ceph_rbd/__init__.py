"""Pools in a Ceph cluster: RBD images through librados and librbd."""

from __future__ import annotations

from volgate.backend import Backend, BackendType, PoolContext, hookimpl
from volgate.errors import Precondition
from volgate_plugins.ceph_rbd.settings import CephSettings

__all__ = ["CephSettings", "volgate_backends"]


def _open(settings: CephSettings, context: PoolContext) -> Backend:
    """Open the pool; the libraries are loaded here, so that a gateway without them serves its other pools.

    Raises Precondition (CEPH_LIBRARY_MISSING), and as `CephRbd`.
    """
    try:
        from volgate_plugins.ceph_rbd.backend import CephRbd
    except ImportError as error:
        if error.name not in ("rados", "rbd"):
            raise
        raise Precondition(
            f"pool {context.pool}: Python finds no module {error.name}; install the Debian packages python3-rados and python3-rbd",
            reason="CEPH_LIBRARY_MISSING",
        ) from error
    return CephRbd(settings, context)


@hookimpl
def volgate_backends() -> list[BackendType]:
    """Offer the kind `ceph-rbd`."""
    return [
        BackendType(
            kind="ceph-rbd",
            settings=CephSettings,
            open=_open,
            summary="RBD images of a Ceph cluster, reached through librbd",
            width=32,
        )
    ]
