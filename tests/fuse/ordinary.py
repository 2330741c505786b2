"""An ordinary user who may have FUSE, also on a machine where only root may open its device."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import TypeVar

from layermount.linux import mounts, namespaces
from tests.forked import USER, in_child

T = TypeVar("T")

_FUSE = os.makedev(10, 229)


def as_user(function: Callable[[], T]) -> T:
    """What `function` returns in a child of an ordinary user; what it mounts ends with the child.

    Run by root it is in a mount namespace of its own, where everybody may open /dev/fuse, as is
    usual elsewhere.
    """
    if os.geteuid() != 0:
        return in_child(function)

    def child() -> T:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(mounts.MS_PRIVATE)
        open_device()
        return in_child(function, user=USER)

    return in_child(child)


def open_device() -> None:
    """Put a device that everybody may open over /dev/fuse, in this mount namespace."""
    with tempfile.TemporaryDirectory(prefix="layermount-device-", dir="/tmp") as folder:
        mounts.mount("device", folder, "tmpfs")
        node = f"{folder}/fuse"
        os.mknod(node, stat.S_IFCHR | 0o666, _FUSE)
        os.chmod(node, 0o666)
        mounts.mount(node, "/dev/fuse", "", mounts.MS_BIND)
        mounts.umount2(folder, mounts.MNT_DETACH)
