import queue
import time
import types

import pytest

from volgate import registry as registries
from volgate.backend import AdmitRequest, DiskContext, FinishedRecord, hookimpl
from volgate.errors import NotFound
from volgate.registry import Registry
from volgate.secret import Secret


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
    with pytest.raises(NotFound, match="there are: ceph-rbd, directory, iscsi, lvm, memory"):
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


def hook(name, function):
    function.__name__ = name
    return plugin(**{name: function})


def slow(*_):
    time.sleep(2)


def raising(*_):
    raise RuntimeError("the plugin has a bug")


@pytest.mark.parametrize("bad", [slow, raising])
def test_a_slow_or_raising_hook_of_this_process_is_passed_over(bad, monkeypatch):
    monkeypatch.setattr(registries, "_HOOK_SECONDS", 0.2)

    def admit(request):
        bad()

    def amend(disk, context):
        bad()

    def fetch(reference):
        bad()

    def good(disk):
        return disk.replace('cache="none"', 'cache="writeback"')

    def vault(reference, pool):
        return Secret(f"{pool} opens {reference}")

    registry = Registry(extra={
        "a": hook("volgate_admit", admit), "b": hook("volgate_disk", amend), "c": hook("volgate_secrets", fetch),
        "d": hook("volgate_disk", good), "e": hook("volgate_secrets", vault),
    })  # fmt: skip
    registry.admit(AdmitRequest("CreateVolume", "pools/p/volumes/v", "local", {}, 1))
    assert 'cache="writeback"' in registry.amend_disk('<disk><driver cache="none"/></disk>', DiskContext("a", "v", "d", "h"))
    assert registry.secret("vault:x", "p").reveal() == "p opens vault:x"
    registry.close()


def test_what_a_hook_makes_of_a_disk_is_left_out_where_it_is_another():
    def other(disk):
        return disk.replace("/a", "/b")

    def tuned(disk):
        return disk.replace('cache="none"', 'cache="writeback"')

    registry = Registry(extra={"other": hook("volgate_disk", other), "tuned": hook("volgate_disk", tuned)})
    amended = registry.amend_disk('<disk><driver cache="none"/><source file="/a"/></disk>', DiskContext("a", "v", "d", "h"))
    assert amended == '<disk><driver cache="writeback"/><source file="/a"/></disk>'
