"""A private Ceph cluster of Debian's packages: monitors, a manager and OSDs, plain processes of this one that end with it.

`memstore` is fast and forgets everything when an OSD is killed; `bluestore` survives kill -9. cephx is on; `admin` may everything,
`client` has the profile `rbd` for the two pools alone, and may take addresses off the blocklist: what an operator gives to a gateway.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import rados
import rbd

from tests.labs.ceph_config import configuration, new_key
from tests.labs.ceph_daemons import START_SECONDS, Daemons, run

__all__ = ["CLIENT", "OTHER_POOL", "POOL", "TENANT", "CephCluster"]

T = TypeVar("T")
POOL, OTHER_POOL, TENANT, CLIENT = "volumes", "others", "tenant", "volgate"
CLASSES = next(iter(sorted(Path("/usr/lib").glob("*/rados-classes"))), Path("/usr/lib/rados-classes"))
MAY_UNFENCE = 'profile rbd, allow command "osd blocklist" with blocklistop=rm'
TIMEOUTS = {"client_mount_timeout": "10", "rados_mon_op_timeout": "10", "rados_osd_op_timeout": "10"}
ASKING = {
    "objecter_timeout": "1",
    "objecter_tick_interval": "1",
}  # an OSD that was restarted is found; with 10 s and ops that end before: never
CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class CephCluster(Daemons):
    """One cluster."""

    def __init__(
        self,
        base: Path | None = None,
        *,
        store: str = "memstore",
        monitors: int = 1,
        osds: int = 1,
        copies: int = 1,
        size: int = 8 << 30,
        address: str = "127.0.0.1",
        namespace: str = "",
    ) -> None:
        """Prepare; nothing runs before `start()`. `copies`: of each object, one of which is enough for I/O; `size` in bytes of each OSD.

        `namespace` names a network namespace (`Port.namespace` of tests.labs.network): the daemons run in it, at its `address`.
        """
        self._made = base is None
        super().__init__(base or Path(tempfile.mkdtemp(prefix="vgc-", dir="/tmp")), monitors, osds, namespace)
        self.fsid = str(uuid.uuid4())
        self.address = address
        self._ports = _free_ports(address if not namespace else "127.0.0.1", 2 * monitors)
        self._store, self._size, self._copies = store, size, copies
        self._admin: rados.Rados | None = None
        self._connector = ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace,))

    # -- what a client needs

    @property
    def monitors(self) -> tuple[str, ...]:
        """Where the monitors are, `host:port`."""
        return tuple(f"{self.address}:{port}" for port in self._ports[::2])

    @property
    def key_file(self) -> Path:
        """The restricted client's key and nothing else, mode 0600."""
        return self.base / f"{CLIENT}.key"

    @property
    def admin_key_file(self) -> Path:
        """The administrator's."""
        return self.base / "admin.key"

    def table(self, **more: Any) -> dict[str, Any]:
        """The table of a pool of kind `ceph-rbd` on this cluster."""
        return {"monitors": [*self.monitors], "user": CLIENT, "key": f"file:{self.key_file}", "pool": POOL, **more}

    def toml(self, name: str, **more: Any) -> str:
        """The same as the text of a configuration file."""
        table = {"kind": "ceph-rbd", **self.table(**more)}
        return "\n".join([f"[pools.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]) + "\n"

    def tool(self, *words: str, user: str = "admin") -> list[str]:
        """A command of Ceph's (`rbd`, `ceph`, `rados`) as this user."""
        program, *rest = words
        return [
            *self.inside_words(),
            program,
            "--conf",
            str(self.config),
            "--keyring",
            str(self._keyring(user)),
            "--name",
            f"client.{user}",
            *rest,
        ]

    def connect(self, user: str = CLIENT, **options: str) -> rados.Rados:
        """A connection of a test's own; it must shut it down."""
        key = (self.base / f"{user}.key").read_text()
        given = {
            "mon_host": ",".join(self.monitors),
            "key": key,
            "log_to_stderr": "false",
            "err_to_stderr": "false",
            **TIMEOUTS,
            **ASKING,
            **options,
        }

        def connected() -> rados.Rados:  # in a thread that is in the network namespace: all that the library starts is in it too
            made = rados.Rados(rados_id=user, conf=given)
            made.connect()
            return made

        return self.inside(connected)

    def inside(self, act: Callable[[], T]) -> T:
        """Do something in the cluster's network namespace: threads and connections that it begins stay there."""
        return self._connector.submit(act).result()

    # -- what an administrator does

    @property
    def admin(self) -> rados.Rados:
        """The administrator's connection."""
        if self._admin is None:
            self._admin = self.connect("admin")
        return self._admin

    def command(self, prefix: str, _input: bytes = b"", **arguments: Any) -> Any:
        """Ask the monitors; return what the JSON says, or None for no answer. Raises AssertionError with what they said."""
        code, answer, said = self.admin.mon_command(json.dumps({"prefix": prefix, "format": "json", **arguments}), _input)
        assert code == 0, f"{prefix}: {code} {said}"
        with contextlib.suppress(ValueError):
            return json.loads(answer)
        return None

    def set_quota(self, size: int, pool: str = POOL, *, objects: int = 0) -> None:
        """Let the pool hold so many bytes and objects; 0: any."""
        self.command("osd pool set-quota", pool=pool, field="max_bytes", val=str(size))
        self.command("osd pool set-quota", pool=pool, field="max_objects", val=str(objects))

    def new_namespace(self, pool: str = POOL) -> str:
        """Make an empty RBD namespace of a test's own; return its name."""
        name = f"n{next(_numbers)}-{secrets.token_hex(3)}"
        with self.admin.open_ioctx(pool) as ioctx:
            rbd.RBD().namespace_create(ioctx, name)
        return name

    @contextlib.contextmanager
    def ioctx(self, namespace: str = "", pool: str = POOL) -> Iterator[rados.Ioctx]:
        """The administrator's view of a pool."""
        with self.admin.open_ioctx(pool) as ioctx:
            ioctx.set_namespace(namespace)
            yield ioctx

    @staticmethod
    def rows(ioctx: rados.Ioctx, name: str) -> dict[str, bytes]:
        """The omap of an object."""
        with rados.ReadOpCtx() as op:
            found, _ = ioctx.get_omap_vals(op, "", "", 10000)
            with contextlib.suppress(rados.ObjectNotFound):
                ioctx.operate_read_op(op, name)
                return dict(found)
        return {}

    # -- what happens to daemons

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a daemon that was killed, or end one in order and start it again; `wait` until the cluster takes writes."""
        if self.is_running(name):
            self.end(name, signal.SIGTERM)
        self.launch(name)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until an object can be written as the client: nothing else tells that truth."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with contextlib.closing(_Shut(self.connect(rados_osd_op_timeout="2"))) as client, client.it.open_ioctx(POOL) as ioctx:
                    ioctx.write_full("volgate.ready", b"1")
                    ioctx.remove_object("volgate.ready")
                    return
            except rados.Error as error:
                self.check_alive(error)
                assert time.monotonic() < deadline, f"no write succeeds: {error}; {self.log()}"
                self._wake()
                time.sleep(0.1)

    def wait_whole(self, seconds: float = START_SECONDS) -> None:
        """Wait until every monitor is in quorum, every OSD up, and every placement group has all its copies."""
        deadline = time.monotonic() + seconds
        while missing := self._missing():
            self.check_alive(missing)
            assert time.monotonic() < deadline, f"{missing}; {self.log()}"
            time.sleep(0.1)

    def _missing(self) -> str:
        try:
            quorum, osds = self.command("quorum_status")["quorum_names"], self.command("osd stat")
            groups = {one["name"]: one["num"] for one in self.command("pg stat")["pg_summary"]["num_pg_by_state"]}
        except (AssertionError, rados.Error) as error:
            return str(error)
        if any("laggy" in state for state in groups):
            self._wake()
        whole = len(quorum) == len(self.mons) and osds["num_up_osds"] == self.osds and set(groups) == {"active+clean"}
        return "" if whole else f"in quorum are {quorum}, up are {osds['num_up_osds']} OSDs, placement groups are {groups}"

    def _wake(self) -> None:
        """Have placement groups peer anew that wait for a lease which nobody renews.

        A group with one copy that an operation meets while it becomes active may stay `laggy` for ever (Ceph's tracker, 80404).
        """
        with contextlib.suppress(AssertionError, rados.Error):  # whoever waits for the groups asks again
            for group in (self.command("pg ls", states=["laggy"]) or {}).get("pg_stats", ()):  # none while no manager tells
                self.command("pg repeer", pgid=group["pgid"])

    # -- life

    def start(self) -> Self:
        """Make the cluster, start it, and wait until it takes writes."""
        if not self.config.exists():
            self._make()
        for name in self.mons:
            self.launch(f"mon.{name}")
        self._until_quorum()
        self._add_manager()
        for number in range(self.osds):
            self._add_osd(number)
        self._add_pools()
        self._until_measured()
        self.wait_whole()
        self.wait_ready()
        with self.ioctx() as ioctx, self.ioctx(pool=OTHER_POOL) as other:
            for each in (ioctx, other):
                rbd.RBD().pool_init(each, force=True)
            if TENANT not in rbd.RBD().namespace_list(ioctx):
                rbd.RBD().namespace_create(ioctx, TENANT)
        self.wait_whole()
        return self

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End every daemon (SIGTERM: its data are kept) and wait until all are gone."""
        if self._admin is not None:
            self._admin.shutdown()
            self._admin = None
        self.end_all(how)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # whatever it was, nothing stays running
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._connector.shutdown()
        if self._made:
            shutil.rmtree(self.base, ignore_errors=True)

    def _make(self) -> None:
        for folder in (*(f"mon/{name}" for name in self.mons), "mgr/x", "log", "asok", "crash"):
            (self.base / folder).mkdir(parents=True)
        places = {
            name: f"[v2:{self.address}:{self._ports[2 * number]},v1:{self.address}:{self._ports[2 * number + 1]}]"
            for number, name in enumerate(self.mons)
        }
        facts = {"fsid": self.fsid, "address": self.address, "base": self.base, "copies": self._copies, "classes": CLASSES}
        self.config.write_text(configuration(places, store=self._store, size=self._size, **facts))
        every = 'caps mon = "allow *"\ncaps osd = "allow *"\ncaps mgr = "allow *"\n'
        admin, map_file, keyring = new_key(), f"{self.base}/monmap", f"{self.base}/mon.keyring"
        _secret(self.admin_key_file, admin)
        _secret(self._keyring("admin"), f"[client.admin]\nkey = {admin}\n{every}")
        _secret(Path(keyring), f'[mon.]\nkey = {new_key()}\ncaps mon = "allow *"\n[client.admin]\nkey = {admin}\n{every}')
        run("monmaptool", "--create", "--fsid", self.fsid, *(word for pair in places.items() for word in ("--addv", *pair)), map_file)
        for name in self.mons:
            run("ceph-mon", "--mkfs", "-i", name, "--monmap", map_file, "--keyring", keyring, "-c", str(self.config))

    def _until_quorum(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.command("mon stat")
                return
            except rados.Error as error:
                self.check_alive(error)
                assert time.monotonic() < deadline, f"no quorum: {error}; {self.log()}"
                time.sleep(0.05)

    def _until_measured(self) -> None:
        """Wait until the manager has told of the pools: before that, the monitors know no quota and no free space."""
        deadline = time.monotonic() + START_SECONDS
        question = json.dumps({"prefix": "osd pool get-quota", "pool": POOL, "format": "json"})
        while self.admin.mon_command(question, b"")[0]:
            self.check_alive()
            assert time.monotonic() < deadline, f"the manager does not tell: {self.log()}"
            time.sleep(0.05)

    def _add_manager(self) -> None:
        keyring = self.base / "mgr/x/keyring"
        if not keyring.exists():
            _secret(keyring, f"[mgr.x]\nkey = {self._key_of('mgr.x', mon='allow profile mgr', osd='allow *', mds='allow *')}\n")
        self.launch("mgr.x")

    def _add_osd(self, number: int) -> None:
        home = self.base / "osd" / str(number)
        keyring = home / "keyring"
        if not keyring.exists():
            home.mkdir(parents=True, exist_ok=True)
            key, identity = new_key(), str(uuid.uuid4())
            self.command("osd new", json.dumps({"cephx_secret": key}).encode(), uuid=identity, id=number)
            _secret(keyring, f"[osd.{number}]\nkey = {key}\n")
            words = ("--mkfs", "--osd-uuid", identity, "--keyring", str(keyring), "-c", str(self.config))
            run(*self.inside_words(), "ceph-osd", "-i", str(number), *words)
        self.launch(f"osd.{number}")

    def _add_pools(self) -> None:
        if self.key_file.exists():
            return
        for pool in (POOL, OTHER_POOL):
            self.command("osd pool create", pool=pool, pg_num=8, pgp_num=8, pool_type="replicated", size=self._copies)
            self.command("osd pool application enable", pool=pool, app="rbd")
        pools = ", ".join(f"profile rbd pool={pool}" for pool in (POOL, OTHER_POOL))
        key = self._key_of(f"client.{CLIENT}", mon=MAY_UNFENCE, osd=pools, mgr=pools)
        _secret(self._keyring(CLIENT), f"[client.{CLIENT}]\nkey = {key}\n")
        _secret(self.key_file, key)

    def new_client(self, name: str, **caps: str) -> Path:
        """Make a client with these capabilities (`mon=...`, `osd=...`, `mgr=...`); return the file of its key."""
        key = self._key_of(f"client.{name}", **caps)
        _secret(self.base / f"{name}.key", key)
        return self.base / f"{name}.key"

    def _key_of(self, entity: str, **caps: str) -> str:
        found = self.command("auth get-or-create", entity=entity, caps=[word for pair in caps.items() for word in pair])
        return str(found[0]["key"])

    def _keyring(self, user: str) -> Path:
        return self.base / f"{user}.keyring"


class _Shut:
    """Lets `contextlib.closing` shut a connection down."""

    def __init__(self, it: rados.Rados) -> None:
        self.it = it

    def close(self) -> None:
        self.it.shutdown()


def _secret(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _free_ports(address: str, count: int) -> list[int]:
    """So many ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace; "" stays where it is."""
    if namespace:
        with open(f"/run/netns/{namespace}", "rb") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
