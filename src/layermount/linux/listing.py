"""Reading a directory as the kernel gives it: with inode numbers and positions.

Source: getdents64(2), struct linux_dirent64.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from layermount.linux._libc import bind, check

# d_ino, d_off, d_reclen, d_type, then the name and NULs up to d_reclen
LAYOUT = struct.Struct("<QqHB")

_getdents64 = bind(
    "getdents64",
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    restype=ctypes.c_ssize_t,
)


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of a directory.

    Attributes:
        name: Its name, "." and ".." included.
        inode: Its inode number.
        kind: `st_mode >> 12`; 0 where the filesystem does not tell.
        position: Where a later read goes on after this entry, when lseek(2) is told it.
    """

    name: str
    inode: int
    kind: int
    position: int


def getdents(fd: int, size: int = 32768) -> list[DirectoryEntry]:
    """The next entries of an open directory, as many as fit into `size` bytes; [] at the end.

    Raises:
        OSError: ENOTDIR; ENOENT when the directory was removed; EINVAL when not one entry fits.
    """
    buffer = ctypes.create_string_buffer(size)
    length = check(_getdents64(fd, buffer, size))
    raw = buffer.raw[:length]
    entries, start = [], 0
    while start < length:
        inode, position, record, kind = LAYOUT.unpack_from(raw, start)
        name = raw[start + LAYOUT.size : start + record].split(b"\0", 1)[0]
        entries.append(DirectoryEntry(os.fsdecode(name), inode, kind, position))
        start += record
    return entries
