"""The settings: one frozen tree from TOML, with defaults for everything; an unknown key is an error that names the nearest known one.

Secrets are never written here but referenced (`file:/path`, `env:NAME`, or a scheme of a plugin).
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from volgate.errors import InvalidRequest

__all__ = [
    "ROLES",
    "Controller",
    "Database",
    "Encryption",
    "Exports",
    "Host",
    "Imports",
    "Limits",
    "Plugins",
    "Server",
    "Settings",
    "Telemetry",
    "Tls",
    "convert_strictly",
    "load",
]

T = TypeVar("T")
_ANYWHERE = ("0.0.0.0", "[::]")  # noqa: S104  # what a listener may say and a caller cannot
ROLES = ("all", "controller", "host")
"""What a process is: a gateway with the hosts of its machine, one without any, or a host alone."""


class Server(msgspec.Struct, frozen=True):
    """Where the server keeps its state and where it listens.

    `socket` "" means `<state_dir>/volgate.sock`. `instance` "" means the id kept in `<state_dir>/instance`: set it only to
    take over pools after the whole state directory was lost. `name` is this host's name in the contract. `listen` holds
    host:port of TCP listeners, which need [tls]. `role` is one of ROLES. `advertise` is host:port where controllers call a host;
    "" means the first of `listen`.
    """

    role: str = "all"

    state_dir: str = "/var/lib/volgate"
    socket: str = ""
    socket_mode: str = "0660"
    socket_group: str = ""
    name: str = ""
    instance: str = ""
    stop_seconds: float = 20.0
    listen: tuple[str, ...] = ()
    advertise: str = ""


class Controller(msgspec.Struct, frozen=True):
    """Where a host registers: host:port of each controller."""

    addresses: tuple[str, ...] = ()


class Tls(msgspec.Struct, frozen=True):
    """Files in PEM: the gateway's certificate (with what leads to its authority), its key, and the authorities of clients."""

    certificate: str = ""
    key: str = ""
    client_authority: str = ""


class Database(msgspec.Struct, frozen=True):
    """Where the journal is. `url` "" means SQLite in the state directory, else PostgreSQL, shared by controllers of one gateway.

    `password` references the secret; it never stands in the URL. `lease_seconds` without a heartbeat, and others take over.
    """

    url: str = ""
    password: str = ""
    lease_seconds: float = 30.0


class Telemetry(msgspec.Struct, frozen=True):
    """Where spans and metrics go; empty means nowhere. `prometheus_listen` is host:port of the loopback."""

    otlp_endpoint: str = ""
    prometheus_listen: str = ""
    log_level: str = "info"
    service_name: str = "volgate"


class Limits(msgspec.Struct, frozen=True):
    """Bounds. Times are in seconds unless the name says otherwise."""

    operation_retention_hours: float = 24.0
    operation_threads: int = 64
    queued_operations: int = 4096
    native_timeout: float = 600.0
    libvirt_timeout: float = 60.0
    reader_timeout: float = 120.0
    scan_seconds: float = 60.0
    check_seconds: float = 10.0
    maximum_volume_bytes: int = 1 << 50
    client_calls: int = 128
    client_streams: int = 32
    connections: int = 4096
    handshake_seconds: float = 10.0
    heartbeat_seconds: float = 5.0
    host_dead_seconds: float = 30.0


class Imports(msgspec.Struct, frozen=True):
    """Server-side paths are allowed only below these directories; uploads are spooled in `spool` ("" means `<state_dir>/spool`)."""

    allowed_directories: tuple[str, ...] = ()
    spool: str = ""


class Exports(msgspec.Struct, frozen=True):
    """Files on this host are written only below these directories."""

    allowed_directories: tuple[str, ...] = ()


class Encryption(msgspec.Struct, frozen=True):
    """How references to passphrases may begin that callers name, such as `file:/etc/volgate/passphrases/`; each host resolves its own."""

    allowed_references: tuple[str, ...] = ()


class Host(msgspec.Struct, frozen=True):
    """A hypervisor. `uri` is libvirt's."""

    uri: str = "qemu:///system"


class Plugins(msgspec.Struct, frozen=True):
    """Names of plugins that are not loaded."""

    blocked: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """The whole tree. `pools` holds each pool's table as it stands; its plugin gives it a type."""

    server: Server = Server()
    controller: Controller = Controller()
    tls: Tls = Tls()
    database: Database = Database()
    telemetry: Telemetry = Telemetry()
    limits: Limits = Limits()
    imports: Imports = Imports()
    exports: Exports = Exports()
    encryption: Encryption = Encryption()
    plugins: Plugins = Plugins()
    hosts: dict[str, Host] = {}
    pools: dict[str, dict[str, Any]] = {}

    @property
    def state_dir(self) -> Path:
        """The state directory."""
        return Path(self.server.state_dir)

    @property
    def socket_path(self) -> Path:
        """The unix socket."""
        return Path(self.server.socket) if self.server.socket else self.state_dir / "volgate.sock"

    @property
    def spool_dir(self) -> Path:
        """Where uploads are kept until they are volumes."""
        return Path(self.imports.spool) if self.imports.spool else self.state_dir / "spool"

    @property
    def host_name(self) -> str:
        """This host's name in the contract."""
        name = self.server.name or socket.gethostname().split(".")[0].lower()
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("._-") or "localhost"


def load(path: str | os.PathLike[str] | None = None, state_dir: str | os.PathLike[str] | None = None, role: str = "") -> Settings:
    """Read the file (none: defaults) and add what is left out: a pool `default` under the state directory, this host on qemu:///system.

    A controller has no hosts of its own, a host no pools. Raises InvalidRequest naming the key.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequest(f"configuration {path}: {error.strerror}", field="config") from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidRequest(f"configuration {path}: {error}", field="config") from error
    if state_dir is not None:
        tree.setdefault("server", {})["state_dir"] = str(Path(state_dir).resolve())
    if role:
        tree.setdefault("server", {})["role"] = role
    settings = convert_strictly(tree, Settings, "")
    _check_role(settings)
    role = settings.server.role
    hosts = {} if role == "controller" else settings.hosts or {settings.host_name: Host()}
    default = {"default": {"kind": "directory", "path": str(settings.state_dir / "pools" / "default")}}
    return msgspec.structs.replace(settings, hosts=hosts, pools={} if role == "host" else settings.pools or default)


def _check_role(settings: Settings) -> None:
    """Raise InvalidRequest for what the role has not or lacks."""
    server = settings.server
    if server.role not in ROLES:
        raise InvalidRequest(f"configuration: server.role: {server.role!r} is none of {', '.join(ROLES)}", field="server.role")
    if server.role == "controller" and settings.hosts:
        told = "configuration: hosts: a controller has none of its own, they register; take [hosts.*] out, or use the role all"
        raise InvalidRequest(told, field="hosts")
    if server.role != "host":
        if settings.controller.addresses:
            told = "configuration: controller.addresses: only a host registers at controllers; take it out, or use the role host"
            raise InvalidRequest(told, field="controller.addresses")
        return
    needed = {
        "controller.addresses": (settings.controller.addresses, "where the host registers, such as controller.example:7443"),
        "server.listen": (server.listen, "where controllers call the host, such as 10.0.0.5:7444"),
    }
    for key, (value, what) in needed.items():
        if not value:
            raise InvalidRequest(f"configuration: {key}: a host needs it: {what}", field=key)
    if not server.advertise and server.listen[0].rpartition(":")[0] in _ANYWHERE:
        told = f"configuration: server.advertise: controllers cannot call {server.listen[0]}; say an address of this host, with the port"
        raise InvalidRequest(told, field="server.advertise")
    if settings.pools:
        raise InvalidRequest("configuration: pools: a host opens none, its controllers do; take [pools.*] out", field="pools")
    if len(settings.hosts) > 1:
        raise InvalidRequest("configuration: hosts: the role host has one hypervisor; name one", field="hosts")


def convert_strictly(value: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Convert a table to `kind` (a struct or dataclass): no unknown key, no wrong type. `where` is its dotted path for messages."""
    _check_keys(value, kind, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"configuration [{where or '.'}]: {error}", field=where) from error


def _check_keys(value: Mapping[str, Any], kind: Any, where: str) -> None:
    hints = get_type_hints(kind)
    for key, item in value.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(hints))}"
            raise InvalidRequest(f"configuration: unknown key {path!r}{hint}", field=path)
        tables = [item] if isinstance(item, Mapping) else item if isinstance(item, list) else []
        for inner in [part for part in (hints[key], *_parts(hints[key])) if hasattr(part, "__struct_fields__") or is_dataclass(part)]:
            for table in tables:
                _check_keys(table, inner, path)
        if key == "hosts" and isinstance(item, Mapping):
            for name, table in item.items():
                _check_keys(table, Host, f"{path}.{name}")


def _parts(hint: Any) -> tuple[Any, ...]:
    """What an optional table, or a list of tables, is made of."""
    return () if get_origin(hint) is dict else get_args(hint)
