"""A private, rootful libvirtd in a mount namespace of its own: several run side by side and none touches the machine's."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, Self

import libvirt

from tests.labs import keeper
from tests.labs.guest import BUILD, locked

Security = Literal["off", "default"]
DAEMON_CONF = """unix_sock_dir = "{base}/sock"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "3:qemu 3:util"
log_outputs = "3:file:{base}/libvirtd.log"
"""
ALWAYS = 'cgroup_controllers = [ ]\nstdio_handler = "file"\n'  # neither systemd nor virtlogd runs in a lab
QEMU_CONF: dict[Security, str] = {
    "default": ALWAYS,
    "off": ALWAYS
    + """security_driver = "none"
security_default_confined = 0
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ ]
seccomp_sandbox = 0
""",
}
FOLDERS = ("etc/qemu", "run", "lib/qemu", "lib/lab", "log/qemu", "cache/qemu", "sock", "golden")
START_SECONDS = 30.0

libvirt.registerErrorHandler(lambda *_: None, None)


class PrivateLibvirtd:
    """One libvirtd, its QEMUs and its files; `stop()` (or the owner's end, however it comes) leaves nothing of them.

    `security="off"` runs QEMU as root and changes no owner of a file; `"default"` is what Debian's libvirt does out of the box:
    QEMU as libvirt-qemu, dynamic ownership, remembered owners, mount namespaces, seccomp.
    """

    def __init__(self, base: Path | None = None, security: Security = "off", namespace: str = "") -> None:
        """Prepare; nothing runs before `start()`. BASE must be short: a unix socket's path ends at 108 bytes.

        `namespace` names a network namespace (`Port.namespace` of tests.labs.network) for libvirtd and its QEMUs.
        """
        if os.geteuid() != 0:
            raise RuntimeError("a private libvirtd needs root (mount namespaces, libvirt's own folders)")
        self.security: Security = security
        self.namespace = namespace
        self.base = base or Path(f"/tmp/vg-{secrets.token_hex(4)}")
        self.socket = self.base / "sock" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self.pid = 0
        self._ours = False
        self._keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.start()
        except BaseException:  # whatever it was, nothing stays running
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start libvirtd (again, after `kill9()`) and wait until it accepts connections."""
        if self._keeper is None:
            self._keep()
        self.pid = int(self._ask("start"))
        deadline = time.monotonic() + START_SECONDS
        while not self._accepts():
            if time.monotonic() > deadline or not Path(f"/proc/{self.pid}").exists():
                raise RuntimeError(f"libvirtd did not start: {self.log()[-2000:]}")
            time.sleep(0.01)
        self._warm()

    def kill9(self) -> None:
        """Kill libvirtd without warning; its guests go on."""
        self._ask(f"kill {signal.SIGKILL:d}")

    def restart(self) -> None:
        """End libvirtd in order and start it again; its guests go on."""
        self._ask(f"kill {signal.SIGTERM:d}")
        self.start()

    def freeze(self) -> None:
        """Let libvirtd hang (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen libvirtd go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Kill libvirtd and its guests, leave its mount namespace, remove its files."""
        held, self._keeper = self._keeper, None
        if held and held.stdin and held.stdout:
            with contextlib.suppress(OSError):
                held.stdin.close()
            try:
                held.wait(20)
            except subprocess.TimeoutExpired:
                held.kill()
                held.wait()
            held.stdout.close()
        if self._ours:
            keeper.sweep(self.base)
            self._ours = False
            atexit.unregister(self.stop)

    def connect(self) -> libvirt.virConnect:
        """Open a connection; the caller closes it."""
        return libvirt.open(self.uri)

    def inside(self, *argv: str) -> list[str]:
        """Return a command that runs in libvirtd's mount namespace: mounts made there, not on the host, are what QEMU sees."""
        if self._keeper is None:
            raise RuntimeError("not started")
        return ["nsenter", "-t", str(self._keeper.pid), "-m", *argv]

    def log(self) -> str:
        """Return what libvirtd printed and logged."""
        files = (self.base / "stdout", self.base / "libvirtd.log")
        return "".join(path.read_text(errors="replace") for path in files if path.exists())

    def _keep(self) -> None:
        self.base.mkdir()  # must be ours alone: it is removed at the end
        self._ours = True
        atexit.register(self.stop)
        self.base.chmod(0o711)  # QEMU as libvirt-qemu passes through
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "golden").chmod(0o700)
        (self.base / "libvirtd.conf").write_text(DAEMON_CONF.format(base=self.base))
        (self.base / "etc/qemu.conf").write_text(QEMU_CONF[self.security])
        if self._cache().exists():
            shutil.copytree(self._cache(), self.base / "cache/qemu", dirs_exist_ok=True)
        within = ["nsenter", f"--net=/run/netns/{self.namespace}", "--"] if self.namespace else []
        argv = [*within, "unshare", "-m", sys.executable, "-IS", keeper.__file__, str(self.base), str(os.getpid())]
        self._keeper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True)
        self._answer("start of the keeper")

    def _ask(self, command: str) -> str:
        if self._keeper is None or self._keeper.stdin is None:
            raise RuntimeError("not started")
        self._keeper.stdin.write(f"{command}\n")
        self._keeper.stdin.flush()
        return self._answer(command)

    def _answer(self, command: str) -> str:
        line = self._keeper.stdout.readline().strip() if self._keeper and self._keeper.stdout else ""
        if not line:
            raise RuntimeError(f"the keeper of {self.base} ended at {command!r}")
        return line

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def _cache(self) -> Path:
        return BUILD / "libvirt-cache" / self.security

    def _warm(self) -> None:
        """Keep libvirt's probe of QEMU (8 s) for the next instance; libvirt itself checks that a kept one is still true."""
        if self._cache().exists():
            return
        with locked(BUILD / "libvirt-cache.lock"):
            if self._cache().exists():
                return
            with contextlib.closing(self.connect()) as connection:
                connection.getCapabilities()
            fresh = self._cache().with_suffix(f".{os.getpid()}")
            shutil.copytree(self.base / "cache/qemu", fresh)
            fresh.rename(self._cache())
