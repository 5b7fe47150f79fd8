"""Libvirt secrets: the keys of Ceph users, one for each cluster and user, CHAP's secrets, one for each target and user, passphrases.

They are private, and in memory alone.

Their names carry the cluster, so that a disk's XML tells which one its image is of. Who may read a domain's XML learns a name.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Collection
from xml.etree import ElementTree as ET

import libvirt

from volgate.errors import InvalidRequest
from volgate.hypervisor.faults import translated
from volgate.secret import Secret

__all__ = ["chap_usage_of", "cluster_of", "decoded", "named", "passphrase_of", "passphrase_usage_of", "put", "sweep", "usage_of", "used"]

_PREFIX = "volgate"
_SPACE = uuid.UUID("5b0c1a52-7d0e-4f43-9a53-2f1d6f0c8b1e")
_USER = re.compile(r"[A-Za-z0-9_.@+-]+")
_TYPE, _CHAP_TYPE = libvirt.VIR_SECRET_USAGE_TYPE_CEPH, libvirt.VIR_SECRET_USAGE_TYPE_ISCSI
_CHAP, _CHAP_USER = "chap:", re.compile(r"[A-Za-z0-9_.:@+-]+")
_LUKS = "luks:"
_NAMES = {_TYPE: ("ceph", "name"), _CHAP_TYPE: ("iscsi", "target"), libvirt.VIR_SECRET_USAGE_TYPE_VOLUME: ("volume", "volume")}
"""How libvirt writes a secret's type, and its name."""


def usage_of(fsid: str, user: str) -> str:
    """The name of the secret of a cluster's user. Raises InvalidRequest for a user that libvirt could not name."""
    if not _USER.fullmatch(user):
        told = f"user: the Ceph user {user!r} cannot be named to libvirt; use one of letters, digits and _ . @ + -, without client."
        raise InvalidRequest(told, field="user")
    return f"{_PREFIX} {fsid} {user}"


def chap_usage_of(target: str, user: str) -> str:
    """The name of the secret by which a user of CHAP proves itself to a target. Raises InvalidRequest for what libvirt could not name."""
    if not _CHAP_USER.fullmatch(user):
        told = f"user: CHAP's user {user!r} cannot be named to libvirt; use one of letters, digits and _ . : @ + -"
        raise InvalidRequest(told, field="user")
    return f"{_PREFIX} {_CHAP}{target} {user}"


def passphrase_usage_of(reference: str) -> str:
    """The name of the secret that holds the passphrase which a reference names."""
    return f"{_PREFIX} {_LUKS}{reference}"


def passphrase_of(usage: str) -> str:
    """The reference to the passphrase that a secret of ours holds, "" of any other."""
    mark = passphrase_usage_of("")
    return usage.removeprefix(mark) if usage.startswith(mark) else ""


def cluster_of(usage: str) -> str:
    """The cluster that a secret of ours is for, "" of one that is not ours."""
    prefix, _, rest = usage.partition(" ")
    return rest.partition(" ")[0] if prefix == _PREFIX else ""


def decoded(key: Secret, of: str) -> bytes:
    """The bytes of a key as Ceph prints it, in base64. Raises InvalidRequest, which says what it is the key `of`."""
    try:
        return base64.b64decode(key.reveal().strip(), validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"{of} names something that is not base64, as keys of Ceph are", field="key") from None


def put(connection: libvirt.virConnect, usage: str, key: Secret) -> None:
    """Define the secret if it is not there, and give it the key. Raises InvalidRequest, Unreachable."""
    raw = decoded(key, usage) if _kind(usage) == _TYPE else key.reveal().encode()
    with translated(f"keep the key of {usage}"):
        (_find(connection, usage) or connection.secretDefineXML(_described(usage))).setValue(raw)


def sweep(connection: libvirt.virConnect, kept: Collection[str]) -> list[str]:
    """Remove the secrets of ours that no domain names, but those in `kept`; return which went."""
    with translated("look for secrets that no domain uses"):
        ours = {usage: secret for secret in _every(connection) if cluster_of(usage := secret.usageID())}
        ours = {usage: secret for usage, secret in ours.items() if usage not in kept}
        if not ours:
            return []
        needed = used(connection)
        gone = [usage for usage in ours if usage not in needed]
        for usage in gone:
            ours[usage].undefine()
    return gone


def used(connection: libvirt.virConnect) -> set[str]:
    """The secrets that disks of domains name, running or not."""
    found: set[str] = set()
    for domain in connection.listAllDomains():
        try:
            texts = [domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue  # it ended meanwhile
        found.update(*map(named, texts))
    return found


def named(xml: str) -> set[str]:
    """The secrets that disks in a domain's or a disk's own description name. Raises InvalidRequest."""
    try:
        tree = ET.fromstring(xml)  # noqa: S314  # libvirt's own answer, or what was rendered for it
    except ET.ParseError as error:
        raise InvalidRequest(f"xml: {error}", field="xml") from None
    places = ("source/auth/secret", "source/encryption/secret")
    return {secret.get("usage", "") for disk in tree.iter("disk") for place in places for secret in disk.iterfind(place)}


def _every(connection: libvirt.virConnect) -> list[libvirt.virSecret]:
    try:
        return list(connection.listAllSecrets())
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return []  # a driver without secrets


def _find(connection: libvirt.virConnect, usage: str) -> libvirt.virSecret | None:
    try:
        return connection.secretLookupByUsage(_kind(usage), usage)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
            raise
        return None


def _kind(usage: str) -> int:
    """Libvirt's type of the secret."""
    if passphrase_of(usage):
        return int(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME)
    return int(_CHAP_TYPE if usage.startswith(f"{_PREFIX} {_CHAP}") else _TYPE)


def _described(usage: str) -> str:
    root = ET.Element("secret", ephemeral="yes", private="yes")
    ET.SubElement(root, "uuid").text = str(uuid.uuid5(_SPACE, usage))
    kind, name = _NAMES[_kind(usage)]
    ET.SubElement(ET.SubElement(root, "usage", type=kind), name).text = usage
    return ET.tostring(root, encoding="unicode")
