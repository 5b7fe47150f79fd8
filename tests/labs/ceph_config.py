"""How the private cluster begins: the configuration of its daemons, which no client but Ceph's own commands reads, and its keys."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from collections.abc import Mapping

__all__ = ["configuration", "new_key"]

_TEXT = """[global]
fsid = {fsid}
mon host = {places}
mon initial members = {names}
public addr = {address}
cluster addr = {address}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
run dir = {base}
log file = {base}/log/$name.log
log to stderr = false
err to stderr = true
crash dir = {base}/crash
osd pool default size = {copies}
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
ms dispatch throttle bytes = 33554432

[mon]
admin socket = {base}/asok/$name.asok
mon data = {base}/mon/$id
mon cluster log file = {base}/log/cluster.log
paxos propose interval = 0.01
paxos min wait = 0.01
mon tick interval = 1
mon osd min down reporters = 1
mon memory target = 268435456
rocksdb cache size = 16777216

[mgr]
admin socket = {base}/asok/$name.asok
mgr data = {base}/mgr/$id
mgr initial modules =
mgr pool = false
mgr stats period = 1
mgr tick period = 1

[osd]
admin socket = {base}/asok/$name.asok
osd data = {base}/osd/$id
osd objectstore = {store}
memstore device bytes = {size}
memstore page set = true
bluestore block size = {size}
bluestore block create = true
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
osd op num shards = 2
osd op num threads per shard = 1
osd crush update on start = true
osd class dir = {classes}
osd scrub during recovery = false
osd fast shutdown = false
osd snap trim sleep = 0.01
osd max object name len = 256
osd max object namespace len = 64
"""


def configuration(places: Mapping[str, str], **facts: object) -> str:
    """The text of a ceph.conf; `places`: the addresses of each monitor, by name."""
    return _TEXT.format(places=",".join(places.values()), names=",".join(places), **facts)


def new_key() -> str:
    """A key of cephx: its kind, its birth, and sixteen bytes."""
    return base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)).decode()
