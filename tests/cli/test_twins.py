"""`volgate doctor` tells which hosts of record share what no two may."""

from volgate.cli.leftovers import twins
from volgate.v1 import host_pb2


def test_an_initiator_name_that_two_hosts_of_record_share_is_told():
    hosts = [
        host_pb2.Host(name="hosts/a", iqn="iqn.2026-01.org.volgate:same", nqn="nqn.a"),
        host_pb2.Host(name="hosts/b", iqn="iqn.2026-01.org.volgate:other", nqn="nqn.b"),
        host_pb2.Host(name="hosts/c", iqn="iqn.2026-01.org.volgate:same"),
        host_pb2.Host(name="hosts/d"),
    ]
    (found,) = twins(hosts)
    assert not found.ok and found.subject == "hosts/a, hosts/c"
    assert "iSCSI initiator name iqn.2026-01.org.volgate:same" in found.seen and "give each its own" in found.action
    assert list(twins(hosts[:2])) == []
