"""Level 1: which hosts a volume is published to."""

from __future__ import annotations

import uuid

from volgate.backend import FencesHosts, Initiator, Publishes, Reverts, VolumeId
from volgate.conformance.cases import Level, proves
from volgate.conformance.subject import Subject
from volgate.errors import InUse, NotFound, Precondition

__all__ = ["HOSTS", "PublishContract"]

HOSTS = tuple(Initiator(f"conformance-{name}", f"iqn.2026-01.org.volgate:{name}", f"nqn.2026-01.org.volgate:{name}") for name in "ab")
"""Two hosts; neither exists."""


class PublishContract:
    """What holds for volumes that are reached by those alone that they are published to."""

    @proves(Level.CONTRACT, Publishes, wire=False)
    def test_a_volume_is_published_until_it_is_not(self, subject: Subject) -> None:
        """`published` tells each host that was let in, also in a pool opened anew, until it is kept out; each call may be repeated."""
        made, other, pool = subject.create(), subject.create(), subject.facet(Publishes)
        assert [*pool.published(subject.id(made))] == []
        for initiator in (*HOSTS, HOSTS[0]):
            pool.publish(subject.id(made), initiator)
        subject.reopen()
        pool = subject.facet(Publishes)
        assert {*pool.published(subject.id(made))} == {host.host for host in HOSTS}
        assert [*pool.published(subject.id(other))] == []
        for _ in range(2):
            pool.unpublish(subject.id(made), HOSTS[0].host)
        assert [*pool.published(subject.id(made))] == [HOSTS[1].host]
        pool.unpublish(subject.id(made), HOSTS[1].host)
        assert [*pool.published(subject.id(made))] == []

    @proves(Level.CONTRACT, Publishes, wire=False)
    def test_what_is_published_is_not_deleted(self, subject: Subject) -> None:
        """A volume that a host may reach is not deleted: InUse names the host."""
        made, pool = subject.create(), subject.facet(Publishes)
        pool.publish(subject.id(made), HOSTS[0])
        with subject.refused(InUse, naming=made.name) as told:
            subject.delete(made)
        assert [holder.name for holder in told[0].holders] == [HOSTS[0].host]
        pool.unpublish(subject.id(made), HOSTS[0].host)
        subject.delete(made)

    @proves(Level.CONTRACT, Publishes, Reverts, wire=False)
    def test_what_is_published_is_not_reverted(self, subject: Subject) -> None:
        """A volume that a host may reach is not reverted: InUse names the host."""
        made, pool = subject.create(), subject.facet(Publishes)
        cut = subject.snapshot(made)
        pool.publish(subject.id(made), HOSTS[0])
        with subject.refused(InUse, naming=made.name) as told:
            subject.facet(Reverts).revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4()))
        assert [holder.name for holder in told[0].holders] == [HOSTS[0].host]
        pool.unpublish(subject.id(made), HOSTS[0].host)
        assert subject.facet(Reverts).revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4())).size == made.size

    @proves(Level.CONTRACT, Publishes, wire=False)
    def test_what_does_not_exist_is_published_to_nobody(self, subject: Subject) -> None:
        """Of a volume that does not exist `publish` is NotFound, `unpublish` success, and `published` tells nobody."""
        made, pool = subject.create(), subject.facet(Publishes)
        gone = VolumeId(made.name, str(uuid.uuid4()))
        with subject.refused(NotFound):
            pool.publish(gone, HOSTS[0])
        pool.unpublish(gone, HOSTS[0].host)
        assert [*pool.published(gone)] == [] == [*pool.published(subject.id(made))]

    @proves(Level.CONTRACT, Publishes, wire=False)
    def test_a_host_without_a_name_is_published_nothing(self, subject: Subject) -> None:
        """A host that has no name to log in by is Precondition (INITIATOR_MISSING), and nothing is published."""
        made, pool = subject.create(), subject.facet(Publishes)
        with subject.refused(Precondition) as told:
            pool.publish(subject.id(made), Initiator("conformance-nameless"))
        assert told[0].reason == "INITIATOR_MISSING"
        assert [*pool.published(subject.id(made))] == []

    @proves(Level.CONTRACT, FencesHosts, Publishes, wire=False)
    def test_a_fenced_host_is_published_nothing_until_it_is_let_in(self, subject: Subject) -> None:
        """`fence_host` takes every volume from a host and leaves the others', and `publish` to it is HOST_FENCED, until `unfence_host`."""
        made, other, pool, fences = subject.create(), subject.create(), subject.facet(Publishes), subject.facet(FencesHosts)
        for initiator in HOSTS:
            pool.publish(subject.id(made), initiator)
        pool.publish(subject.id(other), HOSTS[0])
        for _ in range(2):
            fences.fence_host(HOSTS[0], [subject.id(made)])
        assert [*pool.published(subject.id(made))] == [HOSTS[1].host]
        assert [*pool.published(subject.id(other))] == []
        subject.reopen()
        pool, fences = subject.facet(Publishes), subject.facet(FencesHosts)
        assert [*fences.fenced_hosts()] == [HOSTS[0].host]
        with subject.refused(Precondition) as told:
            pool.publish(subject.id(other), HOSTS[0])
        assert told[0].reason == "HOST_FENCED"
        assert [*pool.published(subject.id(other))] == []
        for _ in range(2):
            fences.unfence_host(HOSTS[0].host)
        assert [*fences.fenced_hosts()] == []
        assert [*pool.published(subject.id(other))] == []
        pool.publish(subject.id(other), HOSTS[0])
        assert [*pool.published(subject.id(other))] == [HOSTS[0].host]
        for volume, initiator in ((made, HOSTS[1]), (other, HOSTS[0])):
            pool.unpublish(subject.id(volume), initiator.host)

    @proves(Level.CONTRACT, FencesHosts, wire=False)
    def test_a_host_is_fenced_until_it_is_let_in(self, subject: Subject) -> None:
        """`fenced_hosts` tells a host, also in a pool opened anew, until `unfence_host`; calls may be repeated."""
        made, fences = subject.filled({0: 7}), subject.facet(FencesHosts)
        for _ in range(2):
            fences.fence_host(HOSTS[0], [subject.id(made)])
        fences.fence_host(HOSTS[1], [subject.id(made)])
        subject.reopen()
        fences = subject.facet(FencesHosts)
        assert {*fences.fenced_hosts()} == {host.host for host in HOSTS}
        for _ in range(2):
            fences.unfence_host(HOSTS[0].host)
        assert [*fences.fenced_hosts()] == [HOSTS[1].host]
        fences.unfence_host(HOSTS[1].host)
        assert [*fences.fenced_hosts()] == []
        assert subject.content(made) == {0: 7}

    @proves(Level.CONTRACT, FencesHosts, wire=False)
    def test_a_host_that_has_nothing_is_fenced_too(self, subject: Subject) -> None:
        """A host that has no volume, or one that is gone, and one without names to log in by, is fenced and let in like any other."""
        fences = subject.facet(FencesHosts)
        for initiator, volumes in ((HOSTS[1], [VolumeId("gone", str(uuid.uuid4()))]), (Initiator("conformance-nameless"), [])):
            fences.fence_host(initiator, volumes)
            assert [*fences.fenced_hosts()] == [initiator.host]
            fences.unfence_host(initiator.host)
        assert [*fences.fenced_hosts()] == []

    @proves(Level.CONTRACT, FencesHosts, wire=False)
    def test_a_volume_that_a_host_is_kept_out_of_is_deleted(self, subject: Subject) -> None:
        """A volume goes although a host is fenced that had it, and the host is let in afterwards."""
        made, fences = subject.filled({0: 7}), subject.facet(FencesHosts)
        fences.fence_host(HOSTS[0], [subject.id(made)])
        subject.delete(made)
        fences.unfence_host(HOSTS[0].host)
        assert [*fences.fenced_hosts()] == []
