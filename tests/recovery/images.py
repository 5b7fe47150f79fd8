"""Images and patterns: written and read with QEMU's own tools, beside the gateway."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.recovery.daemon import Daemon
from volgate_plugins.directory.manifest import Manifest


def make_image(path: Path, size: int, pattern: int, kind: str = "qcow2") -> Path:
    """An image of `size` bytes, all of them `pattern`."""
    _run("qemu-img", "create", "-q", "-f", kind, str(path), str(size))
    _run("qemu-io", "-f", kind, "-c", f"write -q -P {pattern} 0 {size}", str(path))
    path.chmod(0o644)
    return path


def active_file(daemon: Daemon, name: str) -> tuple[Path, str]:
    """The file that a guest would write to, and its format."""
    for folder in (daemon.pool / "volumes").glob(f"{name}.*"):
        manifest = Manifest.read((folder / "volume.json").read_bytes())
        if manifest.tag.name == name:
            return folder / manifest.content.active, str(manifest.format)
    raise FileNotFoundError(name)


def write_pattern(daemon: Daemon, name: str, pattern: int, offset: int = 0, length: int = 65536) -> None:
    """Write to a detached volume as a guest would."""
    path, kind = active_file(daemon, name)
    _run("qemu-io", "-f", kind, "-c", f"write -q -P {pattern} {offset} {length}", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60, capture_output=True)
