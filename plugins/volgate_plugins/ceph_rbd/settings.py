"""What `[pools.<name>]` of kind `ceph-rbd` may say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from volgate.errors import InvalidRequest

__all__ = ["FEATURES", "CephSettings"]

FEATURES = {"layering": 1, "striping": 2, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16, "deep-flatten": 32, "journaling": 64}
_NEEDS = {"object-map": "exclusive-lock", "fast-diff": "object-map", "journaling": "exclusive-lock"}
_DEFAULT = ("layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten")
_SMALLEST, _LARGEST = 1 << 12, 1 << 25


@dataclass(frozen=True)
class CephSettings:
    """`monitors`: `host:port` of each (`[address]:port` of IPv6). `user`: without `client.`; `key`: a reference to its key.

    `fsid`: the cluster that it must be ("": any). `pool` and `namespace`: where the images are; `data_pool`: where their data are, if
    elsewhere. `object_size`, `stripe_unit` (0: the object's) bytes, `stripe_count`, `features`: of new images.
    `operation_seconds`: how long a request to an OSD or a monitor may take; `connect_seconds`: likewise to connect.
    `trash_seconds`: how long deleted volumes are kept. `max_depth`: clones below one another, at most; `max_snapshots`: of one image;
    beyond either a clone is a copy. `oversubscription` times the space may be promised (0: any). `transfers`: requests at once of an
    import or export; `staging`: a folder for copies of images that the sandbox cannot read ("": the temporary one). `expect_marker`: the
    pool has been used, so that one without its marker is another, or was lost.
    """

    monitors: tuple[str, ...]
    user: str
    key: str
    pool: str
    namespace: str = ""
    fsid: str = ""
    data_pool: str = ""
    object_size: int = 4 << 20
    stripe_unit: int = 0
    stripe_count: int = 1
    features: tuple[str, ...] = _DEFAULT
    operation_seconds: float = 15.0
    connect_seconds: float = 10.0
    trash_seconds: float = 0
    max_depth: int = 8
    max_snapshots: int = 250
    oversubscription: float = 0.0
    transfers: int = 16
    expect_marker: bool = False
    staging: str = ""

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        if not self.monitors:
            raise InvalidRequest("monitors: name at least one, host:port", field="monitors")
        for monitor in self.monitors:
            _check_monitor(monitor)
        for name in ("user", "pool"):
            if not getattr(self, name):
                raise InvalidRequest(f"{name}: must not be empty", field=name)
        self._check_layout()
        self._check_features()
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("operation_seconds", "connect_seconds"):
            if not 1 <= getattr(self, name) < math.inf:
                raise InvalidRequest(f"{name}: must be at least 1", field=name)
        for name in ("trash_seconds", "max_depth", "oversubscription"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidRequest(f"{name}: must not be negative", field=name)
        for name in ("transfers", "max_snapshots"):
            if not 1 <= getattr(self, name) <= 500:  # noqa: PLR2004 - librbd's snapshots end at some 500
                raise InvalidRequest(f"{name}: must be from 1 to 500", field=name)

    def _check_layout(self) -> None:
        if not _SMALLEST <= self.object_size <= _LARGEST or self.object_size & (self.object_size - 1):
            raise InvalidRequest(f"object_size: must be a power of two from {_SMALLEST} to {_LARGEST}", field="object_size")
        if self.stripe_count < 1:
            raise InvalidRequest("stripe_count: must be at least 1", field="stripe_count")
        if self.stripe_unit and (self.stripe_unit < _SMALLEST or self.object_size % self.stripe_unit):
            raise InvalidRequest(f"stripe_unit: must divide object_size and be at least {_SMALLEST}", field="stripe_unit")

    def _check_features(self) -> None:
        for feature in self.features:
            if feature not in FEATURES:
                raise InvalidRequest(f"features: {feature!r} is none of {', '.join(FEATURES)}", field="features")
            if (needed := _NEEDS.get(feature)) and needed not in self.features:
                raise InvalidRequest(f"features: {feature} needs {needed}", field="features")
        if "layering" not in self.features:
            raise InvalidRequest("features: clones need layering", field="features")

    @property
    def image_options(self) -> dict[str, Any]:
        """What librbd is told of a new image."""
        striped = {"stripe_unit": self.stripe_unit, "stripe_count": self.stripe_count} if self.stripe_unit else {}
        pool = {"data_pool": self.data_pool} if self.data_pool else {}
        return {"features": self.feature_bits, "order": self.object_size.bit_length() - 1, **striped, **pool}

    @property
    def feature_bits(self) -> int:
        """The features as librbd counts them."""
        return sum(FEATURES[name] for name in dict.fromkeys(self.features) if name != "striping")


def _check_monitor(monitor: str) -> None:
    host, _, port = monitor.rpartition(":")
    if not host or not port.isdigit() or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise InvalidRequest(f"monitors: {monitor!r} is not host:port, or [address]:port of IPv6", field="monitors")
