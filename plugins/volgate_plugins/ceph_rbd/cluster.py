"""The connection to the cluster: one, shared by all calls; made anew when the cluster has shut it out. Every wait has an end.

Nothing but the options below bounds a wait: the libraries ignore the timeouts of their methods.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import rados
import rbd

from volgate.backend import secrets
from volgate.errors import Denied, NotFound, Precondition, Unreachable, VolgateError
from volgate_plugins.ceph_rbd.faults import number, told
from volgate_plugins.ceph_rbd.settings import CephSettings

__all__ = ["Cluster", "Link"]

_MOST_SILENT = 3
_OLD_PORT = "6789"
_PINGS, _HUNTS, _HUNG_SECONDS = 5, 3, 3
"""A monitor that hangs is missed, and another one asked, while a request to it still waits; by itself librados takes 30 s."""
_LOCK_SECONDS = 5
"""How long whoever holds an image's lock has to begin what it is asked for, at least."""
_LOST = (errno.ESHUTDOWN, errno.ENOTCONN, errno.EROFS)
"""The last is a lock that was lost: librbd never breaks one that a closed image of the same client left behind."""


@dataclass(eq=False)
class Link:
    """One connection: the handle of the pool and who we are. `ioctx` is shared by all threads, so nothing of it is ever set."""

    client: rados.Rados
    ioctx: rados.Ioctx
    fsid: str
    pool_id: int
    address: str
    users: int = 0
    retired: bool = False
    silent: int = 0
    noted: float = field(default=0.0)

    def ask(self, prefix: str, **arguments: Any) -> Any:
        """Ask the monitors a question; return what the JSON says. Raises rados.Error."""
        command = json.dumps({"prefix": prefix, "format": "json", **arguments})
        code, answer, said = self.client.mon_command(command, b"")
        if code:
            raise rados.OSError(said or "no answer of the monitors", abs(code))
        return json.loads(answer or b"null")

    def shut(self) -> None:
        """Let go of the cluster."""
        self.ioctx.close()
        self.client.shutdown()


class Cluster:
    """The cluster of one pool, thread-safe."""

    def __init__(self, settings: CephSettings) -> None:
        """Nothing is connected yet. `ended` are the addresses of connections that were given up."""
        self.settings = settings
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._link: Link | None = None
        self._closed = False
        self.ended: set[str] = set()

    @contextlib.contextmanager
    def use(self) -> Iterator[Link]:
        """Have the connection for a call. Raises Unreachable, Denied, NotFound (pool), Precondition (fsid), InvalidRequest (key)."""
        link = self._take()
        try:
            yield link
            link.silent = 0
        except BaseException as error:  # only its number is looked at
            self._look_at(link, error)
            raise
        finally:
            self._give_back(link)

    def close(self) -> None:
        """Let go of the connection, as soon as nobody uses it."""
        with self._lock:
            self._closed = True
            self._retire(self._link)

    def _take(self) -> Link:
        with self._connecting:  # one connects for all that wait
            with self._lock:
                if self._closed:
                    raise Unreachable("the pool is closed")
                if self._link is not None:
                    self._link.users += 1
                    return self._link
            made = self._connect()
            with self._lock:
                made.users += 1
                self._link = made
            return made

    def _give_back(self, link: Link) -> None:
        with self._lock:
            link.users -= 1
            ended = link.retired and not link.users
        if ended:
            self._shut(link)

    def _look_at(self, link: Link, error: BaseException) -> None:
        """Give up a connection that the cluster does not answer any more: the next call makes a new one."""
        cause = error if number(error) else error.__cause__
        code = number(cause) if cause else 0
        with self._lock:
            link.silent = link.silent + 1 if code == errno.ETIMEDOUT else 0
            if code in _LOST or link.silent >= _MOST_SILENT:
                self._retire(link)

    def _retire(self, link: Link | None) -> None:
        if link is None:
            return
        if self._link is link:
            self._link = None
        if not link.retired:
            link.retired = True
            if not link.users:
                self._shut(link)

    def _shut(self, link: Link) -> None:
        link.shut()
        self.ended.add(link.address)

    def _connect(self) -> Link:
        settings = self.settings
        where = f"connect to Ceph at {', '.join(settings.monitors)} as client.{settings.user}"
        try:
            client = rados.Rados(rados_id=settings.user, conf=_options(settings))
        except rados.Error as error:
            raise _connecting(error, where) from error
        try:
            client.connect()
            return self._opened(client)
        except (rados.Error, rbd.Error) as error:
            client.shutdown()
            raise _connecting(error, where) from error
        except BaseException:  # whatever it was, no connection stays
            client.shutdown()
            raise

    def _opened(self, client: rados.Rados) -> Link:
        settings, fsid = self.settings, client.get_fsid()
        if settings.fsid and fsid != settings.fsid:
            raise Precondition(
                f"the cluster at {', '.join(settings.monitors)} is {fsid}, and not {settings.fsid}; correct `monitors` or `fsid`",
                reason="CEPH_OTHER_CLUSTER",
            )
        try:
            ioctx = client.open_ioctx(settings.pool)
        except rados.ObjectNotFound as error:
            raise NotFound(
                f"cluster {fsid} has no pool {settings.pool}; make it (`ceph osd pool create`), or correct `pool`",
                reason="CEPH_POOL_MISSING",
            ) from error
        self._require_named(client, ioctx, fsid)
        ioctx.set_namespace(settings.namespace)
        ioctx.set_osdmap_full_try()  # a full pool then answers at once, and lets us delete; without it every call hangs
        return Link(client, ioctx, fsid, ioctx.get_pool_id(), str(client.get_addrs()))

    def _require_named(self, client: rados.Rados, ioctx: rados.Ioctx, fsid: str) -> None:
        settings = self.settings
        if settings.data_pool and not client.pool_exists(settings.data_pool):
            raise NotFound(f"cluster {fsid} has no pool {settings.data_pool}; correct `data_pool`", reason="CEPH_POOL_MISSING")
        if settings.namespace and not rbd.RBD().namespace_exists(ioctx, settings.namespace):
            raise NotFound(
                f"pool {settings.pool} has no RBD namespace {settings.namespace}; make it (`rbd namespace create`), or correct `namespace`",
                reason="CEPH_POOL_MISSING",
            )


def _options(settings: CephSettings) -> dict[str, str]:
    seconds = str(int(settings.operation_seconds))
    return {
        "mon_host": _speaking(settings.monitors),
        "key": secrets.resolve(settings.key).reveal(),
        "client_mount_timeout": str(int(settings.connect_seconds)),
        "rados_mon_op_timeout": seconds,
        "rados_osd_op_timeout": seconds,
        "mon_client_ping_interval": str(max(1, int(settings.operation_seconds) // _PINGS)),
        "mon_client_ping_timeout": str(max(_HUNG_SECONDS, int(settings.operation_seconds) // _HUNTS)),
        "objecter_timeout": "1",  # asks for a new map before a request ends: else a client never finds an OSD that was restarted
        "objecter_tick_interval": "1",
        "log_to_stderr": "false",
        "err_to_stderr": "false",
        "log_file": "",
        "rbd_default_clone_format": "2",
        "rbd_cache": "false",
        "rbd_concurrent_management_ops": "20",
        "rbd_request_timed_out_seconds": str(max(_LOCK_SECONDS, int(settings.operation_seconds))),
    }


def _speaking(monitors: Sequence[str]) -> str:
    """The addresses with their protocol: without, librados tries both at once, and a wrong key is found out only by its deadline.

    With a name among them, which librados resolves, it takes none with a protocol.
    """
    parts = [monitor.rpartition(":") for monitor in monitors]
    try:
        for host, _, _ in parts:
            ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return ",".join(monitors)
    return ",".join(f"{'v1' if port == _OLD_PORT else 'v2'}:{host}:{port}" for host, _, port in parts)


def _connecting(error: BaseException, where: str) -> VolgateError:
    if number(error) == errno.EACCES:
        return Denied(f"{where}: the cluster refuses the user or its key; compare them with `ceph auth get`", reason="CEPH_DENIED")
    if number(error) == errno.EINVAL:
        return Precondition(f"{where}: the key is no key of cephx, or a monitor's name is unknown", reason="CEPH_BAD_ADDRESS_OR_KEY")
    return told(error, where, changing=False)
