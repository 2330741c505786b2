"""Setting times with what `os.utime` cannot say: leave one, take the clock for one.

Source: utimensat(2), include/uapi/linux/stat.h.
"""

from __future__ import annotations

import ctypes
import os

from layermount.linux._libc import bind, check

#: In place of a time: the clock's, or the one that is there.
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
AT_SYMLINK_NOFOLLOW = 0x100
_SECOND = 1_000_000_000


class Timespec(ctypes.Structure):
    """`struct timespec` of <time.h>."""

    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_utimensat = bind("utimensat", ctypes.c_int, ctypes.c_char_p, Timespec * 2, ctypes.c_int)


def utimensat(
    dir_fd: int, name: str, atime: tuple[int, int], mtime: tuple[int, int], *, flags: int = 0
) -> None:
    """Set both times, each as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT are nanoseconds.

    Raises:
        OSError: EPERM when not the owner, EACCES for UTIME_NOW without the right to write.
    """
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    check(_utimensat(dir_fd, os.fsencode(name), times, flags), name)


def timespec(time_ns: int) -> tuple[int, int]:
    """A time in nanoseconds as (seconds, nanoseconds)."""
    return divmod(time_ns, _SECOND)
