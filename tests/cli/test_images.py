"""Import and export through the command line: content, progress on a terminal only, refusals."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A real qcow2 image of 6 MiB with a hole in it, and its content."""
    folder = tmp_path_factory.mktemp("images")
    raw = folder / "content.raw"
    raw.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "image.qcow2"], check=True, timeout=60)
    return folder / "image.qcow2", raw


def test_an_image_goes_in_and_comes_out_the_same(cli, image, tmp_path):
    made = cli.json(
        "volume", "import", "default/im", "--file", str(image[0]), "--source-format", "qcow2", "--format", "raw", "--size", "8MiB"
    )
    assert (made["size_bytes"], made["format"]) == (8 * MIB, "VOLUME_FORMAT_RAW")
    out = cli("volume", "export", "default/im", "--file", str(tmp_path / "out.raw"))
    assert (out.out, out.err) == (f"{tmp_path}/out.raw: 8 MiB\n", "")
    assert (tmp_path / "out.raw").read_bytes() == image[1].read_bytes() + bytes(2 * MIB)
    facts = cli.json("volume", "export", "default/im", "--file", str(tmp_path / "out.qcow2"), "--format", "qcow2")
    assert facts == {"name": "pools/default/volumes/im", "file": f"{tmp_path}/out.qcow2", "bytes": (tmp_path / "out.qcow2").stat().st_size}
    subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "out.raw", tmp_path / "out.qcow2"], check=True, timeout=60
    )


def test_a_snapshot_is_exported_by_its_name(cli, image, tmp_path):
    cli("volume", "import", "default/sn", "--file", str(image[1]), "--source-format", "raw", "--format", "qcow2")
    cli("snapshot", "create", "s", "--volume", "default/sn")
    cli("volume", "export", "default/sn/s", "--file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == image[1].read_bytes()


def test_an_existing_file_is_replaced_only_by_force(cli, image, tmp_path):
    cli("volume", "import", "default/fo", "--file", str(image[1]), "--source-format", "raw")
    target = tmp_path / "out"
    target.write_text("precious")
    assert "--force replaces it" in cli("volume", "export", "default/fo", "--file", str(target), status=2).err
    assert target.read_text() == "precious"
    cli("volume", "export", "default/fo", "--file", str(target), "--force")
    assert target.read_bytes() == image[1].read_bytes()


def test_a_wrong_or_hostile_image_is_refused_and_leaves_nothing(cli, image, tmp_path):
    hostile = tmp_path / "hostile.qcow2"
    line = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", hostile, "1M"]
    subprocess.run(line, check=True, timeout=60)
    assert "HOSTILE_IMAGE" in cli("volume", "import", "default/ho", "--file", str(hostile), "--source-format", "qcow2", status=4).err
    cli("volume", "import", "default/ho", "--file", str(image[1]), "--source-format", "vhdx", status=4)
    cli("volume", "show", "default/ho", status=3)


def test_a_path_on_the_server_needs_an_allowed_directory(cli, image):
    words = ("volume", "import", "default/os", "--file", str(image[1]), "--source-format", "raw", "--on-server")
    assert "DENIED" in cli(*words, status=1).err


def test_a_file_is_made_on_the_server(cli, server, image):
    cli("volume", "import", "default/on", "--file", str(image[1]), "--source-format", "raw", "--format", "qcow2")
    file = server.state.parent / "exports" / "on.raw"
    words = ("volume", "export", "default/on", "--file", str(file), "--on-server", "--request-id", "on-1")
    facts = cli.json(*words)
    assert facts == {"name": "pools/default/volumes/on", "file": str(file), "bytes": 6 * MIB}
    assert file.read_bytes() == image[1].read_bytes()
    assert cli.json(*words) == facts
    assert "EXISTS_DIFFERENT" in cli(*words[:-2], status=4).err
    assert "never replaced" in cli(*words, "--force", status=2).err
    outside = ("volume", "export", "default/on", "--file", str(server.state / "out"), "--on-server")
    assert "[exports]" in cli(*outside, status=1).err
    bar = ("volume", "export", "default/on", "--file", f"{file}.bar", "--format", "qcow2", "--on-server")
    status, seen, _ = on_a_terminal("--server", cli.address, *bar)
    assert (status, "export pools/default/volumes/on" in seen) == (0, True)


def test_a_missing_folder_is_told(cli, image, tmp_path):
    cli("volume", "import", "default/mi", "--file", str(image[1]), "--source-format", "raw")
    assert "OS_ERROR: [Errno 2]" in cli("volume", "export", "default/mi", "--file", str(tmp_path / "none" / "out"), status=1).err


def on_a_terminal(*words):
    """Run with standard error on a terminal; return the status, what it saw, and standard output."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "volgate.cli", *words], stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    seen = []

    def read():
        try:
            while piece := os.read(leader, 4096):
                seen.append(piece)
        except OSError:
            pass  # the terminal's other side is closed

    reader = threading.Thread(target=read)
    reader.start()
    out, _ = process.communicate(timeout=60)
    reader.join(10)
    os.close(leader)
    return process.returncode, b"".join(seen).decode(), out.decode()


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(cli, image, tmp_path):
    words = (
        "--server",
        cli.address,
        "volume",
        "import",
        "default/bar",
        "--file",
        str(image[1]),
        "--source-format",
        "raw",
        "--output",
        "json",
    )
    status, seen, out = on_a_terminal(*words)
    assert status == 0
    assert "import bar" in seen
    assert "━" in seen
    assert out.startswith("{")
    status, seen, _ = on_a_terminal("--server", cli.address, "volume", "export", "default/bar", "--file", str(tmp_path / "out"))
    assert (status, "export default/bar" in seen) == (0, True)
    ran = cli.process("volume", "export", "default/bar", "--file", str(tmp_path / "again"))
    assert ran.err == ""


def test_an_interrupted_import_leaves_nothing(cli, server, tmp_path):
    large = tmp_path / "large.raw"
    with large.open("wb") as stream:
        for _ in range(128):  # enough to be noticed on its way; a hole would not be sent
            stream.write(os.urandom(4 * MIB))
    line = [
        sys.executable,
        "-m",
        "volgate.cli",
        "--server",
        cli.address,
        "volume",
        "import",
        "default/int",
        "--file",
        large,
        "--source-format",
        "raw",
    ]
    # a shell's background job ignores SIGINT, and so would its children; a person's terminal does not
    line = ["env", "--default-signal=INT", *line]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    spool = server.state / "spool"
    for _ in range(4000):
        if any(part.stat().st_size > MIB for part in spool.iterdir()):
            break
        time.sleep(0.001)
    else:
        raise AssertionError("the upload never began")
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert b"Traceback" not in err
    for _ in range(200):
        if not list(spool.iterdir()):
            break
        time.sleep(0.02)
    assert list(spool.iterdir()) == []
    cli("volume", "show", "default/int", status=3)


def test_a_terminal_is_told_why_a_command_waits_and_a_pipe_is_not(cli):
    cli("volume", "create", "default/wait", "--size", "1MiB")
    words = ("--server", cli.address, "attachment", "attach", "--volume", "default/wait", "--domain", "d", "--timeout", "4")
    status, seen, _ = on_a_terminal(*words)
    assert status == 5
    assert seen.count("trying again: ") == 1
    assert "qemu:///system" in seen
    assert "trying again" not in cli(*words[2:], status=5).err
