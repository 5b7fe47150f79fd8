"""An array of the pool's own: started when it is needed, the same for every worker of a gateway, ended with the gateway."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time

from volgate.backend import PoolContext
from volgate.backend.run import gateway_pid, run
from volgate.errors import Denied, Unreachable, VolgateError
from volgate_plugins.memory.array import TAKEN, shared_memory, sweep
from volgate_plugins.memory.client import Client
from volgate_plugins.memory.server import Status
from volgate_plugins.memory.settings import MemorySettings

__all__ = ["place", "start"]

_START_SECONDS = 20.0
_HELLO_SECONDS = 2.0
_PAUSE = 0.05
_INHERITED = ("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def place(context: PoolContext) -> str:
    """The socket of a pool's own array. Raises Denied if somebody else made its folder."""
    folder = f"{shared_memory()}/volgate-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)  # noqa: PTH102  # a plain path is at hand
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Denied(f"{folder} is not a folder of this user; remove it")
    name = hashlib.sha256(f"{context.instance}/{context.pool}".encode()).hexdigest()[:16]
    return f"{folder}/{name}.sock"


def start(path: str, settings: MemorySettings) -> None:
    """Make sure that this gateway's array listens at `path`. Raises Unreachable."""
    owner, deadline, problem = gateway_pid(), time.monotonic() + _START_SECONDS, "it does not answer"
    while time.monotonic() < deadline:
        if _is_there(path, owner):
            return
        sweep(os.path.dirname(path))  # noqa: PTH120  # a plain path is at hand
        done = run(_command(path, settings, owner), timeout=_START_SECONDS, env=_environment())
        if done.returncode not in (0, TAKEN):  # taken: by another worker's start, or by an array of an earlier gateway that is ending
            raise Unreachable(f"an array for {path} cannot start: {done.stderr.decode(errors='replace').strip()[-400:]}")
        problem = done.stderr.decode(errors="replace").strip() or problem
        if done.returncode == TAKEN:
            time.sleep(_PAUSE)
    raise Unreachable(f"no array of this gateway at {path}: {problem}")


def _is_there(path: str, owner: int) -> bool:
    client = Client(path, connect_seconds=_PAUSE, call_seconds=_HELLO_SECONDS)
    try:
        return client.call("hello", Status).owner == owner
    except VolgateError:
        return False
    finally:
        client.close()


def _command(path: str, settings: MemorySettings, owner: int) -> list[str]:
    command = [sys.executable, "-m", "volgate_plugins.memory.array", "--socket", path, "--until-gone", str(owner), "--detach"]
    command += ["--capacity", str(settings.capacity_bytes), "--oversubscription", str(settings.oversubscription)]
    command += ["--directory", settings.directory] if settings.directory else []
    return command + (["--independent-clones"] if settings.independent_clones else [])


def _environment() -> dict[str, str]:
    return {key: os.environ[key] for key in _INHERITED if key in os.environ}
