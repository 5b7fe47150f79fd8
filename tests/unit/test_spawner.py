from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from volgate.backend.run import run_checked
from volgate.errors import Cancelled, InDoubt, NotFound, Precondition, Unreachable
from volgate.forker import Status
from volgate.spawner import Child, Limits, Spawner


@pytest.fixture
def spawner():
    made = Spawner.start()
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


def test_output_input_code_and_clean_environment(spawner):
    done = spawner.run(["sh", "-c", "cat; env >&2; exit 3"], timeout=10, stdin=b"x" * 300_000, env={"A": "b"})
    assert done.returncode == 3 and done.stdout == b"x" * 300_000 and not done.timed_out
    keys = {line.split("=")[0] for line in done.stderr.decode().splitlines()}
    assert keys <= {"A", "LC_ALL", "PATH", "PWD", "_", "SHLVL", "OLDPWD"}


def test_descriptors_reach_the_child_and_nothing_else_does(spawner, tmp_path):
    path = tmp_path / "x"
    path.write_text("through")
    descriptor = os.open(path, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    done = spawner.run(["sh", "-c", "cat <&3; ls /proc/self/fd"], timeout=10, fds=[descriptor], cwd=str(tmp_path))
    os.close(descriptor)
    assert done.stdout.split() == [b"through0", b"1", b"2", b"3", b"4"]  # 4 is the directory that ls reads


def test_restricted_user_limits_and_no_new_privileges(spawner):
    command = "id -u; id -G; ulimit -c; ulimit -v; grep NoNewPrivs /proc/self/status"
    done = spawner.run(["sh", "-c", command], timeout=10, user=65534, limits=Limits(memory=1 << 30))
    assert done.stdout.split() == [b"65534", b"65534", b"0", b"1048576", b"NoNewPrivs:", b"1"]


def test_a_command_that_computes_too_long_ends_by_the_signal_that_says_so(spawner):
    done = spawner.run(["sh", "-c", "while :; do :; done"], timeout=20, limits=Limits(cpu=1))
    assert done.returncode == -signal.SIGXCPU and not done.timed_out


@pytest.mark.parametrize(("name", "kind", "reason"), [("KILL", Unreachable, "COMMAND_KILLED"), ("SEGV", Precondition, "COMMAND_FAILED")])
def test_a_command_killed_from_outside_may_be_repeated_and_one_that_crashed_not(name, kind, reason):
    with pytest.raises(kind) as caught:
        run_checked(["sh", "-c", f"kill -{name} $$"], doing="try", timeout=10)
    assert caught.value.reason == reason


def test_missing_program_is_named(spawner):
    with pytest.raises(NotFound, match="no-such-program"):
        spawner.run(["no-such-program"], timeout=5)
    with pytest.raises(NotFound):
        spawner.run(["true"], timeout=5, cwd="/no/such/folder")


def test_a_command_that_does_not_start_costs_no_other(spawner):
    end = os.open(os.devnull, os.O_RDWR)
    running, helper = spawner.spawn(["sleep", "96"], descriptors=[end] * 3), spawner.pid
    os.close(end)
    for _ in range(20):
        with pytest.raises(NotFound):
            spawner.run(["no-such-program"], timeout=5)
        with pytest.raises(NotFound):
            spawner.run(["true"], timeout=5, cwd="/no/such/folder")
    assert spawner.pid == helper
    with pytest.raises(TimeoutError):
        running.wait(0.2)
    running.kill()
    assert running.wait(5) == -signal.SIGKILL
    running.close()


def test_an_end_that_crosses_with_a_kill_is_told():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(msgspec.msgpack.encode(Status(pid=2**22)))
    child = Child(ours, "true", pytest.fail)
    child.kill()
    theirs.send(msgspec.msgpack.encode(Status(pid=2**22, code=5)))
    theirs.close()  # the kill unread
    assert child.wait(5) == 5
    child.close()


def test_deadline_kills_the_whole_group(spawner):
    begun = time.monotonic()
    done = spawner.run(["sh", "-c", "sleep 97 & echo $!; sleep 98"], timeout=0.3)
    assert done.timed_out and done.returncode == -signal.SIGKILL and time.monotonic() - begun < 3
    wait_gone(int(done.stdout))


def test_lines_come_as_they_are_written_and_a_raise_stops_the_command(spawner):
    seen: list[str] = []
    spawner.run(["printf", "a\\rb\\n\\nc"], timeout=5, on_line=seen.append)
    assert seen == ["a", "b", "c"]

    def refuse(line: str) -> None:
        seen.append(line)
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        spawner.run(["sh", "-c", "echo $$; sleep 96"], timeout=60, on_line=refuse)
    wait_gone(int(seen[-1]))


def test_a_command_that_was_stopped_is_gone_before_its_caller_goes_on(spawner):
    def refuse(line: str) -> None:
        pids.append(int(line))
        raise Cancelled("stop")

    pids: list[int] = []
    for _ in range(30):
        with pytest.raises(Cancelled):
            spawner.run(["sh", "-c", "echo $$; while :; do :; done"], timeout=60, on_line=refuse)
        assert not alive(pids[-1])
    with pytest.raises(Cancelled):
        spawner.run(["sleep", "94"], timeout=60, cancelled=lambda: bool(pids))
    assert subprocess.run(["pgrep", "-fx", "sleep 94"], stdout=subprocess.DEVNULL, check=False).returncode == 1


def test_cancellation(spawner):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        spawner.run(["sleep", "95"], timeout=60, cancelled=stop.is_set)
    assert time.monotonic() - begun < 3


def test_a_thousand_commands_from_twenty_threads_leave_nothing(spawner):
    spawner.run(["true"], timeout=10)
    gc.collect()  # what an earlier test left to the collector is not to be counted
    ours, theirs = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{spawner.pid}/fd"))

    def one(number: int) -> bool:
        done = spawner.run(["sh", "-c", f"cat; echo {number}; exit {number % 7}"], timeout=60, stdin=b"%d " % number)
        return done.stdout == b"%d %d\n" % (number, number) and done.returncode == number % 7

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(1000)))
    assert len(os.listdir("/proc/self/fd")) <= ours
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{spawner.pid}/fd")) > theirs:  # it lets go after it has answered
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = subprocess.run(["ps", "--ppid", str(spawner.pid), "-o", "pid="], check=False, capture_output=True, text=True).stdout
    assert not children.strip()


def test_killed_spawner_takes_its_children_and_is_replaced(spawner, tmp_path):
    note = tmp_path / "pid"
    failures: list[BaseException] = []

    def long() -> None:
        try:
            spawner.run(["sh", "-c", f"sleep 94 & echo $! $$ > {note}; wait"], timeout=60)
        except BaseException as error:  # asserted on below, in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=long)
    thread.start()
    while not (note.exists() and note.read_text().strip()):
        time.sleep(0.01)
    old = spawner.pid
    os.kill(old, signal.SIGKILL)
    thread.join(10)
    assert isinstance(failures[0], InDoubt) and failures[0].reason == "SPAWNER_LOST"
    for pid in note.read_text().split():
        wait_gone(int(pid))
    assert spawner.run(["echo", "back"], timeout=10).stdout == b"back\n"
    assert spawner.pid != old and not os.path.exists(f"/proc/{old}")


def test_a_spawner_that_dies_is_given_nothing_more(spawner):
    """It closes its descriptors one after the other: a child's end may be gone while it still takes requests."""
    end = os.open(os.devnull, os.O_RDWR)
    child, old = spawner.spawn(["sleep", "95"], descriptors=[end] * 3), spawner.pid
    os.close(end)
    os.kill(old, signal.SIGKILL)
    with pytest.raises(InDoubt):
        child.wait(10)
    assert spawner.pid != old and not os.path.exists(f"/proc/{old}")
    assert spawner.run(["echo", "back"], timeout=10).stdout == b"back\n"
    child.close()


def test_kills_under_load_are_seen_or_survived(spawner):
    stop = threading.Event()

    def murder() -> None:
        while not stop.wait(0.15):
            with contextlib.suppress(ProcessLookupError):
                os.kill(spawner.pid or 2**22, signal.SIGKILL)

    killer = threading.Thread(target=murder)
    killer.start()

    def one(_: int) -> str:
        try:
            return spawner.run(["echo", "x"], timeout=20).stdout.decode()
        except InDoubt:
            return "lost"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(200)))
    stop.set()
    killer.join()
    assert set(found) <= {"x\n", "lost"} and found.count("x\n") > 0


def test_it_dies_with_the_gateway():
    code = "import os,sys,time,threading; from volgate.spawner import Spawner; s=Spawner.start(); print(s.pid, flush=True);"
    code += "threading.Thread(target=lambda: s.run(['sh','-c','echo $$ >&3; sleep 93'], timeout=99, fds=[1])).start(); time.sleep(99)"
    gateway = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(gateway.stdout.readline()), int(gateway.stdout.readline())]
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    for pid in pids:
        wait_gone(pid)


def test_lazily_started_from_a_thread_that_ended_it_lives_on():
    made: list[Spawner] = []
    thread = threading.Thread(target=lambda: made.append(Spawner.start()))
    thread.start()
    thread.join()
    time.sleep(0.2)
    pid = made[0].pid
    assert made[0].run(["echo", "x"], timeout=5).stdout == b"x\n" and made[0].pid == pid
    made[0].close()
    assert not alive(pid)
