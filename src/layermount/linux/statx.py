"""Metadata that `os.stat` does not tell: time of birth, number of the mount, attribute bits.

Source: statx(2), struct statx in include/uapi/linux/stat.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from layermount.linux._libc import bind, check

# include/uapi/linux/stat.h and fcntl.h
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20
STATX_ATTR_MOUNT_ROOT = 0x2000
_AT_SYMLINK_NOFOLLOW = 0x100
_SIZE = 256
_SECOND = 1_000_000_000

# mask, blksize, attributes | nlink, uid, gid, mode | ino, size, blocks, attributes_mask | atime,
# btime, ctime, mtime as (s64, u32, pad) | rdev, dev as (major, minor) | mnt_id
LAYOUT = struct.Struct("<IIQ IIIH2x QQQQ qI4x qI4x qI4x qI4x IIII Q")

_statx = bind("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class Statx(NamedTuple):
    """What statx(2) tells beside what `os.stat` does.

    Attributes:
        inode: Inode number.
        device: As `st_dev`.
        birth_ns: When the file was made, nanoseconds since 1970-01-01 UTC; None where not kept.
        mount_id: The number of the mount it was reached through; None before Linux 5.8.
        attributes: STATX_ATTR_* bits that are set, of those the filesystem knows.
    """

    inode: int
    device: int
    birth_ns: int | None
    mount_id: int | None
    attributes: int


def statx(dir_fd: int, name: str) -> Statx:
    """The metadata of `name` in `dir_fd`; a link itself, not its target.

    Raises:
        OSError: ENOENT, ENOTDIR, EACCES; ENOSYS before Linux 4.11.
    """
    buffer = ctypes.create_string_buffer(_SIZE)
    mask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    check(_statx(dir_fd, os.fsencode(name), _AT_SYMLINK_NOFOLLOW, mask, buffer), name)
    fields = LAYOUT.unpack_from(buffer)
    told, attributes, inode, known = fields[0], fields[2], fields[7], fields[10]
    birth_s, birth_ns = fields[13:15]
    major, minor, mount_id = fields[21:24]
    return Statx(
        inode=inode,
        device=os.makedev(major, minor),
        birth_ns=birth_s * _SECOND + birth_ns if told & STATX_BTIME else None,
        mount_id=mount_id if told & STATX_MNT_ID else None,
        attributes=attributes & known,
    )
