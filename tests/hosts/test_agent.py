"""What a host lets in, and what of a late or wrong call it does: a controller and a host on the loopback, on libvirt's driver for tests."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests.edge.secured import Pair, Pki
from tests.edge.server import Server
from tests.edge.wire import Wire, refused
from tests.labs.site import until
from volgate.connection import FileIdentity, LocalFile
from volgate.edge.policy import AGENT
from volgate.errors import InDoubt, NotFound, Precondition, Unreachable, VolgateError
from volgate.hosts.interface import AttachPlan, DetachOutcome, EventKind, HostEvent, HostInfo, Identity
from volgate.hosts.remote import RemoteHost
from volgate.hosts.remote_channel import Channels
from volgate.hosts.standing import Standing
from volgate.hosts.wire import METHODS, PROTOCOL
from volgate.model import DiskOptions, Format
from volgate.settings import Tls
from volgate.store import hosts
from volgate.store.database import Database
from volgate.store.steps import Steps
from volgate.v1 import agent_pb2, agent_pb2_grpc, host_pb2, host_pb2_grpc, pool_pb2, pool_pb2_grpc

CONFIG = """
[server]
role = "{role}"
name = "node"
listen = ["127.0.0.1:0"]
[tls]
certificate = "{pki}/{certificate}.crt"
key = "{pki}/{certificate}.key"
client_authority = "{pki}/authority.crt"
"""
ADDRESSES = ["127.0.0.1", "localhost"]
SECONDS = 10.0


class Loopback:
    """A controller, a host that is registered there, and what a controller's connection needs."""

    def __init__(self, top: Path) -> None:
        self.pki = Pki(top / "pki")
        for role, name in (("controller", "c1"), ("host", "node")):
            self.pki.authority.both(role, name, ADDRESSES, 10)
        config = CONFIG.format(role="controller", pki=self.pki.folder, certificate="controller-c1")
        self.controller = Server(top / "controller", config=config).start()
        listen = self.bound(self.controller.log)
        config = CONFIG.format(role="host", pki=self.pki.folder, certificate="host-node")
        config += f'[controller]\naddresses = ["{listen}"]\n[hosts.node]\nuri = "test:///default"\n'
        self.file, self.state, self.log = top / "host.toml", top / "host", top / "host.log"
        self.file.write_text(config)
        self.process = self.spawn()
        self.address = until(lambda: self.log.exists() and self.bound(self.log))
        client = self.controller.client()
        until(lambda: [host for host in client.list_hosts() if host.live and host.connected])
        client.close()
        steps = Steps(self.state / "host.db")
        self.instance = steps.get("instance")
        steps.close()

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(self.state), "--config", str(self.file)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def again(self) -> None:
        """Kill the host and start another; return when the controller knows it."""
        before = self.session
        self.process.kill()
        self.process.wait(20)
        self.process = self.spawn()
        until(lambda: self.session != before)
        self.address = self.bound(self.log)

    @staticmethod
    def bound(log: Path) -> str:
        lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines() if line.startswith("{")]
        return next((str(line["listen"][0]) for line in reversed(lines) if line["event"] == "listening"), "")

    @property
    def session(self) -> str:
        """The host's, as the controller's table has it."""
        database = Database(self.controller.state / "volgate.db")
        with database.read() as connection:
            found = hosts.find(connection, "node")
        database.close()
        assert found
        return found.session

    def remote(
        self, name: str = "node", *, live: bool = True, released: bool = False, instance: str = "", pair: Pair | None = None
    ) -> RemoteHost:
        """The host as a controller reaches it."""
        info = HostInfo(name, Identity(), "", connected=True, address=self.address, live=live, released=released)
        standing = Standing(info, self.session, 99.0)
        shown = pair or Pair(self.pki.folder / "controller-c1.crt", self.pki.folder / "controller-c1.key")
        tls = Tls(str(shown.certificate), str(shown.key), str(self.pki.root))
        return RemoteHost(name, instance or self.instance, Channels(tls), lambda: standing)

    def channel(self, pair: Pair) -> grpc.Channel:
        return grpc.secure_channel(self.address, self.pki.credentials(pair), [("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-2000:]
        assert self.controller.stop() == 0
        assert "bug" not in (self.log.read_text() + self.controller.log.read_text()).lower()


@pytest.fixture(scope="module")
def place() -> Iterator[Loopback]:
    with tempfile.TemporaryDirectory(prefix="vg-agent-", dir="/tmp") as folder:
        made = Loopback(Path(folder))
        yield made
        made.close()


@pytest.fixture
def remote(place: Loopback) -> Iterator[RemoteHost]:
    made = place.remote()
    yield made
    made.close()


def failure(call: Callable[[], object], kind: type[VolgateError]) -> VolgateError:
    with pytest.raises(kind) as raised:
        call()
    return raised.value


def plan(alias: str, domain: str) -> AttachPlan:
    where = LocalFile("/nowhere/v.qcow2", Format.QCOW2, FileIdentity(1, 2, "u"), "/nowhere", "/nowhere/tag", 1 << 20)
    return AttachPlan("a", alias, domain, where, DiskOptions(), "pools/p/volumes/v")


def test_calls_of_the_host_interface_are_answered_as_here(remote):
    (domain,) = remote.list_domains(timeout=SECONDS)
    assert (domain.name, domain.active) == ("test", True)
    assert remote.find_domain("test", timeout=SECONDS) == domain
    missing = failure(lambda: remote.find_domain("nobody", timeout=SECONDS), NotFound)
    assert missing.reason == "DOMAIN_NOT_FOUND" and "nobody" in missing.message
    assert remote.our_disks(timeout=SECONDS) == []
    assert remote.leftovers(["/dev/disk/by-id/scsi-1"], apply=True, timeout=SECONDS) == []
    assert remote.halted(timeout=SECONDS) == []
    assert remote.resume(domain.uuid, timeout=SECONDS) is False, "no I/O error stopped it"


def test_a_volume_that_is_not_connected_is_let_go_of_also_there_and_an_older_host_says_what_it_lacks(place, remote, monkeypatch):
    source = "/dev/disk/by-id/dm-uuid-mpath-36001405aaaaaaaaaaaaaaaaaaaaaaaaf"
    for _ in range(2):
        remote.release(source, timeout=SECONDS)
    remote.grow(source, 1 << 20, timeout=SECONDS)
    assert source not in remote.held(timeout=SECONDS)
    released = place.remote(released=True)
    released.release(source, timeout=SECONDS)
    released.close()
    monkeypatch.setitem(METHODS, "held_by_a_later_version", replace(METHODS["held"], name="held_by_a_later_version"))
    said = failure(lambda: remote._call("held_by_a_later_version", SECONDS), Precondition)
    assert said.reason == "HOST_PROTOCOL" and "run the same volgate" in said.message


def test_a_late_attach_by_an_alias_that_was_given_up_is_refused_also_by_the_next_process(place, remote):
    alias, domain = f"ua-vg-{uuid.uuid4().hex[:8]}-late", str(uuid.uuid4())
    assert remote.detach(domain, alias, "/nowhere/v.qcow2", timeout=SECONDS) is DetachOutcome.GONE
    late = failure(lambda: remote.attach(plan(alias, domain), timeout=SECONDS), Precondition)
    assert late.reason == "ALIAS_WITHDRAWN"
    other = failure(lambda: remote.attach(plan(f"{alias}r", domain), timeout=SECONDS), VolgateError)
    assert other.reason != "ALIAS_WITHDRAWN"
    place.again()
    fresh = place.remote()
    late = until(lambda: _served(lambda: fresh.attach(plan(alias, domain), timeout=SECONDS)))
    assert late.reason == "ALIAS_WITHDRAWN"
    fresh.close()


def test_of_a_host_that_dies_a_change_is_in_doubt_and_a_look_is_not(place):
    with ThreadPoolExecutor(2) as threads:
        remote = place.remote()
        remote.list_domains(timeout=SECONDS)
        place.process.send_signal(signal.SIGSTOP)
        change = threads.submit(remote.detach, "d", "ua-vg-x", "/x", timeout=30.0)
        look = threads.submit(remote.presence, "d", "ua-vg-x", "/x", timeout=30.0)
        time.sleep(0.3)  # for them to be on their way; were they not, the answers would be the same
        place.again()
        assert failure(lambda: change.result(SECONDS), InDoubt).reason == "IN_DOUBT"
        assert failure(lambda: look.result(SECONDS), Unreachable).reason == "HOST_DOWN"
        remote.close()


def _served(call: Callable[[], object]) -> VolgateError | None:
    """What a host that serves raises; None while it does not yet."""
    error = failure(call, VolgateError)
    return None if error.reason == "HOST_DOWN" else error


def test_a_host_that_is_dead_or_released_is_not_called(place):
    dead, released = place.remote(live=False), place.remote(released=True)
    error = failure(lambda: dead.detach("d", "ua-vg-x", "/x", timeout=SECONDS), Unreachable)
    assert error.reason == "HOST_DOWN" and "volgate host release node --assume-off" in error.message
    assert released.detach("d", "ua-vg-x", "/x", timeout=SECONDS) is DetachOutcome.GONE
    assert not released.presence("d", "ua-vg-x", "/x", timeout=SECONDS).domain_exists
    assert failure(lambda: released.find_domain("test", timeout=SECONDS), Precondition).reason == "HOST_RELEASED"


def test_a_controller_calls_no_certificate_of_another_name(place):
    stranger = place.remote("other")
    error = failure(lambda: stranger.attach(plan("ua-vg-x", "test"), timeout=1.0), Unreachable)
    assert error.reason == "HOST_DOWN" and "Hostname Verification" in error.message
    stranger.close()


def test_a_controllers_certificate_is_renewed_between_its_calls(place, tmp_path):
    """Also while its files are away for a moment; that the new ones are used, a role shows that may not call."""
    shown = Pair(tmp_path / "shown.crt", tmp_path / "shown.key")

    def renew(stem: str) -> None:
        for kind, target in (("crt", shown.certificate), ("key", shown.key)):
            shutil.copy(place.pki.folder / f"{stem}.{kind}", target)

    renew("controller-c1")
    host = place.remote(pair=shown)
    assert host.list_domains(timeout=SECONDS)
    shown.certificate.unlink()
    assert host.list_domains(timeout=SECONDS)
    place.pki.authority.both("controller", "c2", ADDRESSES, 10)
    renew("controller-c2")
    assert host.list_domains(timeout=SECONDS)
    place.pki.client("viewer", "late")
    renew("viewer-late")
    assert failure(lambda: host.list_domains(timeout=SECONDS), VolgateError).reason == "ROLE_TOO_SMALL"
    renew("controller-c2")
    assert host.list_domains(timeout=SECONDS)
    host.close()


def test_a_host_takes_calls_of_its_own_gateway_alone(place):
    foreign = place.remote(instance=str(uuid.uuid4()))
    error = failure(lambda: foreign.list_domains(timeout=SECONDS), VolgateError)
    assert error.reason == "HOST_OF_ANOTHER"
    foreign.close()


@pytest.mark.parametrize("role", ["admin", "operator", "viewer", "host"])
def test_other_roles_get_nothing_of_a_host(place, role):
    with place.channel(place.pki.client(role, "somebody")) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        for call, request in ((stub.Call, agent_pb2.CallRequest()), (stub.Listen, agent_pb2.ListenRequest())):
            said = refused(call, request, timeout=SECONDS)
            assert (said.code, said.reason) == ("PERMISSION_DENIED", "ROLE_TOO_SMALL")


def test_what_a_call_says_of_itself_must_be_right(place):
    right = agent_pb2.Speaker(protocol=PROTOCOL, instance=place.instance, session=place.session)
    pair = Pair(place.pki.folder / "controller-c1.crt", place.pki.folder / "controller-c1.key")
    with place.channel(pair) as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Call
        wrong = {
            "HOST_PROTOCOL": (agent_pb2.Speaker(protocol=PROTOCOL + 1, instance=place.instance, session=place.session), "list_domains", {}),
            "HOST_STALE": (agent_pb2.Speaker(protocol=PROTOCOL, instance=place.instance, session="old"), "list_domains", {}),
            "INVALID_FIELD": (right, "close", {}),
        }
        for reason, (speaker, method, arguments) in wrong.items():
            said = refused(call, agent_pb2.CallRequest(speaker=speaker, method=method, arguments=arguments), timeout=SECONDS)
            assert said.reason == reason
        for arguments in ({}, {"timeout": b"\xc1"}, {"timeout": b"\x01", "more": b"\x01"}):
            answer = call(agent_pb2.CallRequest(speaker=right, method="list_domains", arguments=arguments), timeout=SECONDS)
            assert b"INVALID_FIELD" in answer.failure


def test_a_host_serves_what_its_table_says_and_nothing_of_the_contract(place):
    services = {method.rpartition("/")[0] for method in AGENT}
    assert services == {"/volgate.v1.AgentService", "/grpc.health.v1.Health"}
    with place.channel(place.pki.client("admin", "alice")) as channel:
        said = refused(pool_pb2_grpc.PoolServiceStub(channel).ListPools, pool_pb2.ListPoolsRequest(), timeout=SECONDS)
        assert said.code == "UNIMPLEMENTED"
    assert {"attach", "detach", "presence", "our_disks"} <= set(METHODS) and "close" not in METHODS


def test_events_come_through_the_stream_which_begins_with_a_reconnection(remote):
    heard: list[HostEvent] = []
    remote.subscribe(heard.append)
    remote.list_domains(timeout=SECONDS)
    until(lambda: EventKind.RECONNECTED in [event.kind for event in heard])


def test_a_host_of_this_process_is_neither_released_nor_removed_and_its_name_not_taken():
    with tempfile.TemporaryDirectory(prefix="vg-agent-", dir="/tmp") as folder:
        pki = Pki(Path(folder) / "pki")
        pki.authority.both("controller", "c1", ADDRESSES, 10)
        pki.authority.client("host", "node", [], [], 10)
        config = CONFIG.format(role="all", pki=pki.folder, certificate="controller-c1") + '[hosts.node]\nuri = "test:///default"\n'
        server = Server(Path(folder) / "state", config=config).start()
        with server.client() as client:
            (ours,) = client.list_hosts()
            credentials = pki.credentials(Pair(pki.folder / "host-node.crt", pki.folder / "host-node.key"))
            with grpc.secure_channel(Loopback.bound(server.log), credentials) as channel:
                asked = host_pb2.RegisterHostRequest(name="hosts/node", address="127.0.0.1:1", session="s", protocol=PROTOCOL)
                said = refused(host_pb2_grpc.HostServiceStub(channel).RegisterHost, asked)
                assert (said.code, said.reason) == ("ALREADY_EXISTS", "HOST_NAME_TAKEN")
        with Wire(server.address) as wire:
            release = host_pb2.ReleaseHostRequest(name=ours.name, assume_off=True)
            assert refused(wire.hosts.ReleaseHost, release).reason == "HOST_LIVE"
            assert refused(wire.hosts.RemoveHost, host_pb2.RemoveHostRequest(name=ours.name)).code == "FAILED_PRECONDITION"
        assert server.stop() == 0
