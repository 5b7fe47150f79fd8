"""Borders that import-linter cannot express: the plugin API is pinned, plugins stay small and outside, colours change in few files."""

import ast
import sys
from importlib.metadata import entry_points
from pathlib import Path

import volgate.backend
from tests.architecture.sources import ROOT, imports, shipped
from volgate.backend import facets

API_MODULES = {"facets", "files", "folders", "hooks", "image", "owner_tag", "qcow2", "run", "secrets", "traits", "versions"}
API_NAMES = {
    *("Adopts", "Backend", "Clones", "DataPath", "Extent", "Foreign", "Measures", "Overlay", "Overlays", "PathsSeen", "PoolCheck"),
    *("ChangedBlocks", "Extracts", "Fences", "GroupMember", "Groups", "Holder", "Holders"),
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
    entries = [entry for entry in entry_points(group="volgate.plugins") if entry.dist and entry.dist.name == "volgate"]
    assert entries
    for entry in entries:
        own = entry.value.partition(":")[0]
        assert own.count(".") == 1, f"{own}: one file or package below volgate_plugins"
        home = ROOT / "plugins" / own.replace(".", "/")
        modules = (
            packages(f"plugins/{own.replace('.', '/')}") if home.is_dir() else {home.with_suffix(".py"): shipped()[home.with_suffix(".py")]}
        )
        for path, tree in modules.items():
            for name in imports(tree):
                top = name.partition(".")[0]
                inside = name.startswith((own, "volgate.backend", *VALUES))
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
    assert len(broad) <= 20
