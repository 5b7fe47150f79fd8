"""A LUN that QEMU is to open itself, in the kernel lab: who it is, is asked by a login that the kernel knows nothing of."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.san import HOST, LIO, PORTALS, Lun, eventually, sh, two_ways
from volgate.connect import iscsi_wire, libiscsi
from volgate.connect.iscsi_wire import Proof
from volgate.connection import Chap, IscsiPortal, LibiscsiLun
from volgate.errors import Denied, InUse, Precondition, Unreachable, Unsupported
from volgate.hosts.interface import AttachPlan, DetachOutcome
from volgate.hosts.local import LocalHost
from volgate.model import Access, Bus, DiskOptions, Feature, PathState, Transport
from volgate.secret import Secret

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(120)]
MIB = 1 << 20
SIZE = 24 * MIB
SECRETS = {"a": Secret("correct-horse-12"), "b": Secret("battery-staple")}


@pytest.fixture(scope="module")
def target() -> Lun:
    """A LUN that asks for no proof, and whose acl has names and secrets for those who are to prove themselves."""
    two_ways()
    path = Path("/srv/asked.img")
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)
    return Lun("asked", path, "c".rjust(25, "c"))


@pytest.fixture
def portal(target: Lun) -> IscsiPortal:
    return IscsiPortal(PORTALS[0], 3260, target.target)


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def require_chap(target: Lun, *, on: bool) -> None:
    group = LIO / f"iscsi/{target.target}/tpgt_1"
    for name, value in {
        "userid": "gate",
        "password": "correct-horse-12",
        "userid_mutual": "disk",
        "password_mutual": "battery-staple",
    }.items():
        (group / f"acls/{HOST}/auth/{name}").write_text(value)
    (group / "attrib/authentication").write_text("1" if on else "0")


def test_a_lun_says_who_it_is_and_no_session_and_no_device_stays(portal: IscsiPortal) -> None:
    for _ in range(3):
        assert iscsi_wire.look(portal, 1, HOST, None, deadline=soon()) == iscsi_wire.Lun("36001405" + "c" * 25, SIZE)
    assert not list(Path("/sys/bus/scsi/devices").glob("[0-9]*:*")) and not list(Path("/sys/class/iscsi_session").glob("*"))
    eventually(lambda: "No active iSCSI Session" in (LIO / f"iscsi/{portal.target}/tpgt_1/acls/{HOST}/info").read_text())


def test_what_does_not_exist_or_does_not_answer_is_told_apart_in_time(portal: IscsiPortal) -> None:
    for reason, kind, where, number, who in (
        ("LUN_MISSING", Unreachable, portal, 9, HOST),
        ("ISCSI_UNREACHABLE", Unreachable, replace(portal, target="iqn.2026-01.org.volgate:none"), 1, HOST),  # LIO says no more of it
        ("ISCSI_DENIED", Denied, portal, 1, "iqn.2026-01.org.volgate:stranger"),
        ("ISCSI_UNREACHABLE", Unreachable, replace(portal, port=3999), 1, HOST),
    ):
        with pytest.raises(kind) as refused:
            iscsi_wire.look(where, number, who, None, deadline=soon())
        assert refused.value.reason == reason, refused.value.message


def test_a_target_that_hangs_holds_nobody_longer_than_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        portal = IscsiPortal("127.0.0.1", deaf.getsockname()[1], "iqn.2026-01.org.volgate:deaf")
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no answer in time"):
            iscsi_wire.look(portal, 1, HOST, None, deadline=soon(2.0))
        assert time.monotonic() - began < 20


def test_what_is_no_target_is_told(portal: IscsiPortal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as other:

        def chat() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(b"SSH-2.0-OpenSSH_9.2p1".ljust(64, b"!"))
                link.recv(4096)

        talk = other.submit(chat)
        with pytest.raises(Unreachable) as refused:
            iscsi_wire.look(replace(portal, address="127.0.0.1", port=server.getsockname()[1]), 1, HOST, None, deadline=soon(5))
        assert refused.value.reason == "ISCSI_UNREACHABLE"
        talk.result(20)


def test_chap_proves_both_ends(target: Lun, portal: IscsiPortal) -> None:
    require_chap(target, on=True)
    try:
        both = Proof("gate", SECRETS["a"], "disk", SECRETS["b"])
        assert iscsi_wire.look(portal, 1, HOST, both, deadline=soon()).size == SIZE
        for wrong in (
            None,
            replace(both, secret=Secret("wrong-wrong-wrong")),
            replace(both, user="nobody"),
            replace(both, target_secret=Secret("x")),
        ):
            with pytest.raises(Denied) as refused:
                iscsi_wire.look(portal, 1, HOST, wrong, deadline=soon())
            assert refused.value.reason == "ISCSI_DENIED" and "wrong-wrong" not in refused.value.message
    finally:
        require_chap(target, on=False)


def test_what_libvirt_is_given_is_proven_before(portal: IscsiPortal) -> None:
    lun = LibiscsiLun("36001405" + "c" * 25, portal, 1, SIZE)
    features = {Feature.LIBISCSI}
    source = libiscsi.connect(lun, HOST, SECRETS.__getitem__, features, deadline=soon())
    assert (source.source, source.initiator, source.user) == (f"iscsi:{portal.target}/1", HOST, "")
    for wrong, who, can, kind, reason in (
        (replace(lun, wwid="36001405" + "d" * 25), HOST, features, Precondition, "IDENTITY_MISMATCH"),
        (replace(lun, size=SIZE + 512), HOST, features, Precondition, "IDENTITY_MISMATCH"),
        (lun, "", features, Precondition, "INITIATOR_MISSING"),
        (lun, HOST, set(), Unsupported, "LIBISCSI_UNSUPPORTED"),
        (replace(lun, chap=Chap("gate", "a", "disk", "b")), HOST, features, Unsupported, "LIBISCSI_UNSUPPORTED"),
    ):
        with pytest.raises(kind) as refused:
            libiscsi.connect(wrong, who, SECRETS.__getitem__, can, deadline=soon())
        assert refused.value.reason == reason
    assert [path.state for path in libiscsi.paths(lun, "h", deadline=soon())] == [PathState.ACTIVE]
    gone = replace(lun, portal=replace(portal, port=3999))
    assert [path.state for path in libiscsi.paths(gone, "h", deadline=soon())] == [PathState.FAILED]


@pytest.fixture(scope="module")
def host(target: Lun) -> Iterator[LocalHost]:
    """This guest as a host; its initiator name is the one that the target lets in."""
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={HOST}\n")
    made = LocalHost("lab", "qemu:///system", resolve=SECRETS.__getitem__)
    yield made
    made.close()


def plan(lun: LibiscsiLun, number: int) -> AttachPlan:
    options = DiskOptions(bus=Bus.VIRTIO_SCSI, serial=f"vg-{number}", transport=Transport.QEMU)
    return AttachPlan(f"attachment-{number}", f"ua-vg-{number:08x}-00000000", "guest", lun, options)


def qemu_io(alias: str, words: str) -> str:
    """Have QEMU itself read or write the disk."""
    command = {"execute": "human-monitor-command", "arguments": {"command-line": f'qemu-io -d {alias} "{words}"'}}
    return sh(f"virsh qemu-monitor-command guest '{json.dumps(command)}'", timeout=60)


@pytest.mark.parametrize("chap", [None, Chap("gate", "a")], ids=["open", "chap"])
def test_a_guest_has_a_lun_that_no_kernel_sees(host: LocalHost, target: Lun, portal: IscsiPortal, chap: Chap | None) -> None:
    require_chap(target, on=chap is not None)
    lun = LibiscsiLun("36001405" + "c" * 25, portal, 1, SIZE, chap)
    wanted = plan(lun, 2 if chap else 1)
    try:
        disk = host.attach(wanted, timeout=90)
        assert host.attach(wanted, timeout=90) == disk
        assert (disk.source, disk.live, disk.config) == (f"iscsi:{portal.target}/1", True, True)
        assert not list(Path("/sys/bus/scsi/devices").glob("[0-9]*:*")) and "correct-horse" not in disk.xml
        assert host.our_disks(timeout=60)[0].options == wanted.options
        assert {path.state for path in host.paths("guest", wanted.alias, timeout=60)} == {PathState.ACTIVE_OPTIMIZED}
        with pytest.raises(InUse):
            host.attach(plan(lun, 9), timeout=90)
        qemu_io(wanted.alias, "write -P 0x5a 4096 4096")
        with Path("/srv/asked.img").open("rb") as file:
            assert os.pread(file.fileno(), 8192, 4096) == b"\x5a" * 4096 + bytes(4096)
    finally:
        assert host.detach("guest", wanted.alias, "", timeout=90) is DetachOutcome.GONE
        require_chap(target, on=False)
    assert not host.presence("guest", wanted.alias, disk.source, timeout=60).qemu
    eventually(lambda: "volgate chap" not in sh("virsh secret-list", timeout=60), 120)  # with the last disk that needs it


def test_a_lun_is_not_shared_by_a_writer_that_no_reservation_keeps_out(host: LocalHost, portal: IscsiPortal) -> None:
    wanted = plan(LibiscsiLun("36001405" + "c" * 25, portal, 1, SIZE), 5)
    with pytest.raises(Unsupported) as refused:
        host.attach(replace(wanted, options=replace(wanted.options, access=Access.SHARED)), timeout=60)
    assert refused.value.reason == "LIBISCSI_UNSUPPORTED" and "ua-vg" not in sh("virsh dumpxml guest", timeout=60)


def test_a_lun_that_is_another_or_hangs_never_reaches_qemu(host: LocalHost, portal: IscsiPortal) -> None:
    lun = LibiscsiLun("36001405" + "e" * 25, portal, 1, SIZE)
    with pytest.raises(Precondition) as refused:
        host.attach(plan(lun, 3), timeout=60)
    assert refused.value.reason == "IDENTITY_MISMATCH"
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hanging = replace(lun, portal=replace(portal, address="127.0.0.1", port=deaf.getsockname()[1]))
        with pytest.raises(Unreachable, match="no answer in time"):
            host.attach(plan(hanging, 4), timeout=60)
    assert "ua-vg" not in sh("virsh dumpxml guest", timeout=60)
