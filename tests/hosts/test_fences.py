"""A lost host is fenced: its volumes go elsewhere, nothing goes to it, and it is let in once nothing of what was fenced runs there."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.edge.wire import refusal, refused
from tests.hosts.visit import PATIENCE, Visit
from tests.labs.site import HostNode, until
from tests.plugins.memory_rig import Array
from volgate.v1 import attachment_pb2, host_pb2

SIM = "pools/sim"
WIRE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def unfenced(visit: Visit) -> Iterator[None]:
    """Each test leaves every host let in, and rid of what was fenced."""
    yield
    hosts = visit.site.controller.wire.hosts
    for node in (visit.h1, visit.h3):
        node.port.heal()
        node.wait_live()
        if node is visit.h1 and visit.host(node).fenced_pools:
            hosts.ReleaseHost(host_pb2.ReleaseHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
        until(lambda: let_in(visit, node), PATIENCE, f"the end of the fence of {node.name}")  # noqa: B023  # called at once


def let_in(visit: Visit, node: HostNode) -> bool:
    """Let a host in, if nothing of what was fenced runs there any more."""
    try:
        request = host_pb2.UnfenceHostRequest(name=f"hosts/{node.name}")
        visit.site.controller.wire.hosts.UnfenceHost(request, timeout=WIRE_SECONDS)
    except grpc.RpcError as error:
        assert refusal(error).reason in ("IN_USE", "HOST_DOWN", "HOST_RELEASED", "UNREACHABLE", "HOST_STALE"), error
        return False
    return True


def fence(visit: Visit, *addresses: str, host: str = "h1") -> host_pb2.FenceHostResponse:
    request = host_pb2.FenceHostRequest(name=f"hosts/{host}", addresses=addresses)
    return visit.site.controller.wire.hosts.FenceHost(request, timeout=WIRE_SECONDS)


def problems(visit: Visit) -> dict[str, str]:
    """What is told to be wrong with each attachment."""
    request = attachment_pb2.ListAttachmentsRequest()
    return {one.volume: one.problem for one in visit.site.controller.wire.attachments.ListAttachments(request).attachments}


def given(visit: Visit, name: str) -> attachment_pb2.Attachment:
    """Attach to h2's guest, as far as the controller goes: both QEMUs are on one machine, where the file's own lock keeps them apart."""
    call = visit.attach(name, visit.h2, pool=SIM)
    call.fields["prepare_only"] = True
    return visit.caller(call).attachment


def held(visit: Visit, array: Array) -> str:
    """A volume that h1's guest has, and of which the array sees h1's client."""
    name = visit.create(raw=True, pool=SIM)
    visit.attached(name, visit.h1, pool=SIM)
    array.ask("open_volume", str, volume=name, address=visit.h1.port.address, locks=True)
    return name


def test_a_fenced_host_s_volumes_go_elsewhere_and_it_is_cleaned_before_it_is_let_in(visit: Visit, array: Array):
    hosts = visit.site.controller.wire.hosts
    moved, other = held(visit, array), visit.create()
    stays = visit.attached(other, visit.h1)
    said = visit.refused(visit.attach(moved, visit.h2, pool=SIM))
    assert (said.reason, "hosts/h1" in said.message, "FenceHost" in said.message) == ("IN_USE", True, True)
    answer = fence(visit)
    assert list(answer.addresses) == [visit.h1.port.address] == array.status().fenced
    assert list(answer.host.fenced_pools) == [SIM] and list(answer.unfenced_attachments) == [stays.name]
    told = problems(visit)
    assert "hosts/h1 is fenced" in told[f"{SIM}/volumes/{moved}"] and "UnfenceHost" in told[f"{SIM}/volumes/{moved}"]
    assert [problem for volume, problem in told.items() if not volume.startswith(SIM)] == [""], "a pool that keeps nobody out"
    running = refused(hosts.UnfenceHost, host_pb2.UnfenceHostRequest(name="hosts/h1"), timeout=PATIENCE)
    assert running.reason == "IN_USE" and ("domain", "guest-h1") in [holder[:2] for holder in running.holders]
    elsewhere = given(visit, moved)
    assert visit.refused(visit.attach(visit.create(), visit.h1)).reason == "HOST_FENCED"
    assert visit.refused(visit.attach(other, visit.h2)).reason == "IN_USE", "that pool keeps nobody out"
    assert refused(hosts.ReleaseHost, host_pb2.ReleaseHostRequest(name="hosts/h1")).fields == ["assume_off"], "for the same reason"
    visit.site.controller.again()
    assert list(visit.host(visit.h1).fenced_pools) == [SIM], "also after a restart"
    visit.h1.wait_live()
    hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/h1"), timeout=PATIENCE)
    assert "was taken from domain guest-h1" in visit.host(visit.h1).problem, "what is elsewhere, before the host was let in"
    visit.sees(visit.h1, {stays.options.serial})
    assert not visit.host(visit.h1).fenced_pools and array.status().fenced == []
    assert len(visit.caller.list_attachments()) == 2, "nothing else is on record"
    for record in (elsewhere, stays):
        visit.caller(visit.detach(record.name))
    visit.usable(visit.h1)
    visit.attached(moved, visit.h1, pool=SIM)


def test_a_dead_host_is_fenced_and_let_in_by_the_word_of_an_operator(visit: Visit, array: Array):
    hosts, name = visit.site.controller.wire.hosts, held(visit, array)
    visit.h1.port.cut()
    visit.h1.wait_dead()
    assert list(fence(visit, "192.0.2.7", "192.0.2.7").addresses) == ["192.0.2.7"]
    assert list(fence(visit).addresses) == [visit.h1.port.address], "a repeat without addresses looks again, and keeps those"
    assert array.status().fenced == [visit.h1.port.address, "192.0.2.7"]
    given(visit, name)
    assert refused(hosts.RemoveHost, host_pb2.RemoveHostRequest(name="hosts/h1")).reason == "IN_USE"
    down = refused(hosts.UnfenceHost, host_pb2.UnfenceHostRequest(name="hosts/h1"))
    assert (down.code, down.reason, "assume-restarted" in down.message) == ("UNAVAILABLE", "HOST_DOWN", True)
    plan = host_pb2.UnfenceHostRequest(name="hosts/h1", assume_restarted=True, validate_only=True)
    assert list(hosts.UnfenceHost(plan, timeout=WIRE_SECONDS).plan.steps) == [f"unfence {visit.h1.port.address}, 192.0.2.7 in sim"]
    visit.h1.kill9()
    visit.h1.reboot()
    hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/h1", assume_restarted=True), timeout=WIRE_SECONDS)
    assert array.status().fenced == []
    visit.h1.port.heal()
    visit.h1.spawn()


def test_a_fence_goes_on_after_a_kill_and_holds_off_what_is_attached_meanwhile(visit: Visit, array: Array):
    name = held(visit, array)
    array.fault("hang", "fence", count=1, after=True)
    running = visit.site.controller.wire.hosts.FenceHost.future(host_pb2.FenceHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
    until(lambda: not array.status().faults, PATIENCE)
    assert visit.refused(visit.attach(visit.create(), visit.h1)).reason == "HOST_FENCED"
    assert visit.refused(visit.attach(name, visit.h2, pool=SIM)).reason == "IN_USE", "it is not proven yet"
    assert "repeat FenceHost" in problems(visit)[f"{SIM}/volumes/{name}"]
    visit.site.controller.kill9()
    array.ask("clear_faults", int, verb="*")
    assert isinstance(running.exception(), grpc.RpcError)
    visit.site.controller.start()
    visit.caller.settle(PATIENCE)
    assert list(visit.host(visit.h1).fenced_pools) == [SIM]
    given(visit, name)


def test_nobody_fences_the_gateway_s_own_address_or_without_one(visit: Visit):
    hosts = visit.site.controller.wire.hosts
    own = refused(hosts.FenceHost, host_pb2.FenceHostRequest(name="hosts/h1", addresses=["127.0.0.1"]))
    assert (own.code, own.reason) == ("FAILED_PRECONDITION", "FENCE_SELF")
    assert not visit.host(visit.h1).fenced_pools, "what was refused is no fence"
    request = host_pb2.UnfenceHostRequest(name="hosts/h1", assume_restarted=True)
    assert not hosts.UnfenceHost(request, timeout=WIRE_SECONDS).host.fenced_pools
    assert list(fence(visit, host="h3").addresses) == [visit.h3.port.address], "of a host without attachments, its own"
    hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/h3", assume_restarted=True), timeout=WIRE_SECONDS)
