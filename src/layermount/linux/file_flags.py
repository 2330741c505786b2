"""A file's own flags, as lsattr(1) and chattr(1) show them, and its project.

Each function is one ioctl on a borrowed descriptor; what the flags mean is not known here.
Sources: ioctl_iflags(2), ioctl_fs_ioc_fsgetxattr in include/uapi/linux/fs.h.
"""

from __future__ import annotations

import fcntl
import struct
from typing import NamedTuple

# include/uapi/linux/fs.h
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

FS_IMMUTABLE_FL = 0x00000010
FS_APPEND_FL = 0x00000020
FS_NODUMP_FL = 0x00000040
FS_NOATIME_FL = 0x00000080

# The number says "long", the value is an int.
_FLAGS = struct.Struct("<I4x")
#: `struct fsxattr`.
FSXATTR = struct.Struct("<IIIII8x")


class ExtendedFlags(NamedTuple):
    """`struct fsxattr`, as lsattr -p and xfs_io show it.

    Attributes:
        flags: FS_XFLAG_* bits.
        extent_size: The hint for allocations, bytes.
        extents: How many extents the file has; ignored when it is set.
        project: The project that the file's space is counted for.
        cow_extent_size: The hint for copies of shared blocks, bytes.
    """

    flags: int
    extent_size: int
    extents: int
    project: int
    cow_extent_size: int


def get_flags(fd: int) -> int:
    """The FS_*_FL flags of an open file.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP where the filesystem has none.
    """
    buffer = bytearray(_FLAGS.size)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, buffer)
    return int(_FLAGS.unpack(buffer)[0])


def set_flags(fd: int, flags: int) -> None:
    """Set the flags of an open file, all of them at once.

    Raises:
        OSError: EPERM for FS_IMMUTABLE_FL and FS_APPEND_FL without CAP_LINUX_IMMUTABLE, EACCES for
            another's file, EOPNOTSUPP for a flag that the filesystem cannot keep, EROFS, ENOTTY.
    """
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags))


def get_extended_flags(fd: int) -> ExtendedFlags:
    """The flags and the project of an open file.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP where the filesystem has none.
    """
    buffer = bytearray(FSXATTR.size)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, buffer)
    return ExtendedFlags(*FSXATTR.unpack(buffer))


def set_extended_flags(fd: int, new: ExtendedFlags) -> None:
    """Set the flags and the project of an open file.

    Raises:
        OSError: As `set_flags`.
    """
    values = (new.flags, new.extent_size, new.extents, new.project, new.cow_extent_size)
    fcntl.ioctl(fd, FS_IOC_FSSETXATTR, FSXATTR.pack(*values))
