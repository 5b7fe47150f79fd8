"""Borders that import-linter cannot express: the plugin API is pinned, plugins stay small and outside, colours change in few files."""

import ast
import importlib
import sys
from pathlib import Path

import volgate.backend
from tests.architecture.sources import ROOT, imports, shipped
from volgate.backend import facets
from volgate.worker import loading

API_MODULES = {
    *("facets", "files", "folders", "hooks", "image", "image_reader", "nbd", "owner_tag", "qcow2", "run", "secrets", "traits", "versions"),
}
API_NAMES = {
    *("Adopts", "Backend", "Clones", "DataPath", "Extent", "Foreign", "Measures", "Overlay", "Overlays", "PathsSeen", "PoolCheck"),
    *("ChangedBlocks", "Extracts", "Fences", "FencesHosts", "GroupMember", "Groups", "Holder", "Holders"),
    *("Initiator", "Publishes"),
    *("Relabels", "Resizes", "Reverts", "SnapshotSpec", "Snapshots", "VolumeId", "capabilities"),
    *("AdmitRequest", "BackendType", "DiskContext", "FinishedRecord", "PoolContext", "hookimpl"),
    *("OwnerTag", "TagSpec", "Traits", "seal", "tag_of", "unseal", "volume_of"),
}
VALUES = {"volgate.model", "volgate.connection", "volgate.names", "volgate.errors", "volgate.secret"}
NATIVE = {"rados", "rbd"}
"""The storage's own libraries, which a plugin alone speaks to."""
BACKEND_METHODS = 8  # traits, create, delete, get, list, connection, check, close: all that a backend must fill


def packages(name: str) -> dict[Path, ast.Module]:
    """The shipped modules below a folder."""
    return {path: tree for path, tree in shipped().items() if path.is_relative_to(ROOT / name)}


def test_the_plugin_api_is_what_is_pinned_here():
    """Authors build on these names: adding one is a decision, taking one away breaks them."""
    assert set(volgate.backend.__all__) == API_NAMES
    assert {path.stem for path in packages("gateway/volgate/backend")} == API_MODULES | {"__init__"}


def test_a_backend_has_few_methods_to_fill():
    assert len(facets.Backend.__abstractmethods__) == BACKEND_METHODS


def test_a_capability_is_a_base_class_and_nothing_else():
    class Half(facets.Snapshots):
        pass

    assert facets.capabilities(Half) == ("Snapshots",)
    assert {"create_snapshot", "delete_snapshot", "list_snapshots"} <= Half.__abstractmethods__


def test_every_built_in_plugin_is_one_module_or_package_that_sees_the_api_and_values_only():
    own = [found.value for found in loading.find() if found.version == loading.BUILT_IN]
    assert own
    doors = {f"{value}.{name}" for value in own for name in importlib.import_module(value).__all__} | {*own}
    for value in own:
        assert value.count(".") == 1, f"{value}: one file or package below volgate_plugins"
        home = ROOT / "plugins" / value.replace(".", "/")
        modules = (
            packages(f"plugins/{value.replace('.', '/')}")
            if home.is_dir()
            else {home.with_suffix(".py"): shipped()[home.with_suffix(".py")]}
        )
        for path, tree in modules.items():
            for name in imports(tree):
                top = name.partition(".")[0]
                # A pool may lie on another kind's.
                inside = name.startswith((value, "volgate.backend", *VALUES)) or name in {"volgate", *doors}
                assert inside or top in sys.stdlib_module_names | {"msgspec", *NATIVE}, f"{path.relative_to(ROOT)} imports {name}"


def test_hooks_are_called_in_the_registry_alone():
    """A call is never dispatched through a hook; questions are asked by typed methods of one class."""
    callers = {
        path.name
        for path, tree in shipped().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "hook" and ast.unparse(node) != "config.hook"  # pytest's own
    }
    assert callers == {"registry.py"}


def test_async_stays_at_the_edge():
    gateway = packages("gateway/volgate") | packages("plugins")
    coloured = {
        str(path.relative_to(ROOT / "gateway/volgate"))
        for path, tree in gateway.items()
        if "asyncio" in imports(tree) or any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree))
    }
    assert {name for name in coloured if not name.startswith("edge/")} == {"cli/serve.py"}


def test_processes_are_started_by_the_spawner_alone():
    starters = {path.stem for path, tree in (packages("gateway/volgate") | packages("plugins")).items() if "subprocess" in imports(tree)}
    assert starters == {"spawner"}


def test_a_catch_all_is_rare_and_explained():
    """A broad except needs a reason beside it (see test_shape); this keeps the sum of them in sight."""
    broad = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in shipped().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception"
    ]
    print(f"{len(broad)} broad handlers:", *broad, sep="\n  ")
    assert len(broad) <= 21
