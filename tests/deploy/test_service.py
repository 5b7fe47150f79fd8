"""The unit is accepted by systemd, is tight, and leaves the gateway the rights that it needs: proven by running under them."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.labs.domain import Guest
from volgate.v1 import pool_pb2
from volgate_client import Client

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/volgate.service"
HOST_UNIT = ROOT / "deploy/systemd/volgate-host.service"
TGT = ROOT / "deploy/systemd/volgate-tgt.conf"
ISCSI = ROOT / "deploy/systemd/volgate-iscsi.conf"
LVM = ROOT / "deploy/systemd/volgate-lvm.conf"
LUNS = ROOT / "deploy/systemd/volgate-luns.conf"
UNITS = (UNIT, HOST_UNIT)
SYSUSERS = ROOT / "deploy/systemd/volgate.sysusers.conf"
TIGHT = "20"  # systemd's exposure level times ten; services of its own are between 10 and 40
USER, QEMU = pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("libvirt-qemu").pw_uid  # libvirt wants a user with a name
LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, from Linux 6.3 on: what MemoryDenyWriteExecute= does
os.umask(0o077)
os.execv(sys.argv[1], sys.argv[1:])
"""


def unit(path: Path = UNIT) -> RawConfigParser:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(path)
    return parser


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90, **options)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_unit(tmp_path, path):
    local = tmp_path / path.name
    local.write_text(path.read_text().replace("/opt/volgate/bin/volgate", str(Path(sys.executable).with_name("volgate"))))
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", local) == ""


def test_systemd_accepts_the_users(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("libvirt:x:120:\n")
    made = run("systemd-sysusers", "--dry-run", f"--root={tmp_path}", SYSUSERS)
    assert re.search(r"user 'volgate'", made) and re.search(r"group 'volgate'", made), made


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_unit_is_tight(path):
    run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={TIGHT}", path)


def test_the_unit_of_a_host_is_that_of_the_gateway_but_for_what_a_host_has_not():
    of_gateway, of_host = unit()["Service"], unit(HOST_UNIT)["Service"]
    differing = {key for key in {*of_gateway, *of_host} if of_gateway.get(key) != of_host.get(key)}
    assert differing == {
        *("ExecStartPre", "ExecStart", "ExecReload"),
        *("StateDirectory", "StateDirectoryMode", "RuntimeDirectory", "RuntimeDirectoryMode"),
    }
    example = (ROOT / "deploy/config-examples/host.toml").read_text()
    assert f'state_dir = "/var/lib/{of_host["StateDirectory"]}"' in example
    assert of_host["ExecStart"].endswith("/etc/volgate/host.toml")


def test_systemd_accepts_the_drop_in_for_volume_groups(tmp_path):
    local = tmp_path / UNIT.name
    local.write_text(UNIT.read_text().replace("/opt/volgate/bin/volgate", str(Path(sys.executable).with_name("volgate"))))
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    (folder / "lvm.conf").write_text(LVM.read_text())
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", local) == ""
    (folder / "lvm.conf").write_text(LVM.read_text() + "Nonsense=yes\n")
    with pytest.raises(AssertionError, match="Nonsense"):  # it is read
        run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", local)
    ambient, bounding = (
        re.findall(rf"^{name}=(.*)$", LVM.read_text(), re.MULTILINE) for name in ("AmbientCapabilities", "CapabilityBoundingSet")
    )
    assert ambient == bounding


def test_what_the_unit_names_is_what_the_example_configuration_says():
    service = unit()["Service"]
    example = (ROOT / "deploy/config-examples/volgate.toml").read_text()
    assert f'socket = "/run/{service["RuntimeDirectory"]}/volgate.sock"' in example
    assert f'# state_dir = "/var/lib/{service["StateDirectory"]}"' in example
    assert f'socket_group = "{service["Group"]}"' in example
    grace = float(re.search(r"# stop_seconds = ([\d.]+)", example)[1])  # type: ignore[index]
    assert float(service["TimeoutStopSec"]) > grace
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"]


@dataclass
class Confined:
    """A gateway with the unit's user rights, and what it asked of the kernel."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def traces(self) -> list[str]:
        """The system calls of each process and thread."""
        return [path.read_text(errors="replace") for path in self.folder.glob("trace.*")]

    def volgate(self, *words: str) -> str:
        return run(sys.executable, "-m", "volgate.cli", "--server", f"unix:{self.state}/volgate.sock", "--output", "json", *words)


@contextmanager
def confined(config: str = "", *, traced: bool = False) -> Iterator[Confined]:
    """`volgate serve` as a user with two capabilities, writable memory that cannot be run, no way to new privileges."""
    capabilities = [word.removeprefix("CAP_").lower() for word in unit()["Service"]["AmbientCapabilities"].split()]
    only = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    top = Path(tempfile.mkdtemp(prefix="vg-", dir="/tmp"))
    top.chmod(0o711)
    here = Confined(top)
    here.state.mkdir()
    here.state.chmod(0o711)
    os.chown(here.state, USER, USER)
    (top / "volgate.toml").write_text(config)
    command = ["strace", "-ff", "-qq", "-o", str(top / "trace")] if traced else []
    command += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
    command += [f"--bounding-set={only}", f"--inh-caps={only}", f"--ambient-caps={only}", sys.executable, "-c", LAUNCHER]
    command += [sys.executable, "-m", "volgate.cli", "serve", "--state-dir", str(here.state), "--config", str(top / "volgate.toml")]
    with here.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
    try:
        _until_served(here, process)
        yield here
    finally:
        if process.poll() is None:
            os.kill(int((here.state / "lock").read_text()), signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(top)


def _until_served(here: Confined, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, here.log.read_text()
        try:
            with Client(f"unix:{here.state}/volgate.sock") as client:
                client.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=1)
                return
        except grpc.RpcError:
            time.sleep(0.1)
    raise TimeoutError(here.log.read_text())


@pytest.fixture(scope="module")
def worked() -> list[str]:
    """What a gateway asked of the kernel while it did everything that it does without a guest."""
    with confined(traced=True) as gateway:
        image = gateway.folder / "image.vmdk"
        run("qemu-img", "create", "-q", "-f", "vmdk", image, "8M")
        image.chmod(0o644)
        gateway.volgate("volume", "create", "a", "--pool", "default", "--size", "16MiB", "--format", "qcow2")
        for layer in gateway.state.glob("pools/default/volumes/*/*.qcow2"):
            os.chown(layer, QEMU, QEMU)  # as libvirt leaves an image that a guest has, or had
        gateway.volgate("snapshot", "create", "s", "--volume", "default/a")
        gateway.volgate("volume", "create", "b", "--pool", "default", "--from", "default/a/s")
        gateway.volgate("volume", "expand", "default/a", "--size", "32MiB")
        gateway.volgate("volume", "revert", "default/a", "--snapshot", "s")
        gateway.volgate("volume", "import", "c", "--pool", "default", "--file", str(image), "--source-format", "vmdk")
        gateway.volgate("volume", "export", "default/b", "--file", str(gateway.folder / "out.raw"))
        for name in ("volume delete default/b", "snapshot delete default/a/s", "volume delete default/a", "volume delete default/c"):
            gateway.volgate(*name.split())
        assert not list(gateway.state.glob("pools/default/volumes/*"))
        return gateway.traces()


def test_all_work_is_done_within_the_filters_of_the_unit(worked):
    asked = {name for trace in worked for name in re.findall(r"^(\w+)\(", trace, re.MULTILINE)}
    assert len(asked) > 50
    assert not asked - _expanded("@system-service"), "outside of SystemCallFilter="
    families = {name for trace in worked for name in re.findall(r"^socket(?:pair)?\((AF_\w+)", trace, re.MULTILINE)}
    assert families <= set(unit()["Service"]["RestrictAddressFamilies"].split())


def test_what_reads_a_strangers_image_has_no_capabilities(worked):
    converters = [trace for trace in worked if re.search(r'^execve\(.*"convert".*"vmdk"', trace, re.MULTILINE)]
    assert converters, "a child converted the image"
    for trace in converters:
        assert "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) = 0" in trace


def test_a_guest_of_libvirts_defaults_is_served_with_the_rights_of_the_unit(default_guest: Guest):
    """Here libvirt itself gives the layers to QEMU's user, and takes them back or not."""
    with confined(f'[hosts.local]\nuri = "{default_guest.libvirtd.uri}"\n') as gateway:
        gateway.volgate("volume", "create", "a", "--pool", "default", "--size", "16MiB", "--format", "qcow2")
        attach = ("attachment", "attach", "--volume", "default/a", "--domain", default_guest.name)
        attached = json.loads(gateway.volgate(*attach))["name"]
        assert len({path.stat().st_uid for path in gateway.state.glob("pools/default/volumes/*/*")}) == 2, "QEMU's user has the layer"
        gateway.volgate("snapshot", "create", "s", "--volume", "default/a")
        gateway.volgate("volume", "expand", "default/a", "--size", "32MiB")
        gateway.volgate("attachment", "paths", "default/a")
        gateway.volgate("attachment", "detach", attached)
        gateway.volgate("volume", "revert", "default/a", "--snapshot", "s")
        attached = json.loads(gateway.volgate(*attach))["name"]
        gateway.volgate("attachment", "detach", attached)
        gateway.volgate("snapshot", "delete", "default/a/s")
        gateway.volgate("volume", "delete", "default/a")
        assert not list(gateway.state.glob("pools/default/volumes/*"))


def _expanded(name: str) -> set[str]:
    """Every system call of a set of systemd's, sets inside it included."""
    calls: set[str] = set()
    for word in (line.split("#")[0].strip() for line in run("systemd-analyze", "syscall-filter", "--no-pager", name).splitlines()):
        calls |= _expanded(word) if word.startswith("@") and word != name else {word}
    return calls


@pytest.mark.parametrize(("path", "drop_in"), [(UNIT, ISCSI), (UNIT, LUNS), (HOST_UNIT, LUNS)], ids=lambda path: path.stem)
def test_systemd_accepts_the_drop_ins_of_iscsi(tmp_path, path, drop_in):
    local = tmp_path / path.name
    local.write_text(path.read_text().replace("/opt/volgate/bin/volgate", str(Path(sys.executable).with_name("volgate"))))
    there = tmp_path / f"{path.name}.d/{drop_in.name}"
    there.parent.mkdir()
    there.write_text(drop_in.read_text())
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", local) == ""
    ambient, bounding = re.findall(r"^(?:AmbientCapabilities|CapabilityBoundingSet)=(.*)$", drop_in.read_text(), re.MULTILINE)
    assert ambient == bounding


def test_what_a_host_has_connected_stays_noted_when_its_service_ends():
    assert "RuntimeDirectoryPreserve=yes\n" in LUNS.read_text()


def test_systemd_accepts_the_drop_in_for_tgt(tmp_path):
    local = tmp_path / "tgt.service"
    local.write_text("[Service]\nType=notify\nExecStart=/bin/true\n")
    drop_in = tmp_path / "tgt.service.d/volgate.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(TGT.read_text())
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", local) == ""
