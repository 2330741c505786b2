"""May the caller change this? Asked before a copy-up, so that a refusal leaves no copy behind.

A process with CAP_DAC_OVERRIDE may do anything, and is not asked about. Rules: P1 and P2.
"""

from __future__ import annotations

import errno
import functools
import os

from layermount.engine.modes import allows
from layermount.engine.node import Node, place
from layermount.engine.refusals import refusal
from layermount.layer.base import Directory
from layermount.layer.copy import ACL_ACCESS
from layermount.linux import files

_CAP_DAC_OVERRIDE = 1 << 1


@functools.cache
def _overrides_permissions(_uid: int) -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_DAC_OVERRIDE)
    return False


def require_access(node: Node, mode: int) -> None:
    """Refuse what the file's owner, mode and ACL do not allow the caller.

    Args:
        node: What is about to be used.
        mode: os.R_OK, os.W_OK and os.X_OK.

    Raises:
        OSError: EACCES; ENOENT when the entry was removed, for another may have its name.
    """
    directory, name = place(node)
    if _overrides_permissions(os.geteuid()):
        return
    fd = directory.fd
    if fd is None:
        _require_by_mode(directory, name, mode)
        return
    try:
        files.faccessat(fd, name, mode)
    except OSError as error:
        # A lower on a read-only filesystem, or its read-only clone: the copy will not be there.
        if error.errno != errno.EROFS:
            raise


def _require_by_mode(directory: Directory, name: str, mode: int) -> None:
    """The same for an entry of a virtual layer, which no system call knows."""
    acl = directory.getxattr(name, ACL_ACCESS) if ACL_ACCESS in directory.listxattr(name) else None
    groups = {os.getegid(), *os.getgroups()}
    if not allows(directory.stat(name), acl, os.geteuid(), groups, mode):
        raise refusal(errno.EACCES, name)


def require_owner(node: Node) -> None:
    """Refuse what only the owner may do: change the mode, set other times.

    Raises:
        OSError: EPERM; ENOENT when the entry was removed.
    """
    directory, name = place(node)
    uid = os.geteuid()
    if uid == 0:
        return
    if directory.stat(name).st_uid != uid:
        raise refusal(errno.EPERM)
