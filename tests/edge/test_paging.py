"""Lists: caps, cursors that hold while rows come and go, tokens that are refused."""

import pytest

from tests.edge.place import MIB, running
from tests.edge.wire import refused
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

LISTS = {
    "pools": ("ListPools", pool_pb2.ListPoolsRequest, "pools"),
    "hosts": ("ListHosts", host_pb2.ListHostsRequest, "hosts"),
    "volumes": ("ListVolumes", volume_pb2.ListVolumesRequest, "volumes"),
    "snapshots": ("ListSnapshots", snapshot_pb2.ListSnapshotsRequest, "snapshots"),
    "attachments": ("ListAttachments", attachment_pb2.ListAttachmentsRequest, "attachments"),
    "operations": ("ListOperations", operation_pb2.ListOperationsRequest, "operations"),
}


@pytest.fixture(scope="module")
def place():
    """A gateway whose lists are short."""
    with running() as made:
        yield made


def pages(place, service, size, **filters):
    verb, kind, field = LISTS[service]
    token, found = "", []
    while True:
        answer = getattr(getattr(place.wire, service), verb)(kind(page_size=size, page_token=token, **filters), timeout=30)
        found.append([row.name for row in getattr(answer, field)])
        token = answer.next_page_token
        if not token:
            return found


@pytest.fixture(scope="module")
def rows(place):
    """Some of everything that is listed."""
    made = [place.volume(MIB, volume_id=f"p{number:02}", pool="shallow") for number in range(7)]
    for volume in made[:4]:
        place.snapshot(volume)
    for number in range(3):
        place.volume(MIB, volume_id=f"m{number}")
    return made


@pytest.mark.parametrize("service", LISTS)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pages_come_to_the_whole_without_gap_or_double(place, rows, service, size):
    whole = pages(place, service, 0)
    small = pages(place, service, size)
    assert len(whole) == 1
    assert [name for page in small for name in page] == whole[0]
    assert all(len(page) == size for page in small[:-1])
    assert service == "attachments" or whole[0]


def test_filters_hold_over_pages(place, rows):
    assert [name for page in pages(place, "volumes", 2, pool="pools/shallow") for name in page] == [volume.name for volume in rows]
    assert [name for page in pages(place, "snapshots", 1, parent="pools/shallow") for name in page] == [
        f"{volume.name}/snapshots/s1" for volume in rows[:4]
    ]


def test_a_cursor_is_stable_while_rows_come_and_go(place):
    for number in range(6):
        place.volume(MIB, volume_id=f"stable{number}")
    request = volume_pb2.ListVolumesRequest(pool="pools/main", page_size=1000)
    names = [v.name for v in place.wire.volumes.ListVolumes(request).volumes]
    position = names.index("pools/main/volumes/stable2") + 1
    first = place.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool="pools/main", page_size=position))
    for gone in ("stable0", "stable2", "stable4"):
        place.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=f"pools/main/volumes/{gone}"))
    for fresh in ("stable1a", "stable3a"):
        place.volume(MIB, volume_id=fresh)
    request = volume_pb2.ListVolumesRequest(pool="pools/main", page_size=1000, page_token=first.next_page_token)
    rest = [v.name.rpartition("/")[2] for v in place.wire.volumes.ListVolumes(request).volumes]
    assert [name for name in rest if name.startswith("stable")] == ["stable3", "stable3a", "stable5"]


def test_operations_are_listed_newest_first_while_new_ones_come(place):
    for _ in range(3):
        place.volume(MIB)
    first = place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(page_size=2))
    place.volume(MIB)
    request = operation_pb2.ListOperationsRequest(page_size=2, page_token=first.next_page_token)
    second = place.wire.operations.ListOperations(request)
    stamps = [o.created_at.ToNanoseconds() for o in (*first.operations, *second.operations)]
    assert stamps == sorted(stamps, reverse=True) and len({o.name for o in (*first.operations, *second.operations)}) == 4
    assert not place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(unfinished_only=True)).operations


@pytest.mark.parametrize("service", LISTS)
@pytest.mark.parametrize("size", [-1, 1001, 2**31 - 1, -(2**31)])
def test_a_page_size_outside_the_cap_is_refused(place, service, size):
    verb, kind, _ = LISTS[service]
    said = refused(getattr(getattr(place.wire, service), verb), kind(page_size=size))
    assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["page_size"])


@pytest.mark.parametrize("service", LISTS)
def test_a_token_of_another_list_or_a_damaged_one_is_refused(place, rows, service):
    verb, kind, _ = LISTS[service]
    other = place.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(page_size=1, pool="pools/shallow")).next_page_token
    assert other
    for token in (other, other[:-4], "x" + other, "no token", "AAAA", "ü", "=" * 2000):
        said = refused(getattr(getattr(place.wire, service), verb), kind(page_token=token))
        assert (said.code, said.reason, said.fields) == ("INVALID_ARGUMENT", "BAD_PAGE_TOKEN", ["page_token"])


def test_a_token_is_of_its_filters_too_but_not_of_its_page_size(place, rows):
    token = place.wire.volumes.ListVolumes(volume_pb2.ListVolumesRequest(page_size=1, pool="pools/shallow")).next_page_token
    said = refused(place.wire.volumes.ListVolumes, volume_pb2.ListVolumesRequest(pool="pools/main", page_token=token))
    assert said.reason == "BAD_PAGE_TOKEN"
    again = volume_pb2.ListVolumesRequest(pool="pools/shallow", page_size=3, page_token=token)
    assert [v.name for v in place.wire.volumes.ListVolumes(again).volumes] == [v.name for v in rows[1:4]]
