"""Level 1: who has a volume open, and who is kept out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from volgate.backend import Fences, Holders, VolumeId
from volgate.conformance import picture
from volgate.conformance.cases import Level, proves
from volgate.conformance.subject import Subject
from volgate.errors import InvalidRequest, NotFound, Precondition

__all__ = ["FenceContract"]

_LET_GO_SECONDS = 30.0


class FenceContract:
    """What holds for clients of the storage. Addresses are those that are kept for examples: nobody has them."""

    @proves(Level.CONTRACT, Holders, wire=False)
    def test_nobody_holds_what_nobody_opened(self, subject: Subject) -> None:
        """`holders` tells nobody of a volume that only the backend has touched; one that does not exist is NotFound or Precondition."""
        made = subject.create()
        assert [*subject.facet(Holders).holders(subject.id(made))] == []
        with subject.refused(NotFound, Precondition):
            subject.facet(Holders).holders(VolumeId(made.name, str(uuid.uuid4())))

    @proves(Level.CONTRACT, Holders, wire=False)
    def test_every_client_that_has_a_volume_open_is_told(self, subject: Subject) -> None:
        """`holders` tells each client that has the volume open for writing, with a name and an address, and nobody of other volumes."""
        made, other = subject.create(), subject.create()
        connection = subject.backend.connection(subject.id(made), host="conformance")
        with picture.held(connection), picture.held(connection):
            found = [*subject.facet(Holders).holders(subject.id(made))]
            assert len({(holder.client, holder.address) for holder in found}) == len(found) == 2, found
            assert all(holder.client and holder.address for holder in found)
            assert [*subject.facet(Holders).holders(subject.id(other))] == []
            subject.reopen()
            assert {*subject.facet(Holders).holders(subject.id(made))} == {*found}

    @proves(Level.CONTRACT, Holders, wire=False)
    def test_who_has_let_go_of_a_volume_is_told_no_more(self, subject: Subject) -> None:
        """Once a client has closed the volume `holders` does not tell it any more, while others are told, and then nobody is."""
        made = subject.create()
        connection, holders = subject.backend.connection(subject.id(made), host="conformance"), subject.facet(Holders).holders
        with picture.held(connection):
            (one,) = holders(subject.id(made))
            with picture.held(connection):
                assert one in holders(subject.id(made))
            assert _in_time(lambda: [*holders(subject.id(made))] == [one])
        assert _in_time(lambda: [*holders(subject.id(made))] == [])

    @proves(Level.CONTRACT, Fences, wire=False)
    def test_a_fence_stands_until_it_is_lifted(self, subject: Subject) -> None:
        """A fenced address is told as fenced, also after the pool was opened anew, until it is let in; each call may be repeated."""
        made, fences = subject.create(), subject.facet(Fences)
        number = subject.random.randint(1, 120)
        one, two, other = (f"192.0.2.{number + index}" for index in range(3))
        for _ in range(2):
            fences.fence([one, two], [subject.id(made)])
        subject.reopen()
        fences = subject.facet(Fences)
        assert {*fences.fenced([one, two, other])} == {one, two}
        assert subject.get(made).uid == made.uid, "the backend is not among them"
        for _ in range(2):
            fences.unfence([one, other])
        assert [*fences.fenced([one, two, other])] == [two]
        fences.unfence([two])
        assert [*fences.fenced([one, two, other])] == []

    @proves(Level.CONTRACT, Fences, wire=False)
    def test_a_fence_of_nobody_is_refused(self, subject: Subject) -> None:
        """A fence without an address is InvalidRequest: it would prove nothing."""
        with subject.refused(InvalidRequest):
            subject.facet(Fences).fence([], [])


def _in_time(what: Callable[[], bool]) -> bool:
    """Whether it becomes so: a storage may take a moment to see that a client has gone."""
    deadline = time.monotonic() + _LET_GO_SECONDS
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
