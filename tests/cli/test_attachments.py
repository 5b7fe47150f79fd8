"""The attachment commands and the doctor's look at a host, with a real guest."""

import time

import pytest

from tests.edge.server import Server

MIB = 1 << 20
ATTACHMENT_FIELDS = {
    "name", "volume", "volume_uid", "host", "domain_uuid", "domain_name", "state", "options", "alias", "target", "address", "persistent",
    "created_at", "problem",
}  # fmt: skip


@pytest.fixture
def server(pool_dir, guest):
    guest.reset()
    text = f"[hosts.lab]\nuri = '{guest.libvirtd.uri}'\n[pools.default]\nkind = 'directory'\npath = '{pool_dir}'\n"
    made = Server(pool_dir.parent / "state", config=text).start()
    try:
        yield made
    finally:
        assert made.stop() == 0
        guest.reset()


def test_attach_list_show_paths_snapshot_expand_detach(cli, guest):
    cli("volume", "create", "default/disk", "--size", "8MiB", "--format", "qcow2")
    words = ("attachment", "attach", "--volume", "default/disk", "--domain", guest.name, "--serial", "CLI-1")
    made = cli.json(*words, "--limit", "total_iops_sec=5000", "--cache", "none", "--error-policy", "report")
    assert made.keys() == ATTACHMENT_FIELDS
    assert (made["state"], made["domain_uuid"], made["options"]["serial"]) == ("ATTACHMENT_STATE_ATTACHED", guest.uuid, "CLI-1")
    assert made["options"]["qos"]["total_iops_sec"] == 5000
    identifier = made["name"].removeprefix("attachments/")
    guest.wait_disk("CLI-1")

    shown = dict(line.split(maxsplit=1) for line in cli("attachment", "show", identifier).out.splitlines())
    assert (shown["state"], shown["bus"], shown["target"], shown["serial"]) == ("attached", "virtio-blk", made["target"], "CLI-1")
    assert cli("attachment", "list", "--volume", "default/disk").lines[0][:5] == [
        identifier, "default/disk", "lab", guest.name, made["target"],
    ]  # fmt: skip
    assert [row["name"] for row in cli.json("attachment", "list", "--host", "lab")] == [made["name"]]
    assert cli.json("volume", "show", "default/disk")["attachments"] == [made["name"]]
    answer = cli.json("attachment", "paths", identifier)
    assert answer["redundancy"] == "REDUNDANCY_SINGLE"
    assert "libvirt" in {path["transport"] for path in answer["paths"]}
    assert cli("attachment", "paths", made["name"]).out.splitlines()[-1] == f"{made['name']} is single"

    assert cli.json("snapshot", "create", "live", "--volume", "default/disk")["size_bytes"] == 8 * MIB
    cli("volume", "expand", "default/disk", "--size", "16MiB")
    for _ in range(100):
        if guest.wait_disk("CLI-1").size == 16 * MIB:
            break
        time.sleep(0.05)
    assert guest.wait_disk("CLI-1").size == 16 * MIB

    refused = cli("volume", "delete", "default/disk", "--output", "json", status=4).error
    assert ("attachment", identifier) in {(holder["kind"], holder["name"].removeprefix("attachments/")) for holder in refused["holders"]}
    assert cli("volume", "revert", "default/disk", "--snapshot", "live", status=4).err.startswith("IN_USE: ")

    assert cli("attachment", "detach", identifier).out == f"{made['name']} detached\n"
    assert cli.json("attachment", "detach", identifier) == {"name": made["name"], "detached": True, "operation": None}
    assert cli.json("attachment", "list") == []
    assert not [disk for disk in guest.disks() if disk.serial == "CLI-1"]


def test_prepare_only_prints_the_disk_for_libvirt(cli, guest):
    cli("volume", "create", "default/prep", "--size", "1MiB")
    words = ("attachment", "attach", "--volume", "default/prep", "--domain", guest.name, "--prepare-only")
    assert cli(*words).out.startswith("<disk ")
    (row,) = cli.json("attachment", "list")
    assert row["state"] == "ATTACHMENT_STATE_PREPARED"
    cli("attachment", "detach", row["name"])


def test_a_domain_that_does_not_exist_is_named(cli):
    cli("volume", "create", "default/nodom", "--size", "1MiB")
    ran = cli("attachment", "attach", "--volume", "default/nodom", "--domain", "nosuch", status=3)
    assert ran.err.startswith("DOMAIN_NOT_FOUND: ")
    assert "nosuch" in ran.err


def test_doctor_is_content_with_a_healthy_host_and_tells_versions(cli, guest):
    ran = cli.process("doctor")
    assert ran.out.splitlines()[-1] == "all is well"
    assert "ok       hosts/lab: libvirt " in ran.out
    assert ", QEMU " in ran.out
    shown = cli("host", "show", "lab").out
    assert f"{guest.name} (running)" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("features")]
    assert {"blockdev,", "external-snapshots,", "virtio-blk,", "virtio-scsi"} <= set(line.split())


def test_doctor_finds_a_disk_that_qemu_has_and_libvirt_does_not(cli, guest, pool_dir):
    stray = pool_dir.parent / "stray.raw"
    stray.write_bytes(bytes(MIB))
    stray.chmod(0o666)
    guest.qmp("blockdev-add", **{"node-name": "vg-stray", "driver": "raw", "file": {"driver": "file", "filename": str(stray)}})
    guest.qmp("device_add", driver="virtio-blk-pci", drive="vg-stray", id="ua-vg-stray", bus="pci.14")
    found = cli("doctor", "--output", "json", status=1).tree
    problems = [finding for finding in found["findings"] if not finding["ok"]]
    assert [finding["subject"] for finding in problems] == [f"{guest.name}: ua-vg-stray"]
    assert problems[0]["seen"] == "QEMU has it, libvirt does not list it"
    assert problems[0]["action"]
