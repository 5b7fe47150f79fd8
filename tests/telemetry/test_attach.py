"""One attach to a real guest as one trace: caller, call, operation, each step, plugin call, libvirt call."""

from __future__ import annotations

import pytest

from tests.edge.place import MIB
from tests.telemetry.observed import observed, show, traceparent
from volgate.v1 import attachment_pb2, volume_pb2


@pytest.fixture
def place(libvirtd, pool_dir):
    with observed(libvirtd.uri, top=pool_dir.parent) as made:
        yield made


def below(spans, name):
    """The names of the spans directly below the one of this name."""
    (parent,) = [span for span in spans if span.name == name]
    return [span.name for span in spans if span.parent == parent.id]


def test_an_attach_and_its_detach_are_one_trace_each(place, guest):
    made = place.volume(8 * MIB, format=volume_pb2.VOLUME_FORMAT_QCOW2)
    header, trace, caller = traceparent()
    request = attachment_pb2.AttachVolumeRequest(
        volume=made.name, host="hosts/lab", domain=guest.name, options=attachment_pb2.DiskOptions(serial="traced")
    )
    answer = place.wire.attachments.AttachVolume(request, metadata=[("traceparent", header)], timeout=60)
    assert guest.wait_disk("traced").size == 8 * MIB
    spans = place.receiver.trace(trace, until="volgate.v1.AttachmentService", caller=caller)
    tree = show(spans, caller)
    print("\n".join(tree))
    assert len(tree) == len(spans), "every span is below the caller's"
    assert [line for line in tree if not line.startswith("  ")] == ["volgate.v1.AttachmentService/AttachVolume"]
    assert below(spans, "volgate.v1.AttachmentService/AttachVolume") == ["operation AttachVolume"]
    inside = below(spans, "operation AttachVolume")
    steps = [f"step {step.name}" for step in answer.operation.steps]
    assert steps == ["step connection", "step attach"]
    assert [name for name in inside if name.startswith("step ")] == steps, "each step of the answer is a span"
    assert "plugin get_volume" in inside and any(name.startswith("libvirt find") for name in inside)
    assert below(spans, "step connection") == ["plugin connection"]
    assert "libvirt attach" in below(spans, "step attach")
    (native,) = [span for span in spans if span.name == "libvirt attach"]
    assert native.attributes["volgate.domain"] == guest.uuid
    assert not [span for span in spans if span.failed]

    header, trace, caller = traceparent()
    gone = attachment_pb2.DetachVolumeRequest(name=answer.attachment.name, wait_seconds=20)
    done = place.wire.attachments.DetachVolume(gone, metadata=[("traceparent", header)], timeout=60)
    assert not done.HasField("attachment")
    assert guest.wait_disk("traced", present=False) is None
    spans = place.receiver.trace(trace, until="volgate.v1.AttachmentService", caller=caller)
    tree = show(spans, caller)
    assert len(tree) == len(spans)
    assert below(spans, "volgate.v1.AttachmentService/DetachVolume") == ["operation DetachVolume"]
    assert any(name.startswith("libvirt detach") for name in below(spans, "step detach"))
