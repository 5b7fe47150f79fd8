"""Where pluggy lives: finds plugins, isolates broken ones, honours the operator's block list, and offers one typed method per hook."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import pluggy
import structlog

from volgate.backend import hooks
from volgate.backend.hooks import PROJECT, AdmitRequest, BackendType, DiskContext, FinishedRecord
from volgate.errors import InvalidRequest, NotFound
from volgate.secret import Secret

__all__ = ["PluginInfo", "Registry"]

_GROUP = "volgate.plugins"
_BUILT_IN = ("volgate_plugins.directory",)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin as `volgate plugins` shows it; `status` is `loaded`, `blocked` or `broken`."""

    name: str
    version: str
    status: str
    kinds: tuple[str, ...] = ()
    problem: str = ""


class Registry:
    """The plugins of one gateway."""

    def __init__(self, blocked: tuple[str, ...] = (), *, extra: Mapping[str, Any] | None = None) -> None:
        """Load the built-in plugins, those installed as entry points and `extra` (name to module, for tests)."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hooks)
        self._kinds: dict[str, BackendType] = {}
        self._plugins: list[PluginInfo] = []
        seen: set[str] = set()
        for module in _BUILT_IN:
            name = module.rpartition(".")[2]
            seen.add(name)
            self._load(name, "built-in", blocked, lambda module=module: importlib.import_module(module))
        for entry in sorted(entry_points(group=_GROUP), key=lambda e: e.name):
            if entry.name not in seen:
                seen.add(entry.name)
                self._load(entry.name, _version(entry), blocked, entry.load)
        for name, plugin in (extra or {}).items():
            self._load(name, "in-process", blocked, lambda plugin=plugin: plugin)

    def _load(self, name: str, version: str, blocked: tuple[str, ...], load: Any) -> None:
        if name in blocked:
            self._plugins.append(PluginInfo(name, version, "blocked"))
            return
        try:
            plugin = load()
            self._manager.register(plugin, name)
            self._manager.check_pending()
            kinds = self._offers(plugin)
        except Exception as error:  # noqa: BLE001  # a plugin is foreign code: whatever it raises must not stop the others
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            _log.error("plugin is broken and was left out", plugin=name, error=f"{type(error).__name__}: {error}")
            self._plugins.append(PluginInfo(name, version, "broken", problem=f"{type(error).__name__}: {error}"))
            return
        self._plugins.append(PluginInfo(name, version, "loaded", kinds))

    def _offers(self, plugin: Any) -> tuple[str, ...]:
        if not hasattr(plugin, "volgate_backends"):
            return ()
        offers = list(plugin.volgate_backends())
        for offer in offers:
            if not isinstance(offer, BackendType):
                raise TypeError(f"volgate_backends returned {offer!r}, not a BackendType")
            if offer.kind in self._kinds:
                raise ValueError(f"kind {offer.kind!r} is already offered by another plugin")
        self._kinds.update({offer.kind: offer for offer in offers})
        return tuple(offer.kind for offer in offers)

    def plugins(self) -> list[PluginInfo]:
        """Every plugin found, loaded or not."""
        return list(self._plugins)

    def backend_type(self, kind: str) -> BackendType:
        """The offer for a kind. Raises NotFound naming the kinds there are."""
        if kind not in self._kinds:
            raise NotFound(f"no plugin offers pools of kind {kind!r}; there are: {', '.join(sorted(self._kinds)) or 'none'}")
        return self._kinds[kind]

    def admit(self, request: AdmitRequest) -> None:
        """Ask every plugin whether a mutation may go on; the first refusal is raised."""
        self._manager.hook.volgate_admit(request=request)

    def amend_disk(self, disk: str, context: DiskContext) -> str:
        """Let plugins amend a `<disk>`; the last answer that is not None wins."""
        answers = [answer for answer in self._manager.hook.volgate_disk(disk=disk, context=context) if answer is not None]
        return cast("str", answers[-1]) if answers else disk

    def finished(self, record: FinishedRecord) -> None:
        """Tell plugins of a mutation that ended; what they raise is logged."""
        for caller in self._manager.hook.volgate_finished.get_hookimpls():
            try:
                caller.function(record)
            except Exception as error:  # noqa: BLE001  # foreign code, told after the fact: it must not change the outcome
                _log.warning("plugin failed in volgate_finished", plugin=caller.plugin_name, error=repr(error))

    def secret(self, reference: str) -> Secret:
        """Resolve a reference to a secret. Raises InvalidRequest if no plugin knows its scheme."""
        found = self._manager.hook.volgate_secrets(reference=reference)
        if not isinstance(found, Secret):
            raise InvalidRequest(f"no plugin resolves secrets of scheme {reference.partition(':')[0]!r}", field="secret")
        return found


def _version(entry: EntryPoint) -> str:
    return entry.dist.version if entry.dist else ""
