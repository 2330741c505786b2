"""The ioctls of an open `/dev/fuse`: files that the kernel reads and writes by itself.

The messages that are read from the device and written to it do not belong here.
Source: include/uapi/linux/fuse.h, fs/fuse/backing.c.
"""

from __future__ import annotations

import fcntl
import struct

# include/uapi/linux/fuse.h
_FUSE_DEV_IOC_BACKING_OPEN = 0x4010E501
_FUSE_DEV_IOC_BACKING_CLOSE = 0x4004E502

#: `struct fuse_backing_map`: the descriptor, flags and padding, which are 0.
BACKING_MAP = struct.Struct("<iIQ")
_pack_map = BACKING_MAP.pack
_pack_id = struct.Struct("<I").pack


def backing_open(device_fd: int, fd: int) -> int:
    """The number by which an OPEN or CREATE is answered with passthrough to the file `fd`.

    The kernel opens the file again for each such answer, with the caller's flags and the rights of
    this process: the mode of `fd` limits nothing. `fd` may be closed; the number is good until
    `backing_close` or the end of the connection.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN in the initial user namespace or when passthrough was
            not negotiated, ELOOP when `fd` lies on too deep a stack of filesystems, EISDIR and
            EINVAL for what is no regular file, EBADF; ENOTTY before Linux 6.9.
    """
    # With `bytes` the answer would be the buffer, not the number.
    number: int = fcntl.ioctl(device_fd, _FUSE_DEV_IOC_BACKING_OPEN, bytearray(_pack_map(fd, 0, 0)))
    return number


def backing_close(device_fd: int, backing_id: int) -> None:
    """Give a number back; files that were opened with it go on.

    Raises:
        OSError: ENOENT for a number that is not in use.
    """
    fcntl.ioctl(device_fd, _FUSE_DEV_IOC_BACKING_CLOSE, _pack_id(backing_id))
