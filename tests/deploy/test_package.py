"""The Debian package, built and then installed, upgraded, removed and purged on a machine of its own with a systemd of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.containerfile import word
from tests.deploy.machine import Machine
from tests.soaking import SOAK

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONFIG = "/etc/volgate/volgate.toml"
MOMENT = 1_700_000_000  # SOURCE_DATE_EPOCH of the build
APT = ("apt-get", "install", "--yes", "--allow-downgrades", "--option", "Dpkg::Options::=--force-confold")
MANAGERS = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/var/tmp")
"""What apt, dpkg and the journal write of every package."""
ACCOUNTS = {f"/etc/{name}{end}" for name in ("passwd", "group", "shadow", "gshadow") for end in ("", "-")} | {"/etc/.pwd.lock"}
pytestmark = pytest.mark.timeout(600)


def done(*command: str | Path, **options) -> str:
    finished = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, **options)
    assert finished.returncode == 0, (command, finished.stdout[-3000:], finished.stderr[-3000:])
    return finished.stdout


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as `make deb` builds it, in a folder whose name must not be in it."""
    top = tmp_path_factory.mktemp("built-here")
    environment = {**os.environ, "TMPDIR": str(top), "SOURCE_DATE_EPOCH": str(MOMENT)}
    return Path(done("bash", ROOT / "deploy/debian/build.sh", top / "out", env=environment).strip())


@pytest.fixture(scope="session")
def unpacked(package: Path) -> Path:
    """Its files, and its control files in DEBIAN."""
    folder = package.parent.parent / "unpacked"
    done("dpkg-deb", "--raw-extract", package, folder)
    return folder


@pytest.fixture(scope="session")
def newer(unpacked: Path) -> Path:
    """The next version, whose example configuration says something new."""
    control = unpacked / "DEBIAN/control"
    before, config = control.read_text(), unpacked / CONFIG[1:]
    said = config.read_text()
    made = unpacked.parent / "newer.deb"
    try:
        control.write_text(before.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+next\n"))
        config.write_text(said + "# Said by the next version.\n")
        done("dpkg-deb", "-Znone", "--root-owner-group", "--build", unpacked, made)
    finally:
        control.write_text(before)
        config.write_text(said)
    return made


@pytest.fixture
def machine(package: Path, newer: Path) -> Iterator[Machine]:
    """A machine that starts what it is asked to start, with both versions in /tmp."""
    with Machine() as made:
        made.run("rm", "-f", "/usr/sbin/policy-rc.d")
        made.run("systemctl", "start", "sysinit.target")
        shutil.copy(package, made.path("/tmp/volgate.deb"))
        shutil.copy(newer, made.path("/tmp/newer.deb"))
        yield made


def install(machine: Machine, file: str = "volgate") -> str:
    return machine.run(*APT, f"/tmp/{file}.deb")


def state(machine: Machine, unit: str = "volgate") -> tuple[str, str]:
    """Whether a service is enabled, and whether it runs."""
    shown = machine.run("systemctl", "show", "--property=UnitFileState,ActiveState", f"{unit}.service")
    found = dict(line.split("=") for line in shown.split())
    return found["UnitFileState"], found["ActiveState"]


def process(machine: Machine) -> str:
    return machine.run("systemctl", "show", "--property=MainPID", "--value", "volgate.service").strip()


def pools(machine: Machine) -> str:
    """What a client is told, once the service answers."""
    return machine.run("sh", "-c", "for n in $(seq 30); do volgate --timeout 2 pool list && exit; done; exit 1")


def left(machine: Machine, before: set[str]) -> set[str]:
    """What is there and was not, but for what apt, dpkg and the journal note of every package, and folders that were there."""
    found = machine.changed() - before
    return {path for path in found if not path.startswith(MANAGERS) and not Path(path).is_dir()} - ACCOUNTS  # it began as this machine


def test_the_package_is_what_pyproject_and_the_folder_say(package, unpacked):
    assert package.name == f"volgate_{VERSION}_amd64.deb"
    assert done("dpkg-deb", "--field", package, "Package", "Version").split() == ["Package:", "volgate", "Version:", VERSION]
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == [CONFIG]
    for inside, source in {
        CONFIG: "deploy/config-examples/volgate.toml",
        "/lib/systemd/system/volgate.service": "deploy/systemd/volgate.service",
        "/lib/systemd/system/volgate-host.service": "deploy/systemd/volgate-host.service",
        "/usr/share/doc/volgate/examples/host.toml": "deploy/config-examples/host.toml",
        "/usr/lib/sysusers.d/volgate.conf": "deploy/systemd/volgate.sysusers.conf",
        "/usr/share/volgate/prometheus/volgate.rules.yml": "deploy/prometheus/volgate.rules.yml",
        "/usr/share/volgate/grafana/volgate.json": "deploy/grafana/volgate.json",
        "/usr/share/doc/volgate/operator-guide.md": "docs/operator-guide.md",
        "/usr/share/doc/volgate/runbook.md": "docs/runbook.md",
    }.items():
        assert (unpacked / inside[1:]).read_bytes() == (ROOT / source).read_bytes(), inside


def test_the_python_packages_are_those_of_the_constraints(unpacked):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    found = {}
    for folder in unpacked.glob("opt/volgate/lib/python3.*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[name.lower().replace("_", "-")] = version
    assert found.pop("volgate") == VERSION
    assert {"grpcio", "libvirt-python", "sqlalchemy", "typer"} <= set(found) and "pytest" not in found
    assert found == {name: pinned[name] for name in found}


def test_nothing_in_the_package_tells_where_and_when_it_was_built(package, unpacked):
    folder = str(package.parent.parent).encode()
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 1000
    assert [path for path in files if folder in path.read_bytes() or b"volgate/recipe/root" in path.read_bytes()] == []
    dates = set(re.findall(r" (\d{4}-\d\d-\d\d \d\d:\d\d) ", done("dpkg-deb", "--contents", package, env={**os.environ, "TZ": "UTC"})))
    assert max(dates) == "2023-11-14 22:13", "SOURCE_DATE_EPOCH, or the file's own date if it is older"


if SOAK:  # a second build

    def test_the_same_sources_give_the_same_package(package, tmp_path):
        environment = {**os.environ, "TMPDIR": str(tmp_path), "SOURCE_DATE_EPOCH": str(MOMENT)}
        again = Path(done("bash", ROOT / "deploy/debian/build.sh", tmp_path / "out", env=environment).strip())
        assert again.read_bytes() == package.read_bytes()


def test_an_installed_gateway_waits_for_its_operator(machine):
    said = install(machine)
    assert "not starting it" in said
    assert state(machine) == state(machine, "volgate-host") == ("disabled", "inactive")
    assert not machine.path("/var/lib/volgate").exists() and machine.status("pgrep", "-f", "volgate") == 1
    assert machine.run("id", "--name", "--groups", "volgate").split() == ["volgate", "libvirt"]
    for unit in ("volgate", "volgate-host"):
        assert machine.run("systemd-analyze", "verify", "--man=no", f"/lib/systemd/system/{unit}.service") == ""
    assert machine.run("/opt/volgate/bin/python", "-c", "import rados, rbd; print(rbd.__name__)") == "rbd\n", "Debian's, where installed"
    before = machine.changed()
    assert re.search(r"^directory +built-in +loaded", machine.run("volgate", "plugins"), re.MULTILINE)
    assert {path for path in machine.changed() - before if path.startswith("/opt")} == set(), "what is run leaves no files"
    machine.run("systemctl", "enable", "--now", "volgate")
    assert re.search(r"^default +directory +ok", pools(machine), re.MULTILINE)
    assert state(machine) == ("enabled", "active")
    assert machine.run("stat", "--format=%U:%G %a", "/var/lib/volgate", "/run/volgate/volgate.sock").split() == [
        *("volgate:volgate", "711"),
        *("volgate:volgate", "660"),
    ]


def test_an_upgrade_restarts_what_runs_and_keeps_what_the_operator_wrote(machine):
    install(machine)
    config = machine.path(CONFIG)
    config.write_text(config.read_text() + "# Written by the operator.\n")
    written = config.read_text()
    machine.run("systemctl", "enable", "--now", "volgate")
    pools(machine)
    first = process(machine)
    machine.run("volgate", "volume", "create", "kept", "--pool", "default", "--size", "1MiB")
    install(machine, "newer")
    assert machine.run("dpkg-query", "--show", "volgate").split() == ["volgate", f"{VERSION}+next"]
    assert "default" in pools(machine) and process(machine) not in (first, "0")
    assert "kept" in machine.run("volgate", "volume", "list")
    assert machine.path(CONFIG).read_text() == written
    assert "Said by the next version." in machine.path(f"{CONFIG}.dpkg-dist").read_text()
    machine.run("dpkg", "--force-confold", "--install", "/tmp/newer.deb")  # once more: the scripts may run twice
    assert state(machine) == ("enabled", "active")


def test_an_upgrade_starts_nothing_that_is_stopped_and_nothing_that_the_policy_forbids(machine):
    install(machine)
    install(machine, "newer")
    assert state(machine) == ("disabled", "inactive")
    machine.run("systemctl", "enable", "--now", "volgate")
    pools(machine)
    running = process(machine)
    policy = machine.path("/usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    install(machine)
    assert process(machine) == running, "the old one runs on"


def test_a_purge_leaves_nothing_but_the_user(machine):
    units = machine.run("systemctl", "list-unit-files", "--no-legend")
    before, users = machine.changed(), machine.path("/etc/passwd").read_text()
    groups = machine.path("/etc/group").read_text()
    install(machine)
    assert len(left(machine, before)) > 1000
    machine.run("apt-get", "purge", "--yes", "volgate")
    assert left(machine, before) == set()
    assert machine.run("systemctl", "list-unit-files", "--no-legend") == units
    added = [line for line in machine.path("/etc/passwd").read_text().splitlines() if line not in users.splitlines()]
    assert [line.split(":")[0] for line in added] == ["volgate"]
    changed = [line for line in machine.path("/etc/group").read_text().splitlines() if line not in groups.splitlines()]
    assert {line.split(":")[0] for line in changed} == {"volgate", "libvirt"}, "a group of its own, and a member more of libvirt's"


def test_a_purge_stops_the_service_and_leaves_the_pools_and_the_journal(machine):
    before = machine.changed()
    install(machine)
    machine.run("systemctl", "enable", "--now", "volgate")
    pools(machine)
    machine.run("volgate", "volume", "create", "kept", "--pool", "default", "--size", "1MiB", "--format", "raw")
    machine.run("apt-get", "remove", "--yes", "volgate")
    assert machine.status("pgrep", "-f", "volgate") == 1
    assert machine.path(CONFIG).exists()
    kept = machine.run("find", "/var/lib/volgate", "-type", "f", "-exec", "sha256sum", "{}", "+")
    assert "/volumes/kept." in kept and "volgate.db" in kept and "/instance" in kept
    said = machine.run("apt-get", "purge", "--yes", "volgate")
    assert "volgate: /var/lib/volgate stays" in said
    assert machine.run("find", "/var/lib/volgate", "-type", "f", "-exec", "sha256sum", "{}", "+") == kept
    assert {path for path in left(machine, before) if not path.startswith("/var/lib/volgate")} == set(), "not even the enablement"
    install(machine)
    machine.run("systemctl", "enable", "--now", "volgate")
    assert re.search(r"^default +directory +ok", pools(machine), re.MULTILINE)
    assert "kept" in machine.run("volgate", "volume", "list"), "who installs again has all of it"


def test_what_the_container_starts_is_healthy_as_a_user_without_rights(machine):
    """The Containerfile's own commands, where its package is installed; the image itself is built in test_container.py."""
    install(machine)
    machine.run("install", "--directory", "--owner=volgate", "--group=volgate", "/var/lib/volgate", "/run/volgate")
    user = ("setpriv", "--reuid=volgate", "--regid=volgate", "--init-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
    start = " ".join([*user, *word("ENTRYPOINT"), *word("CMD")])
    machine.run("systemd-run", "--quiet", "--unit=contained", *start.split())
    pools(machine)
    machine.run(*user, *word("HEALTHCHECK"))
    machine.run("systemctl", "stop", "contained")
    assert machine.status(*user, *word("HEALTHCHECK")) != 0, "a gateway that is gone is not healthy"


def test_the_machine_of_these_tests_is_not_this_one(machine):
    install(machine)
    assert not Path("/opt/volgate").exists() and not Path("/var/lib/dpkg/info/volgate.list").exists()
    with pytest.raises(KeyError):
        pwd.getpwnam("volgate")
