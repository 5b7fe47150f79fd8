"""What an attempt of ours leaves in a domain for the next one to know, should it die: libvirt keeps it, and a restart of the guest too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from volgate.hypervisor.faults import translated

__all__ = ["HELD", "held", "let_go", "mark", "merging", "unmark"]

HELD = "urn:volgate:held"
"""A guest that we hold still."""
_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
_ABSENT = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_OPERATION_INVALID)


def merging(alias: str) -> str:
    """The mark of a disk whose top layer is being merged into the one below, which then holds no moment of its own any more."""
    return f"urn:volgate:merging:{alias}"


def mark(domain: libvirt.virDomain, uri: str) -> None:
    """Mark a running domain, and its configuration if it has one."""
    with translated(f"mark {domain.name()}", mutation=True):
        _set(domain, uri, "<mark/>", _LIVE | (_CONFIG if domain.isPersistent() else 0))


def unmark(domain: libvirt.virDomain, uri: str) -> None:
    """Take a mark away; none is fine."""
    with translated(f"unmark {domain.name()}", mutation=True):
        for flag in (_LIVE, _CONFIG):
            try:
                _set(domain, uri, None, flag)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _ABSENT:
                    raise


@contextmanager
def held(domain: libvirt.virDomain) -> Iterator[None]:
    """Pause a guest that runs within the block; one that does not run is left as it is."""
    with translated(f"hold {domain.name()}", mutation=True):
        if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            _set(domain, HELD, "<mark/>", _LIVE)
            domain.suspend()
    try:
        yield
    finally:
        let_go(domain)


def let_go(domain: libvirt.virDomain) -> None:
    """Resume a guest that an attempt of ours holds, or held when it died; one that others paused stays paused."""
    with translated(f"let go of {domain.name()}", mutation=True):
        try:
            domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, HELD, _LIVE)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _ABSENT:
                return
            raise
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
        _set(domain, HELD, None, _LIVE)


def _set(domain: libvirt.virDomain, uri: str, text: str | None, flags: int) -> None:
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "volgate", uri, flags)
