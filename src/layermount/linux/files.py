"""Files by directory descriptor and single name: what `os` does not offer.

Each function is one system call. Names are `str` as `os.fsdecode` gives them; a descriptor is never
closed here. Sources: openat2(2), renameat2(2), ioctl_ficlone(2), name_to_handle_at(2),
faccessat(2), fallocate(2), ioctl_getfsuuid in include/uapi/linux/fs.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import struct

from layermount.linux._libc import bind, bind_syscall, check

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# include/uapi/linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
_FICLONE = 0x40049409
_FS_IOC_GETFSUUID = 0x80111500

# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20
FALLOC_FL_UNSHARE_RANGE = 0x40

AT_EACCESS = 0x200
AT_SYMLINK_NOFOLLOW = 0x100
_AT_SYMLINK_FOLLOW = 0x400
_AT_FDCWD = -100
_MAX_HANDLE_SIZE = 128

# struct file_handle of <fcntl.h>: handle_bytes, handle_type, the handle itself.
_HANDLE_HEAD = struct.Struct("<Ii")
_HandleBuffer = ctypes.c_char * (_HANDLE_HEAD.size + _MAX_HANDLE_SIZE)
#: `handle_bytes` that says so much room, without the zeros that follow.
_ROOM = bytes([_MAX_HANDLE_SIZE])
#: The call insists on telling a mount ID, which nobody reads.
_mount_id = ctypes.c_int()
_mount_id_at = ctypes.addressof(_mount_id)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPEN_HOW_SIZE = ctypes.sizeof(_OpenHow)
_openat2 = bind_syscall(
    437, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t
)
_renameat2 = bind(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_faccessat2 = bind_syscall(439, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
_name_to_handle_at = bind(
    "name_to_handle_at",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_open_by_handle_at = bind("open_by_handle_at", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


_fallocate = bind("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def openat2(dir_fd: int, name: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """A descriptor of `name` beneath `dir_fd`, under the rules `resolve`; it is the caller's.

    O_CLOEXEC is always added.

    Raises:
        OSError: ELOOP for a link under RESOLVE_NO_SYMLINKS, EXDEV for a way out under
            RESOLVE_BENEATH or a mount point under RESOLVE_NO_XDEV, ENOSYS before Linux 5.6,
            and what open(2) gives.
    """
    how = _open_how(flags | os.O_CLOEXEC, mode, resolve)
    return check(_openat2(dir_fd, os.fsencode(name), how, _OPEN_HOW_SIZE), name)


@functools.cache
def _open_how(flags: int, mode: int, resolve: int) -> _OpenHow:
    """The kernel only reads it, so the few combinations in use are made once."""
    return _OpenHow(flags, mode, resolve)


def renameat2(old_dir_fd: int, old: str, new_dir_fd: int, new: str, flags: int = 0) -> None:
    """Rename with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT; one atomic step.

    Raises:
        OSError: EINVAL when the filesystem does not know the flags, and what rename(2) gives.
    """
    result = _renameat2(old_dir_fd, os.fsencode(old), new_dir_fd, os.fsencode(new), flags)
    check(result, old, new)


def faccessat(dir_fd: int, name: str, mode: int) -> None:
    """Check that the effective user may access `name`, a link itself and not its target.

    Raises:
        OSError: EACCES when not, EROFS for writing on a read-only filesystem.
    """
    check(_faccessat2(dir_fd, os.fsencode(name), mode, AT_EACCESS | AT_SYMLINK_NOFOLLOW), name)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve room in a file, or with FALLOC_FL_* bits in `mode` zero, punch or move a range.

    Raises:
        OSError: EOPNOTSUPP when the filesystem does not know the mode, EBADF when not open for
            writing, EINVAL, ENOSPC, EFBIG; EINTR when a signal came, with nothing or a part done.
    """
    check(_fallocate(fd, mode, offset, length))


def ficlone(source_fd: int, target_fd: int) -> None:
    """Let `target_fd` share all blocks of `source_fd`.

    Raises:
        OSError: EOPNOTSUPP, EINVAL, EXDEV or ENOTTY where the filesystem cannot.
    """
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def filesystem_uuid(fd: int) -> bytes:
    """The 16-byte UUID of the filesystem that holds `fd`.

    Raises:
        OSError: ENOTTY where the filesystem has none to tell, or before Linux 6.9.
    """
    answer = bytearray(17)
    fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    length = answer[0]
    return bytes(answer[1 : 1 + length]).ljust(16, b"\0")


def name_to_handle(dir_fd: int, name: str) -> tuple[int, bytes]:
    """The file handle of `name` in `dir_fd`, links not followed: its type and its bytes.

    Raises:
        OSError: EOPNOTSUPP where the filesystem has no handles.
    """
    buffer = _HandleBuffer()
    buffer.value = _ROOM
    check(_name_to_handle_at(dir_fd, os.fsencode(name), buffer, _mount_id_at, 0), name)
    answer = buffer.raw
    length, kind = _HANDLE_HEAD.unpack_from(answer)
    return kind, answer[8 : 8 + length]


def open_by_handle(mount_fd: int, kind: int, handle: bytes) -> int:
    """Open by a file handle, as an O_PATH descriptor that is the caller's.

    Needs CAP_DAC_READ_SEARCH.

    Raises:
        OSError: ESTALE when the file is gone, EPERM without the right.
    """
    buffer = _HandleBuffer()
    _HANDLE_HEAD.pack_into(buffer, 0, len(handle), kind)
    ctypes.memmove(ctypes.byref(buffer, 8), handle, len(handle))
    return check(_open_by_handle_at(mount_fd, buffer, os.O_PATH | os.O_CLOEXEC))


def data_segments(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that hold data, as (start, end) in ascending order, up to `size`.

    One call for a file without holes. Where the filesystem knows none the answer is one segment.
    The file position moves.
    """
    segments = []
    start = 0
    try:
        while start < size:
            hole = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            if hole > start:
                segments.append((start, hole))
            if hole == size:
                break
            start = os.lseek(fd, hole, os.SEEK_DATA)
            if start <= hole:
                # It is being written to; what cannot be told apart counts as data.
                segments.append((hole, size))
                break
    except OSError as error:
        # There is no data after the hole.
        if error.errno != errno.ENXIO:
            raise
    return segments
