"""The example configuration is read as it stands, and every default that it shows is the code's."""

import dataclasses
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from volgate import settings
from volgate.errors import InvalidRequest
from volgate.pools import Pools
from volgate.registry import Registry
from volgate_plugins.ceph_rbd import CephSettings
from volgate_plugins.directory import DirectorySettings
from volgate_plugins.iscsi import ChapSettings, IscsiSettings, LunSettings
from volgate_plugins.iscsi.settings import portal_of
from volgate_plugins.lvm import LvmSettings

EXAMPLE = Path(__file__).parents[2] / "deploy/config-examples/volgate.toml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
SECTIONS = {
    "server": settings.Server,
    "controller": settings.Controller,
    "tls": settings.Tls,
    "database": settings.Database,
    "telemetry": settings.Telemetry,
    "limits": settings.Limits,
    "imports": settings.Imports,
    "encryption": settings.Encryption,
}
SECTIONS |= {"exports": settings.Exports, "plugins": settings.Plugins, "hosts.node1": settings.Host, "pools.default": DirectorySettings}


def shown_defaults() -> dict[str, dict[str, Any]]:
    """What the commented lines say, by section."""
    found: dict[str, dict[str, Any]] = {}
    section = ""
    for line in TEXT.splitlines():
        if header := re.fullmatch(r"(?:# )?\[([a-z0-9.]+)\]", line):
            section = header[1]
        elif re.match(r"# [a-z_]+ = ", line):
            found.setdefault(section, {}).update(tomllib.loads(line.removeprefix("# ")))
    return found


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The fields of a struct or dataclass that have a default, as TOML would hold them."""
    if dataclasses.is_dataclass(kind):
        fields = [(field.name, field.default) for field in dataclasses.fields(kind)]
        return {name: value for name, value in fields if value is not dataclasses.MISSING}
    return {field.name: msgspec.to_builtins(field.default) for field in msgspec.structs.fields(kind)}


def test_the_example_is_read_and_its_pool_is_understood():
    found = settings.load(EXAMPLE)
    pools = Pools(Registry(), found.pools, "an-instance", found.limits.native_timeout)
    assert [pool.kind for pool in pools] == ["directory"]
    assert found.socket_path == Path("/run/volgate/volgate.sock"), "the CLI's and the service's"
    pools.close()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_shown_with_its_default(section):
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in shown_defaults()[section].items()}
    expected = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults(SECTIONS[section]).items()}
    assert shown == expected


def test_the_example_with_every_default_spelt_out_is_the_configuration_without_it():
    bare = settings.load()
    everything = {section: table for section, table in shown_defaults().items() if "." not in section}
    assert settings.convert_strictly(everything, settings.Settings, "") == msgspec.structs.replace(bare, hosts={}, pools={})


def test_no_section_of_the_settings_is_left_out():
    names = {field.name for field in msgspec.structs.fields(settings.Settings)}
    assert {section.partition(".")[0] for section in SECTIONS} == names


@pytest.mark.parametrize("role", ["controller", "host"])
def test_the_examples_of_the_other_roles_are_read(role):
    found = settings.load(EXAMPLE.with_name(f"{role}.toml"))
    assert found.server.role == role
    assert (set(found.hosts), set(found.pools)) == ((set(), {"shared"}) if role == "controller" else ({"node1"}, set()))
    assert found.tls.certificate.startswith(f"/etc/volgate/{role}-")


@pytest.mark.parametrize(
    ("role", "more", "key"),
    [
        ("none", "", "server.role"),
        ("controller", "[hosts.a]\n", "hosts"),
        ("all", '[controller]\naddresses = ["a:1"]\n', "controller.addresses"),
        ("host", "", "controller.addresses"),
        ("host", '[controller]\naddresses = ["a:1"]\n', "server.listen"),
        ("host", '[controller]\naddresses = ["a:1"]\n[server]\nlisten = ["0.0.0.0:1"]\n', "server.advertise"),
        ("host", '[controller]\naddresses = ["a:1"]\n[server]\nlisten = ["b:1"]\n[pools.p]\nkind = "directory"\n', "pools"),
    ],
)
def test_what_a_role_has_not_or_lacks_is_refused_by_its_key(tmp_path, role, more, key):
    path = tmp_path / "volgate.toml"
    path.write_text(more)
    with pytest.raises(InvalidRequest, match=key) as refused:
        settings.load(path, role=role)
    assert refused.value.field == key


def test_the_example_of_ceph_pools_is_read_and_makes_sense():
    found = settings.load(EXAMPLE.with_name("ceph.toml"))
    for name, table in found.pools.items():
        assert table.pop("kind") == "ceph-rbd"
        settings.convert_strictly(table, CephSettings, f"pools.{name}").check()
    assert set(found.pools) == {"fast", "tenant"}


def test_the_example_of_a_pool_in_a_volume_group_is_read_and_makes_sense():
    found = settings.load(EXAMPLE.with_name("lvm.toml"))
    table = found.pools["local"]
    assert table.pop("kind") == "lvm"
    settings.convert_strictly(table, LvmSettings, "pools.local").check()


def test_the_example_of_iscsi_pools_is_read_and_makes_sense():
    found = settings.load(EXAMPLE.with_name("iscsi.toml"))
    for name, table in found.pools.items():
        assert table.pop("kind") == "iscsi"
        settings.convert_strictly(table, IscsiSettings, f"pools.{name}").check()
    assert set(found.pools) == {"files", "logical", "userspace", "array"}


LUN = LunSettings("3600140500000000000000000000000a1", 1 << 30, "iqn.2026-01.org.example:array", 1)
GOOD = {"iqn": "iqn.2026-01.org.example", "portals": ("192.0.2.1",), "records": "/r", "lvm": LvmSettings("volumes", "pool")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            ("iqn", value)
            for value in ("", "iqn.2026-01.x", "IQN.2026-01.org.example", "iqn.2026-01.org.example/..", f"iqn.2026-01.{'a' * 200}.b")
        ],
        *[("portals", value) for value in ((), ("storage",), ("192.0.2.1:0",), ("192.0.2.1:99999",), ("[::1]:x",))],
        ("records", "here"),
        ("target", "scst"),
        ("directory", DirectorySettings("/d")),
        ("lvm", None),
        ("chap", ChapSettings("a", "")),
        ("chap", ChapSettings("a", "env:A", target_user="b")),
        ("seconds", 0.0),
        ("luns", (LUN,)),
    ],
)
def test_settings_of_iscsi_pools_that_make_no_sense_are_refused_by_their_key(key, value):
    IscsiSettings(**GOOD).check()
    with pytest.raises(InvalidRequest) as refused:
        IscsiSettings(**{**GOOD, key: value}).check()
    assert key in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("luns", ()),
        ("luns", (LUN, LUN)),
        ("luns", (replace(LUN, lun=0),)),
        ("luns", (replace(LUN, wwid="../1"),)),
        ("luns", (replace(LUN, size=0),)),
        ("luns", (replace(LUN, target="array"),)),
        ("initiator", ""),
        ("iqn", "iqn.2026-01.org.example"),
    ],
)
def test_settings_of_an_inventory_that_make_no_sense_are_refused_by_their_key(key, value):
    good = {"portals": ("192.0.2.1",), "records": "/r", "target": "inventory", "luns": (LUN,), "initiator": "iqn.2026-01.org.example:me"}
    IscsiSettings(**good).check()
    with pytest.raises(InvalidRequest) as refused:
        IscsiSettings(**{**good, key: value}).check()
    assert key in refused.value.message


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.1:3261", "2001:db8::1", "[2001:db8::1]:3261"])
def test_a_portal_is_an_address_perhaps_with_a_port(text):
    found = portal_of(text, "iqn.2026-01.org.example:t")
    assert found.port == (3261 if "3261" in text else 3260) and found.address in text


def test_an_unknown_key_of_a_table_in_a_pool_is_refused_by_its_path():
    with pytest.raises(InvalidRequest) as refused:
        settings.convert_strictly({**GOOD, "lvm": {"vg": "a", "thin_pol": "b"}}, IscsiSettings, "pools.p")
    assert refused.value.field == "pools.p.lvm.thin_pol" and "thin_pool" in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"), [("vg", "a b"), ("thin_pool", ""), ("devices", ("loop0",)), ("alert_percent", 99.0), ("command_seconds", 0.0)]
)
def test_settings_of_a_volume_group_that_make_no_sense_are_refused_by_their_key(key, value):
    with pytest.raises(InvalidRequest) as refused:
        LvmSettings(**{"vg": "volumes", "thin_pool": "pool", key: value}).check()
    assert key in refused.value.message
