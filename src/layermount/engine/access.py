"""May the caller change this? Asked before a copy-up, so that a refusal leaves no copy behind.

A process with CAP_DAC_OVERRIDE may do anything, and is not asked about. Rules: P1 and P2.
"""

from __future__ import annotations

import errno
import functools
import os

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import missing, refusal
from layermount.linux import files

_CAP_DAC_OVERRIDE = 1 << 1


@functools.cache
def _overrides_permissions(_uid: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
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
    if node.removed:
        raise missing(node.name)
    if _overrides_permissions(os.geteuid()):
        return
    if isinstance(node, DirectoryNode):
        fd, name = node.top.fd, "."
    else:
        fd, name = node.holder.fd, node.entry
    if fd is None:
        return
    try:
        files.faccessat(fd, name, mode)
    except OSError as error:
        # A lower on a read-only filesystem, or its read-only clone: the copy will not be there.
        if error.errno != errno.EROFS:
            raise


def require_owner(status: os.stat_result) -> None:
    """Refuse what only the owner may do: change the mode, set other times.

    Raises:
        OSError: EPERM.
    """
    if os.geteuid() not in (0, status.st_uid):
        raise refusal(errno.EPERM)
