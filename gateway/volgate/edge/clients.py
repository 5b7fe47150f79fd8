"""The gate of TLS: who comes in by which certificate, and how many calls each client may have at once."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cryptography import x509

from volgate.edge.identity import Principal, of_uris
from volgate.edge.types import Context
from volgate.errors import Busy, Unauthenticated

__all__ = ["TlsGate"]

_KEPT = 1024  # certificates that were read; the least recently used goes first


class TlsGate:
    """TLS: the certificate, which gRPC has verified, says who calls. Used on the event loop alone."""

    def __init__(self, calls: int, streams: int) -> None:
        """`calls` and `streams`: what one principal may have at once, over all its connections."""
        self._most = {False: calls, True: streams}
        self._running: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self._read: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    def identify(self, context: Context) -> Principal:
        """Who the certificate of the connection names. Raises Unauthenticated: no role or more than one, or it has expired meanwhile."""
        facts = context.auth_context()
        (certificate,) = facts.get("x509_pem_cert", (b"",))
        if facts.get("transport_security_type") != [b"ssl"] or not certificate:
            raise Unauthenticated("no certificate of the client came with the connection; give one")
        caller, until = self._known(certificate, facts.get("peer_uri", ()))
        if time.time() > until:
            raise Unauthenticated(f"the certificate of {caller} has expired since it connected; renew it and connect again")
        return caller

    def _known(self, certificate: bytes, uris: Iterable[bytes]) -> tuple[Principal, float]:
        """Read a certificate once: a client makes many calls with it."""
        found = self._read.get(certificate)
        if found is None:
            found = self._read[certificate] = of_uris(uris), _end(certificate)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(certificate)
        return found

    @contextmanager
    def admitted(self, caller: Principal, *, stream: bool) -> Iterator[None]:
        """A place among the client's own. Raises Busy (TOO_MANY_CALLS)."""
        running, who = self._running[stream], str(caller)
        if running[who] >= self._most[stream]:
            what = "streams" if stream else "calls"
            raise Busy(f"{who} has {self._most[stream]} {what} at once; let some end and repeat the call", reason="TOO_MANY_CALLS")
        running[who] += 1
        try:
            yield
        finally:
            running[who] -= 1
            if not running[who]:
                del running[who]


def _end(certificate: bytes) -> float:
    """When a certificate expires, UTC seconds."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError as error:  # the two libraries differ in what they take
        raise Unauthenticated(f"the client's certificate cannot be read: {error}; issue another") from None
