"""What is particular to pools of kind `iscsi`, in the kernel lab: who reaches a volume, as what, and that a boot changes nothing of it."""
# ruff: noqa: F401, F811  # the fixtures of tests.kernel.targets are arguments here

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.groups import Group
from tests.kernel.san import HOST, LIO, Daemon, eventually
from tests.kernel.targets import (
    ME,
    MIB,
    OTHER,
    SECONDS,
    SECRETS,
    clear_kernel,
    daemon,
    dies,
    grown_on,
    host,
    kernel,
    log_in,
    log_out,
    made,
    named,
    only_lio,
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
from volgate.backend import Initiator, SnapshotSpec
from volgate.connect.iscsi import Iscsi
from volgate.errors import Denied, InUse, Precondition, VolgateError
from volgate.model import Format, Health, PathState, VolumeSpec
from volgate_plugins.iscsi import IscsiSettings, PublishedWithSnapshots
from volgate_plugins.iscsi.tgtd import Tgtd
from volgate_plugins.lvm import LvmSettings

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(4, turns=5), pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
NOBODY = """
import sys, uuid
from volgate.backend import Initiator, PoolContext, VolumeId
from volgate.model import Format, Health, VolumeSpec
from volgate_plugins.directory import DirectorySettings
from volgate_plugins.iscsi import ChapSettings, IscsiSettings, open_pool
folder, secret, target_secret, target, portal, tgtd = sys.argv[1:]
chap = ChapSettings("gate", secret, "disk", target_secret)
below = DirectorySettings(f"{folder}/pool")
settings = IscsiSettings((portal,), f"{folder}/records", target, "iqn.2026-01.org.volgate", directory=below, chap=chap, tgtd=tgtd)
pool = open_pool(settings, PoolContext("nobodys", "i"))
volume = VolumeId("a", str(uuid.uuid4()))
pool.create_volume(VolumeSpec(volume.name, volume.uid, 1 << 20, Format.RAW))
pool.publish(volume, Initiator("me", "iqn.2026-01.org.volgate:host"))
assert pool.expand_volume(volume, 2 << 20, online=True).size == pool.connection(volume, host="me").size == 2 << 20
assert pool.check().health is Health.OK, pool.check()
print(*pool.published(volume), "published")
pool.unpublish(volume, "me")
pool.delete_volume(volume)
"""


def test_a_published_volume_is_logged_in_to_written_grown_and_cut(pool: PublishedWithSnapshots, host: Iscsi) -> None:
    volume = made(pool)
    for _ in range(2):
        pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    assert lun.lun == 1 and volume.uid in lun.portals[0].target and len(lun.portals) == 2
    path = log_in(host, lun)
    write(path, b"before".ljust(4096, b"\0"))
    told = pool.paths(named(volume))
    assert {way.state for way in told} == {PathState.ACTIVE_OPTIMIZED} and {way.initiator for way in told} == {"", HOST}
    cut = pool.create_snapshot(named(volume), SnapshotSpec("s", str(uuid.uuid4())))
    write(path, b"after!".ljust(4096, b"\0"))
    grown = pool.expand_volume(named(volume), 32 * MIB, online=True)
    assert grown.size == 32 * MIB == reached(pool, volume).size
    assert grown_on(host, lun, 32 * MIB) == 32 * MIB
    write(path, b"the end!".ljust(4096, b"\0"), 32 * MIB - 4096)
    with pytest.raises(InUse) as refused:
        pool.delete_volume(named(volume))
    assert [holder.name for holder in refused.value.holders] == ["me"]
    with pytest.raises(InUse):
        pool.revert_volume(named(volume), cut.uid, token="t")
    log_out(host, lun)
    pool.unpublish(named(volume), "me")
    below = pool.image(named(volume)).source
    assert read(below, 6) == b"after!" and read(below, 8, 32 * MIB - 4096) == b"the end!", "the bytes are below, without a session"
    assert pool.revert_volume(named(volume), cut.uid, token="t").size == 16 * MIB
    pool.publish(named(volume), ME)
    assert read(log_in(host, lun), 6) == b"before", "and hosts see what a revert brought back"
    log_out(host, lun)


def test_only_whom_it_is_published_to_reaches_a_volume(pool: PublishedWithSnapshots, host: Iscsi) -> None:
    volume = made(pool)
    pool.publish(named(volume), OTHER)
    lun = reached(pool, volume)
    with pytest.raises(VolgateError):
        log_in(host, lun)
    pool.publish(named(volume), ME)
    assert sorted(pool.published(named(volume))) == ["me", "other"]
    with pytest.raises(Denied):
        log_in(host, lun, **{"in": "wrong-wrong-wrong"})
    with pytest.raises(VolgateError):
        log_in(host, lun, out="another-target")
    log_in(host, lun)
    log_out(host, lun)


def test_who_is_unpublished_is_out_at_once_and_the_others_stay(pool: PublishedWithSnapshots, host: Iscsi) -> None:
    volume = made(pool)
    pool.publish(named(volume), ME)
    pool.publish(named(volume), OTHER)
    lun, below = reached(pool, volume), pool.image(named(volume)).source
    path = log_in(host, lun)
    for _ in range(2):
        pool.unpublish(named(volume), "me")
    assert pool._publishing.target.initiators(pool._publishing.unit(named(volume))) == {OTHER.iqn}
    assert HOST not in {way.initiator for way in pool.paths(named(volume))}
    late = threading.Thread(target=write, args=(path, b"late".ljust(4096, b"\0")))
    late.start()
    time.sleep(2)
    assert read(below, 4096) == bytes(4096), "what it still sends is not carried out"
    pool.publish(named(volume), ME)
    late.join(SECONDS)
    eventually(lambda: read(below, 4) == b"late")
    log_out(host, lun)


def test_what_a_boot_took_away_is_put_back_when_the_pool_is_opened(
    pool: PublishedWithSnapshots, settings: IscsiSettings, host: Iscsi
) -> None:
    volume, idle = made(pool), made(pool, "idle")
    pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    write(log_in(host, lun), b"kept".ljust(4096, b"\0"))
    log_out(host, lun)
    clear_kernel(pool, volume)
    assert volume.uid not in "".join(kernel())
    again = opened(settings)
    assert reached(again, volume) == lun and pool.published(named(volume)) == ["me"]
    assert read(log_in(host, lun), 4) == b"kept"
    assert idle.uid not in "".join(kernel())
    opened(settings)  # where all is well nothing is touched, least of all a session
    assert read(log_in(host, lun), 4) == b"kept"
    log_out(host, lun)
    clear_kernel(pool, volume)
    assert again.check().health is Health.OK, "a check puts back what somebody took away"
    assert volume.uid in "".join(kernel())


def test_what_was_half_made_is_made_whole_by_the_repeat(pool: PublishedWithSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each folder, link or file of the kernel's that a call makes, writes to or removes; and before each request to tgtd."""
    volume = made(pool)
    unit, target = pool._publishing.unit(named(volume)), pool._publishing.target
    acts = {True: lambda: pool.publish(named(volume), ME), False: lambda: pool.unpublish(named(volume), "me")}
    step, chance = count(4, soak=1), draw()
    for published, act in acts.items():
        allowed = chance.randrange(step)
        while dies(act, allowed, monkeypatch):
            act()
            assert target.initiators(unit) == ({HOST} if published else set())
            assert pool.published(named(volume)) == (["me"] if published else [])
            acts[not published]()
            allowed += step
        assert allowed > 5, f"{act} has steps"
        act()


def test_wwids_are_made_of_uids_and_differ_where_these_hardly_do(pool: PublishedWithSnapshots, host: Iscsi) -> None:
    uid = str(uuid.uuid4())
    uids = [uid, f"{uid[:-1]}{'0' if uid[-1] != '0' else '1'}"]
    volumes = [pool.create_volume(VolumeSpec(f"v{number}", one, MIB, Format.RAW)) for number, one in enumerate(uids)]
    luns = [reached(pool, volume) for volume in volumes]
    assert luns[0].wwid != luns[1].wwid and luns[0].portals[0].target != luns[1].portals[0].target
    for volume, lun in zip(volumes, luns, strict=True):
        pool.publish(named(volume), ME)
        log_in(host, lun)
        told = {path.read_text().strip() for path in Path("/sys/block").glob("sd*/device/wwid")}
        log_out(host, lun)
        assert told == {f"naa.{lun.wwid[1:]}"}, "what the kernel reads"
    assert {lun.lun for lun in luns} == {1}, "never 0, and no number is another volume's: each has a target of its own"


@only_lio
def test_what_is_not_ours_is_never_touched(pool: PublishedWithSnapshots, settings: IscsiSettings) -> None:
    foreign = LIO / "iscsi/iqn.2026-01.org.volgate:foreign/tpgt_1"
    foreign.mkdir(parents=True)
    store = LIO / "core/fileio_7/foreign"
    store.mkdir(parents=True)
    volume = made(pool)
    pool.publish(named(volume), ME)
    pool.unpublish(named(volume), "me")
    opened(settings).check()
    assert foreign.is_dir() and store.is_dir()
    for path in (foreign, foreign.parent, store, store.parent):
        path.rmdir()


def test_a_host_without_a_name_of_its_own_is_refused(pool: PublishedWithSnapshots) -> None:
    volume = made(pool)
    for iqn in ("", "../../etc", "iqn.2026-01.org.volgate:a/b"):
        with pytest.raises(Precondition) as refused:
            pool.publish(named(volume), Initiator("me", iqn))
        assert refused.value.reason == "INITIATOR_MISSING"
    pool.publish(named(volume), ME)
    with pytest.raises(Precondition, match="both call themselves"):
        pool.publish(named(volume), Initiator("twin", HOST.upper()))
    eventually(lambda: pool.published(named(volume)) == ["me"])


def test_no_secret_is_in_what_is_kept(pool: PublishedWithSnapshots, settings: IscsiSettings) -> None:
    volume = made(pool)
    pool.publish(named(volume), ME)
    kept = b"".join(path.read_bytes() for path in Path(settings.records).iterdir())
    assert volume.uid.encode() in kept and not any(secret.encode() in kept for secret in SECRETS.values())
    passwords = [path.read_text().strip() for path in LIO.glob(f"iscsi/*{volume.uid}/tpgt_1/acls/*/auth/password")]
    assert passwords == ([SECRETS["in"]] if settings.target == "lio" else [])


def test_a_logical_volume_is_published_grown_and_cut_like_a_file(settings: IscsiSettings, host: Iscsi) -> None:
    group, chap = Group(), settings.chap
    lvm = LvmSettings(group.name, "pool", (group.device,))
    pool = opened(replace(settings, directory=None, lvm=lvm, records=f"{settings.records}.lvm", chap=chap))
    volume = made(pool)
    pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    path = log_in(host, lun)
    write(path, b"before".ljust(4096, b"\0"))
    cut = pool.create_snapshot(named(volume), SnapshotSpec("s", str(uuid.uuid4())))
    write(path, b"after!".ljust(4096, b"\0"))
    assert pool.expand_volume(named(volume), 32 * MIB, online=True).size == 32 * MIB
    assert grown_on(host, lun, 32 * MIB) == 32 * MIB
    log_out(host, lun)
    with pytest.raises(InUse):
        pool.revert_volume(named(volume), cut.uid, token="t")
    pool.unpublish(named(volume), "me")
    assert pool.revert_volume(named(volume), cut.uid, token="t").size == 16 * MIB
    pool.publish(named(volume), ME)
    assert read(log_in(host, lun), 6) == b"before"
    log_out(host, lun)
    pool.unpublish(named(volume), "me")
    pool.delete_snapshot(named(volume), cut.uid)
    pool.delete_volume(named(volume))
    assert group.logicals() == {}


def test_a_new_secret_is_the_targets_from_the_next_check_on(pool: PublishedWithSnapshots, settings: IscsiSettings, host: Iscsi) -> None:
    volume = made(pool)
    pool.publish(named(volume), ME)
    lun = reached(pool, volume)
    assert settings.chap
    Path(settings.chap.secret.removeprefix("file:")).write_text("another-horse-1")
    assert pool.check().health is Health.OK
    with pytest.raises(Denied):
        log_in(host, lun)
    log_in(host, lun, **{"in": "another-horse-1"})
    log_out(host, lun)
    Path(settings.chap.secret.removeprefix("file:")).unlink()
    found = pool.check()
    assert found.health is Health.DEGRADED and "secret" in found.message


def test_room_for_the_registrations_of_hosts_that_share_is_made_or_told_of(pool: PublishedWithSnapshots, settings: IscsiSettings) -> None:
    if settings.target != "lio":
        assert pool.check().health is Health.OK
        return
    top = Path((LIO / "dbroot").read_text().strip())
    shutil.rmtree(top, ignore_errors=True)
    assert pool.check().health is Health.OK and (top / "pr").is_dir()
    shutil.rmtree(top)
    top.write_text("in the way")
    try:
        found = pool.check()
        assert found.health is Health.DEGRADED and f"{top}/pr cannot be made" in found.message
    finally:
        top.unlink()
    assert pool.check().health is Health.OK


def test_the_rights_of_the_drop_in_are_enough(settings: IscsiSettings, place: Path) -> None:
    """The service's user, with the capabilities of the unit and of the drop-in and no others, makes, publishes, grows and deletes.

    For tgt the unit's are enough, where tgtd runs as the same user.
    """
    tgt = settings.target == "tgt"
    units = [(ROOT / f"deploy/systemd/{name}").read_text() for name in ("volgate.service", *([] if tgt else ["volgate-iscsi.conf"]))]
    rights = re.findall(r"^AmbientCapabilities=(.*)$", "\n".join(units), re.MULTILINE)
    only = ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in " ".join(rights).split())])
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    user += [f"--bounding-set={only}", f"--inh-caps={only}", f"--ambient-caps={only}"]
    folder = place / f"nobodys.{settings.target}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    assert settings.chap
    portal, own = "127.0.0.1", "/run/nobodys"
    if tgt:
        Path(own).mkdir()
        os.chown(own, 65534, 65534)
        portal = "127.0.0.1:3271"
        theirs = Daemon(portal, user=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], folder=own)
    table = [str(folder), settings.chap.secret, settings.chap.target_secret, settings.target, portal, f"{own}/socket.0"]
    done = subprocess.run([*user, sys.executable, "-c", NOBODY, *table], check=False, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout and not list(LIO.glob("iscsi/*nobodys*"))
    if tgt:
        theirs.end()


def test_a_size_is_what_hosts_see_until_the_target_has_grown(pool: PublishedWithSnapshots) -> None:
    volume = made(pool)
    pool.publish(named(volume), ME)
    os.truncate(pool.image(named(volume)).source, 32 * MIB)  # what a call that died between the two leaves
    assert pool.get_volume(volume.name).size == 16 * MIB == reached(pool, volume).size
    assert pool.expand_volume(named(volume), 32 * MIB, online=True).size == 32 * MIB == reached(pool, volume).size
