"""A site: one controller or several on one database, and some hosts, each in a network and mount namespace of its own, with mutual TLS between them.

Every part has a method for what may happen to it: started, stopped, killed, rebooted, its link cut and healed. What identifies a host
(machine id, boot id, initiator names) is put over the machine's own files, so that the product needs no switch for tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from tests.edge.wire import Wire
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd
from tests.labs.network import Network, Port
from tests.labs.postgres import PostgresServer
from volgate.v1 import host_pb2

__all__ = ["Controller", "HostNode", "NetworkedPostgres", "Process", "Site", "until"]

PORT = 7443
START_SECONDS = 60.0
CONTROLLER = """
[server]
role = "controller"
name = "{name}"
listen = ["{address}:{port}"]
stop_seconds = 5
[tls]
certificate = "{pki}/controller-{name}.crt"
key = "{pki}/controller-{name}.key"
client_authority = "{pki}/authority.crt"
[limits]
check_seconds = 2
scan_seconds = 5
libvirt_timeout = 30
heartbeat_seconds = 0.5
host_dead_seconds = {dead}
[pools.p]
kind = "directory"
path = "{pool}"
[imports]
allowed_directories = ["{images}"]
{more}"""
HOST = """
[server]
role = "host"
name = "{name}"
listen = ["{address}:{port}"]
stop_seconds = 5
[controller]
addresses = {controllers}
[tls]
certificate = "{pki}/{certificate}.crt"
key = "{pki}/{certificate}.key"
client_authority = "{pki}/authority.crt"
[limits]
libvirt_timeout = 30
[hosts.{name}]
uri = "{uri}"
"""
DATABASE = """
[database]
url = "{url}"
password = "file:{secret}"
lease_seconds = {lease}
"""
MOUNTS = """mount --make-rprivate /
mount -t overlay -o lowerdir=/etc,upperdir={base}/etc,workdir={base}/work overlay /etc
mount --bind {base}/boot_id /proc/sys/kernel/random/boot_id
exec "$@" """
_STARTER = ThreadPoolExecutor(1)  # a parent's death is that of the thread which started the child


def until(holds: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """Wait for something that comes by itself, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what or 'it'} did not come to that within {seconds:g} s"
        time.sleep(0.05)
    return found


class Process:
    """One `volgate serve` in the namespace of a port."""

    def __init__(self, base: Path, port: Port) -> None:
        """Nothing runs yet."""
        base.mkdir()
        self.base, self.port = base, port
        self.state, self.config, self.log = base / "state", base / "volgate.toml", base / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it does."""
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        """What is run."""
        serve = [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(self.state), "--config", str(self.config)]
        return self.port.inside("setpriv", "--pdeathsig", "KILL", *serve)

    def spawn(self) -> None:
        """Start it and wait for nothing."""
        assert not self.runs
        with self.log.open("ab") as log:
            self.process = _STARTER.submit(subprocess.Popen, self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL).result()

    def kill9(self) -> None:
        """Kill it without warning."""
        assert self.process
        self.process.kill()
        self.process.wait(20)

    def freeze(self) -> None:
        """Let it hang."""
        assert self.process
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> int:
        """End it in order; return its exit status."""
        if self.process is None:
            return 0
        if self.runs:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise
        return self.process.returncode

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What the log says under a word."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        found = [json.loads(line) for line in text.rpartition("\n")[0].splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


class NetworkedPostgres(PostgresServer):
    """A PostgreSQL in the namespace of a port."""

    def __init__(self, port: Port) -> None:
        """Nothing runs yet."""
        super().__init__(more="listen_addresses = '*'")
        self.link = port

    def url(self, database: str, *, port: int = 0) -> str:
        """The URL by its own address, without the password."""
        return f"postgresql://volgate@{self.link.address}:{port or self.port}/{database}"

    def _make(self) -> None:
        super()._make()
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all volgate samenet scram-sha-256\n")

    def _as_user(self, *words: str) -> list[str]:
        return self.link.inside(*super()._as_user(*words))


class Controller(Process):
    """A controller; `wire` is its unix socket, which every namespace reaches."""

    def __init__(self, site: Site, name: str, port: Port, dead_seconds: float, more: str) -> None:
        """Write its configuration."""
        super().__init__(site.base / name, port)
        self.name = name
        values = {"name": name, "address": port.address, "port": PORT, "pki": site.pki, "dead": dead_seconds}
        self.config.write_text(CONTROLLER.format(**values, pool=site.pool, images=site.images, more=more))
        self.address = f"unix:{self.state}/volgate.sock"
        self.wire = Wire(self.address)

    def start(self) -> Self:
        """Start it and wait until it answers."""
        self.spawn()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.runs, self.tail()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.05)
        return self

    def again(self) -> Self:
        """Kill it, unless it is dead, and start another."""
        if self.runs:
            self.kill9()
        return self.start()

    def host(self, name: str) -> host_pb2.Host | None:
        """A host as it is listed."""
        listed = self.wire.hosts.ListHosts(host_pb2.ListHostsRequest(), timeout=30, wait_for_ready=True).hosts
        return next((host for host in listed if host.name == f"hosts/{name}"), None)

    def _answers(self) -> bool:
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                channel.unary_unary("/volgate.v1.HostService/ListHosts")(b"", timeout=2.0)
            except grpc.RpcError:
                return False
        return True


class HostNode(Process):
    """One host. `machine_id`, `boot_id`, `iqn`, `nqn` and `nvme_host_id` are what it has at its next start; "" is none."""

    def __init__(self, site: Site, name: str, port: Port, uri: str) -> None:
        """Draw who it is."""
        super().__init__(site.base / name, port)
        self.site, self.name, self.uri, self.certificate = site, name, uri, f"host-{name}"
        self.libvirtd: PrivateLibvirtd | None = None
        self.guest: Guest | None = None
        self.machine_id, self.boot_id = uuid.uuid4().hex, str(uuid.uuid4())
        self.iqn = f"iqn.2026-01.internal.volgate:{uuid.uuid4().hex[:12]}"
        self.nvme_host_id = str(uuid.uuid4())
        self.nqn = f"nqn.2014-08.org.nvmexpress:uuid:{self.nvme_host_id}"

    def command(self) -> list[str]:
        """In a mount namespace with its own identity."""
        base = self.base
        etc = base / "etc"
        for folder in (etc, base / "work"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        initiator = f"## written by a lab\nInitiatorName={self.iqn}\n" if self.iqn else ""
        files = {"machine-id": self.machine_id, "iscsi/initiatorname.iscsi": initiator, "nvme/hostnqn": self.nqn}
        for file, text in (files | {"nvme/hostid": self.nvme_host_id}).items():
            (etc / file).parent.mkdir(exist_ok=True)
            (etc / file).write_text(text.rstrip("\n") + "\n" if text else "")  # an empty one hides this machine's own
        (base / "boot_id").write_text(f"{self.boot_id}\n")
        controllers = json.dumps([f"{controller.port.address}:{PORT}" for controller in self.site.controllers.values()])
        values = {"name": self.name, "address": self.port.address, "controllers": controllers, "port": PORT}
        self.config.write_text(HOST.format(**values, pki=self.site.pki, certificate=self.certificate, uri=self.uri))
        return ["unshare", "-m", "sh", "-c", MOUNTS.format(base=base), "sh", *super().command()]

    def start(self) -> Self:
        """Start it and wait until the controller takes it for live and its libvirt for connected."""
        self.spawn()
        self.wait_live()
        return self

    def wait_live(self) -> host_pb2.Host:
        """Wait until the controller has heard of the process that runs now."""

        def live() -> host_pb2.Host | None:
            assert self.runs, self.tail()
            try:
                host = self.site.controller.host(self.name)
            except grpc.RpcError:  # it begins anew, or its database has just come back
                return None
            return host if host and host.live and host.connected and host.boot_id == self.boot_id and self.registered else None

        return until(live, what=f"{self.name}: {self.tail()[-500:]}")

    @property
    def registered(self) -> bool:
        """Whether the newest process has been taken in."""
        text = self.log.read_text(errors="replace")
        return '"event": "registered"' in text[text.rfind('"event": "listening"') :]

    def wait_dead(self) -> None:
        """Wait until the controller takes it for dead."""
        until(lambda: (host := self.site.controller.host(self.name)) is not None and not host.live, what=f"the death of {self.name}")

    def reboot(self) -> None:
        """Pull the power and switch it on again: its guests are gone, its boot id is another. Nothing of volgate runs then."""
        if self.runs:
            self.kill9()
        if self.guest:
            self.guest.destroy()
        self.boot_id = str(uuid.uuid4())


class Site:
    """The whole; `close()` leaves nothing of it."""

    def __init__(
        self, *, dead_seconds: float = 5.0, controllers: int = 1, lease: float = 0.0, pools: str | Callable[[Site], str] = ""
    ) -> None:
        """Make the network, the authority and the controllers; nothing runs yet but the database, if `lease` (seconds) asks for one.

        `pools` are tables of more pools than `p`, or make them once the network is there.
        """
        self.base = Path(tempfile.mkdtemp(prefix="vgs-", dir="/tmp"))
        self.base.chmod(0o711)
        self.pool, self.pki, self.images = self.base / "pool", self.base / "pki", self.base / "images"
        self.images.mkdir()
        self.hosts: dict[str, HostNode] = {}
        self.network = Network()
        self.volgate("pki", "init", str(self.pki))
        self.database: NetworkedPostgres | None = None
        self.controllers: dict[str, Controller] = {}
        more = (self._database(lease) if lease else "") + (pools if isinstance(pools, str) else pools(self))
        for name in (f"c{number}" for number in range(1, controllers + 1)):
            port = self.network.add(name)
            self.volgate("pki", "controller", name, port.address, "--authority", str(self.pki))
            self.controllers[name] = Controller(self, name, port, dead_seconds, more)
        self.controller = self.controllers["c1"]

    def _database(self, lease: float) -> str:
        """Start a PostgreSQL on an address of its own; return what the controllers' configuration says of it."""
        self.database = NetworkedPostgres(self.network.add("db"))
        self.database.start()
        secret = self.base / "secret"
        secret.write_text(self.database.password)
        return DATABASE.format(url=self.database.url(self.database.create()), secret=secret, lease=lease)

    def volgate(self, *argv: str) -> str:
        """Run the command line; return what it prints."""
        command = [sys.executable, "-m", "volgate.cli", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def add(self, name: str, *, guest: bool = False) -> HostNode:
        """A host, with a libvirtd and a guest of its own or on libvirt's driver for tests; it is not started."""
        port = self.network.add(name)
        node = HostNode(self, name, port, "test:///default")
        self.volgate("pki", "host", name, port.address, "--authority", str(self.pki))
        self.hosts[name] = node
        if guest:
            node.libvirtd = PrivateLibvirtd(security="off", namespace=port.namespace).__enter__()
            node.uri = node.libvirtd.uri
            node.guest = Guest(node.libvirtd, f"guest-{name}")
        return node

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for controller in self.controllers.values():
            controller.wire.channel.close()
        for process in (*self.hosts.values(), *self.controllers.values()):
            if process.runs:
                process.thaw()
                process.kill9()
        for node in self.hosts.values():
            if node.guest:
                node.guest.disconnect()
            if node.libvirtd:
                node.libvirtd.stop()
        if self.database:
            self.database.__exit__()
        self.network.close()
        shutil.rmtree(self.base, ignore_errors=True)
