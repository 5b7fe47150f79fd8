"""The monitors: which of them answer the gateway, and which are in quorum."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from volgate.model import Path, PathState

__all__ = ["GATEWAY", "greeted", "told"]

GATEWAY = "gateway"
_BANNER = b"ceph v"  # said before anything is asked; a monitor that hangs accepts connections and says nothing
_SECONDS = 2.0


def told(quorum: Mapping[str, Any]) -> Iterator[Path]:
    """Each monitor of the cluster: the cluster takes up to ten seconds to miss one that died, a greeting tells at once."""
    members, known = set(quorum["quorum_names"]), quorum["monmap"]["mons"]
    problems = _problems([_place(monitor) for monitor in known])
    for monitor, problem in zip(known, problems, strict=True):
        name, inside = f"mon.{monitor['name']}", monitor["name"] in members
        addresses = ",".join(one["addr"] for one in monitor["public_addrs"]["addrvec"])
        said = f"{name} does not answer the gateway: {problem}" if problem else "" if inside else f"{name} is not in quorum"
        facts = {
            "reachable": "no" if problem else "yes",
            "in_quorum": "yes" if inside else "no",
            "leader": str(monitor["name"] == quorum["quorum_leader_name"]).lower(),
        }
        yield Path("monitor", GATEWAY, addresses, name, PathState.FAILED if said else PathState.ACTIVE, last_error=said, facts=facts)


def greeted(monitors: Sequence[str], device: str) -> Iterator[Path]:
    """Each monitor of the configuration (`host:port`), where nobody tells of a quorum."""
    for monitor, problem in zip(monitors, _problems(monitors), strict=True):
        said = f"{monitor} does not answer the gateway: {problem}" if problem else ""
        facts = {"reachable": "no" if problem else "yes", "in_quorum": "unknown"}
        yield Path("monitor", GATEWAY, monitor, device, PathState.FAILED if said else PathState.ACTIVE, last_error=said, facts=facts)


def _place(monitor: Mapping[str, Any]) -> str:
    """Where a monitor speaks its newest protocol."""
    found = sorted(monitor["public_addrs"]["addrvec"], key=lambda one: str(one["type"]), reverse=True)
    return str(found[0]["addr"])


def _problems(monitors: Sequence[str]) -> list[str]:
    """Why each does not answer, "" for one that does; all are tried at once."""
    with ThreadPoolExecutor(max(1, len(monitors))) as threads:
        return list(threads.map(_problem, monitors))


def _problem(monitor: str) -> str:
    host, _, port = monitor.rpartition(":")
    deadline = time.monotonic() + _SECONDS
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as link:
            said = b""
            while len(said) < len(_BANNER):
                link.settimeout(max(0.05, deadline - time.monotonic()))
                part = link.recv(len(_BANNER) - len(said))
                if not part:
                    return "it hangs up"
                said += part
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if said == _BANNER else "it is no monitor"
