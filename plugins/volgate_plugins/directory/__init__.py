"""Pools in a directory of a local file system: raw and qcow2 files, snapshots as external qcow2 layers or shared blocks."""

from __future__ import annotations

from volgate.backend import BackendType, hookimpl
from volgate_plugins.directory.backend import Directory
from volgate_plugins.directory.settings import DirectorySettings

__all__ = ["Directory", "DirectorySettings", "volgate_backends"]


@hookimpl
def volgate_backends() -> list[BackendType]:
    """Offer the kind `directory`; it runs in threads, for nothing in it can hang that a process could leave."""
    return [
        BackendType(
            kind="directory",
            settings=DirectorySettings,
            open=Directory.open,
            summary="Raw and qcow2 files in a directory of this host",
            in_threads=True,
        )
    ]
