"""The Containerfile names what the unit names, and in the soak the image is built, on a Debian made for it, and run."""

from __future__ import annotations

import json
import re
import subprocess
import time
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.deploy.containerfile import CONTAINERFILE, instructions, word
from tests.soaking import SOAK

ROOT = Path(__file__).parents[2]
SERVED = "for n in $(seq 30); do volgate --timeout 2 pool list && exit; done; exit 1"


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(ROOT / "deploy/systemd/volgate.service")
    return parser


def test_it_is_one_stage_on_a_slim_debian_and_takes_nothing_but_the_package():
    names = [name for name, _ in instructions()]
    assert dict(instructions())["FROM"] == "debian:12-slim"
    assert sorted(names) == sorted({"FROM", "RUN", "USER", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}), (
        "once each, no ENV, ARG, ADD"
    )
    installed = re.search(r"apt-get install ([^&]+)", dict(instructions())["RUN"])
    assert installed
    assert [name for name in installed[1].split() if not name.startswith("--")] == ["systemd-standalone-sysusers", "/package/volgate_*.deb"]


def test_it_starts_what_the_unit_starts_as_the_same_user_on_the_same_folders():
    service = unit()["Service"]
    assert [f"/opt/volgate/bin/{word('ENTRYPOINT')[0]}", *word("CMD")] == service["ExecStart"].split()
    assert dict(instructions())["USER"] == service["User"] != "root"
    assert word("VOLUME") == [f"/var/lib/{service['StateDirectory']}", f"/run/{service['RuntimeDirectory']}"]
    for folder, mode in ((word("VOLUME")[0], service["StateDirectoryMode"]), (word("VOLUME")[1], service["RuntimeDirectoryMode"])):
        assert f"--mode={mode} {folder}" in dict(instructions())["RUN"]


def run(*command: str | Path, **options) -> str:
    finished = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, **options)
    assert finished.returncode == 0, (command, finished.stdout[-3000:], finished.stderr[-3000:])
    return finished.stdout


class Builder:
    """buildah with a store of its own; containers are run by chroot, which needs no image from anywhere."""

    def __init__(self, folder: Path) -> None:
        self.store = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def __call__(self, *words: str | Path) -> str:
        return run(*self.store, *words).strip()


if SOAK:  # two minutes, and a whole Debian from the package mirror

    @pytest.fixture(scope="module")
    def builder(tmp_path_factory):
        """A builder that has the image, on a base of Debian's own packages."""
        top = tmp_path_factory.mktemp("image")
        made = Builder(top)
        run("bash", ROOT / "deploy/debian/build.sh", top / "deb")
        run("debootstrap", "--variant=minbase", "bookworm", top / "base")
        base = made("from", "scratch")
        made("add", "--quiet", base, top / "base", "/")
        made("commit", "--quiet", "--rm", base, "localhost/debian:12-slim")
        options = ("--pull-never", "--isolation", "chroot", "--format", "docker", "--tag", "volgate")
        made("build", *options, "--file", CONTAINERFILE, top / "deb")
        yield made
        made("rm", "--all")

    def test_the_image_says_what_the_containerfile_says(builder):
        config = json.loads(builder("inspect", "--type", "image", "volgate"))["Docker"]["config"]
        assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("volgate", word("ENTRYPOINT"), word("CMD"))
        assert set(config["Volumes"]) == set(word("VOLUME"))
        assert config["Healthcheck"]["Test"] == ["CMD", *word("HEALTHCHECK")]

    def test_a_gateway_of_the_image_serves_is_healthy_and_stops(builder):
        container = builder("from", "--pull-never", "volgate")
        command = [*builder.store, "run", "--isolation", "chroot", container, "--"]
        gateway = " ".join([*word("ENTRYPOINT"), *word("CMD")])
        script = f"{gateway} 2>/tmp/log & pid=$!; ({SERVED}) || exit; {' '.join(word('HEALTHCHECK'))} || exit; id -un; kill $pid; wait $pid && echo stopped"
        began = time.monotonic()
        said = run(*command, "sh", "-c", script)
        assert re.search(r"^default +directory +ok", said, re.MULTILINE) and said.split()[-2:] == ["volgate", "stopped"]
        assert time.monotonic() - began < 60
        assert "memory" in run(*command, "volgate", "plugins")
