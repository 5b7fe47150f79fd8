"""The flags of every command, help, its speed, and the shell's completion."""

import os
import pty
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import process
from volgate.cli import hoist

COMMANDS = [
    "serve", "rescan", "backup", "restore", "plugins", "conform", "doctor",
    "pool list", "pool show", "pool foreign", "pool drain", "pool quarantine", "pool release",
    "volume create", "volume list", "volume show", "volume delete", "volume expand", "volume label", "volume limit", "volume revert", "volume adopt", "volume undelete",
    "volume import", "volume export", "volume changes",
    "snapshot create", "snapshot group", "snapshot list", "snapshot show", "snapshot delete",
    "attachment attach", "attachment detach", "attachment list", "attachment show", "attachment paths",
    "operation list", "operation show", "operation watch", "operation cancel",
    "host list", "host show", "host cordon", "host uncordon", "host release", "host remove", "host fence", "host unfence",
    "pki init", "pki server", "pki controller", "pki host", "pki client",
    "state move", "state disarm", "state controllers", "state gone",
]  # fmt: skip


def test_flags_are_accepted_anywhere(cli):
    address = cli.address
    lines = [
        ["--server", address, "--output", "json", "pool", "list"],
        ["pool", "--server", address, "list", "--output=json"],
        ["pool", "list", f"--server={address}", "--output", "json", "--timeout", "5"],
    ]
    names = [[pool["name"] for pool in process(*line).tree] for line in lines]
    assert names == [["pools/default"]] * 3
    assert process("pool", "list", "--output", "json", env={"VOLGATE_SERVER": address}).tree[0]["name"] == "pools/default"


def test_words_after_a_double_dash_are_no_flags():
    assert hoist(["volume", "show", "--", "--server", "x"]) == ["volume", "show", "--", "--server", "x"]
    assert hoist(["a", "--output"]) == ["--output", "a"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    shown = cli(*command.split(), "--help").out
    assert f"volgate {command}" in shown
    assert len(shown.splitlines()) > 4


def test_the_commands_are_those_that_are_tested_here():
    from typer.main import get_command

    from volgate.cli.app import app

    found = []
    for name, command in get_command(app).commands.items():
        found += [f"{name} {verb}" for verb in command.commands] if hasattr(command, "commands") else [name]
    assert sorted(found) == sorted(COMMANDS)


def test_help_tells_the_exit_statuses(cli):
    assert "2 wrong command or request; 3 not found; 4 conflict or precondition" in " ".join(cli("--help").out.split())


@pytest.mark.parametrize("words", [("--help",), ("volume", "create", "--help"), ("serve", "--help"), ("conform", "doctor", "--help")])
def test_help_is_quick_and_imports_neither_grpc_nor_libvirt_nor_the_server(words):
    code = (
        "import sys, time; began = time.process_time()\n"
        "from volgate.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'libvirt', 'sqlalchemy', 'volgate.edge', 'opentelemetry'} & set(sys.modules)\n"
        "print(f'{time.process_time() - began:.3f} {sorted(heavy)}', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True, timeout=30)
    seconds, heavy = done.stderr.strip().split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5


def complete(address, line, **more):
    words = f"volgate --server {address} {line}"
    return process(
        env={"_VOLGATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), **more}
    ).out.split()


def test_completion_of_commands_and_of_names_from_the_server(cli):
    for name in ("comp-a", "comp-b"):
        cli("volume", "create", f"default/{name}", "--size", "1MiB", "--format", "qcow2")
    cli("snapshot", "create", "snap", "--volume", "default/comp-a")
    assert complete(cli.address, "volume exp") == ["expand", "export"]
    assert complete(cli.address, "volume show default/comp") == ["default/comp-a", "default/comp-b"]
    assert complete(cli.address, "volume create x --pool de") == ["default"]
    assert complete(cli.address, "snapshot delete default/comp") == ["default/comp-a/snap"]


def test_completion_without_a_server_is_empty_and_quick(tmp_path):
    began = time.monotonic()
    assert complete(f"unix:{tmp_path}/none", "volume show de") == []
    assert time.monotonic() - began < 15.0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell):
    script = process(env={"_VOLGATE_COMPLETE": f"source_{shell}"}).out
    assert "_VOLGATE_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)


def test_a_terminal_gets_a_bold_header_and_a_pipe_does_not(cli):
    assert "\x1b" not in cli.process("pool", "list").out
    leader, follower = pty.openpty()
    line = [sys.executable, "-m", "volgate.cli", "--server", cli.address, "pool", "list"]
    subprocess.run(line, stdout=follower, check=True, timeout=30)
    os.close(follower)
    assert os.read(leader, 4096).startswith(b"\x1b[1mNAME")
    os.close(leader)


def test_a_reader_that_goes_away_is_no_traceback(cli):
    line = f"{sys.executable} -m volgate.cli --server {cli.address} pool list | true"
    done = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_the_version_is_that_of_the_package(cli):
    from importlib.metadata import version

    assert cli("--version").out == f"volgate {version('volgate')}\n"
