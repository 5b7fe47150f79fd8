import queue
import types

import pytest

from volgate.backend import FinishedRecord, hookimpl
from volgate.errors import NotFound
from volgate.registry import Registry


def plugin(**functions):
    module = types.SimpleNamespace()
    for name, function in functions.items():
        setattr(module, name, hookimpl(function))
    return module


def test_a_broken_plugin_is_isolated_and_listed():
    def volgate_backends():
        raise RuntimeError("boom")

    def volgate_misspelt():
        return None

    registry = Registry(extra={"broken": plugin(volgate_backends=volgate_backends), "typo": plugin(volgate_misspelt=volgate_misspelt)})
    status = {info.name: info for info in registry.plugins()}
    assert status["broken"].status == "broken"
    assert "boom" in status["broken"].problem
    assert status["typo"].status == "broken"
    assert status["directory"].status == "loaded"
    assert registry.backend_type("directory").local.in_threads


def test_the_operator_blocks_a_plugin():
    registry = Registry(("directory",))
    assert [info.status for info in registry.plugins() if info.name == "directory"] == ["blocked"]
    assert "plugin directory is blocked" in registry.backend_type("directory").problem


def test_a_kind_that_nobody_can_offer_is_not_found():
    with pytest.raises(NotFound, match="there are: directory, memory"):
        Registry().backend_type("direktory")


def test_a_failing_finished_hook_changes_nothing():
    told = queue.SimpleQueue()

    def good(record):
        told.put(record)

    def bad(record):
        raise RuntimeError("audit is down")

    good.__name__ = bad.__name__ = "volgate_finished"
    registry = Registry(extra={"a": plugin(volgate_finished=good), "b": plugin(volgate_finished=bad)})
    record = FinishedRecord("operations/1", "CreateVolume", "pools/p/volumes/v", "u", "local", "ok", 0.1)
    registry.finished(record)
    assert told.get(timeout=10) == record
