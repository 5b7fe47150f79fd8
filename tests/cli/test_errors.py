"""Errors tell what failed, who holds it and what to do; the exit status says which kind; never a traceback."""

import pytest

from tests.cli.conftest import Cli, process


@pytest.mark.parametrize(("words", "status", "told"), [
    (("volume", "create", "default/UPPER", "--size", "1MiB"), 2, "INVALID_FIELD: volume_id: 'UPPER' is not a name"),
    (("volume", "create", "default/v", "--size", "7000PiB"), 2, "size_bytes"),
    (("volume", "show", "default/none"), 3, "NOT_FOUND: pools/default/volumes/none does not exist"),
    (("volume", "show", "nopool/none"), 3, "there are: default"),
    (("pool", "show", "none"), 3, "there are: default"),
    (("operation", "show", "0" * 32), 3, "does not exist"),
    (("operation", "show", "nonsense"), 2, "operations/{id}"),
    (("snapshot", "create", "s", "--volume", "default/none"), 3, "does not exist"),
    (("attachment", "show", "00000000-0000-0000-0000-000000000000"), 3, "does not exist"),
])  # fmt: skip
def test_the_gateways_errors(cli, words, status, told):
    assert told in cli(*words, status=status).err
    error = cli(*words, "--output", "json", status=status).error
    assert error.keys() == {"code", "reason", "message", "holders", "fields", "retry_after", "operation", "exit"}
    assert error["exit"] == status


@pytest.mark.parametrize(("words", "told"), [
    (("volume", "create", "default/v", "--size", "5XB"), "'5XB' is not a size; write 10GiB, 512MiB or a number of bytes"),
    (("volume", "create", "default/v", "--size", "-1"), "is not a size"),
    (("volume", "create", "default/v", "--size", "9000PiB"), "is more than any volume can have"),
    (("volume", "create", "default/v", "--size", "1M", "--label", "k=\udcff"), "is no valid UTF-8"),
    (("volume", "create", "alone", "--size", "1M"), "write POOL/NAME"),
    (("volume", "create", "other/v", "--pool", "default"), "is in pool other, not in default"),
    (("volume", "create", "default/v", "--format", "tiff"), "'tiff' is not one of raw, qcow2, vmdk, vhdx"),
    (("volume", "create", "default/v", "--label", "nothing"), "'nothing' is not KEY=VALUE"),
    (("volume", "import", "default/v", "--file", "/none", "--source-format", "raw"), "--on-server names one on the server's host"),
    (("volume", "export", "default/v", "--file", "/dev/null", "--force"), "no regular file"),
    (("snapshot", "show", "default/v"), "write POOL/VOLUME/SNAPSHOT"),
    (("attachment", "attach", "--volume", "default/v", "--domain", "d", "--bus", "ide"), "'ide' is not one of virtio-blk, virtio-scsi"),
    (("attachment", "attach", "--volume", "default/v", "--domain", "d", "--limit", "iops=1"), "total_bytes_sec"),
    (("attachment", "attach", "--volume", "default/v", "--domain", "d", "--limit", f"read_iops_sec={1 << 63}"), "is not KIND=NUMBER"),
    (("attachment", "attach", "--volume", "default/v", "--domain", "d", "--iothread", "3000000000"), "--iothread"),
    (("attachment", "attach", "--volume", "default/v", "--domain", "d", "--shared", "--read-only"), "exclude each other"),
    (("volume", "list", "--output", "xml"), "--output"),
    (("volume", "list", "--timeout", "soon"), "--timeout"),
    (("volume", "list", "--timeout"), "--timeout"),
    (("volume", "frob"), "frob"),
    (("volume", "show"), "VOLUME"),
])  # fmt: skip
def test_a_wrong_command_is_refused_before_anything_is_sent(words, told):
    assert told in " ".join(Cli("unix:/nowhere")(*words, status=2).err.split())


def test_an_address_that_no_socket_can_have_is_refused():
    ran = Cli("unix:/" + "x" * 110)("volume", "list", status=2)
    assert "longer than the 107 bytes of a socket's path" in ran.err


def test_a_conflict_names_the_difference(cli):
    cli("volume", "create", "default/c", "--size", "1MiB")
    assert "EXISTS_DIFFERENT" in cli("volume", "create", "default/c", "--size", "2MiB", status=4).err


def test_who_holds_a_volume_is_told(cli):
    cli("volume", "create", "default/held", "--size", "1MiB", "--format", "qcow2")
    cli("snapshot", "create", "s", "--volume", "default/held")
    ran = cli("volume", "delete", "default/held", status=4)
    assert ran.out == ""
    first, holder, record = ran.err.splitlines()
    assert first.startswith("IN_USE: ")
    assert holder.split()[:4] == ["held", "by", "snapshot", "s"]
    shown = cli(*record.split()[1:])
    assert "IN_USE" in shown.out
    error = cli("volume", "delete", "default/held", "--output", "json", status=4).error
    assert [(h["kind"], h["name"]) for h in error["holders"]] == [("snapshot", "s")]


def test_a_gateway_that_is_not_there_is_named_with_what_to_do(tmp_path):
    ran = process("--server", f"unix:{tmp_path}/none", "volume", "list", "--timeout", "2", status=5)
    assert f"no gateway answers at unix:{tmp_path}/none" in ran.err
    assert "is `volgate serve` running" in ran.err


def test_a_libvirt_that_is_not_there_is_told_within_the_timeout(cli):
    cli("volume", "create", "default/att", "--size", "1MiB")
    ran = cli("attachment", "attach", "--volume", "default/att", "--domain", "d", "--timeout", "4", status=5)
    assert "qemu:///system" in ran.err


def test_control_characters_of_others_do_not_reach_the_terminal(cli):
    cli("volume", "create", "default/ctl", "--size", "1MiB", "--label", "k=a[b]c")
    assert "k=a[b]c" in cli("volume", "show", "default/ctl").out
