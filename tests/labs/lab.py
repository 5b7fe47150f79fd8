"""A lab for people: `python -m tests.labs.lab start libvirt`, and `stop`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.labs import keeper
from tests.labs.guest import BUILD, locked

BASE = Path(f"/tmp/vg-lab-{hashlib.sha256(os.fsencode(BUILD)).hexdigest()[:6]}")  # one for each checkout
POSTGRES_BASE = Path(f"{BASE}-postgres")
CEPH_BASE = Path(f"{BASE}-ceph")
KERNEL_BASE = Path(f"{BASE}-kernel")
BASES = {"libvirt": BASE, "postgres": POSTGRES_BASE, "ceph": CEPH_BASE, "kernel": KERNEL_BASE}
START_SECONDS = 300.0
STOP_SECONDS = 30.0
USAGE = """libvirt    {uri}
domain     lab (a tiny Linux; nothing on this machine's own libvirt was touched)
settings   {home}/volgate.toml

  virsh -c '{uri}' list --all
  virsh -c '{uri}' qemu-agent-command lab '{{"execute": "guest-get-disks"}}'
  tail -f {base}/lib/lab/lab.serial
  .venv/bin/volgate serve --config {home}/volgate.toml --state-dir {base}/state
  make lab-stop NAME={name}      # ends everything and removes {base}
"""


POSTGRES_USAGE = """database   {url}
password   in {base}/secret
settings   {home}/volgate.toml (nothing of this machine's own PostgreSQL was touched)

  psql -h {base} -p {port} -U postgres volgate
  .venv/bin/volgate serve --config {home}/volgate.toml --state-dir {base}/1    # and 2, and 3
  .venv/bin/volgate state controllers --config {home}/volgate.toml
  make lab-stop NAME={name}      # ends it and removes {base}
"""

CEPH_USAGE = """cluster    {fsid} at {monitors} (nothing of a Ceph on this machine was touched)
pools      {pool} (with the namespace {tenant}) and {other}
key        client.{client}: {base}/{client}.key
settings   {home}/volgate.toml

  rbd --conf {base}/ceph.conf --keyring {base}/admin.keyring -n client.admin ls {pool}
  ceph --conf {base}/ceph.conf --keyring {base}/admin.keyring -n client.admin status
  .venv/bin/volgate serve --config {home}/volgate.toml --state-dir {base}/state
  make lab-stop NAME={name}      # ends it and removes {base}
"""

KERNEL_USAGE = """guest      Linux {release} with every storage module (this machine's kernel was not touched)
folders    {root} is seen at the same path; {base}/share is /share in it

  .venv/bin/python -m tests.labs.kernel.shell {base}/shell      # a shell in it; Ctrl-] leaves
  tail -f {base}/console.log
  make lab-stop NAME={name}      # ends it and removes {base}
"""


def hold(home: Path) -> None:
    """Run the lab until SIGTERM."""
    if home.name != "libvirt":
        {"postgres": hold_postgres, "ceph": hold_ceph, "kernel": hold_kernel}[home.name](home)
        return
    from tests.labs.domain import Guest
    from tests.labs.libvirtd import PrivateLibvirtd

    wake, wake_write = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keeper.sweep(BASE)  # what a power cut left
    with PrivateLibvirtd(BASE, security="default") as daemon:
        (BASE / "state").mkdir(mode=0o711)
        (home / "volgate.toml").write_text(f'[hosts.local]\nuri = "{daemon.uri}"\n')
        Guest(daemon, "lab").disconnect()
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGTERM, lambda *_: None)
        (home / "ready").write_text(USAGE.format(uri=daemon.uri, home=home, base=BASE, name=home.name))
        select.select([wake], [], [])
    for name in ("ready", "pid", "volgate.toml"):
        (home / name).unlink(missing_ok=True)


@contextlib.contextmanager
def held(home: Path, base: Path) -> Iterator[threading.Event]:
    """An empty folder and an event that SIGTERM sets; afterwards nothing is left."""
    shutil.rmtree(base, ignore_errors=True)  # what a power cut left
    base.mkdir()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    try:
        yield stop
    finally:
        shutil.rmtree(base, ignore_errors=True)
        for name in ("ready", "pid", "volgate.toml"):
            (home / name).unlink(missing_ok=True)


def hold_ceph(home: Path) -> None:
    """Run a Ceph cluster in memory until SIGTERM."""
    from tests.labs.ceph import CLIENT, OTHER_POOL, POOL, TENANT, CephCluster

    with held(home, CEPH_BASE) as stop, CephCluster(CEPH_BASE) as cluster:
        pools = [cluster.toml("volumes"), cluster.toml("others", pool=OTHER_POOL), cluster.toml("tenant", namespace=TENANT)]
        (home / "volgate.toml").write_text("\n".join(pools))
        facts = {"fsid": cluster.fsid, "monitors": ", ".join(cluster.monitors), "base": CEPH_BASE, "home": home, "name": home.name}
        (home / "ready").write_text(CEPH_USAGE.format(pool=POOL, other=OTHER_POOL, tenant=TENANT, client=CLIENT, **facts))
        while not stop.wait(1.0):
            pass


def hold_kernel(home: Path) -> None:
    """Run a guest of the kernel lab until SIGTERM."""
    from tests.labs.kernel.machine import ROOT, Machine

    with held(home, KERNEL_BASE) as stop, Machine(base=KERNEL_BASE) as machine:
        release = machine.run("uname -r")
        machine.hang_up()
        (home / "ready").write_text(KERNEL_USAGE.format(release=release, root=ROOT, base=KERNEL_BASE, name=home.name))
        while not stop.wait(1.0):
            pass


def hold_postgres(home: Path) -> None:
    """Run a PostgreSQL with an empty database until SIGTERM."""
    from tests.labs.postgres import PostgresServer

    base = POSTGRES_BASE
    with held(home, base) as stop, PostgresServer(base, durable=True) as server:
        url = server.url(server.create("volgate"))
        pool = f'[pools.default]\nkind = "directory"\npath = "{base}/pool"\n'
        (home / "volgate.toml").write_text(f'[database]\nurl = "{url}"\npassword = "file:{base}/secret"\n{pool}')
        (home / "ready").write_text(POSTGRES_USAGE.format(url=url, home=home, base=base, port=server.port, name=home.name))
        while not stop.wait(1.0):
            pass


def running(home: Path) -> int:
    """Return the pid of the process that holds this lab, or 0."""
    try:
        pid = int((home / "pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if b"tests.labs.lab" in arguments and b"hold" in arguments else 0


def start(home: Path) -> int:
    """Start the lab in the background unless it runs; print how to use it."""
    home.mkdir(parents=True, exist_ok=True)
    held = None
    if not running(home):
        (home / "ready").unlink(missing_ok=True)
        with (home / "log").open("wb") as log:
            argv = [sys.executable, "-m", "tests.labs.lab", "hold", home.name]
            held = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        (home / "pid").write_text(str(held.pid))
    deadline = time.monotonic() + START_SECONDS
    while not (home / "ready").exists():
        dead = held.poll() is not None if held else not running(home)  # our own child is not judged by its words: it may not have them yet
        if dead or time.monotonic() > deadline:
            print((home / "log").read_text(errors="replace"), f"the lab {home.name} did not start", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print((home / "ready").read_text(), end="")
    return 0


def stop(home: Path) -> int:
    """End the lab and wait until it is gone."""
    pid = running(home)
    if pid:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    base = BASES[home.name]
    while running(home) or (pid and base.exists()):
        if time.monotonic() > deadline:
            print(f"the lab {home.name} (process {pid}) does not end", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print(f"the lab {home.name} is stopped")
    return 0


def main() -> int:
    """Start, hold or stop a lab."""
    parser = argparse.ArgumentParser(prog="python -m tests.labs.lab", description=__doc__)
    parser.add_argument("action", choices=["start", "stop", "hold"])
    parser.add_argument("name", choices=[*BASES], nargs="?", default="libvirt")
    arguments = parser.parse_args()
    home = BUILD / arguments.name
    if arguments.action == "hold":
        hold(home)
        return 0
    with locked(BUILD / f"{arguments.name}.lock"):
        return start(home) if arguments.action == "start" else stop(home)


if __name__ == "__main__":
    sys.exit(main())
