"""A plugin as it was written for version 1 of every facet and hook. It stays as it is: a newer volgate still serves it, or says why not."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.judged.good import AllButClones2
from volgate.backend import BackendType, PoolContext, hookimpl
from volgate.backend.secrets import resolve
from volgate.model import VolumeSpec
from volgate.secret import Secret


@dataclass(frozen=True)
class OldSettings:
    path: str
    password: str = ""


class Old(AllButClones2):
    limit = 0

    def __init__(self, settings: OldSettings, context: PoolContext) -> None:
        super().__init__(settings, context)
        if settings.password:
            (self.root / ".login").write_text(resolve(settings.password).reveal(), encoding="utf-8")

    def clone_is_copy(self, spec: VolumeSpec) -> bool:
        return spec.name != "shared"


@hookimpl
def volgate_backends() -> list[BackendType]:
    return [BackendType(kind="old", settings=OldSettings, open=Old, summary="an old plugin")]


@hookimpl
def volgate_secrets(reference: str) -> Secret | None:
    return Secret("open sesame") if reference == "vault:old" else None
