"""What is particular to targets of tgtd: it forgets, hangs, reads a size when it opens, and has accounts of others."""
# ruff: noqa: F401, F811  # the fixtures of tests.kernel.targets are arguments here

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.san import HOST, Daemon, eventually
from tests.kernel.targets import (
    ME,
    MIB,
    SECONDS,
    daemon,
    dies,
    grown_on,
    host,
    log_in,
    log_out,
    made,
    named,
    only_tgt,
    opened,
    place,
    pool,
    reached,
    read,
    settings,
    target,
    write,
)
from tests.soaking import count, draw
from volgate.connect.iscsi import Iscsi
from volgate.errors import Precondition, VolgateError
from volgate.model import Health
from volgate_plugins.iscsi import IscsiSettings, PublishedWithSnapshots
from volgate_plugins.iscsi.tgtd import Mode, Op

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(300)]


@only_tgt
def test_what_is_not_ours_in_tgtd_is_never_touched(pool: PublishedWithSnapshots, settings: IscsiSettings, daemon: Daemon) -> None:
    daemon.ask(Mode.TARGET, Op.NEW, "targetname=iqn.2026-01.org.volgate:foreign", target=7)
    daemon.ask(Mode.TARGET, Op.BIND, "initiator-address=ALL", target=7)
    volume = made(pool)
    pool.publish(named(volume), ME)
    pool.unpublish(named(volume), "me")
    opened(settings).check()
    theirs = daemon.targets()
    assert theirs and theirs["iqn.2026-01.org.volgate:foreign"].names == {"ALL"}
    daemon.ask(Mode.TARGET, Op.DELETE, "", target=7)


@only_tgt
def test_a_tgtd_that_forgot_everything_is_given_it_again(pool: PublishedWithSnapshots, host: Iscsi, daemon: Daemon) -> None:
    volume = made(pool)
    pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    path = log_in(host, lun)
    write(path, b"kept".ljust(4096, b"\0"))
    daemon.end()
    found = pool.check()
    assert found.health is Health.DEGRADED and "tgtd" in found.message
    assert pool.get_volume(volume.name).size == volume.size, "what lies below is read without it"
    with pytest.raises(VolgateError) as refused:
        pool.publish(named(volume), ME)
    assert refused.value.reason == "TGT_DOWN"
    daemon.start()
    assert daemon.targets() == {}
    assert pool.check().health is Health.OK
    assert read(path, 4, 4096 * 1000) == bytes(4) and read(path, 4) == b"kept", "the host's own session came back"
    daemon.ask(Mode.TARGET, Op.BIND, "initiator-address=ALL", target=next(iter((daemon.targets() or {}).values())).number)
    assert pool.check().health is Health.OK
    assert next(iter((daemon.targets() or {}).values())).names == {HOST}, "what somebody else let in is put out"
    log_out(host, lun)


@only_tgt
def test_a_tgtd_that_hangs_holds_nothing_up_for_long(settings: IscsiSettings, pool: PublishedWithSnapshots, daemon: Daemon) -> None:
    volume = made(pool)
    hasty = opened(replace(settings, seconds=3.0))
    daemon.hang()
    try:
        began = time.monotonic()
        with pytest.raises(VolgateError) as refused:
            hasty.publish(named(volume), ME)
        assert refused.value.reason == "TGT_DOWN" and "in time" in refused.value.message
        assert hasty.check().health is Health.DEGRADED and [one.name for one in hasty.list_volumes()] == ["a"]
        assert time.monotonic() - began < 60
    finally:
        daemon.go_on()
    hasty.publish(named(volume), ME)


@only_tgt
def test_it_grows_while_a_host_writes(pool: PublishedWithSnapshots, host: Iscsi) -> None:
    """tgtd opens it anew for that: sessions end and come back, and nothing that was written in between is lost."""
    volume = made(pool)
    pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    path = log_in(host, lun)
    done, stop = 0, threading.Event()

    def writes() -> None:
        nonlocal done
        while not stop.is_set():
            write(path, done.to_bytes(8, "big").ljust(4096, b"\0"), done % 1000 * 4096)
            done += 1

    writer = threading.Thread(target=writes)
    writer.start()
    eventually(lambda: done > 3)
    assert pool.expand_volume(named(volume), 32 * MIB, online=True).size == 32 * MIB == reached(pool, volume).size
    before = done
    assert grown_on(host, lun, 32 * MIB) == 32 * MIB
    eventually(lambda: done > before + 3)
    stop.set()
    writer.join(SECONDS)
    below = pool.image(named(volume)).source
    for page in range(min(done, 1000)):
        last = done - 1 - (done - 1 - page) % 1000
        assert read(below, 8, page * 4096) == last.to_bytes(8, "big")
    log_out(host, lun)


@only_tgt
def test_an_account_of_others_is_left_alone(pool: PublishedWithSnapshots, daemon: Daemon) -> None:
    daemon.again()
    daemon.ask(Mode.ACCOUNT, Op.NEW, "user=gate,password=somebody-elses")
    volume = made(pool)
    with pytest.raises(Precondition) as refused:
        pool.publish(named(volume), ME)
    assert refused.value.reason == "TGT_ACCOUNT_TAKEN"
    assert all(not seen.names for seen in (daemon.targets() or {}).values()), "nobody is let in before"
    daemon.ask(Mode.ACCOUNT, Op.DELETE, "user=gate")
    pool.publish(named(volume), ME)


@only_tgt
def test_a_target_never_asks_for_no_secret(
    pool: PublishedWithSnapshots, settings: IscsiSettings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each request of a change of the secret, it lets in whoever knows one of the two, and nobody else."""
    volume = made(pool)
    pool.publish(named(volume), ME)
    assert settings.chap
    secret, step, chance = Path(settings.chap.secret.removeprefix("file:")), count(3, soak=1), draw()
    allowed = chance.randrange(step)
    while True:
        secret.write_text(f"another-horse-{allowed}")
        died = dies(pool._publishing.put_back, allowed, monkeypatch)
        (seen,) = (daemon.targets() or {}).values()
        assert seen.users and any(name.endswith("-closed") for name in seen.users)
        if not died:
            break
        assert pool.check().health is Health.OK
        (seen,) = (daemon.targets() or {}).values()
        assert len(seen.users) == 2 and seen.outgoing == "disk"
        allowed += step
    assert allowed > 8
