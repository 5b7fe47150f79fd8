"""The array process: its faults, its end, and what becomes of calls whose caller or array dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugins.memory_rig import MIB, Array, all_stopped, descriptors, until
from tests.soaking import count, draw
from volgate.backend import PoolContext, VolumeId
from volgate.errors import Busy, InDoubt, InvalidRequest, OutOfSpace, Precondition, Unreachable
from volgate.model import Format, Health
from volgate_plugins.memory import Fault, Memory, MemorySettings
from volgate_plugins.memory.faults import Faults
from volgate_plugins.memory.frames import is_open
from volgate_plugins.memory.media import MARK

CHILD = """
import sys, uuid
from tests.plugins.memory_rig import Pool
from volgate.model import Format
from volgate_plugins.memory import MemorySettings
from volgate.backend import VolumeId
pool = Pool(MemorySettings(socket=sys.argv[1]))
print("ready", flush=True)
{}
"""


@pytest.fixture
def array(tmp_path):
    made = Array(tmp_path / "array")
    yield made
    made.stop()
    assert "Traceback" not in made.said()


@pytest.fixture
def child(array):
    """Starts code in a process of its own with `pool` open on the array."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD.format(code), str(array.socket)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


def control(array, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "volgate_plugins.memory.control", "--socket", str(array.socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


# -- faults


def test_a_delay_has_a_fixed_part_and_a_bounded_jitter(array):
    pool = array.pool()
    array.fault("delay", "get_volume", seconds=0.1, jitter=0.1, count=5)
    pool.create("a")
    for _ in range(5):
        began = time.monotonic()
        pool.backend.get_volume("a")
        assert 0.1 <= time.monotonic() - began < 2.0
    assert array.status().faults == []


def test_an_error_of_any_class_with_its_reason_before_or_after_the_effect(array):
    pool = array.pool()
    array.fault("error", "create_volume", error="OutOfSpace", reason="QUOTA_EXCEEDED", message="the quota is used up", count=1)
    with pytest.raises(OutOfSpace) as caught:
        pool.create("a")
    assert (caught.value.reason, caught.value.message, pool.names()) == ("QUOTA_EXCEEDED", "the quota is used up", [])
    array.fault("error", "create_volume", error="Busy", after=True, count=1)
    with pytest.raises(Busy) as busy:
        pool.create("a")
    assert (busy.value.reason, busy.value.retry_after, pool.names()) == ("BUSY", 1.0, ["a"])


def test_a_hang_is_released_and_then_done(array):
    pool = array.pool()
    array.fault("hang", "create_volume", count=1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.create, "a")
        time.sleep(0.2)
        assert not waiting.done() and pool.names() == []
        assert array.ask("release", int, verb="*") == 1
        waiting.result(10)
    assert pool.names() == ["a"]


def test_a_hung_call_that_is_given_up_is_never_done(array):
    pool = array.pool(call_seconds=0.3)
    array.fault("hang", "create_volume", count=1)
    with pytest.raises(InDoubt):
        pool.create("a")
    array.ask("release", int, verb="*")
    time.sleep(0.2)
    assert pool.names() == [] and array.objects() == set()
    array.fault("hang", "get_volume", count=1)
    with pytest.raises(Unreachable):
        pool.backend.get_volume("a")


def test_a_lost_answer_leaves_its_effect_and_a_repeat_finds_it(array):
    pool = array.pool()
    spec = pool.spec("a")
    array.fault("lose", "create_volume", count=1)
    with pytest.raises(InDoubt):
        pool.backend.create_volume(spec)
    assert pool.backend.create_volume(spec).uid == spec.uid
    array.fault("lose", "delete_volume", count=1)
    with pytest.raises(InDoubt):
        pool.backend.delete_volume(VolumeId("a", spec.uid))
    pool.backend.delete_volume(VolumeId("a", spec.uid))
    assert pool.names() == []


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_kills_the_caller_and_nobody_else(array, child, after):
    pool = array.pool()
    array.fault("crash", "create_volume", after=after, count=1)
    victim = child('pool.create("a")')
    assert victim.wait(20) == -signal.SIGKILL
    assert pool.names() == (["a"] if after else [])


def test_draws_repeat_with_their_seed():
    def drawn(seed: int) -> list[bool]:
        faults = Faults()
        faults.add(Fault(effect="lose", verb="check", probability=0.3, seed=seed))
        return [bool(faults.strike("check", lambda: None)._drawn) for _ in range(200)]

    seed = draw().randrange(1 << 30)
    assert drawn(seed) == drawn(seed) != drawn(seed + 1)
    assert 30 < sum(drawn(7)) < 90


def test_configured_faults_are_put_in_force_once(array):
    faults = (Fault(effect="error", verb="create_volume", count=2),)
    pool = array.pool(faults=faults)
    with pytest.raises(Unreachable):
        pool.create("a")
    other = array.pool(faults=faults)
    with pytest.raises(Unreachable):
        other.create("a")
    other.create("a")
    array.pool(faults=())
    array.pool(faults=faults)
    with pytest.raises(Unreachable):
        other.create("b")


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"verb": "create"}, "faults.verb"),
        ({"seconds": -1.0}, "faults.seconds"),
        ({"probability": 1.5}, "faults.probability"),
        ({"error": "holders"}, "faults.error"),
        ({"jitter": float("nan")}, "faults.jitter"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fault, field):
    with pytest.raises(InvalidRequest) as caught:
        Memory.open(MemorySettings(socket="/s", faults=(Fault(effect="error", **fault),)), PoolContext("p", "i"))
    assert caught.value.field == field


def test_the_control_command(array):
    pool = array.pool()
    assert control(array, "error", "create_volume", "--error", "OutOfSpace", "--count", "2").returncode == 0
    (fault,) = json.loads(control(array, "faults").stdout)
    assert (fault["error"], fault["count"]) == ("OutOfSpace", 2)
    with pytest.raises(OutOfSpace):
        pool.create("a")
    assert control(array, "clear").stdout == "1\n"
    pool.create("a")
    assert control(array, "fail-port", "b").returncode == 0
    status = json.loads(control(array, "status").stdout)
    assert (status["volumes"], status["instance"], status["pid"]) == (1, "gateway-1", array.process.pid)
    assert [bool(port["problem"]) for port in status["ports"]] == [False, True]
    assert json.loads(control(array, "foreign", "disk").stdout) == str(array.root / "disk")
    assert control(array, "accept-loss").stdout == "false\n"
    again = control(array, "foreign", "disk")
    assert (again.returncode, again.stderr.partition(":")[0]) == (1, "PRECONDITION")
    assert control(array, "hang", "everything").returncode == 2
    assert control(array, "stop").returncode == 0
    assert array.process.wait(10) == 0


def test_every_effect_is_a_control_command(array):
    pool = array.pool()
    for effect in ("delay", "hang", "lose", "crash"):
        assert control(array, effect, "paths", "--count", "1").returncode == 0
    assert [fault.effect for fault in array.status().faults] == ["delay", "hang", "lose", "crash"]
    control(array, "clear")
    assert pool.backend.check().health is Health.OK


# -- callers that die, arrays that end


def test_clients_killed_amid_calls_leave_whole_volumes_only(array, child):
    pool, draws = array.pool(), draw()
    array.fault("delay", "*", jitter=0.01, seed=draws.randrange(1 << 30))
    code = """
from concurrent.futures import ThreadPoolExecutor
def one(n):
    v = pool.create(f"k{uuid.uuid4().hex[:8]}", 1 << 20)
    pool.write(v, b"x" * 4096)
    s = pool.snapshot(v, "s")
    pool.clone(f"{v.name}-c", v, s)
    pool.backend.revert_volume(v, s, token="t")
with ThreadPoolExecutor(6) as threads:
    list(threads.map(one, range(1000)))
"""
    for _ in range(count(4, soak=60)):
        victim = child(code)
        time.sleep(draws.uniform(0.05, 0.4))
        victim.kill()
        victim.wait(10)
    array.ask("clear_faults", int, verb="*")
    known = list(pool.backend.list_volumes())
    assert known
    named = set()
    for volume in known:
        identity = VolumeId(volume.name, volume.uid)
        connection = pool.backend.connection(identity, host="h")
        assert os.stat(connection.path).st_size == volume.size == MIB and not volume.problem
        cuts = pool.backend.list_snapshots(identity)
        named |= {connection.path, connection.tag, *(pool.backend.image(identity, cut.uid).path for cut in cuts)}
    assert {str(array.root / name) for name in array.objects()} == named, "what was dropped left no file"
    until(lambda: descriptors(array.process.pid) < 20)


def test_a_copy_whose_caller_is_gone_stops_and_leaves_nothing(array, child):
    pool = array.pool()
    volume = pool.create("a", 512 * MIB)
    for part in range(32):
        pool.write(volume, b"x" * 16 * MIB, part * 16 * MIB)
    before = array.objects()
    victim = child(f'pool.clone("b", VolumeId("a", {volume.uid!r}), size=512 << 20)')
    until(lambda: array.objects() != before)
    victim.kill()
    until(lambda: array.objects() == before)
    assert pool.names() == ["a"]


def test_an_import_whose_worker_dies_leaves_no_file(array, child, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"x" * MIB)
    pool = array.pool()
    volume = pool.create("a", incomplete=True)
    before = array.objects()
    code = 'def told(f):\n    print("told", flush=True)\n    import time; time.sleep(60)\n'
    victim = child(f'{code}pool.backend.fill_from_file(VolumeId("a", {volume.uid!r}), {str(image)!r}, Format.RAW, told)')
    assert victim.stdout.readline() == "told\n"
    victim.kill()
    until(lambda: not [name for name in array.objects() if name.startswith("staging/fill-")])
    pool.backend.fill_from_file(volume, str(image), Format.RAW, lambda _: None)
    pool.backend.complete(volume)
    assert before <= array.objects() and pool.read(volume, MIB) == b"x" * MIB


def test_a_client_goes_on_when_an_empty_array_was_started_again(array):
    pool = array.pool()
    for name in "ab":
        array.kill9()
        array.start()
        pool.backend.delete_volume(pool.create(name))
    assert pool.backend.check().health is Health.OK
    assert pool.names() == []


def test_an_array_that_ended_with_volumes_is_not_taken_for_an_empty_pool(array):
    pool = array.pool()
    volume = pool.create("a")
    array.kill9()
    array.start()
    found = pool.backend.check()
    assert found.health is Health.DOWN and "ended and took them with it" in found.message
    for call in (lambda: pool.backend.get_volume("a"), pool.names, lambda: pool.create("b"), lambda: pool.backend.delete_volume(volume)):
        with pytest.raises(Precondition) as caught:
            call()
        assert caught.value.reason == "POOL_MARKER_MISSING"
    with pytest.raises(Precondition):
        array.pool()
    array.kill9()
    array.start()
    assert pool.backend.check().health is Health.DOWN, "a second restart changes nothing"
    assert control(array, "accept-loss").stdout == "true\n"
    assert pool.backend.check().health is Health.OK
    assert pool.names() == []


def test_an_array_ended_by_a_signal_leaves_the_note_and_nothing_else(array):
    pool = array.pool()
    volume = pool.create("a")
    assert array.stop() == 0
    assert sorted(path.name for path in array.socket.parent.iterdir()) == ["array.log", "array.sock.volumes", "bytes"]
    assert [path.name for path in array.root.iterdir()] == [MARK]
    array.start()
    pool = array.pool(accept_loss=True)
    assert pool.names() == []
    pool.backend.delete_volume(volume)
    pool.backend.delete_volume(pool.create("b"))
    array.stop()
    assert not Path(f"{array.socket}.volumes").exists(), "with no volumes nothing is lost"


def test_a_damaged_note_counts_as_a_loss(array):
    array.stop()
    Path(f"{array.socket}.volumes").write_bytes(b"{")
    array.start()
    with pytest.raises(Precondition):
        array.pool()


def test_one_array_at_a_socket(array):
    command = [sys.executable, "-m", "volgate_plugins.memory.array", "--socket", str(array.socket), "--directory", str(array.root)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 3 and "another array listens" in second.stderr
    assert array.pool().names() == []


def start_anew(folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "volgate_plugins.memory.array", "--socket", str(folder / "s"), "--directory", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_nothing_is_removed_from_a_directory_that_is_not_its_own(array, tmp_path):
    array.pool().create("a")
    mine = tmp_path / "mine"
    (mine / "volumes").mkdir(parents=True)
    (mine / "volumes" / "precious").write_text("data")
    for root, why in ((array.root, "another array keeps its bytes there"), (mine, "it was not made by an array")):
        refused = start_anew(tmp_path, root)
        assert refused.returncode == 1 and why in refused.stderr
    assert (mine / "volumes" / "precious").read_text() == "data"
    assert array.pool().names() == ["a"] and len(array.objects()) == 2
    missing = start_anew(tmp_path / "nowhere", mine)
    assert missing.returncode == 1 and "No such file" in missing.stderr


def test_an_array_that_is_not_there_is_said_to_be_so_in_time(tmp_path):
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        Memory.open(MemorySettings(socket=str(tmp_path / "none"), connect_seconds=0.3), PoolContext("p", "i"))
    assert 0.2 < time.monotonic() - began < 5 and "no array answers" in caught.value.message


def test_garbage_on_the_socket_harms_nobody(array):
    pool = array.pool()
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\x10abc", b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(array.socket))
            end.sendall(data)
            end.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(100) == b""
    for verb, arguments in (("no_verb", {}), ("get_volume", {"name": 5}), ("hello", {"x": 1}), ("get_volume", {})):
        with pytest.raises(InvalidRequest):
            pool.backend._client.call(verb, None, **arguments)
    assert pool.names() == []


def test_its_socket_is_for_its_user_alone(array):
    assert array.socket.stat().st_mode & 0o777 == 0o600


def test_an_end_that_closed_is_seen():
    ours, theirs = socket.socketpair()
    assert is_open(ours)
    theirs.close()
    assert not is_open(ours)
    ours.close()
    assert not is_open(ours)


MUTATIONS = {
    "create": lambda pool, v, s, w: pool.create("new"),
    "clone": lambda pool, v, s, w: pool.clone("new", v, s),
    "adopt": lambda pool, v, s, w: pool.backend.adopt_volume("foreign", pool.spec("new")),
    "delete": lambda pool, v, s, w: pool.backend.delete_volume(w),
    "expand": lambda pool, v, s, w: pool.backend.expand_volume(v, 2 * MIB, online=False),
    "relabel": lambda pool, v, s, w: pool.backend.relabel_volume(v, {"new": "label"}),
    "snapshot": lambda pool, v, s, w: pool.snapshot(v, "new"),
    "unsnapshot": lambda pool, v, s, w: pool.backend.delete_snapshot(v, s),
    "revert": lambda pool, v, s, w: pool.backend.revert_volume(v, s, token="t"),
    "complete": lambda pool, v, s, w: pool.backend.complete(w),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_call_that_reaches_the_array_after_its_caller_left_is_dropped(array, mutation):
    pool = array.pool()
    volume, incomplete = pool.create("a"), pool.create("w", incomplete=True)
    cut = pool.snapshot(volume, "s")
    pool.write(volume, b"kept")
    (array.root / "foreign").write_bytes(bytes(MIB))

    def seen() -> object:
        known = list(pool.backend.list_volumes())
        return known, pool.backend.list_snapshots(volume), list(pool.backend.list_foreign()), pool.read(volume, 4), array.objects()

    before, connected = seen(), descriptors(array.process.pid)
    impatient = array.pool(call_seconds=0.2, copy_seconds=0.2)
    array.process.send_signal(signal.SIGSTOP)
    until(lambda: all_stopped(array.process.pid))
    with pytest.raises(InDoubt):
        MUTATIONS[mutation](impatient, volume, cut, incomplete)
    array.process.send_signal(signal.SIGCONT)
    until(lambda: descriptors(array.process.pid) == connected)  # the connection is closed last
    assert seen() == before
    MUTATIONS[mutation](array.pool(), volume, cut, incomplete)
    assert seen() != before
