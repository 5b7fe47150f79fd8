"""PoolService and HostService on the wire."""

import shutil

import pytest

from tests.edge.place import MIB
from tests.edge.wire import refused
from volgate.v1 import host_pb2, pool_pb2, volume_pb2


def pool(place, name="main"):
    return place.wire.pools.GetPool(pool_pb2.GetPoolRequest(name=f"pools/{name}"), timeout=30).pool


def test_every_configured_pool_is_listed_by_name_and_one_that_is_down_says_why(place):
    found = place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=30).pools
    assert [p.name for p in found] == ["pools/gone", "pools/main", "pools/shallow"]
    gone, main, _ = found
    assert gone.health == pool_pb2.POOL_HEALTH_DOWN and "does not exist" in gone.problem
    assert main.health == pool_pb2.POOL_HEALTH_OK and not main.problem
    assert {"Snapshots", "Clones", "Resizes", "DataPath", "Adopts"} <= set(main.capabilities)
    assert list(main.formats) == ["qcow2", "raw"] and main.grain_bytes == 4096


def test_a_pool_tells_its_space_as_the_file_system_does(place):
    before = pool(place)
    place.volume(64 * MIB)
    after = pool(place)
    usage = shutil.disk_usage(place.pool)
    assert after.total_bytes == usage.total
    assert abs(after.free_bytes - usage.free) < usage.total // 10
    assert after.provisioned_bytes - before.provisioned_bytes == 64 * MIB


def test_a_draining_pool_refuses_new_volumes_and_serves_the_others(place):
    kept = place.volume()
    assert place.wire.pools.DrainPool(pool_pb2.DrainPoolRequest(name="pools/main"), timeout=30).pool.draining
    try:
        request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name(), size_bytes=MIB)
        said = refused(place.wire.volumes.CreateVolume, request)
        assert (said.code, said.reason) == ("FAILED_PRECONDITION", "PRECONDITION") and "draining" in said.message
        assert (
            place.wire.volumes.ExpandVolume(volume_pb2.ExpandVolumeRequest(name=kept.name, size_bytes=8 * MIB)).volume.size_bytes == 8 * MIB
        )
        again = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=kept.name.rpartition("/")[2], size_bytes=4 * MIB)
        assert place.wire.volumes.CreateVolume(again).volume.uid == kept.uid, "a repeat is answered"
    finally:
        resumed = place.wire.pools.DrainPool(pool_pb2.DrainPoolRequest(name="pools/main", resume=True), timeout=30).pool
    assert not resumed.draining
    assert place.wire.volumes.CreateVolume(request).volume.size_bytes == MIB


@pytest.mark.parametrize("verb", ["GetPool", "DrainPool"])
def test_an_unknown_pool_is_not_found_and_the_known_ones_are_named(place, verb):
    request = getattr(pool_pb2, f"{verb}Request")(name="pools/nobody")
    said = refused(getattr(place.wire.pools, verb), request)
    assert (said.code, said.reason, said.domain) == ("NOT_FOUND", "NOT_FOUND", "volgate")
    assert "main" in said.message


def test_a_volume_in_a_pool_that_is_down_is_unavailable_with_the_time_to_come_back(place):
    said = refused(place.wire.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(pool="pools/gone", volume_id="a", size_bytes=MIB))
    assert (said.code, said.reason, said.retry_after) == ("UNAVAILABLE", "POOL_DOWN", 5.0)
    assert "does not exist" in said.message, "it says why"


def test_hosts_are_listed_and_one_that_does_not_answer_says_so(place):
    found = {host.name: host for host in place.wire.hosts.ListHosts(host_pb2.ListHostsRequest(), timeout=30).hosts}
    assert list(found) == ["hosts/deaf", "hosts/lab"]
    assert found["hosts/lab"].connected and found["hosts/lab"].libvirt_version and not found["hosts/lab"].problem
    assert not found["hosts/deaf"].connected and "nobody" in found["hosts/deaf"].problem
    assert not found["hosts/lab"].domains, "only GetHost has them"


def test_a_host_shows_its_domains(place):
    host = place.wire.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/lab"), timeout=30).host
    assert [(d.name, d.active, d.persistent) for d in host.domains] == [("test", True, True)]
    assert len(host.boot_id) == 36 and host.machine_id


def test_an_unknown_host_is_not_found(place):
    said = refused(place.wire.hosts.GetHost, host_pb2.GetHostRequest(name="hosts/nobody"))
    assert (said.code, said.reason) == ("NOT_FOUND", "NOT_FOUND") and "lab" in said.message


def test_a_host_needs_a_name(place):
    said = refused(place.wire.hosts.GetHost, host_pb2.GetHostRequest())
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["name"])
