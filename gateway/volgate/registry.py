"""Where pluggy lives: finds plugins, isolates them, honours the operator's block list, and offers one typed method per hook.

Only `directory` is imported by the gateway. Every other plugin, third-party ones above all, is imported by worker processes: one
that crashes, hangs or blocks at import is listed as broken, and the gateway serves the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pluggy
import structlog

from volgate.amendment import overstep
from volgate.backend import hooks
from volgate.backend import secrets as secret_sources
from volgate.backend.hooks import PROJECT, AdmitRequest, BackendType, DiskContext, FinishedRecord
from volgate.errors import Busy, InvalidRequest, NotFound, VolgateError
from volgate.lanes import Lane
from volgate.secret import Secret
from volgate.worker import loading
from volgate.worker.link import Start
from volgate.worker.loading import Found
from volgate.worker.offers import Offer
from volgate.worker.plugin import Broken, PluginWorker, refused
from volgate.worker.remedies import remedy

__all__ = ["Kind", "PluginInfo", "Registry"]

_IN_PROCESS = "directory"
_HOOK_SECONDS = 5.0
_IMPORT_SECONDS = 20.0  # a foreign plugin that hangs holds up the start for so long
_OWN_IMPORT_SECONDS = 120.0  # ours hang for no reason but a machine that is busy with its own start
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin as `volgate plugins` shows it; `status` is `loaded`, `blocked`, `broken`, or `unused` (built in, no pool needs it).

    `problem` and `action`: what is wrong with a broken one, and what to do about it.
    """

    name: str
    version: str
    status: str
    kinds: tuple[str, ...] = ()
    problem: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of pools and who serves it: `plugin` is the entry point that a worker imports, `local` the offer of one in this process.

    `problem`: nobody serves it, because of a plugin that was left out. `passing`: the process that tried the plugin was lost, or slow, and
    asked again it may come.
    """

    kind: str
    plugin: str
    width: int
    depth: int
    local: BackendType | None = None
    problem: str = ""
    passing: bool = False
    machine_bound: bool = False


def _kind(told: Offer | BackendType, plugin: str, local: BackendType | None = None) -> Kind:
    return Kind(told.kind, plugin, told.width, told.depth, local, machine_bound=told.machine_bound)


class Registry:
    """The plugins of one gateway."""

    def __init__(self, blocked: tuple[str, ...] = (), *, extra: Mapping[str, Any] | None = None, log_level: str = "info") -> None:
        """Find the built-in plugins, those installed as entry points and `extra` (name to module in this process, for tests)."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hooks)
        self._log_level = log_level
        self._kinds: dict[str, Kind] = {}
        self._plugins: dict[str, PluginInfo] = {}
        self._unused: dict[str, Found] = {}
        self._trying = threading.Lock()
        self._workers: list[PluginWorker] = []
        self._hooks = Lane("hooks", 8, 1024)
        foreign: list[Found] = []
        for found in loading.find():
            if found.name in self._plugins:
                self._broken(Found(f"{found.name} ({found.value})", found.value, found.version), f"the name {found.name} is taken")
            elif found.name in blocked:
                self._list(found, "blocked")
            elif found.name == _IN_PROCESS:
                self._load(found, partial(loading.load, found.value))
            elif found.version == loading.BUILT_IN:
                self._unused[found.name] = found
                self._list(found, "unused", kinds=(found.name,))
            else:
                foreign.append(found)
                self._list(found, "loading")
        self._describe(foreign)
        for name, plugin in (extra or {}).items():
            self._load(Found(name, "", "in-process"), partial(_itself, plugin))

    def _list(self, found: Found, status: str, *, kinds: tuple[str, ...] = ()) -> None:
        self._plugins[found.name] = PluginInfo(found.name, found.version, status, kinds)

    def _load(self, found: Found, load: Callable[[], Any]) -> None:
        """Import a plugin into this process."""
        try:
            plugin = load()
            loading.answered(plugin)
            self._manager.register(plugin, found.name)
            self._offer(found, [_kind(o, found.value, o) for o in loading.offers(plugin)])
        except Exception as error:  # noqa: BLE001  # a plugin is foreign code: whatever it raises must not stop the others
            if self._manager.has_plugin(found.name):
                self._manager.unregister(name=found.name)
            self._broken(found, f"{type(error).__name__}: {error}")

    def _describe(self, plugins: list[Found]) -> None:
        """Let workers import plugins, side by side, and take in what they offer, in order of name."""
        if not plugins:
            return
        workers = [PluginWorker(Start(found.value, self._log_level, secret=self.secret)) for found in plugins]
        with ThreadPoolExecutor(len(plugins)) as pool:
            limits = [_OWN_IMPORT_SECONDS if found.version == loading.BUILT_IN else _IMPORT_SECONDS for found in plugins]
            asked = [pool.submit(worker.describe, seconds) for worker, seconds in zip(workers, limits, strict=True)]
        for found, worker, answer in zip(plugins, workers, asked, strict=True):
            try:
                described = answer.result()
                self._offer(found, [_kind(o, found.value) for o in described.offers])
            except Broken as error:
                self._broken(found, str(error))
                if error.passing and found.version == loading.BUILT_IN:
                    self._unused[found.name] = found  # a machine that is busy with its start: whoever needs it tries again
                continue
            except ValueError as error:
                worker.close()
                self._broken(found, str(error))
                continue
            if described.hooks:
                self._workers.append(worker)
                self._manager.register(_remote(worker, described.hooks), found.name)

    def _offer(self, found: Found, kinds: list[Kind]) -> None:
        for kind in kinds:
            holder = next((info.name for info in self._plugins.values() if kind.kind in info.kinds and info.name != found.name), "")
            if holder:
                raise ValueError(f"kind {kind.kind!r} is already offered by plugin {holder}")
        self._kinds.update({kind.kind: kind for kind in kinds})
        self._list(found, "loaded", kinds=tuple(kind.kind for kind in kinds))

    def _broken(self, found: Found, problem: str) -> None:
        _log.error("plugin is broken and was left out", plugin=found.name, error=problem)
        self._plugins[found.name] = PluginInfo(found.name, found.version, "broken", (), problem, remedy(problem, found.name))

    def plugins(self) -> list[PluginInfo]:
        """Every plugin found, loaded or not."""
        return list(self._plugins.values())

    def try_all(self) -> list[PluginInfo]:
        """As `plugins`, after the built-in ones that no pool needs were tried too: what they lack is told."""
        with self._trying:
            unused, self._unused = self._unused, {}
            self._describe(list(unused.values()))
        return self.plugins()

    def has(self, kind: str) -> bool:
        """Whether a plugin that was imported offers a kind."""
        return kind in self._kinds

    def backend_type(self, kind: str) -> Kind:
        """Who serves a kind; if a plugin was left out, perhaps nobody. A built-in plugin is imported by the first who asks.

        Raises NotFound naming the kinds there are.
        """
        with self._trying:
            if kind in self._unused:
                self._describe([self._unused.pop(kind)])
        if kind in self._kinds:
            return self._kinds[kind]
        known = sorted({*self._kinds, *self._unused})
        problem = f"no plugin offers pools of kind {kind!r}; there are: {', '.join(known) or 'none'}"
        left_out = [info for info in self._plugins.values() if info.status in ("broken", "blocked")]
        if not left_out:
            raise NotFound(problem)
        named = [info for info in left_out if info.name == kind] or left_out
        told = [f"plugin {info.name} is {info.status}" + (f": {info.problem}" if info.problem else "") for info in named]
        return Kind(kind, "", 1, 1, problem=f"{problem}; {'; '.join(told)}", passing=kind in self._unused)

    @property
    def admits(self) -> bool:
        """Whether a plugin wants to be asked by `admit`."""
        return bool(self._manager.hook.volgate_admit.get_hookimpls())

    def admit(self, request: AdmitRequest) -> None:
        """Ask every plugin whether a mutation may go on; the first refusal is raised. One that fails or is slow refuses nothing."""
        for hook in self._manager.hook.volgate_admit.get_hookimpls():
            self._ask(hook, "volgate_admit", request=request)

    def amend_disk(self, disk: str, context: DiskContext) -> str:
        """Let plugins amend a `<disk>`, one after the other in their order; one that fails, is slow or oversteps leaves it as it is."""
        for hook in self._manager.hook.volgate_disk.get_hookimpls():
            amended = self._ask(hook, "volgate_disk", disk=disk, context=context)
            if not amended:
                continue
            if told := overstep(disk, str(amended)):
                _log.warning(
                    "a plugin's change of a disk is passed over", plugin=hook.plugin_name, attachment=context.attachment, error=told
                )
            else:
                disk = str(amended)
        return disk

    def finished(self, record: FinishedRecord) -> None:
        """Tell plugins of a mutation that ended, in the background; what they raise is logged."""
        for hook in self._manager.hook.volgate_finished.get_hookimpls():
            try:
                self._hooks.submit(self._tell, hook, record)
            except VolgateError as error:
                _log.error("a plugin was not told of a mutation: it is too slow", plugin=hook.plugin_name, operation=record.operation,
                           target=record.name, outcome=record.outcome, error=error.message)  # fmt: skip

    @staticmethod
    def _tell(hook: Any, record: FinishedRecord) -> None:
        try:
            _called(hook, {"record": record})
        except Exception as error:  # noqa: BLE001  # foreign code, told after the fact: it must not change the outcome
            _log.warning("plugin failed in volgate_finished", plugin=hook.plugin_name, operation=record.operation, error=repr(error))

    def secret(self, reference: str, pool: str = "") -> Secret:
        """Resolve a reference to a secret, for a pool or the gateway itself. Raises InvalidRequest if no plugin knows its scheme."""
        if (own := secret_sources.built_in(reference)) is not None:
            return own
        for hook in self._manager.hook.volgate_secrets.get_hookimpls():
            found = self._ask(hook, "volgate_secrets", reference=reference, pool=pool)
            if found is not None:
                return found if isinstance(found, Secret) else Secret(str(found))
        raise InvalidRequest(f"no plugin resolves secrets of scheme {reference.partition(':')[0]!r}", field="secret")

    def start_of(self, kind: Kind, pool: str) -> Start:
        """How a worker for a pool of this kind is started."""
        return Start(kind.plugin, self._log_level, secret=partial(self.secret, pool=pool))

    def close(self) -> None:
        """End the plugins' processes."""
        self._hooks.close()
        for worker in self._workers:
            worker.close()

    def _ask(self, hook: Any, name: str, **arguments: Any) -> Any:
        """Ask one plugin; None if it fails or does not answer in time. Raises its refusal."""
        try:
            return self._hooks.call_within(_HOOK_SECONDS, _called, hook, arguments)
        except Busy as error:
            problem = error.message
        except Exception as error:  # foreign code: anything but a refusal of ours counts as no answer
            if refused(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        _log.warning("a plugin's hook failed and is passed over", plugin=hook.plugin_name, hook=name, error=problem)
        return None


def _itself(plugin: Any) -> Any:
    return plugin


def _called(hook: Any, arguments: dict[str, Any]) -> Any:
    """Call one implementation with the arguments that it names, as pluggy does."""
    return hook.function(*(arguments[name] for name in hook.argnames))


def _remote(worker: PluginWorker, names: tuple[str, ...]) -> Any:
    """A plugin whose hooks ask the real one in its worker."""

    def volgate_admit(request: AdmitRequest) -> None:
        worker.hook("volgate_admit", {"request": request}, timeout=_HOOK_SECONDS)

    def volgate_disk(disk: str, context: DiskContext) -> str | None:
        return cast("str | None", worker.hook("volgate_disk", {"disk": disk, "context": context}, timeout=_HOOK_SECONDS))

    def volgate_finished(record: FinishedRecord) -> None:
        worker.hook("volgate_finished", {"record": record}, timeout=_HOOK_SECONDS)

    def volgate_secrets(reference: str, pool: str) -> Secret | None:
        found = worker.hook("volgate_secrets", {"reference": reference, "pool": pool}, timeout=_HOOK_SECONDS)
        return None if found is None else Secret(str(found))

    known = (volgate_admit, volgate_disk, volgate_finished, volgate_secrets)
    return _Hooks({function.__name__: hooks.hookimpl(function) for function in known if function.__name__ in names})


class _Hooks:
    """What pluggy registers for a plugin in a worker."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)
