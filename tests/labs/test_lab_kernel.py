"""The kernel lab: tests that are handed to a guest, guests on a network, a power cut, and the lab for people."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

from tests.labs.guest import BUILD
from tests.labs.kernel.control import Failed
from tests.labs.kernel.machine import ROOT, Machine
from tests.labs.kernel.network import Cable
from tests.labs.lab import KERNEL_BASE, running
from tests.labs.network import Network

pytestmark = pytest.mark.timeout(600)  # the first one may have to build the guest
MODULE = '''"""Handed to a guest."""

import os, signal, time
import pytest

pytestmark = pytest.mark.kernel

@pytest.fixture(scope="module")
def made_once():
    yield [os.getpid()]

def test_runs_on_another_kernel(made_once):
    assert os.uname().release.startswith("6.12.")

@pytest.mark.parametrize("number", [1, 2])
def test_fails_with_its_words(made_once, number):
    assert made_once == [os.getpid()]
    print("printed by", number)
    assert number == 1

def test_dies_by_its_emulator(request):
    if request.session.testsfailed:  # not in its second guest, which has run nothing before
        open("/dev/kmsg", "w").write("<2>Oops: int3: 0000 [#1]\\n")
        open("/proc/sysrq-trigger", "w").write("b")

def test_is_skipped():
    pytest.skip("so that a skip is handed over")

@pytest.mark.timeout(1)
def test_takes_too_long():
    time.sleep(60)

@pytest.mark.timeout(2)
def test_hangs_with_its_guest():
    open("/dev/kmsg", "w").write("<2>the last words of the kernel\\n")
    os.kill(os.getpid(), signal.SIGSTOP)

def test_has_a_new_guest():
    assert os.path.exists("/share/pytest.log")  # covered
'''
HERE = """def test_runs_here():
    pass
"""


class Told(NamedTuple):
    """The outcomes by the tests' names, those of the tests that run here, the lines that were run, and what the run printed."""

    cases: dict[str, ET.Element]
    here: list[str]
    lines: list[int]
    summary: str


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture(scope="module")
def machine(network: Network) -> Iterator[Machine]:
    with Machine("one", number=1, cable=Cable(network, 101)) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What a run of MODULE told."""
    folder = BUILD / f"handed-{os.getpid()}"  # below the checkout: the guest sees nothing else
    out = tmp_path_factory.mktemp("out")
    folder.mkdir(parents=True)
    try:
        near, module, far = folder / "near/test_near.py", folder / "near/test_handed.py", folder / "far/test_far.py"
        for path, text in ((near, HERE), (module, MODULE), (far, HERE)):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (folder / "coveragerc").write_text(f"[run]\ninclude = {module}\n")
        argv = [sys.executable, "-m", "coverage", "run", f"--rcfile={folder}/coveragerc", f"--data-file={out}/.coverage", "-m", "pytest"]
        argv += [
            "-p",
            "tests.labs.kernel.delegate",
            "-p",
            "no:cacheprovider",
            "-n",
            "0",
            "--kernel-grace",
            "3",
            f"--junitxml={out}/told.xml",
        ]
        argv += ["-o", "junit_logging=all", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(near), str(module), str(far)]
        done = subprocess.run(argv, check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        measured = f"{sys.executable} -m coverage combine -q --append --data-file={out}/.coverage {out} && {sys.executable} -m coverage"
        measured += f" json -q --data-file={out}/.coverage -o {out}/covered.json"
        subprocess.run(measured, shell=True, check=True, cwd=folder)
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    every = [*ET.parse(out / "told.xml").iter("testcase")]
    cases = {case.get("name", ""): case for case in every}
    return Told(
        cases,
        [outcome(case) for case in every if case.get("name") == "test_runs_here"],
        json.loads((out / "covered.json").read_text())["files"].popitem()[1]["executed_lines"],
        done.stdout,
    )


def words(case: ET.Element) -> str:
    return "".join(case.itertext()) + "".join(child.get("message", "") for child in case)


def outcome(case: ET.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def test_tests_of_a_module_run_in_its_guest_and_are_reported_as_if_they_ran_here(told):
    assert outcome(told.cases["test_runs_on_another_kernel"]) == outcome(told.cases["test_fails_with_its_words[1]"]) == "passed"
    failed = told.cases["test_fails_with_its_words[2]"]
    assert outcome(failed) == "failure" and "assert 2 == 1" in words(failed) and "printed by 2" in words(failed)
    assert outcome(told.cases["test_is_skipped"]) == "skipped" and "so that a skip is handed over" in words(told.cases["test_is_skipped"])
    late = told.cases["test_takes_too_long"]
    assert outcome(late) == "failure" and "Timeout" in words(late) and "time.sleep(60)" in words(late)
    assert 0.1 <= float(late.get("time", "0")) < 30  # the second begins with hooks that no phase counts


def test_a_guest_that_its_emulator_broke_is_replaced_and_the_summary_says_so(told):
    again = told.cases["test_dies_by_its_emulator"]
    assert outcome(again) == "passed" and "the emulator broke its first guest" in ET.tostring(again, encoding="unicode")
    assert "run again: " in told.summary and "test_dies_by_its_emulator: the emulator" in told.summary


def test_a_hung_guest_is_killed_and_its_console_is_in_the_report(told):
    hung = told.cases["test_hangs_with_its_guest"]
    assert outcome(hung) == "failure" and "did not answer within 5 s" in words(hung) and "the last words of the kernel" in words(hung)
    assert outcome(told.cases["test_has_a_new_guest"]) == "passed"


def test_what_ran_in_a_guest_that_ended_in_order_is_covered(told):
    number = next(number for number, line in enumerate(MODULE.splitlines(), 1) if "# covered" in line)
    assert number in told.lines


def test_tests_before_and_after_them_run_here(told):
    assert told.here == ["passed", "passed"]


OTHERS = [
    f"tests/conformance/test_{name}.py" for name in ("iscsi_files", "iscsi_inventory", "iscsi_lvm", "iscsi_tgt", "lvm")
]  # these take turns


def test_a_run_of_everything_draws_the_same_share_in_every_process_and_a_named_run_takes_all():
    def collected(seed: str, *words: str) -> list[str]:
        argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *words, "tests/kernel/test_iscsi.py", *OTHERS]
        env = {name: value for name, value in os.environ.items() if name != "VOLGATE_DRAWN_BY"}
        done = subprocess.run(argv, check=False, cwd=ROOT, capture_output=True, text=True, env={**env, "VOLGATE_SEED": seed})
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "::" in line]

    drawn, named = collected("1", "-p", "tests.wholeness"), collected("1")
    assert len([name for name in drawn if "test_iscsi.py" in name]) == 6
    assert len([other for other in OTHERS if any(other in name for name in drawn)]) == 1, "each is in every fifth run"
    assert drawn == collected("1", "-p", "tests.wholeness") != collected("2", "-p", "tests.wholeness")
    assert set(drawn) < set(named) and len(named) > 60


def test_guests_reach_each_other_over_their_own_network_and_a_cable_can_be_cut(network, machine):
    cable = Cable(network, 102)
    ping = f"ping -c 1 -W 2 {cable.address}"
    with Machine("two", number=2, cable=cable) as other:
        assert other.run("hostname") == "two" and machine.run("hostname") == "one"
        machine.run(f"for i in $(seq 30); do {ping} && exit; done; exit 1")
        cable.cut()
        assert machine.sh(ping)[0] == 1
        cable.heal()
        machine.run(f"for i in $(seq 30); do {ping} && exit; done; exit 1")
        other.kill()
        assert machine.sh(ping)[0] == 1


def test_a_power_cut_loses_what_was_not_flushed_and_nothing_else(machine):
    seed = random.Random(7)
    disk = machine.add_disk("kept", 64 << 20)
    machine.run(
        f"mke2fs -q {disk} && mount {disk} /mnt && head -c 1000000 /dev/urandom >/mnt/synced && sync /mnt/synced && touch /tmp/gone"
    )
    digest = machine.run("sha256sum </mnt/synced")
    machine.run(
        f"umount /mnt; dd if=/dev/urandom of={disk} bs=1M seek=40 count=4 oflag=direct"
    )  # acknowledged, and in no cache of the guest
    loose = machine.run(f"dd if={disk} bs=1M skip=40 count=4 iflag=direct status=none | sha256sum")
    assert machine.power_cut(seed) > 0
    assert machine.run(f"mount {disk} /mnt && sha256sum </mnt/synced && umount /mnt") == digest
    assert machine.run(f"dd if={disk} bs=1M skip=40 count=4 iflag=direct status=none | sha256sum") != loose
    assert machine.sh("test -e /tmp/gone")[0] == 1


def test_a_guest_that_does_not_finish_is_told_with_its_script(machine):
    with pytest.raises(Failed, match="still runs: sleep 60"):
        machine.sh("sleep 60", timeout=0.5)
    with pytest.raises(Failed, match="exit status 3"):
        machine.run("exit 3")


def test_a_restored_guest_is_up_in_seconds(network):
    began = time.monotonic()
    with Machine("three", number=3, cable=Cable(network, 103)) as other:
        took = time.monotonic() - began
        print(f"restored in {took:.1f} s")
        assert other.run("uname -r").startswith("6.12.")
        base, pid = other.base, other.process.pid
    assert took < 60 and not base.exists() and not Path(f"/proc/{pid}").exists()


def test_a_killed_owner_leaves_no_guest():
    script = "import time\nfrom tests.labs.kernel.machine import Machine\nm = Machine().start()\nprint(m.base, m.process.pid, flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        base, pid = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    subprocess.run(["rm", "-rf", base], check=True)


def test_the_lab_for_people_has_a_shell():
    def lab(action: str) -> str:
        argv = [sys.executable, "-m", "tests.labs.lab", action, "kernel"]
        return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    mine = not running(BUILD / "kernel")  # somebody may be at work in it
    printed = lab("start")
    try:
        assert "tests.labs.kernel.shell" in printed and lab("start") == printed
        if mine:
            assert "the sum is 42" in said(KERNEL_BASE / "shell", b"echo the sum is $((6 * 7))\n", "the sum is 42")
    finally:
        if mine:
            lab("stop")
            assert not KERNEL_BASE.exists()


def said(shell: Path, line: bytes, until: str) -> str:
    argv = [sys.executable, "-m", "tests.labs.kernel.shell", str(shell)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as person:
        person.stdin.write(line)
        person.stdin.flush()
        heard = b""
        while until not in heard.decode(errors="replace") and (more := os.read(person.stdout.fileno(), 4096)):
            heard += more
        person.stdin.close()
        person.wait(30)
    return heard.decode(errors="replace")
