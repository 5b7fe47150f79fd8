"""`volgate pki`: an authority and certificates that other tools agree with, never overwritten, keys for their owner alone."""

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.cli.conftest import Cli
from volgate.edge.identity import Principal, Role, of_uris

NOBODY = "unix:/nonexistent/volgate.sock"


@pytest.fixture
def cli() -> Cli:
    """Nothing of it asks a server."""
    return Cli(NOBODY)


@pytest.fixture
def folder(cli: Cli, tmp_path: Path) -> Path:
    cli("pki", "init", str(tmp_path / "pki"))
    return tmp_path / "pki"


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verified(folder: Path, certificate: Path, purpose: str) -> bool:
    """What OpenSSL says of it."""
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "authority.crt"), "-purpose", purpose, str(certificate)]
    return subprocess.run(words, check=False, capture_output=True, timeout=10).returncode == 0


def test_keys_are_their_owner_s_alone_and_the_folder_too(cli, folder):
    cli("pki", "server", "localhost", "--authority", str(folder))
    cli("pki", "client", "alice", "--role", "admin", "--authority", str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {
        f"{stem}.{kind}": 0o600 if kind == "key" else 0o644 for stem in ("authority", "localhost", "admin-alice") for kind in ("crt", "key")
    }


def test_openssl_takes_each_certificate_for_its_purpose_and_no_other(cli, folder):
    server = cli.json("pki", "server", "gateway.example", "127.0.0.1", "::1", "--authority", str(folder))
    client = cli.json("pki", "client", "alice", "--role", "admin", "--authority", str(folder))
    for made, good, bad in ((server, "sslserver", "sslclient"), (client, "sslclient", "sslserver")):
        assert verified(folder, Path(made["certificate"]), good)
        assert not verified(folder, Path(made["certificate"]), bad)
    names = read(Path(server["certificate"])).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("role", list(Role))
def test_a_client_s_certificate_says_its_role_and_scope_as_the_gateway_reads_them(cli, folder, role):
    scope = ["--pool", "fast", "--pool", "slow", "--host", "node1"] if role is Role.ORCHESTRATOR else []
    made = cli.json("pki", "client", "nova", "--role", role, *scope, "--authority", str(folder))
    certificate = read(Path(made["certificate"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    pools, hosts = (frozenset({"fast", "slow"}), frozenset({"node1"})) if scope else (frozenset(), frozenset())
    read_back = of_uris(uri.encode() for uri in names.get_values_for_type(x509.UniformResourceIdentifier))
    assert read_back == Principal(role, "nova", pools, hosts)
    used = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(used) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_lifetimes_are_as_told_and_never_beyond_the_authority(cli, folder, tmp_path):
    def days(path: Path) -> float:
        return (read(path).not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)

    assert days(folder / "authority.crt") == pytest.approx(3650, abs=1)
    for name, words, expected in (("a", (), 90), ("b", ("--days", "7"), 7)):
        made = cli.json("pki", "client", name, "--role", "viewer", "--authority", str(folder), *words)
        assert days(Path(made["certificate"])) == pytest.approx(expected, abs=1)
    short = tmp_path / "short"
    cli("pki", "init", str(short), "--days", "5")
    made = cli.json("pki", "server", "localhost", "--authority", str(short))
    assert read(Path(made["certificate"])).not_valid_after_utc == read(short / "authority.crt").not_valid_after_utc


def test_nothing_is_ever_overwritten(cli, folder):
    words = ("pki", "client", "alice", "--role", "admin", "--authority", str(folder))
    cli(*words)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for again in (("pki", "init", str(folder)), words):
        assert "exists and is not replaced" in cli(*again, status=4).err
    (folder / "admin-alice.crt").unlink()
    before.pop(folder / "admin-alice.crt")
    cli(*words, status=4)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("client", "alice", "--role", "root"), "is none of admin"),
        (("client", "Alice", "--role", "admin"), "is not a name"),
        (("client", "../x", "--role", "admin"), "is not a name"),
        (("client", "alice", "--role", "admin", "--pool", "p"), "nobody else has pools"),
        (("client", "nova", "--role", "orchestrator"), "at least one pool"),
        (("client", "nova", "--role", "orchestrator", "--pool", "p&host=h"), "is not a name"),
        (("server", "a/b"), "neither a name nor an address"),
        (("server", ""), "neither a name nor an address"),
    ],
)
def test_what_the_gateway_would_not_take_is_not_issued(cli, folder, words, told):
    before = sorted(folder.iterdir())
    assert told in cli("pki", *words, "--authority", str(folder), status=2).err
    assert sorted(folder.iterdir()) == before


def test_an_authority_that_is_none_is_told_what_to_do(cli, folder, tmp_path):
    words = ("pki", "client", "alice", "--role", "admin", "--authority")
    assert "volgate pki init" in cli(*words, str(tmp_path / "nowhere"), status=2).err
    (folder / "authority.key").write_text("nothing")
    assert "nothing" not in cli(*words, str(folder), status=2).err
