"""The sync client is generated from the async one, says the same, and importing the package is quick."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from volgate_client.aio.client import AsyncClient
from volgate_client.errors import code_of_reason
from volgate_client.sync.client import Client

GENERATOR = Path(__file__).parents[2] / "clients" / "python" / "generate_sync.py"


def surface(kind):
    return {name: member for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_the_committed_sync_client_is_what_the_generator_makes():
    made = subprocess.run([sys.executable, str(GENERATOR), "--check"], check=False, capture_output=True, text=True, timeout=60)
    assert (made.returncode, made.stderr) == (0, "")


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    sync, aio = surface(Client), surface(AsyncClient)
    assert sync.keys() == aio.keys()
    assert len(sync) > 30
    for name, member in sync.items():
        assert list(inspect.signature(member).parameters.values()) == list(inspect.signature(aio[name]).parameters.values()), name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_call_of_the_contract_has_a_method(kind):
    from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

    named_otherwise = {"import_volume": "import_file", "export_volume": "export_file", "watch_operation": "watch"}
    of_hosts = {"register_host", "heartbeat_host"}  # a host's own
    have = surface(kind)
    for file in (pool_pb2, volume_pb2, snapshot_pb2, attachment_pb2, host_pb2, operation_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                name = "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name).lstrip("_")
                assert name in of_hosts or named_otherwise.get(name, name) in have, method.full_name


def test_importing_the_package_is_quick_and_brings_no_grpc():
    line = (
        "import sys, time; began = time.process_time(); import volgate_client; from volgate_client.errors import InUse\n"
        "assert 'grpc' not in sys.modules; print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True, timeout=30)
    assert float(done.stdout) < 0.1, "seconds of CPU"


def test_every_reason_has_the_code_that_the_contract_gives_it():
    contract = (GENERATOR.parents[2] / "proto/volgate/v1/error.proto").read_text()
    listed = re.findall(r"((?:  //.*\n)+)  REASON_(\w+) = [1-9]\d*;", contract)
    assert len(listed) > 50
    for comment, reason in listed:
        code = code_of_reason(reason)
        text = re.sub(r"\n\s*//", " ", comment)
        assert re.search(rf"\W{code}\W", text), f"{reason} is not {code}: {text}"
