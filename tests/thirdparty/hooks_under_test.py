"""A plugin of an operator: a quota, an audit, a vault, a tuned disk; each does worse if a file in the folder `hooks` beside it orders it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from volgate.backend import AdmitRequest, DiskContext, FinishedRecord, hookimpl
from volgate.errors import Denied
from volgate.secret import Secret

FOLDER = Path(__file__).parent / "hooks"


def ordered(hook: str) -> str:
    """The word that orders this hook to misbehave; some are carried out here."""
    path = FOLDER / f"{hook}.order"
    word = path.read_text() if path.exists() else ""
    if word == "raise":
        raise RuntimeError(f"{hook} is broken")
    if word == "sleep":
        time.sleep(3600)
    if word == "crash":
        os._exit(9)
    return word


def note(name: str, fact: object) -> None:
    with (FOLDER / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(fact) + "\n")


@hookimpl
def volgate_admit(request: AdmitRequest) -> None:
    ordered("admit")
    note("admitted", asdict(request))
    if request.labels.get("tenant") == "broke":
        raise Denied(f"{request.name}: tenant broke has no quota left; ask finance", reason="POLICY")


@hookimpl
def volgate_disk(disk: str, context: DiskContext) -> str | None:
    word = ordered("disk")
    note("disks", asdict(context))
    if word == "another":
        return disk.replace("<source file=", "<source dev='x' file=")
    if word == "refused":
        return disk.replace("cache=", "rerror_policy='nonsense' cache=")
    return disk.replace("cache=", "rerror_policy='report' cache=")


@hookimpl
def volgate_finished(record: FinishedRecord) -> None:
    ordered("finished")
    note("finished", asdict(record))


@hookimpl
def volgate_secrets(reference: str, pool: str) -> Secret | None:
    ordered("secrets")
    if reference == "vault:login":
        return Secret(f"of {pool}")
    return None
