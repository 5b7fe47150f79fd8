"""The volumes of this host by the kind of their connection: proven and reached, told of, let go of. Libvirt is not asked here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar, assert_never

from volgate.connect import block, libiscsi, local, luks, rbd, reservations
from volgate.connect.health import file_paths
from volgate.connect.iscsi import Iscsi
from volgate.connect.reconciler import Reconciler
from volgate.connection import BlockSource, Connection, DiskSource, FileSource, IscsiLun, LibiscsiLun, LocalBlock, LocalFile, RbdImage
from volgate.errors import Unreachable, Unsupported
from volgate.hosts.completion import Completion
from volgate.hosts.identity import identify
from volgate.hosts.interface import AttachPlan
from volgate.hosts.keys import Key, Keys
from volgate.lanes import Lane
from volgate.model import Access, Feature, Leftover
from volgate.model import Path as IoPath
from volgate.secret import Secret

__all__ = ["Connectors"]

T = TypeVar("T")
_LOOK_SECONDS = 0.5
_SLACK_SECONDS = 40.0  # the kernel lets a device go within 30 seconds, its deadline or not; what it says then is worth more than silence


class Connectors:
    """Any thread. Deadlines are monotonic seconds. Work is done in lanes: a hung file system, or a dead target, starves no domain."""

    def __init__(self, host: str, resolve: Callable[[str], Secret], features: Callable[[float], Collection[Feature]]) -> None:
        """`resolve` gets the secret that a reference names; `features` tells what QEMU here can, until a deadline."""
        self._host = host
        self._resolve = resolve
        self._features = features
        self._files = Lane("files", 8, 256)
        self._san = Lane("iscsi", 32, 256)
        self._logins = rbd.Logins()
        self._iscsi = Iscsi()
        self._reconciler = Reconciler(self._iscsi)
        self._completion = Completion(self._iscsi, self._chap_of)

    def keep(self) -> None:
        """From now on, bring back by itself what was missing when it was connected."""
        self._completion.start()

    def ready(self, plan: AttachPlan, keys: Keys, deadline: float) -> tuple[DiskSource, Key | None]:
        """Connect and prove the volume of a plan; with the secret that libvirt needs for its disk, None where it needs none.

        Raises Unsupported for LUKS on what is no block device, and what its connector does.
        """
        options = plan.options
        source = self.connect(plan.connection, deadline, shared=options.access is Access.SHARED)
        if not options.passphrase:
            return source, self.key(plan.connection, keys, deadline)
        if not isinstance(source, BlockSource):
            raise Unsupported(f"options.passphrase: {source.source} is no block device of the host", field="options.passphrase")
        key = self.passphrase(options.passphrase, keys, deadline)
        _within(self._san, deadline, partial(luks.prepare, source, key.secret, deadline=deadline))
        return source, key

    def passphrase(self, reference: str, keys: Keys, deadline: float) -> Key:
        """The passphrase of now. Its file may hang."""
        return _within(self._files, deadline, partial(keys.passphrase, reference))

    def connect(self, connection: Connection, deadline: float, *, shared: bool = False) -> DiskSource:
        """Make a volume reachable here, and prove that it is the recorded one. Raises what its connector does, Unreachable.

        `shared`: other hosts write to it as well; this one can be kept out of it then.
        """
        match connection:
            case LocalFile():
                return self.file(connection, deadline)
            case LocalBlock():
                return _within(self._files, deadline, partial(block.connect, connection))
            case RbdImage():
                features = self._features(deadline)
                return _within(self._files, deadline, partial(rbd.connect, connection, features, deadline=deadline))
            case IscsiLun():
                return _within(self._san, deadline + _SLACK_SECONDS, partial(self._log_in, connection, deadline, shared))
            case LibiscsiLun():
                if shared:
                    told = f"{connection.source}: QEMU has no key for reservations and could not be kept out; leave the transport out"
                    raise Unsupported(told, reason="LIBISCSI_UNSUPPORTED")
                return _within(self._san, deadline, partial(self._ask_lun, connection, self._features(deadline), deadline))
        assert_never(connection)

    def file(self, found: LocalFile, deadline: float) -> FileSource:
        """Prove a file."""
        return _within(self._files, deadline, partial(local.connect, found))

    def key(self, connection: Connection, keys: Keys, deadline: float, *, proven: bool = True) -> Key | None:
        """The key that libvirt needs for a volume, None where it needs none; `proven`: it opens the volume. Its file may hang."""
        key = _within(self._files, deadline, partial(keys.of, connection))
        if proven and key is not None and isinstance(connection, RbdImage):
            _within(self._files, deadline, partial(self._logins.require, connection, key.secret, deadline=deadline))
        return key

    def paths(self, connection: Connection, deadline: float) -> Sequence[IoPath]:
        """The host's part of the way to a volume, as it is now."""
        match connection:
            case LocalFile():
                return _within(self._files, deadline, partial(file_paths, connection, self._host))
            case LocalBlock():
                return _within(self._files, deadline, partial(block.paths, connection, self._host))
            case RbdImage():
                return _within(self._files, deadline, partial(rbd.monitor_paths, connection, self._host, deadline=deadline))
            case IscsiLun():
                return _within(self._san, deadline, partial(self._iscsi.paths, connection, self._host, deadline=deadline))
            case LibiscsiLun():
                return _within(self._san, deadline, partial(libiscsi.paths, connection, self._host, deadline=deadline))
        assert_never(connection)

    def release(self, source: str, deadline: float) -> None:
        """Leave nothing on this host of what was connected here under that name. Raises InUse, Unreachable."""
        _within(self._san, deadline + _SLACK_SECONDS, partial(self._log_out, source, deadline))

    def grow(self, source: str, size: int, deadline: float) -> None:
        """Have the devices of a volume learn its size, bytes. Raises Unreachable."""
        _within(self._san, deadline + _SLACK_SECONDS, partial(self._iscsi.grow, source, size, deadline=deadline))

    def held(self, deadline: float) -> Sequence[str]:
        """What is connected here until it is let go of, as libvirt names it."""
        return _within(self._san, deadline, self._iscsi.held)

    def leftovers(self, accounted: Collection[str], deadline: float, *, apply: bool) -> Sequence[Leftover]:
        """What is connected here that nothing accounts for; with `apply` it goes."""
        look = partial(self._reconciler.look, accounted, apply=apply, deadline=deadline)
        return _within(self._san, deadline + _SLACK_SECONDS, look)

    def close(self) -> None:
        """Begin nothing more."""
        self._completion.close()
        self._files.close()
        self._san.close()

    def _ask_lun(self, lun: LibiscsiLun, features: Collection[Feature], deadline: float) -> DiskSource:
        return libiscsi.connect(lun, identify().iqn, self._resolve, features, deadline=deadline)

    def _log_in(self, lun: IscsiLun, deadline: float, shared: bool) -> DiskSource:
        source = self._iscsi.connect(lun, self._chap_of(lun), deadline=deadline)
        reservations.enrol(source.path, identify().reservation_key, shared=shared)
        return source

    def _chap_of(self, lun: IscsiLun) -> dict[str, Secret]:
        """The secrets of now: they are read where they are used, and kept nowhere."""
        references = (lun.chap.secret, lun.chap.target_secret) if lun.chap else ()
        return {reference: self._resolve(reference) for reference in references if reference}

    def _log_out(self, source: str, deadline: float) -> None:
        """Its key goes first, if a way is left by which it can: of one that broke just now it is known in seconds whether it comes back."""
        while self._iscsi.answers(source, deadline):
            try:
                reservations.withdraw(source, identify().reservation_key)
                break
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
        self._iscsi.release(source, deadline=deadline)


def _within(lane: Lane, deadline: float, work: Callable[[], T]) -> T:
    return lane.call_within(max(0.0, deadline - time.monotonic()), work)
