"""A controller and its hosts, each in a network of its own, with real guests: what is done, and what breaks in the middle of it."""

from __future__ import annotations

import uuid

import pytest

from tests.edge.wire import refused
from tests.hosts.visit import MIB, PATIENCE, SHARED, Visit, frozen_qemu, steps_of
from tests.labs.site import HostNode, until
from tests.recovery.calls import POOL, Call, volume_name
from volgate.v1 import attachment_pb2, host_pb2, volume_pb2

DOWN = attachment_pb2.REDUNDANCY_DOWN
LOST = attachment_pb2.ATTACHMENT_STATE_LOST
WIRE_SECONDS = 30


def test_a_guest_on_a_remote_host_is_served_like_one_here(visit: Visit):
    name, guest = visit.create(), visit.h1.guest
    assert guest
    record = visit.attached(name, visit.h1)
    disk = guest.wait_disk(record.options.serial)
    assert disk
    guest.run(f"echo before >{disk.device}; sync")
    visit.caller(Call("snapshot", {"volume": volume_name(name), "snapshot_id": "s", "quiesce": True, "request_id": f"s-{name}"}))
    guest.run(f"echo after >{disk.device}; sync")
    visit.caller(Call("expand", {"name": volume_name(name), "size_bytes": 2 * MIB, "request_id": f"e-{name}"}))
    until(lambda: [disk.size for disk in guest.disks()] == [2 * MIB])
    limits = volume_pb2.Qos(total_iops_sec=1000)
    visit.caller(Call("update", {"name": volume_name(name), "keep_labels": True, "qos": limits, "request_id": f"q-{name}"}))
    paths = visit.caller.attachments.ListPaths(attachment_pb2.ListPathsRequest(name=record.name), timeout=WIRE_SECONDS).paths
    assert {"file", "image", "libvirt"} <= {path.transport for path in paths}
    assert not [path for path in paths if path.last_error]
    visit.caller(visit.detach(record.name))
    visit.sees(visit.h1, set())
    assert visit.caller.content(name).startswith(b"after\n")
    assert visit.caller.content(f"{volume_name(name)}/snapshots/s").startswith(b"before\n")
    done = [(step.kind, step.outcome) for step in steps_of(visit.h1, record.alias)]
    assert done == [("attach", "done"), ("switch_overlay", "done"), ("resize", "done"), ("limit", "done"), ("detach", "done")]


def test_the_paths_of_a_remote_host_are_watched_through_its_absence(visit: Visit):
    name, attachments = visit.attached(visit.create(), visit.h1).name, visit.caller.attachments
    seen = attachments.WatchPaths(attachment_pb2.WatchPathsRequest(name=name), timeout=2 * PATIENCE)
    first = next(seen)
    assert first.redundancy != DOWN and {path.transport for path in first.paths} >= {"file", "libvirt"}
    visit.h1.port.cut()
    while (told := next(seen)).redundancy != DOWN:
        pass
    assert "hosts/h1" in "".join(path.last_error for path in told.paths), told
    visit.h1.port.heal()
    visit.h1.wait_live()
    while (told := next(seen)).redundancy == DOWN:
        pass
    assert not [path for path in told.paths if path.last_error]
    seen.cancel()
    visit.usable(visit.h1)


def test_a_host_tells_who_it_is(visit: Visit):
    node, host = visit.h1, visit.host(visit.h1)
    assert (host.machine_id, host.boot_id, host.iqn) == (node.machine_id, node.boot_id, node.iqn)
    assert (host.nqn, host.nvme_host_id) == (node.nqn, node.nvme_host_id)
    assert host.address.startswith(node.port.address)
    assert host.libvirt_version and host.qemu_version and host.version and "blockdev" in host.features
    found = visit.site.controller.wire.hosts.GetHost(host_pb2.GetHostRequest(name=host.name), timeout=WIRE_SECONDS).host
    assert node.guest
    assert [domain.name for domain in found.domains] == [node.guest.name]


def test_what_a_host_does_not_have_is_empty(visit: Visit):
    host = visit.host(visit.h3)
    assert (host.iqn, host.nqn, host.nvme_host_id) == ("", "", "")
    assert host.machine_id == visit.h3.machine_id


def test_a_volume_is_written_on_one_host_at_a_time(visit: Visit):
    name = visit.create()
    record = visit.attached(name, visit.h1)
    error = visit.refused(visit.attach(name, visit.h2))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert "guest-h1" in error.message
    visit.caller(visit.detach(record.name))
    visit.attached(name, visit.h2)
    visit.sees(visit.h1, set())


def prepared(visit: Visit, verb: str) -> tuple[str, Call]:
    """A volume's serial and the call on it."""
    name = visit.create()
    if verb == "attach":
        uid = visit.caller.volume(name).uid
        return f"vg-{uid.replace('-', '')[:17]}", visit.attach(name, visit.h1)
    record = visit.attached(name, visit.h1)
    return record.options.serial, visit.detach(record.name)


def ended(visit: Visit, verb: str, serial: str, call: Call) -> None:
    """The call has had its effect once, and a repeat is answered alike."""
    answer = visit.caller(call)
    visit.caller.settle(PATIENCE)
    visit.sees(visit.h1, {serial} if verb == "attach" else set())
    assert len(visit.caller.list_attachments()) == (verb == "attach")
    assert visit.caller(call) == answer


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_a_host_that_is_killed_in_the_middle_mends_it_and_the_call_ends(visit: Visit, verb: str):
    serial, call = prepared(visit, verb)
    with frozen_qemu(visit.h1):
        running = visit.begun(call)
        until(lambda: [step.kind for step in steps_of(visit.h1)] == [verb], what="the step's record")
        visit.h1.kill9()
    visit.h1.start()
    running.result(PATIENCE)
    ended(visit, verb, serial, call)
    assert steps_of(visit.h1) == []


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_a_controller_that_is_killed_in_the_middle_finishes_it(visit: Visit, verb: str):
    serial, call = prepared(visit, verb)
    with frozen_qemu(visit.h1):
        running = visit.begun(call)
        until(lambda: [step.kind for step in steps_of(visit.h1)] == [verb], what="the step's record")
        visit.site.controller.kill9()
    visit.site.controller.start()
    running.result(PATIENCE)
    ended(visit, verb, serial, call)


def test_a_call_whose_answer_was_lost_is_in_doubt_until_the_link_is_back(visit: Visit):
    serial, call = prepared(visit, "attach")
    with frozen_qemu(visit.h1):
        running = visit.begun(call)
        until(lambda: [step.kind for step in steps_of(visit.h1)] == ["attach"], what="the step's record")
        visit.h1.port.cut()
    until(lambda: visit.in_doubt(call), PATIENCE, "the doubt")
    visit.sees(visit.h1, {serial}, "it took effect, which nobody told")
    visit.h1.port.heal()
    running.result(PATIENCE)
    ended(visit, "attach", serial, call)


def refused_as(node: HostNode, reason: str) -> str:
    """Wait until a host's own log says that it is not taken in; return why."""
    until(lambda: node.runs and node.lines("not registered, nothing is served"), what=f"{node.name}: {node.tail()[-500:]}")
    told = str(node.lines("not registered, nothing is served")[-1]["error"])
    assert reason in told
    return told


def test_a_cloned_machine_is_refused_and_told_whose_clone_it_is(visit: Visit):
    site = visit.site
    for word, shown in (("machine_id", "machine id"), ("iqn", "iSCSI initiator name"), ("nvme_host_id", "NVMe host id")):
        clone = site.add(f"clone-{word.replace('_', '-')}")
        setattr(clone, word, getattr(visit.h1, word))
        clone.spawn()
        told = refused_as(clone, f"{shown} {getattr(visit.h1, word)} of hosts/h1")
        assert "live" in told
        assert site.controller.host(clone.name) is None
        clone.kill9()
        del site.hosts[clone.name]


def test_another_machine_does_not_take_the_name_of_a_live_host(visit: Visit):
    site = visit.site
    other = site.add("other")
    other.name, other.certificate = "h1", "host-h1"
    other.spawn()
    refused_as(other, f"hosts/h1 is machine {visit.h1.machine_id} and still sends heartbeats")
    assert visit.host(visit.h1).boot_id == visit.h1.boot_id
    other.kill9()
    other.name, other.certificate = "h1", "host-other"
    other.log.unlink()
    other.spawn()
    assert "hosts/h1" in refused_as(other, "outside of the pools and hosts that the certificate of host:other names")
    other.kill9()
    del site.hosts["other"]


def test_a_process_at_the_address_of_a_host_without_its_certificate_gets_no_call(visit: Visit):
    name = visit.create()
    visit.h1.kill9()
    visit.h1.certificate = "host-h2"
    visit.h1.spawn()
    try:
        refused_as(visit.h1, "certificate of host:h2")
        error = visit.refused(visit.attach(name, visit.h1))
        assert (error.code, error.reason) == ("UNAVAILABLE", "HOST_DOWN")
    finally:
        visit.h1.kill9()
        visit.h1.certificate = "host-h1"
        visit.h1.log.unlink()


def test_a_host_that_rebooted_is_compared_with_its_attachments(visit: Visit):
    name, guest = visit.create(), visit.h1.guest
    assert guest
    record = visit.attached(name, visit.h1)
    visit.h1.reboot()
    guest.connection.defineXML(guest.xml)  # a machine that forgot its domains' disks
    visit.h1.start()
    until(lambda: [one.state for one in visit.caller.list_attachments()] == [LOST], what="the loss")
    guest.start()
    again = visit.attached(name, visit.h1)
    assert again.name == record.name and again.alias != record.alias


def test_a_cordoned_host_lists_what_must_move_and_takes_nothing_new(visit: Visit):
    name, other = visit.create(), visit.create()
    record = visit.attached(name, visit.h1)
    answer = visit.cordon(visit.h1)
    assert answer.host.cordoned and list(answer.attachments) == [record.name]
    error = visit.refused(visit.attach(other, visit.h1))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "HOST_CORDONED")
    visit.site.controller.again()
    assert visit.host(visit.h1).cordoned, "also after a restart"
    visit.caller(visit.detach(record.name))
    assert list(visit.cordon(visit.h1).attachments) == []
    visit.cordon(visit.h1, uncordon=True)
    visit.attached(other, visit.h1)


def test_a_dead_host_is_released_and_cleaned_when_it_comes_back(visit: Visit):
    wire, hosts = visit.site.controller.wire, visit.site.controller.wire.hosts
    moved, kept = visit.create(raw=True), visit.create()
    records = [visit.attached(moved, visit.h1, access=SHARED), visit.attached(kept, visit.h1)]
    release = host_pb2.ReleaseHostRequest(name="hosts/h1", assume_off=True)
    said = refused(hosts.ReleaseHost, release)
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "HOST_LIVE")
    assert refused(hosts.RemoveHost, host_pb2.RemoveHostRequest(name="hosts/h1")).reason == "HOST_LIVE"
    visit.h1.port.cut()
    visit.h1.wait_dead()
    for call in (visit.detach(records[0].name), visit.attach(visit.create(), visit.h1)):
        error = visit.refused(call)
        assert (error.code, error.reason) == ("UNAVAILABLE", "HOST_DOWN")
        assert "ReleaseHost" in error.message
    assert refused(hosts.ReleaseHost, host_pb2.ReleaseHostRequest(name="hosts/h1")).fields == ["assume_off"]
    answer = hosts.ReleaseHost(release, timeout=WIRE_SECONDS)
    assert set(answer.attachments) == {record.name for record in records} and answer.host.released
    assert list(hosts.ReleaseHost(release, timeout=WIRE_SECONDS).attachments) == [], "a repeat has nothing left to do"
    assert visit.refused(visit.attach(moved, visit.h1)).reason == "HOST_RELEASED"
    elsewhere = visit.attached(moved, visit.h2, access=SHARED)
    visit.site.controller.again()
    visit.h1.port.heal()
    visit.h1.wait_live()
    visit.usable(visit.h1)
    visit.sees(visit.h1, {records[1].options.serial}, "what is elsewhere was taken, the other one is on record again")
    visit.sees(visit.h2, {elsewhere.options.serial})
    assert "was taken from domain guest-h1: it is attached to domain guest-h2 of hosts/h2" in visit.host(visit.h1).problem
    until(lambda: len(visit.caller.list_attachments()) == 2, what="the record of the other one")
    assert {record.host for record in visit.caller.list_attachments()} == {"hosts/h1", "hosts/h2"}
    assert wire.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS).host.live


def test_a_host_is_removed_when_it_is_dead_and_frees_what_it_was(visit: Visit):
    site, hosts = visit.site, visit.site.controller.wire.hosts
    remove = host_pb2.RemoveHostRequest(name="hosts/h3")
    visit.h3.stop()
    visit.h3.wait_dead()
    heir = site.add("heir")
    heir.machine_id = visit.h3.machine_id
    heir.spawn()
    refused_as(heir, "which is known; remove it first if it is gone")
    hosts.RemoveHost(remove, timeout=WIRE_SECONDS)
    hosts.RemoveHost(remove, timeout=WIRE_SECONDS)  # there is none: success
    assert site.controller.host("h3") is None
    heir.kill9()
    heir.start()
    heir.kill9()
    del site.hosts["heir"]
    visit.h3.machine_id = uuid.uuid4().hex


def test_a_controller_that_lost_its_database_learns_from_its_hosts_what_is_attached(visit: Visit):
    names = [visit.create(), visit.create()]
    records = [visit.attached(name, node) for name, node in zip(names, (visit.h1, visit.h2), strict=True)]
    visit.site.controller.kill9()
    for path in visit.site.controller.state.glob("volgate.db*"):
        path.unlink()
    visit.site.controller.start()
    assert visit.refused(Call("delete", {"name": volume_name(names[0]), "request_id": "early"})).code in (
        "UNAVAILABLE",
        "FAILED_PRECONDITION",
    )
    until(lambda: {one.name for one in visit.caller.list_attachments()} == {record.name for record in records}, PATIENCE)
    for record in records:
        visit.caller(visit.detach(record.name))
    assert visit.serials(visit.h1) | visit.serials(visit.h2) == set()


def test_many_volumes_come_and_go_on_both_hosts_at_once(visit: Visit):
    names = [visit.create() for _ in range(4)]
    attaching = [visit.begun(visit.attach(name, node)) for name, node in zip(names, (visit.h1, visit.h2) * 2, strict=True)]
    records = [running.result(PATIENCE).attachment for running in attaching]
    assert [record.host for record in records] == ["hosts/h1", "hosts/h2"] * 2
    for running in [visit.begun(visit.detach(record.name)) for record in records]:
        running.result(PATIENCE)
    assert visit.caller.list_attachments() == []
    assert POOL == "pools/p"
