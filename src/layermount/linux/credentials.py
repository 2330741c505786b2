"""Who the calling thread is to a filesystem: owner and group of what it makes, and its umask.

Everything here is about one thread; the others of the process stay who they are, unlike with
`os.setuid`. Sources: setfsuid(2), setfsgid(2), capabilities(7), unshare(2).
"""

from __future__ import annotations

import ctypes
import errno

from layermount.linux import namespaces
from layermount.linux._libc import bind, bind_quick, check

# include/uapi/linux/prctl.h, securebits.h and sched.h
_PR_GET_SECUREBITS = 27
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CLONE_FS = 0x200

#: No id: to set it changes nothing, and tells the present one.
_NOBODY = 0xFFFFFFFF

_setfsuid = bind_quick("setfsuid", ctypes.c_uint)
_setfsgid = bind_quick("setfsgid", ctypes.c_uint)
_prctl = bind("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def setfsuid(uid: int) -> None:
    """Let what this thread makes belong to `uid`, and be that user where permissions are asked for.

    Without `keep_capabilities_on_fsuid` leaving uid 0 takes the capabilities that override
    permissions with it, and going back brings them back.

    Raises:
        PermissionError: Without CAP_SETUID, or for a uid the user namespace does not map. The
            kernel is silent about both.
    """
    _setfsuid(uid)
    if _setfsuid(_NOBODY) != uid:
        raise PermissionError(errno.EPERM, f"cannot act as user {uid}")


def setfsgid(gid: int) -> None:
    """Let what this thread makes belong to the group `gid`.

    Raises:
        PermissionError: Without CAP_SETGID, or for a gid the user namespace does not map.
    """
    _setfsgid(gid)
    if _setfsgid(_NOBODY) != gid:
        raise PermissionError(errno.EPERM, f"cannot act as group {gid}")


def keep_capabilities_on_fsuid(*, on: bool = True) -> None:
    """Let this thread keep CAP_DAC_OVERRIDE and its like whoever `setfsuid` makes it; or no more.

    Threads and processes that it starts later inherit that, and with it `os.setuid` drops no
    capability either: take it back before privileges are given up.

    Raises:
        PermissionError: Without CAP_SETPCAP, or where the bit is locked.
    """
    present = check(_prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0))
    others = present & ~_SECBIT_NO_SETUID_FIXUP
    check(_prctl(_PR_SET_SECUREBITS, others | (_SECBIT_NO_SETUID_FIXUP if on else 0), 0, 0, 0))


def unshare_fs() -> None:
    """Give this thread an umask, a working directory and a root directory of its own.

    `os.umask` then changes that thread's alone.
    """
    namespaces.unshare(_CLONE_FS)
