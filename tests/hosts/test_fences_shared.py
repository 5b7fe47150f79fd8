"""Two controllers and one host: a fence that its controller did not live to finish is finished by the other, and known to both."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.edge.wire import refused
from tests.labs.site import Site, until
from tests.plugins.memory_rig import Array
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, volume_pb2

LEASE = 3.0
WIRE_SECONDS = 60.0


@pytest.fixture
def shared(array: Array) -> Iterator[Site]:
    made = Site(controllers=2, lease=LEASE, pools=f'[pools.sim]\nkind = "memory"\nsocket = "{array.socket}"\n')
    try:
        for controller in made.controllers.values():
            controller.start()
        made.add("h1").start()
        yield made
    finally:
        made.close()


def test_another_controller_finishes_a_fence_and_both_know_it(shared: Site, array: Array):
    first, second = shared.controllers.values()
    address = shared.hosts["h1"].port.address
    request = volume_pb2.CreateVolumeRequest(pool="pools/sim", volume_id="v", size_bytes=1 << 20)
    made = second.wire.volumes.CreateVolume(request, timeout=WIRE_SECONDS).volume
    array.fault("hang", "fence", count=1, after=True)
    running = first.wire.hosts.FenceHost.future(host_pb2.FenceHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
    until(lambda: not array.status().faults)
    attach = attachment_pb2.AttachVolumeRequest(volume=made.name, host="hosts/h1", domain="test")
    assert refused(second.wire.attachments.AttachVolume, attach).reason == "HOST_FENCED", "before it is proven, and at the other one"
    first.kill9()
    array.ask("clear_faults", int, verb="*")
    assert isinstance(running.exception(), grpc.RpcError)
    unfinished = operation_pb2.ListOperationsRequest(unfinished_only=True)
    until(lambda: not second.wire.operations.ListOperations(unfinished, timeout=WIRE_SECONDS).operations, 90, "the end of the fence")
    assert array.status().fenced == [address]
    first.start()
    for controller in (first, second):
        host = controller.host("h1")
        assert host and list(host.fenced_pools) == ["pools/sim"]
    until(lambda: first.host("h1").live)
    first.wire.hosts.UnfenceHost(host_pb2.UnfenceHostRequest(name="hosts/h1"), timeout=WIRE_SECONDS)
    assert array.status().fenced == [] and not second.host("h1").fenced_pools
