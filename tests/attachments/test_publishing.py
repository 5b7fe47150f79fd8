"""A storage that asks who comes is told of each host before it connects, and once it has let go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.attachments.world import VOLUME, World, until
from tests.edge.wire import refused
from tests.labs.libvirtd import PrivateLibvirtd
from tests.labs.third_party import installed
from volgate.v1 import attachment_pb2, volume_pb2

RAW = volume_pb2.VOLUME_FORMAT_RAW


class AskingWorld(World):
    """A world whose pool is of that kind."""

    notes: Path
    uid: str

    def hosts(self) -> list[str]:
        folder = self.notes / self.uid
        return sorted(note.name for note in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def asking(tmp_path: Path, pool_dir: Path, libvirtd: PrivateLibvirtd, monkeypatch: pytest.MonkeyPatch) -> Iterator[AskingWorld]:
    path = pool_dir / "asking"
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site", "asking", "tests.attachments.asking"))
    made = AskingWorld(tmp_path, pool_dir, libvirtd.uri, f'[pools.p]\nkind = "asking"\npath = "{path}"\n')
    made.notes = Path(f"{path}.notes")
    made.uid = made.create(form=RAW).uid
    yield made
    made.close()


def detach(name: str) -> attachment_pb2.DetachVolumeRequest:
    return attachment_pb2.DetachVolumeRequest(name=name, wait_seconds=20)


def test_a_host_is_let_in_before_it_connects_and_kept_out_when_it_has_let_go(asking: AskingWorld, fresh_guest) -> None:
    assert asking.hosts() == []
    name = asking.attach(fresh_guest).attachment.name
    assert asking.hosts() == ["local"]
    assert asking.attach(fresh_guest).attachment.name == name
    asking.detach(name)
    assert asking.hosts() == [] == asking.attachments()


def test_an_attach_that_fails_leaves_nobody_in(asking: AskingWorld, fresh_guest) -> None:
    (asking.notes / "lost").touch()
    request = attachment_pb2.AttachVolumeRequest(volume=VOLUME, domain=fresh_guest.name)
    assert refused(asking.wire.attachments.AttachVolume, request).code == "FAILED_PRECONDITION"
    assert asking.hosts() == []
    (asking.notes / "lost").unlink()
    asking.detach(asking.attach(fresh_guest).attachment.name)


def test_a_detach_is_not_done_before_the_host_is_kept_out(asking: AskingWorld, fresh_guest) -> None:
    name = asking.attach(fresh_guest).attachment.name
    (asking.notes / "refuse").touch()
    assert refused(asking.wire.attachments.DetachVolume, detach(name)).code == "UNAVAILABLE"
    assert [one.name for one in asking.attachments()] == [name] and asking.hosts() == ["local"]
    (asking.notes / "refuse").unlink()
    asking.detach(name)
    assert asking.hosts() == [] == asking.attachments()


def test_a_gateway_that_dies_while_it_lets_a_host_in_ends_with_both_or_neither(asking: AskingWorld, fresh_guest) -> None:
    (asking.notes / "hang").touch()

    def attach() -> None:
        with pytest.raises(grpc.RpcError):
            asking.attach(fresh_guest)

    dying = threading.Thread(target=attach)
    dying.start()
    until(lambda: asking.hosts() == ["local"])
    asking.server.kill9()
    dying.join()
    (asking.notes / "hang").unlink()
    asking.again()
    asking.idle()
    assert bool(asking.hosts()) == bool(asking.attachments())
    asking.detach(asking.attach(fresh_guest).attachment.name)
    assert asking.hosts() == []


def test_whoever_has_no_attachment_is_kept_out_before_another_host_writes_or_the_volume_goes(asking: AskingWorld, fresh_guest) -> None:
    """What a host left that was released while it was off."""
    ghost = asking.notes / asking.uid / "ghost"
    ghost.parent.mkdir(exist_ok=True)
    ghost.touch()
    name = asking.attach(fresh_guest).attachment.name
    assert asking.hosts() == ["local"]
    asking.detach(name)
    ghost.touch()
    asking.wire.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=VOLUME), timeout=60)
    assert asking.hosts() == []


def test_a_host_whose_disk_comes_back_on_record_is_let_in_again(asking: AskingWorld, fresh_guest) -> None:
    """As one that was released although it lived, or when the database and the storage's word are lost."""
    name = asking.attach(fresh_guest).attachment.name
    asking.server.kill9()
    for path in asking.server.state.glob("volgate.db*"):
        path.unlink()
    (asking.notes / asking.uid / "local").unlink()
    asking.again()
    until(lambda: [one.name for one in asking.attachments()] == [name], 60)
    assert asking.hosts() == ["local"]
    asking.detach(name)
    assert asking.hosts() == [] == asking.attachments()
