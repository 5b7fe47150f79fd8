"""Backends that break one rule each of groups, changed blocks, holders, fences and hosts."""

from __future__ import annotations

from dataclasses import replace

from tests.conformance.judged.bad_contract import bad
from tests.conformance.judged.good import Good, offer
from volgate.backend import Extent, Holder, VolumeId, hookimpl
from volgate.errors import InUse
from volgate.model import SourceKind

# -- groups


class AnswersInAnotherOrder(Good):
    rule = "a-group-is-a-snapshot-of-each"

    def create_snapshot_group(self, group_uid, members):
        told = super().create_snapshot_group(group_uid, members)
        return told[::-1] if len(members) == 3 else told


class CutsTheGroupAgain(Good):
    rule = "a-repeated-group-cuts-nothing"

    def create_snapshot_group(self, group_uid, members):
        for member in members:
            if member.spec.uid in [cut.uid for cut in self.list_snapshots(member.volume)]:
                self.delete_snapshot(member.volume, member.spec.uid)
        return super().create_snapshot_group(group_uid, members)


class CutsWhatItCan(Good):
    rule = "a-group-is-cut-whole-or-not-at-all"

    def refuse(self, member):
        pass


class CutsWhatComes(Good):
    rule = "a-group-keeps-what-was-there"

    grouped: frozenset[str] = frozenset()

    def create_snapshot_group(self, group_uid, members):
        self.grouped = self.grouped | {member.spec.uid for member in members}
        return super().create_snapshot_group(group_uid, members)

    def image(self, volume, snapshot_uid="", *, writable=False):
        return super().image(volume, "" if snapshot_uid in self.grouped else snapshot_uid, writable=writable)


class RevertsWholeGroups(Good):
    rule = "a-volume-goes-back-to-a-snapshot-of-a-group"

    groups: tuple[tuple, ...] = ()

    def create_snapshot_group(self, group_uid, members):
        self.groups = (*self.groups, tuple(members))
        return super().create_snapshot_group(group_uid, members)

    def revert_volume(self, volume, snapshot_uid, *, token):
        for group in self.groups:
            if snapshot_uid in [member.spec.uid for member in group]:
                for member in group:
                    super().revert_volume(member.volume, member.spec.uid, token=token)
        return super().revert_volume(volume, snapshot_uid, token=token)


class ClonesTheVolumeOfAGroup(Good):
    rule = "a-snapshot-of-a-group-is-cloned"

    grouped: frozenset[str] = frozenset()

    def create_snapshot_group(self, group_uid, members):
        self.grouped = self.grouped | {member.spec.uid for member in members}
        return super().create_snapshot_group(group_uid, members)

    def origin(self, spec):
        if spec.source.kind is SourceKind.SNAPSHOT and spec.source.snapshot_uid in self.grouped:
            return super().origin(replace(spec, source=replace(spec.source, kind=SourceKind.VOLUME)))
        return super().origin(spec)


# -- changed blocks


class ComparesBackwards(Good):
    rule = "only-what-exists-is-compared"

    def require_older(self, content, base, newer):
        pass


class ForgetsTheLastPage(Good):
    rule = "what-changed-is-told"

    def compare(self, old, new, begin, end, step):
        for extent in super().compare(old, new, begin, end, step):
            if not old or begin or extent.offset + extent.length < len(new):
                yield extent


class TellsWhatChangedLast(Good):
    rule = "all-that-was-written-is-told-without-a-base"

    def compare(self, old, new, begin, end, step):
        for extent in super().compare(old, new, begin, end, step):
            yield extent if old else replace(extent, data=False)


class TellsWholeObjects(Good):
    rule = "changes-are-told-of-the-range-alone"

    def compare(self, old, new, begin, end, step):
        for extent in super().compare(old, new, begin // step * step, end, step):
            yield Extent(extent.offset, step, extent.data) if begin else extent


# -- clients


class HoldsItsOwn(Good):
    rule = "nobody-holds-what-nobody-opened"
    also = ("every-client-that-has-a-volume-open-is-told", "who-has-let-go-of-a-volume-is-told-no-more")

    def holders(self, volume):
        return [*super().holders(volume), Holder("client.1", "127.0.0.1")]


class FencesInMemory(Good):
    rule = "a-fence-stands-until-it-is-lifted"

    known: frozenset[str] = frozenset()

    def refused(self):
        return set(self.known)

    def refuse_all(self, addresses):
        self.known = frozenset(addresses)


class FencesNobody(Good):
    rule = "a-fence-of-nobody-is-refused"

    def fence(self, addresses, volumes):
        if addresses:
            super().fence(addresses, volumes)


class PublishesInMemory(Good):
    rule = "a-volume-is-published-until-it-is-not"

    known: tuple = ()

    def let_in(self):
        return dict(self.known)

    def let_in_now(self, known):
        self.known = tuple(known.items())


class LetsFencedHostsIn(Good):
    rule = "a-fenced-host-is-published-nothing-until-it-is-let-in"

    def require_free(self, initiator):
        pass


class FencesThoseWithNames(Good):
    rule = "a-host-that-has-nothing-is-fenced-too"

    def fence_host(self, initiator, volumes):
        self.require_name(initiator)
        super().fence_host(initiator, volumes)


class FencesHostsInMemory(Good):
    rule = "a-host-is-fenced-until-it-is-let-in"
    also = ("a-fenced-host-is-published-nothing-until-it-is-let-in",)

    def out(self):
        return getattr(self, "kept_out", [])

    def out_now(self, hosts):
        self.kept_out = sorted(hosts)


class KeepsWhatFencedHostsHad(Good):
    rule = "a-volume-that-a-host-is-kept-out-of-is-deleted"

    def delete_volume(self, volume):
        if self.out():
            raise InUse(f"delete volume {volume.name}: a host is fenced")
        super().delete_volume(volume)


class DeletesWhatHostsHave(Good):
    rule = "what-is-published-is-not-deleted"

    def refuse_published(self, volume, act):
        if act != "delete":
            super().refuse_published(volume, act)


class RevertsWhatHostsHave(Good):
    rule = "what-is-published-is-not-reverted"

    def refuse_published(self, volume, act):
        if act != "revert":
            super().refuse_published(volume, act)


class TellsHostsByName(Good):
    rule = "what-does-not-exist-is-published-to-nobody"

    def publish(self, volume, initiator):
        super().publish(VolumeId(volume.name, self.get_volume(volume.name).uid), initiator)


class TakesHostsWithoutNames(Good):
    rule = "a-host-without-a-name-is-published-nothing"

    def require_name(self, initiator):
        pass


BAD = bad(globals())


@hookimpl
def volgate_backends():
    return [offer(kind, kind.rule) for kind in BAD]
