"""A private Ceph cluster of Debian's packages: a monitor, a manager and OSDs, plain processes of this one that end with it.

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
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import rados
import rbd

from tests.labs.ceph_config import CONFIG, new_key

__all__ = ["CLIENT", "OTHER_POOL", "POOL", "TENANT", "CephCluster"]

T = TypeVar("T")
POOL, OTHER_POOL, TENANT, CLIENT = "volumes", "others", "tenant", "volgate"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
CLASSES = next(iter(sorted(Path("/usr/lib").glob("*/rados-classes"))), Path("/usr/lib/rados-classes"))
MAY_UNFENCE = 'profile rbd, allow command "osd blocklist" with blocklistop=rm'
TIMEOUTS = {"client_mount_timeout": "10", "rados_mon_op_timeout": "10", "rados_osd_op_timeout": "10"}
ASKING = {
    "objecter_timeout": "1",
    "objecter_tick_interval": "1",
}  # an OSD that was restarted is found; with 10 s and ops that end before: never
CLONE_NEWNET = 0x40000000
_starter = ThreadPoolExecutor(1)  # a daemon dies with the thread that started it: this one lives as long as we do
_numbers = itertools.count()


class CephCluster:
    """One cluster. Daemons are called `mon.a`, `mgr.x`, `osd.0`, `osd.1`, ..."""

    def __init__(
        self,
        base: Path | None = None,
        *,
        store: str = "memstore",
        osds: int = 1,
        size: int = 8 << 30,
        address: str = "127.0.0.1",
        namespace: str = "",
    ) -> None:
        """Prepare; nothing runs before `start()`. `size` in bytes of each OSD.

        `namespace` names a network namespace (`Port.namespace` of tests.labs.network): the daemons run in it, at its `address`.
        """
        self._made = base is None
        self.base = base or Path(tempfile.mkdtemp(prefix="vgc-", dir="/tmp"))
        self.fsid = str(uuid.uuid4())
        self.address = address
        self.port, self._port1 = _two_ports(address if not namespace else "127.0.0.1")
        self.osds = osds
        self._store, self._size, self._netns = store, size, namespace
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._admin: rados.Rados | None = None
        self._connector = ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace,))

    # -- what a client needs

    @property
    def monitors(self) -> tuple[str, ...]:
        """Where the monitors are, `host:port`."""
        return (f"{self.address}:{self.port}",)

    @property
    def key_file(self) -> Path:
        """The restricted client's key and nothing else, mode 0600."""
        return self.base / f"{CLIENT}.key"

    @property
    def admin_key_file(self) -> Path:
        """The administrator's."""
        return self.base / "admin.key"

    @property
    def config(self) -> Path:
        """A ceph.conf for Ceph's own commands, which find the keyrings by it."""
        return self.base / "ceph.conf"

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
            *self._inside(),
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

    @property
    def daemons(self) -> tuple[str, ...]:
        """Their names, in the order of their start."""
        return ("mon.a", "mgr.x", *(f"osd.{number}" for number in range(self.osds)))

    def pid(self, name: str) -> int:
        """The process of a daemon."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """End a daemon without warning, and wait until it is gone."""
        self._end(name, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """Let a daemon hang (SIGSTOP)."""
        os.kill(self.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        os.kill(self.pid(name), signal.SIGCONT)

    def launch(self, name: str) -> None:
        """Start a daemon unless it runs."""
        running = self._processes.get(name)
        if running and running.poll() is None:
            return
        kind, _, number = name.partition(".")
        argv = [f"ceph-{kind}", "-f", "-i", number, "-c", str(self.config), "--keyring", str(self.base / kind / number / "keyring")]
        with (self.base / "log" / f"{name}.out").open("ab") as log:
            whole = ["setpriv", "--pdeathsig=KILL", *self._inside(), *argv]
            begun = _starter.submit(subprocess.Popen, whole, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
            self._processes[name] = begun.result()

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a daemon that was killed, or end one in order and start it again; `wait` until the cluster takes writes."""
        if self._processes[name].poll() is None:
            self._end(name, signal.SIGTERM)
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
                self._check_alive(error)
                assert time.monotonic() < deadline, f"no write succeeds: {error}; {self.log()}"
                time.sleep(0.1)

    def log(self) -> str:
        """What the daemons said on their way out."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in sorted((self.base / "log").glob("*.out")))

    # -- life

    def start(self) -> Self:
        """Make the cluster, start it, and wait until it takes writes."""
        if not self.config.exists():
            self._make()
        self.launch("mon.a")
        self._until_quorum()
        self._add_manager()
        for number in range(self.osds):
            self._add_osd(number)
        self._add_pools()
        self.wait_ready()
        with self.ioctx() as ioctx, self.ioctx(pool=OTHER_POOL) as other:
            for each in (ioctx, other):
                rbd.RBD().pool_init(each, force=True)
            if TENANT not in rbd.RBD().namespace_list(ioctx):
                rbd.RBD().namespace_create(ioctx, TENANT)
        self._until_measured()
        return self

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End every daemon (SIGTERM: its data are kept) and wait until all are gone."""
        if self._admin is not None:
            self._admin.shutdown()
            self._admin = None
        for name in reversed(self.daemons):
            self._end(name, how)

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

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._netns}", "--"] if self._netns else []

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)

    def _check_alive(self, error: object = "") -> None:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode} ({error}): {self.log()}"

    def _make(self) -> None:
        for folder in ("mon/a", "mgr/x", "log", "asok", "crash"):
            (self.base / folder).mkdir(parents=True)
        facts = {"fsid": self.fsid, "address": self.address, "port": self.port, "port1": self._port1, "base": self.base}
        self.config.write_text(CONFIG.format(store=self._store, size=self._size, classes=CLASSES, **facts))
        every = 'caps mon = "allow *"\ncaps osd = "allow *"\ncaps mgr = "allow *"\n'
        admin = new_key()
        _secret(self.admin_key_file, admin)
        _secret(self._keyring("admin"), f"[client.admin]\nkey = {admin}\n{every}")
        _secret(self.base / "mon.keyring", f'[mon.]\nkey = {new_key()}\ncaps mon = "allow *"\n[client.admin]\nkey = {admin}\n{every}')
        at = f"[v2:{self.address}:{self.port},v1:{self.address}:{self._port1}]"
        _run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", at, f"{self.base}/monmap")
        _run(
            "ceph-mon",
            "--mkfs",
            "-i",
            "a",
            "--monmap",
            f"{self.base}/monmap",
            "--keyring",
            f"{self.base}/mon.keyring",
            "-c",
            str(self.config),
        )

    def _until_quorum(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.command("mon stat")
                return
            except rados.Error as error:
                self._check_alive(error)
                assert time.monotonic() < deadline, f"no quorum: {error}; {self.log()}"
                time.sleep(0.05)

    def _until_measured(self) -> None:
        """Wait until the manager has told of the pools: before that, the monitors know no quota and no free space."""
        deadline = time.monotonic() + START_SECONDS
        question = json.dumps({"prefix": "osd pool get-quota", "pool": POOL, "format": "json"})
        while self.admin.mon_command(question, b"")[0]:
            self._check_alive()
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
            _run(
                *self._inside(),
                "ceph-osd",
                "-i",
                str(number),
                "--mkfs",
                "--osd-uuid",
                identity,
                "--keyring",
                str(keyring),
                "-c",
                str(self.config),
            )
        self.launch(f"osd.{number}")

    def _add_pools(self) -> None:
        if self.key_file.exists():
            return
        for pool in (POOL, OTHER_POOL):
            self.command("osd pool create", pool=pool, pg_num=8, pgp_num=8, pool_type="replicated", size=1)
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


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=START_SECONDS, cwd="/", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


def _two_ports(address: str) -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind((address, 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace; "" stays where it is."""
    if namespace:
        with open(f"/run/netns/{namespace}", "rb") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
