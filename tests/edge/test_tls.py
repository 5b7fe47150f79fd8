"""The TCP listener: whom it lets in, what it serves with, and that nobody else gets anything."""

import asyncio
import socket
import ssl
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2

from tests.cli.conftest import Cli, process
from tests.edge.secured import CONFIG, URI, Pair, Pki, Secured, secured
from tests.edge.wire import Wire, refused
from volgate.v1 import pool_pb2, volume_pb2
from volgate_client import AsyncClient, Client, errors

POOLS = pool_pb2.ListPoolsRequest()


@pytest.fixture(scope="module")
def place():
    with secured() as made:
        yield made
        assert made.server.stop() == 0


def shut_out(place: Secured, pair: Pair | None) -> None:
    """The client gets no connection: not for the contract, not for health, not to change anything."""
    request = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name("out"), size_bytes=4096)
    with place.connect(pair) as wire:
        for call, message in (
            (wire.pools.ListPools, POOLS),
            (wire.volumes.CreateVolume, request),
            (wire.health.Check, health_pb2.HealthCheckRequest()),
        ):
            found = refused(call, message, timeout=5)
            assert (found.code, found.reason) == ("UNAVAILABLE", ""), found


def handshake(place: Secured, pair: Pair | None, address: str = "") -> x509.Certificate:
    """The certificate that the gateway shows to a new connection. Raises ssl.SSLError, OSError."""
    context = ssl.create_default_context(cafile=str(place.pki.root))
    context.set_alpn_protocols(["h2"])
    if pair:
        context.load_cert_chain(pair.certificate, pair.key)
    host, _, port = (address or place.address).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw, context.wrap_socket(raw, server_hostname="localhost") as made:
        made.settimeout(2)
        assert made.recv(9), "the gateway's first HTTP/2 frame: it let the client in"
        return x509.load_der_x509_certificate(made.getpeercert(binary_form=True))


def test_a_certificate_of_the_authority_is_let_in_and_named(place):
    assert len(place.by("admin", "alice").pools.ListPools(POOLS, timeout=10).pools) == 4
    assert place.line("call", principal="admin:alice", method="volgate.v1.PoolService/ListPools")["code"] == "OK"


def test_who_has_no_usable_certificate_gets_no_connection_and_changes_nothing(place, tmp_path):
    before = place.picture()
    begun = {line["call"] for line in place.lines("call")}
    admin = URI("volgate:admin:mallory")
    others = Pki(tmp_path / "pki")
    shut_out(place, None)
    shut_out(place, others.client("admin", "alice"))
    shut_out(place, place.pki.odd(admin, itself=True))
    shut_out(place, place.pki.odd(admin, seconds=-60))
    shut_out(place, place.pki.odd(admin, use=ExtendedKeyUsageOID.SERVER_AUTH))
    gateway = Pair(place.pki.folder / "gateway.crt", place.pki.folder / "gateway.key")
    shut_out(place, gateway)
    assert place.picture() == before
    late = [line for line in place.lines("call") if line["call"] not in begun and line["principal"] != "local"]
    assert not late, "no call came that far"


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.DNSName("volgate.admin"), x509.RFC822Name("volgate:admin:x@y")),
        (URI("spiffe://house/admin"),),
        (URI("volgate:admin:a"), URI("volgate:viewer:a")),
        (URI("volgate:admin:a"), URI("VOLGATE:admin:a")),
        (URI("volgate:root:a"),),
        (URI("volgate:admin:"),),
        (URI("volgate:admin"),),
        (URI("volgate:admin:A"),),
        (URI("volgate:admin:a/../b"),),
        (URI("volgate:admin:a:b"),),
        (URI("volgate:admin:a?pool=main"),),
        (URI("volgate:viewer:a?host=lab"),),
        (URI("volgate:orchestrator:a"),),
        (URI("volgate:orchestrator:a?host=lab"),),
        (URI("volgate:orchestrator:a?pool="),),
        (URI("volgate:orchestrator:a?pool=*"),),
        (URI("volgate:orchestrator:a?pool=main&role=admin"),),
        (URI("volgate:orchestrator:a?pool=main&"),),
        (URI("volgate:admin:a\nvolgate:admin:b"),),
    ],
    ids=lambda names: " ".join(str(name.value) for name in names) or "none",
)
def test_a_certificate_whose_role_cannot_be_read_may_not_even_ask_for_health(place, names):
    with place.connect(place.pki.odd(*names)) as wire:
        for call, message in ((wire.health.Check, health_pb2.HealthCheckRequest()), (wire.pools.ListPools, POOLS)):
            found = refused(call, message, timeout=5)
            assert (found.code, found.reason, found.domain) == ("UNAUTHENTICATED", "BAD_CERTIFICATE", "volgate")
            assert place.line("call", call=found.trailers["x-request-id"])["denied"] is True


def test_the_common_name_and_what_a_client_says_of_itself_count_for_nothing(place):
    forged = (
        ("x-forwarded-client-cert", "volgate:admin:alice"),
        ("authorization", "volgate:admin:alice"),
        ("x-volgate-principal", "local"),
    )
    with place.connect(place.pki.odd(URI("volgate:viewer:eve"), common="admin:alice")) as wire:
        found = refused(wire.pools.DrainPool, pool_pb2.DrainPoolRequest(name="pools/main"), timeout=5, metadata=forged)
    assert (found.code, found.reason) == ("PERMISSION_DENIED", "ROLE_TOO_SMALL")
    assert place.line("call", call=found.trailers["x-request-id"])["principal"] == "viewer:eve"


def test_a_certificate_that_expires_ends_the_rights_of_its_connection(place):
    with place.connect(place.pki.odd(URI("volgate:viewer:brief"), seconds=4)) as wire:
        assert wire.pools.ListPools(POOLS, timeout=3).pools
        time.sleep(4.5)
        found = refused(wire.pools.ListPools, POOLS, timeout=5)
    assert found.reason in ("BAD_CERTIFICATE", ""), "refused by us, or no longer connected"
    assert found.code in ("UNAUTHENTICATED", "UNAVAILABLE")


def test_plaintext_gets_nothing(place):
    with Wire(place.address) as wire:
        assert refused(wire.pools.ListPools, POOLS, timeout=5).code == "UNAVAILABLE"
    host, _, port = place.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert b"\0\0\0\4" not in answer[:9] and len(answer) < 64, "a TLS alert at most"


def test_the_unix_socket_stays_as_it_was(place):
    made = place.volume()
    assert place.line("operation ended", target=made.name)["principal"] == "local"


def test_both_clients_speak_tls(place):
    files = place.pki.files(place.pki.client("operator", "olga"))
    with Client(place.address, **files) as client:
        made = client.create_volume("pools/main", place.name("sync"), size_bytes=4096)

    async def ask() -> str:
        async with AsyncClient(place.address, **files) as client:
            return (await client.get_volume(made.name)).name

    assert asyncio.run(ask()) == made.name
    assert place.line("operation ended", target=made.name)["principal"] == "operator:olga"


@pytest.mark.parametrize("missing", ["certificate", "key", "authority"])
def test_a_client_without_a_file_is_told_which(place, missing):
    files = place.pki.files(place.pki.client("operator", "olga"))
    with pytest.raises(errors.InvalidRequest, match="--cert, --key, --ca") as raised:
        Client(place.address, **{name: path for name, path in files.items() if name != missing})
    assert raised.value.field == missing


@pytest.mark.parametrize("broken", ["certificate", "key", "authority"])
def test_a_client_with_a_broken_file_is_told_which(place, broken, tmp_path):
    files = dict(place.pki.files(place.pki.client("operator", "olga")))
    files[broken] = tmp_path / "gone.pem"
    with pytest.raises(errors.InvalidRequest, match="No such file"):
        Client(place.address, **files)
    files[broken].write_text("nothing\n")
    with pytest.raises(errors.InvalidRequest) as raised:
        Client(place.address, **files)
    assert raised.value.field in (broken, "key")
    assert "nothing" not in str(raised.value)


def test_a_client_does_not_talk_to_a_gateway_of_another_authority_or_name(place, tmp_path):
    ours, other = place.pki.client("admin", "alice"), Pki(tmp_path / "pki")
    strange = Client(place.address, certificate=ours.certificate, key=ours.key, authority=other.root, timeout=2)
    with strange as client, pytest.raises(errors.Unavailable):
        list(client.list_pools())
    port = place.address.rpartition(":")[2]
    with Client(f"127.0.0.2:{port}", **place.pki.files(ours), timeout=1) as client, pytest.raises(errors.Unavailable):
        list(client.list_pools())


def test_the_command_line_speaks_tls_with_flags_anywhere_and_with_variables(place, monkeypatch):
    pair, cli = place.pki.client("operator", "olga"), Cli(place.address)
    flags = ["--cert", str(pair.certificate), f"--key={pair.key}"]
    name = place.name("cli")
    cli("volume", *flags, "create", f"main/{name}", "--ca", str(place.pki.root), "--size", "4096")
    env = {
        "VOLGATE_CERT": str(pair.certificate),
        "VOLGATE_KEY": str(pair.key),
        "VOLGATE_CA": str(place.pki.root),
        "VOLGATE_SERVER": place.address,
    }
    assert name in process("volume", "list", env=env).out
    denied = process("pool", "drain", "main", env=env, status=1)
    assert denied.err.startswith("ROLE_TOO_SMALL: operator:olga may not call")
    told = cli("pool", "list", status=2)
    assert "--cert, --key, --ca" in told.err


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(place):
    alice = place.pki.client("admin", "alice")
    kept = place.connect(alice)
    assert kept.pools.ListPools(POOLS, timeout=5).pools
    crt, key = place.pki.folder / "gateway.crt", place.pki.folder / "gateway.key"
    first = handshake(place, alice).serial_number
    place.pki.gateway()
    second = handshake(place, alice).serial_number
    assert second != first
    assert place.line("new certificate is used")["certificate"] == str(crt)
    good = crt.read_bytes(), key.read_bytes()
    expired = place.pki.odd(x509.DNSName("localhost"), seconds=-5, use=ExtendedKeyUsageOID.SERVER_AUTH)
    broken = [
        (b"nothing", good[1], "holds no certificate"),
        (good[0], b"nothing", "holds no private key"),
        (good[0], alice.key.read_bytes(), "is not the key of"),
        (good[0], b"", "holds no private key"),
        (expired.certificate.read_bytes(), expired.key.read_bytes(), "expired at"),
    ]
    for certificate, secret, why in broken:
        crt.write_bytes(certificate)
        key.write_bytes(secret)
        assert handshake(place, alice).serial_number == second, why
        assert why in place.lines("new certificate is not used")[-1]["error"]
        found = process("doctor", "--config", str(place.server.config), "--server", place.server.address, "--output", "json", status=1)
        assert any(why in finding["seen"] for finding in found.tree["findings"] if not finding["ok"]), found.out
    crt.unlink()
    assert handshake(place, alice).serial_number == second
    place.pki.gateway()
    assert handshake(place, alice).serial_number not in (first, second)
    assert kept.pools.ListPools(POOLS, timeout=5).pools, "the old connection never noticed"
    kept.channel.close()
    assert "serves TLS until" in process("doctor", "--config", str(place.server.config), "--server", place.server.address, status=1).out


def test_another_authority_of_clients_holds_from_the_next_connection_on(place, tmp_path):
    root, alice = place.pki.root, place.pki.client("admin", "alice")
    old, other = root.read_bytes(), Pki(tmp_path / "pki")
    newcomer = other.client("admin", "bob")
    assert handshake(place, alice)
    (place.pki.folder / "new.crt").write_bytes(old)
    try:
        root.write_bytes(other.root.read_bytes())
        context_root = place.pki.folder / "new.crt"
        with place.connect(newcomer, context_root) as wire:
            assert wire.pools.ListPools(POOLS, timeout=5).pools
        with place.connect(alice, context_root) as wire:
            assert refused(wire.pools.ListPools, POOLS, timeout=5).code == "UNAVAILABLE"
    finally:
        root.write_bytes(old)
    with place.connect(alice) as wire:
        assert wire.pools.ListPools(POOLS, timeout=5).pools


def test_every_listener_asks_for_a_certificate_and_gets_the_renewed_one():
    with secured(config=CONFIG.replace('["127.0.0.1:0"]', '["127.0.0.1:0", "localhost:0"]')) as place:
        addresses = place.lines("listening")[-1]["listen"]
        assert len(set(addresses)) == 2 and not [address for address in addresses if address.endswith(":0")]
        for address in addresses:
            with Wire(address, place.pki.credentials(place.pki.client("admin", "alice"))) as wire:
                assert wire.pools.ListPools(POOLS, timeout=5).pools
            with Wire(address, place.pki.credentials(None)) as wire:
                assert refused(wire.pools.ListPools, POOLS, timeout=5).code == "UNAVAILABLE"
        place.pki.gateway()
        served = {handshake(place, place.pki.client("admin", "alice"), address).serial_number for address in addresses}
        assert served == {x509.load_pem_x509_certificate((place.pki.folder / "gateway.crt").read_bytes()).serial_number}
        assert len(place.lines("new certificate is used")) == 1


def test_no_key_is_ever_logged(place):
    text = place.server.log.read_text()
    keys = list(place.pki.folder.glob("*.key"))
    assert len(keys) > 5
    for key in keys:
        assert not [line for line in key.read_text().splitlines()[1:-1] if line and line in text], key
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "10.0.0.5:9464", "[::]:9464", "127.0.0.1", "host.example:1"])
def test_metrics_in_the_clear_stay_on_this_machine(tmp_path, listen):
    config = tmp_path / "volgate.toml"
    config.write_text(f'[telemetry]\nprometheus_listen = "{listen}"\n')
    assert "telemetry.prometheus_listen" in process("serve", "--check", "--config", str(config), status=2).err


BASE = '[server]\nlisten = {listen}\n[tls]\ncertificate = "{pki}/gateway.crt"\nkey = "{pki}/gateway.key"\nclient_authority = "{pki}/authority.crt"\n'


@pytest.mark.parametrize("key", ["certificate", "key", "client_authority"])
def test_a_listener_without_all_of_tls_is_an_error_that_names_the_key(place, tmp_path, key):
    lines = BASE.format(listen='["127.0.0.1:0"]', pki=place.pki.folder).splitlines()
    config = tmp_path / "volgate.toml"
    config.write_text("\n".join(line for line in lines if not line.startswith(f"{key} =")))
    for words in (("serve", "--check"), ("serve", "--state-dir", str(tmp_path / "state"))):
        assert f"tls.{key}" in process(*words, "--config", str(config), status=2).err


@pytest.mark.parametrize("listen", ["7443", "127.0.0.1:", "127.0.0.1:70000", "unix:/x", "a b:1", ":7443", "127.0.0.1:0;x"])
def test_an_address_that_is_none_is_an_error_that_names_it(place, tmp_path, listen):
    config = tmp_path / "volgate.toml"
    config.write_text(BASE.format(listen=f'["{listen}"]', pki=place.pki.folder))
    assert "server.listen" in process("serve", "--check", "--config", str(config), status=2).err


def test_an_address_that_is_taken_is_told_and_nothing_is_served(place, tmp_path):
    config, state = tmp_path / "volgate.toml", tmp_path / "s"
    config.write_text(BASE.format(listen=f'["{place.address}"]', pki=place.pki.folder) + '[hosts.lab]\nuri = "test:///default"\n')
    ended = process("serve", "--config", str(config), "--state-dir", str(state), status=4)
    assert f"cannot listen on {place.address}" in ended.err
    assert not (state / "volgate.sock").exists()
