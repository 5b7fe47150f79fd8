"""Who may call what: every role at every method, scopes, another's request_id, and what the audit has of it."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.edge.deeds import Deed, deed, prepared, streaming
from tests.edge.place import MIB, parts
from tests.edge.secured import CONFIG, Secured, secured
from tests.edge.wire import Wire, refusal, refused
from volgate.edge.identity import Role
from volgate.edge.policy import POLICY
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2
from volgate_client import Client

RAW = volume_pb2.VOLUME_FORMAT_RAW
DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
SCOPES = {Role.ORCHESTRATOR: (("main", "shallow", "sim"), ("lab",))}


@pytest.fixture(scope="module")
def place() -> Iterator[Secured]:
    with secured("host_dead_seconds = 0.3") as made:
        yield made
        assert made.server.stop() == 0


def reflected(wire: Wire) -> set[str]:
    """Every method that the server says it serves."""

    def ask(**question):
        request = reflection_pb2.ServerReflectionRequest(**question)
        (answer,) = wire.reflection.ServerReflectionInfo(iter([request]), timeout=10)
        return answer

    found = set()
    for service in ask(list_services="").list_services_response.service:
        for blob in ask(file_containing_symbol=service.name).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(blob)
            for kind in file.service:
                if f"{file.package}.{kind.name}" == service.name:
                    found |= {f"/{service.name}/{method.name}" for method in kind.method}
    return found


def test_the_table_has_exactly_the_methods_that_are_served(place):
    assert reflected(place.wire) == set(POLICY)
    assert reflected(place.by("admin", "alice")) == set(POLICY)


@pytest.mark.parametrize("method", POLICY)
def test_a_role_may_call_what_the_table_says_and_a_denied_call_changes_nothing(place, method):
    rule = POLICY[method]
    for role in Role:
        wire = place.by(role, "someone", *SCOPES.get(role, ()))
        made = deed(place, method)
        made.request = streaming(made.request)
        if role in rule.roles:
            own = role is Role.ORCHESTRATOR and "OperationService/" in method and "List" not in method
            assert made.done(wire) == ("NOT_FOUND" if own else "OK"), role
            continue
        before = place.picture()
        said = made.refused(wire)
        if not rule.roles:
            assert said.code == "UNIMPLEMENTED"
            continue
        assert (said.code, said.reason, said.domain) == ("PERMISSION_DENIED", "ROLE_TOO_SMALL", "volgate"), role
        assert f"{role}:someone may not call {method}" in said.message
        assert place.picture() == before, role
        line = place.line("call", call=said.trailers["x-request-id"])
        assert (line["principal"], line["method"], line["denied"], line["reason"]) == (
            f"{role}:someone",
            method[1:],
            True,
            "ROLE_TOO_SMALL",
        )
        named = {"name", "pool", "volume", "parent"} & set(rule.names) and not isinstance(made.request, type(iter([])))
        assert bool(line["target"]) is bool(named), "what it was about"


def test_bytes_that_are_no_message_are_judged_by_the_role_first(place):
    for role, code in (("viewer", "PERMISSION_DENIED"), ("operator", "INVALID_ARGUMENT")):
        call = place.by(role, "garbage").channel.unary_unary("/volgate.v1.VolumeService/DeleteVolume")
        assert refused(call, b"\xff\xff\xff", timeout=5).code == code


# -- scopes


@pytest.fixture(scope="module")
def nova(place) -> Wire:
    """An orchestrator of one pool and one host."""
    return place.by("orchestrator", "nova", ("main",), ("lab",))


OUTSIDE = [
    Deed("pools.GetPool", pool_pb2.GetPoolRequest(name="pools/shallow")),
    Deed("pools.GetPool", pool_pb2.GetPoolRequest(name="pools/no-such-pool")),
    Deed("volumes.CreateVolume", volume_pb2.CreateVolumeRequest(pool="pools/shallow", volume_id="x", size_bytes=MIB)),
    Deed("volumes.CreateVolume", volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id="x", source="pools/shallow/volumes/theirs")),
    Deed(
        "volumes.CreateVolume",
        volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id="x", source="pools/shallow/volumes/theirs/snapshots/s1"),
    ),
    Deed("volumes.CreateVolume", volume_pb2.CreateVolumeRequest(pool="pools/shallow", volume_id="x", size_bytes=MIB, validate_only=True)),
    Deed("volumes.DeleteVolume", volume_pb2.DeleteVolumeRequest(name="pools/shallow/volumes/theirs")),
    Deed("volumes.DeleteVolume", volume_pb2.DeleteVolumeRequest(name="/pools/shallow/volumes/theirs")),
    Deed("volumes.GetVolume", volume_pb2.GetVolumeRequest(name="pools/shallow/volumes/theirs")),
    Deed("volumes.GetVolume", volume_pb2.GetVolumeRequest(name="pools/shallow/volumes/theirs", refresh=True)),
    Deed("volumes.ListVolumes", volume_pb2.ListVolumesRequest(pool="pools/shallow")),
    Deed("volumes.ExpandVolume", volume_pb2.ExpandVolumeRequest(name="pools/shallow/volumes/theirs", size_bytes=64 * MIB)),
    Deed("volumes.UpdateVolume", volume_pb2.UpdateVolumeRequest(name="pools/shallow/volumes/theirs", labels={"a": "b"})),
    Deed("volumes.RevertVolume", volume_pb2.RevertVolumeRequest(name="pools/shallow/volumes/theirs", snapshot="s1", request_id="r")),
    Deed("volumes.ImportVolume", [volume_pb2.ImportVolumeRequest(header=volume_pb2.ImportHeader(pool="pools/shallow", volume_id="x"))]),
    Deed(
        "volumes.ImportVolume",
        [volume_pb2.ImportVolumeRequest(header=volume_pb2.ImportHeader(pool="pools/main", volume_id="x", path="/tmp/x.img"))],
    ),
    Deed("volumes.ExportVolume", volume_pb2.ExportVolumeRequest(name="pools/shallow/volumes/theirs")),
    Deed("volumes.ExportVolume", volume_pb2.ExportVolumeRequest(name="pools/main/volumes/ours", path="/tmp/x.img")),
    Deed("volumes.AdoptVolume", volume_pb2.AdoptVolumeRequest(pool="pools/shallow", locator="f.img", volume_id="x", format=RAW)),
    Deed("snapshots.CreateSnapshot", snapshot_pb2.CreateSnapshotRequest(volume="pools/shallow/volumes/theirs", snapshot_id="s9")),
    Deed("snapshots.CreateSnapshotGroup", snapshot_pb2.CreateSnapshotGroupRequest(pool="pools/shallow", snapshots={"theirs": "s9"})),
    Deed("volumes.ListChangedBlocks", volume_pb2.ListChangedBlocksRequest(name="pools/shallow/volumes/theirs")),
    Deed("snapshots.DeleteSnapshot", snapshot_pb2.DeleteSnapshotRequest(name="pools/shallow/volumes/theirs/snapshots/s1")),
    Deed("snapshots.GetSnapshot", snapshot_pb2.GetSnapshotRequest(name="pools/shallow/volumes/theirs/snapshots/s1")),
    Deed("snapshots.ListSnapshots", snapshot_pb2.ListSnapshotsRequest(parent="pools/shallow/volumes/theirs")),
    Deed(
        "attachments.AttachVolume",
        attachment_pb2.AttachVolumeRequest(volume="pools/shallow/volumes/theirs", host="hosts/lab", domain="test"),
    ),
    Deed(
        "attachments.AttachVolume", attachment_pb2.AttachVolumeRequest(volume="pools/main/volumes/ours", host="hosts/deaf", domain="test")
    ),
    Deed("attachments.ListAttachments", attachment_pb2.ListAttachmentsRequest(host="hosts/deaf")),
    Deed("attachments.ListAttachments", attachment_pb2.ListAttachmentsRequest(volume="pools/shallow/volumes/theirs")),
    Deed("attachments.ListPaths", attachment_pb2.ListPathsRequest(name="pools/shallow/volumes/theirs")),
    Deed("hosts.GetHost", host_pb2.GetHostRequest(name="hosts/deaf")),
    Deed("hosts.GetHost", host_pb2.GetHostRequest(name="hosts/no-such-host")),
]


@pytest.fixture(scope="module")
def both(place):
    """A volume with a snapshot and an attachment in the orchestrator's pool and in another."""
    found = {}
    for pool, name in (("main", "ours"), ("shallow", "theirs")):
        made = place.volume(pool=pool, volume_id=name)
        found[name] = (made.name, place.snapshot(made).name, prepared(place, made.name))
    return found


@pytest.mark.parametrize("wrong", OUTSIDE, ids=lambda wrong: f"{wrong.stub} {wrong.request}".replace("\n", " ")[:120])
def test_an_orchestrator_names_nothing_outside_of_its_pools_and_hosts(place, both, nova, wrong):
    before = place.picture()
    said = refused(wrong.method(nova), streaming(wrong.request))
    assert (said.code, said.reason) == ("PERMISSION_DENIED", "OUT_OF_SCOPE")
    assert said.fields, "which field it was"
    assert place.picture() == before
    assert place.line("call", call=said.trailers["x-request-id"])["denied"] is True


def test_a_name_that_only_looks_like_one_of_the_scope_is_none(place, both, nova):
    for name in (
        "pools/main/../shallow/volumes/theirs",
        "pools/main/volumes/../../shallow/volumes/theirs",
        "pools/main/volumes/a/volumes/b",
    ):
        assert refused(nova.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=name)).code == "INVALID_ARGUMENT"
    assert place.wire.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=both["theirs"][0], refresh=True)).volume.name


def test_every_field_that_names_a_pool_or_a_host_is_in_the_table():
    """A field that a request has and the table has not would be a way around the scope."""
    files = (pool_pb2, volume_pb2, snapshot_pb2, attachment_pb2, host_pb2, operation_pb2)
    looked_up = {"snapshot"}  # RevertVolume: of the same volume, or refused
    for file, service in itertools.chain.from_iterable(((f, s) for s in f.DESCRIPTOR.services_by_name.values()) for f in files):
        for method in service.methods:
            rule, kind = POLICY[f"/{service.full_name}/{method.name}"], method.input_type
            fields = [(field.name, field) for field in kind.fields]
            fields += [(f"header.{field.name}", field) for f in kind.fields if f.name == "header" for field in f.message_type.fields]
            comments = {name for name, field in fields if field.name in ("name", "pool", "source", "volume", "parent", "host", "snapshot")}
            assert comments - looked_up == set(rule.names), f"{file.DESCRIPTOR.name} {method.name}"
            assert {name for name, field in fields if field.name == "path"} == set(rule.paths), method.name


def test_lists_hold_what_lies_in_the_scope_page_by_page(place, both, nova):
    names = [place.volume(pool=pool, size=MIB).name for pool in ("shallow", "main", "shallow", "main", "main")]
    assert [pool.name for pool in nova.pools.ListPools(pool_pb2.ListPoolsRequest()).pools] == ["pools/main"]
    assert [host.name for host in nova.hosts.ListHosts(host_pb2.ListHostsRequest()).hosts] == ["hosts/lab"]
    everything = [v.name for v in place.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest()).volumes]
    assert set(names) <= set(everything)
    seen, token = [], ""
    while True:
        page = nova.volumes.ListVolumes(volume_pb2.ListVolumesRequest(page_size=2, page_token=token))
        seen += [v.name for v in page.volumes]
        if not (token := page.next_page_token):
            break
    assert seen == [name for name in everything if name.startswith("pools/main/")]
    assert seen == [v.name for v in nova.volumes.ListVolumes(volume_pb2.ListVolumesRequest()).volumes], "nor is it another's kept page"
    assert everything == [v.name for v in place.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest()).volumes]
    cuts = [s.name for s in nova.snapshots.ListSnapshots(snapshot_pb2.ListSnapshotsRequest()).snapshots]
    assert both["ours"][1] in cuts and not [name for name in cuts if not name.startswith("pools/main/")]
    held = [a.name for a in nova.attachments.ListAttachments(attachment_pb2.ListAttachmentsRequest()).attachments]
    assert both["ours"][2] in held and both["theirs"][2] not in held
    elsewhere = place.by("orchestrator", "elsewhere", ("main",), ("deaf",))
    assert not elsewhere.attachments.ListAttachments(attachment_pb2.ListAttachmentsRequest()).attachments


def test_attachments_outside_of_the_scope_are_not_found_and_stay(place, both, nova):
    theirs = both["theirs"][2]
    for wire, name in ((nova, theirs), (place.by("orchestrator", "elsewhere", ("main",), ("deaf",)), both["ours"][2])):
        for wrong in (
            Deed("attachments.GetAttachment", attachment_pb2.GetAttachmentRequest(name=name)),
            Deed("attachments.DetachVolume", attachment_pb2.DetachVolumeRequest(name=name)),
            Deed("attachments.DetachVolume", attachment_pb2.DetachVolumeRequest(name=name, validate_only=True)),
            Deed("attachments.ListPaths", attachment_pb2.ListPathsRequest(name=name)),
            Deed("attachments.WatchPaths", attachment_pb2.WatchPathsRequest(name=name)),
        ):
            said = wrong.refused(wire)
            assert (said.code, said.message) == ("NOT_FOUND", f"{name} does not exist")
        assert place.wire.attachments.GetAttachment(attachment_pb2.GetAttachmentRequest(name=name)).attachment.name == name
    assert nova.attachments.GetAttachment(attachment_pb2.GetAttachmentRequest(name=both["ours"][2])).attachment.host == "hosts/lab"


def test_an_orchestrator_does_its_work_in_its_pool(place, nova):
    name = place.name("own")
    made = nova.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=name, size_bytes=MIB), timeout=30)
    cut = nova.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(volume=made.volume.name, snapshot_id="s"), timeout=30)
    clone = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name("own"), source=cut.snapshot.name)
    assert nova.volumes.CreateVolume(clone, timeout=30).volume.name
    attach = attachment_pb2.AttachVolumeRequest(volume=made.volume.name, host="hosts/lab", domain="test", prepare_only=True)
    held = nova.attachments.AttachVolume(attach, timeout=30).attachment
    assert nova.attachments.DetachVolume(attachment_pb2.DetachVolumeRequest(name=held.name), timeout=30).operation.name
    header = volume_pb2.ImportHeader(pool="pools/main", volume_id=place.name("own"), source_format=RAW)
    assert nova.volumes.ImportVolume(parts(header, b"\1" * MIB), timeout=30).volume.name
    watched = operation_pb2.WatchOperationRequest(name=made.operation.name)
    assert [step.operation.name for step in nova.operations.WatchOperation(watched, timeout=10)] == [made.operation.name]
    listed = nova.operations.ListOperations(operation_pb2.ListOperationsRequest()).operations
    assert {made.operation.name, cut.operation.name} <= {operation.name for operation in listed}


def test_the_only_host_is_not_had_by_leaving_its_name_out():
    one = CONFIG.replace('[hosts.deaf]\nuri = "qemu+unix:///system?socket={top}/nobody"\n', "")
    assert one != CONFIG
    with secured(config=one) as place:
        made = place.volume()
        for plan in (True, False):
            request = attachment_pb2.AttachVolumeRequest(volume=made.name, domain="test", prepare_only=True, validate_only=plan)
            for hosts, reason in (((), "OUT_OF_SCOPE"), (("deaf",), "OUT_OF_SCOPE")):
                wire = place.by("orchestrator", f"with{len(hosts)}", ("main",), hosts)
                assert refused(wire.attachments.AttachVolume, request).reason == reason
            assert place.by("orchestrator", "nova", ("main",), ("lab",)).attachments.AttachVolume(request, timeout=30)


def test_operations_of_others_are_not_found_nor_listed_nor_cancelled(place, nova):
    held, stream = place.held()
    theirs = _begun(place, place.by("operator", "olga"), held.name)
    try:
        for wire in (nova, place.by("orchestrator", "glance", ("main",), ("lab",))):
            for verb in ("GetOperation", "WatchOperation", "CancelOperation"):
                said = refused(getattr(wire.operations, verb), getattr(operation_pb2, f"{verb}Request")(name=theirs))
                assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND")
            listed = wire.operations.ListOperations(operation_pb2.ListOperationsRequest(page_size=1000)).operations
            assert theirs not in [operation.name for operation in listed]
        (waiting,) = place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(unfinished_only=True)).operations
        assert (waiting.name, waiting.state) == (theirs, operation_pb2.OPERATION_STATE_QUEUED), "nobody has cancelled it"
    finally:
        stream.cancel()


def _begun(place, wire, volume: str, request_id: str = "", label: str = "x") -> str:
    """An update that waits for the export that holds its volume; its name."""
    before = _unfinished(place)
    request = volume_pb2.UpdateVolumeRequest(name=volume, labels={"l": label}, request_id=request_id)
    assert refused(wire.volumes.UpdateVolume, request, timeout=1.0).code == "DEADLINE_EXCEEDED"
    found = _unfinished(place) - before
    return found.pop() if found else ""


def _unfinished(place) -> set[str]:
    request = operation_pb2.ListOperationsRequest(unfinished_only=True)
    return {operation.name for operation in place.wire.operations.ListOperations(request).operations}


# -- request ids


def creation(place, request_id: str, name: str, size: int = MIB) -> volume_pb2.CreateVolumeRequest:
    return volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=name, size_bytes=size, request_id=request_id)


def test_another_s_request_id_answers_nothing_and_tells_nothing(place):
    alice, bob = place.by("operator", "alice"), place.by("operator", "bob")
    secret, name = place.name("request"), place.name()
    made = alice.volumes.CreateVolume(creation(place, secret, name), timeout=30)
    assert alice.volumes.CreateVolume(creation(place, secret, name), timeout=30) == made, "her own repeat is the recorded answer"
    alice.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=made.volume.name), timeout=30)
    again = bob.volumes.CreateVolume(creation(place, secret, name), timeout=30)
    assert again.operation.name != made.operation.name
    assert again.volume.uid != made.volume.uid, "his own volume: the recorded answer was not his"
    other = bob.volumes.CreateVolume(creation(place, secret + "-b", place.name()), timeout=30)
    assert other.operation.name
    free = place.name()
    said = bob.volumes.CreateVolume(creation(place, place.name("request"), free, 2 * MIB), timeout=30)
    assert said.volume.name.endswith(free)


def test_a_used_request_id_of_another_with_another_body_is_no_error(place):
    alice, bob = place.by("operator", "alice"), place.by("operator", "bob")
    secret = place.name("request")
    alice.volumes.CreateVolume(creation(place, secret, place.name()), timeout=30)
    assert bob.volumes.CreateVolume(creation(place, secret, place.name(), 2 * MIB), timeout=30).volume.size_bytes == 2 * MIB
    assert refused(alice.volumes.CreateVolume, creation(place, secret, place.name())).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("request_id", ["", "guessed"])
def test_a_running_call_is_joined_by_its_own_caller_alone(place, request_id):
    alice, bob = place.by("operator", "alice"), place.by("operator", "bob")
    held, stream = place.held()
    secret = request_id and place.name(request_id)
    try:
        first = _begun(place, alice, held.name, secret)
        assert first
        assert _begun(place, alice, held.name, secret) == "", "hers joins"
        second = _begun(place, bob, held.name, secret)
        assert second not in ("", first)
        local = _begun(place, place.wire, held.name, secret)
        assert local not in ("", first, second)
    finally:
        stream.cancel()


def test_forged_ids_are_still_apart_after_a_restart(place):
    alice, bob = place.by("operator", "alice"), place.by("operator", "bob")
    secret, name = place.name("request"), place.name()
    made = alice.volumes.CreateVolume(creation(place, secret, name), timeout=30)
    place.close()
    place._wires.clear()
    place.server.kill9()
    place.server.start()
    alice, bob = place.by("operator", "alice"), place.by("operator", "bob")
    assert bob.volumes.CreateVolume(creation(place, secret, name), timeout=30).operation.name != made.operation.name
    assert alice.volumes.CreateVolume(creation(place, secret, name), timeout=30).operation.name == made.operation.name


# -- audit


def test_every_mutation_is_a_line_with_who_what_uid_and_outcome(place):
    alice = place.by("admin", "alice")
    made = alice.volumes.CreateVolume(creation(place, "", place.name()), timeout=30).volume
    alice.pools.DrainPool(pool_pb2.DrainPoolRequest(name="pools/main", resume=True))
    held, stream = place.held()
    waiting = _begun(place, place.by("operator", "olga"), held.name)
    alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=waiting))
    stream.cancel()
    list(place.wire.operations.WatchOperation(operation_pb2.WatchOperationRequest(name=waiting), timeout=30))
    for method, target, principal, outcome in (
        ("CreateVolume", made.name, "admin:alice", "ok"),
        ("DrainPool", "pools/main", "admin:alice", "ok"),
        ("CancelOperation", held.name, "admin:alice", "ok"),
        ("UpdateVolume", held.name, "operator:olga", "CANCELLED"),
    ):
        line = place.line("operation ended", method=method, target=target, principal=principal, outcome=outcome)
        assert line["uid"] == {"CreateVolume": made.uid, "UpdateVolume": "", "CancelOperation": "", "DrainPool": ""}[method]


def test_the_log_of_a_denied_call_has_none_of_its_body(place):
    canary = "canary-of-a-label"
    request = volume_pb2.UpdateVolumeRequest(name="pools/main/volumes/any", labels={"l": canary}, request_id=canary)
    said = refused(place.by("viewer", "vera").volumes.UpdateVolume, request)
    line = place.line("call", call=said.trailers["x-request-id"])
    assert (line["principal"], line["target"]) == ("viewer:vera", "pools/main/volumes/any")
    assert canary not in place.server.log.read_text()


# -- bounds


def test_a_client_has_so_many_calls_and_streams_at_once_and_others_are_served():
    with secured("client_calls = 3\nclient_streams = 2") as place:
        olga, other = place.by("operator", "olga"), place.by("operator", "other")
        held, stream = place.held()
        waiting = _begun(place, other, held.name)
        watch = operation_pb2.WatchOperationRequest(name=waiting)
        streams = [place.connect(place.pki.client("operator", "olga")).operations.WatchOperation(watch, timeout=30) for _ in range(2)]
        for each in streams:
            next(each)
        said = refused(olga.operations.WatchOperation, watch, timeout=10)
        assert (said.code, said.reason) == ("UNAVAILABLE", "TOO_MANY_CALLS")
        assert said.retry_after
        assert next(other.operations.WatchOperation(watch, timeout=10)).operation.name == waiting
        ends = []

        def blocked(number: int) -> None:
            ends.append(
                refused(olga.volumes.UpdateVolume, volume_pb2.UpdateVolumeRequest(name=held.name, labels={"n": str(number)}), timeout=5)
            )

        threads = [threading.Thread(target=blocked, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 4
        while len(_unfinished(place)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        said = refused(olga.pools.ListPools, pool_pb2.ListPoolsRequest(), timeout=5)
        assert (said.code, said.reason) == ("UNAVAILABLE", "TOO_MANY_CALLS")
        assert other.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=5).pools
        assert place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=5).pools
        for thread in threads:
            thread.join(20)
        assert [end.code for end in ends] == ["DEADLINE_EXCEEDED"] * 3
        assert olga.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=5).pools, "places come back"
        with Client(place.address, **place.pki.files(place.pki.client("operator", "olga"))) as client, ThreadPoolExecutor(12) as threads:
            names = list(threads.map(lambda n: client.create_volume("pools/main", f"many{n}", size_bytes=MIB).name, range(24)))
        assert len(set(names)) == 24, "the client comes back by itself"
        streams[0].cancel()
        assert next(patient(olga, watch)).operation.name == waiting
        stream.cancel()


def patient(wire: Wire, watch):
    """A watch once there is a place for it."""
    for _ in range(100):
        answers = wire.operations.WatchOperation(watch, timeout=10)
        try:
            first = next(answers)
        except Exception as error:  # as above
            assert refusal(error).reason == "TOO_MANY_CALLS"
            time.sleep(0.05)
        else:
            return itertools.chain([first], answers)
    raise AssertionError("no place came back")
