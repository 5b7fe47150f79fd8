"""The bounds of the TCP listeners follow from the settings and from what the process may open."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from volgate.cli.authority import Authority
from volgate.edge.network import Network
from volgate.errors import InvalidRequest
from volgate.settings import Limits, Server, Settings, Tls


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    root, _ = Authority.create(tmp_path / "pki", 2)
    certificate, key = Authority.load(tmp_path / "pki").server(["localhost"], 1)
    return Tls(str(certificate), str(key), str(root))


@pytest.fixture
def few() -> Iterator[int]:
    """A process that may open few files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connections(settings: Settings) -> int:
    return dict(Network.of(settings).options())["grpc.max_allowed_incoming_connections"]


def test_no_more_connections_are_taken_than_there_are_descriptors_for(tls, few):
    for listen, most in ((("a:1",), 512), (("a:1", "b:1"), 256)):
        assert connections(Settings(server=Server(listen=listen), tls=tls)) == most
    assert connections(Settings(server=Server(listen=("a:1",)), tls=tls, limits=Limits(connections=10))) == 10


def test_the_time_of_a_handshake_is_told_in_milliseconds(tls):
    settings = Settings(server=Server(listen=("a:1",)), tls=tls, limits=Limits(handshake_seconds=1.5))
    assert dict(Network.of(settings).options())["grpc.server_handshake_timeout_ms"] == 1500


@pytest.mark.parametrize("name", ["client_calls", "client_streams", "connections", "handshake_seconds"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_bound_that_lets_nobody_in_is_an_error_that_names_it(tls, name, value):
    with pytest.raises(InvalidRequest) as raised:
        Network.of(Settings(server=Server(listen=("a:1",)), tls=tls, limits=Limits(**{name: value})))
    assert raised.value.field == f"limits.{name}"


def test_neither_the_key_nor_a_part_of_it_is_in_what_is_printed_of_it(tls):
    network = Network.of(Settings(server=Server(listen=("a:1",)), tls=tls))
    line = Path(tls.key).read_text().splitlines()[1]
    assert line not in repr(network) + repr(network.certificates.newest())
