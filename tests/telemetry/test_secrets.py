"""A secret that a caller or a plugin lets slip appears nowhere: not in an answer, span, metric, log line, or command line."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import pytest

from tests.edge.place import MIB
from tests.edge.plugin import plugin
from tests.edge.wire import refused
from tests.telemetry.observed import observed, traceparent
from volgate.v1 import operation_pb2, pool_pb2, volume_pb2

HELD = f"canary-{secrets.token_hex(12)}"  # a Secret that the plugin holds
NAMED = f"canary-{secrets.token_hex(12)}"  # never held, but written as password=...
METADATA = f"canary-{secrets.token_hex(12)}"  # sent by the caller as credentials
PLUGIN = '''
"""A plugin whose storage library tells its secrets in every error."""
import errno
import structlog
from volgate.backend import BackendType, hookimpl
from volgate.errors import Precondition, translate
from volgate.secret import Secret
from volgate_plugins.directory import Directory, DirectorySettings

SECRET = Secret("{held}")

class Leaky(Directory):
    def create_volume(self, spec):
        structlog.get_logger().info("login", user="a", password=SECRET, url="https://a?password={named}", text="with " + SECRET.reveal())
        if spec.name == "bug":
            raise RuntimeError("login failed: password={named} and " + SECRET.reveal())
        if spec.name == "native":
            with translate("create volume native"):
                raise OSError(errno.EIO, "rejected " + SECRET.reveal())
        if spec.name == "ours":
            raise Precondition("login with " + SECRET.reveal() + " failed", metadata={{"login": SECRET.reveal()}})
        return super().create_volume(spec)

@hookimpl
def volgate_backends():
    return [BackendType(kind="leaky", settings=DirectorySettings, open=Leaky.open, summary="leaks", in_threads=True)]
'''


@pytest.fixture(scope="module")
def place():
    with plugin("leaky", PLUGIN.format(held=HELD, named=NAMED)) as folder:
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
        with observed(more=f'[pools.leaky]\nkind = "leaky"\npath = "{folder}/pool"\n', PYTHONPATH=path) as made:
            yield made


def command_lines(place):
    """Those of the gateway and of its children, with the children's environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if str(place.server.process.pid) in (process.name, parent):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_a_canary_appears_nowhere(place):
    header, trace, caller = traceparent()
    metadata = [
        ("authorization", f"Bearer {METADATA}"),
        ("x-api-key", METADATA),
        ("baggage", f"secret={METADATA}"),
        ("traceparent", header),
    ]
    told, lines = [], []
    for name in ("bug", "native", "ours"):
        request = volume_pb2.CreateVolumeRequest(pool="pools/leaky", volume_id=name, size_bytes=MIB)
        said = refused(place.wire.volumes.CreateVolume, request, metadata=metadata)
        lines += command_lines(place)
        told += [str(said), *(str(value) for value in said.trailers.values())]
    assert "bug" in told[0] and "IO_ERROR" in str(told) and "***" in str(told), "each failure was told"
    good = volume_pb2.CreateVolumeRequest(pool="pools/leaky", volume_id="good", size_bytes=MIB)
    assert place.wire.volumes.CreateVolume(good, metadata=metadata, timeout=30).volume.size_bytes == MIB
    told.append(str(place.wire.operations.ListOperations(operation_pb2.ListOperationsRequest(), timeout=30)))
    told.append(str(place.wire.pools.ListPools(pool_pb2.ListPoolsRequest(), timeout=30)))
    place.receiver.trace(trace, until="volgate.v1.VolumeService", caller=caller)
    page = place.page()
    deadline = time.monotonic() + 10
    while not place.receiver.metrics and time.monotonic() < deadline:
        time.sleep(0.05)
    place.server.stop()
    log = place.server.log.read_text()
    assert '"password": "Secret(\'***\')"' in log and "Traceback" in log and "login failed" in log, "the log says what failed"
    assert place.receiver.spans and place.receiver.metrics and "volgate_operation_duration" in page and lines
    kept = "".join(file.read_bytes().decode(errors="replace") for file in place.state.rglob("*") if file.is_file())
    assert "login with ***" in kept and "rejected ***" in kept, "the journal says what failed"
    texts = {"answers": str(told), "spans and metrics": "".join(place.receiver.raw), "page": page, "log": log, "command lines": str(lines)}
    texts["state directory"] = kept
    leaks = [(where, canary) for where, text in texts.items() for canary in (HELD, NAMED, METADATA) if canary in text]
    assert not leaks
