"""Answers packed for the wire: metadata, entries, names. No state, no requests.

Source: include/uapi/linux/fuse.h; the layouts are in `protocol.py`.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from layermount.engine.tree import Shown
from layermount.hosts.fuse import protocol

#: How long the kernel keeps what it is told, in seconds. Nobody but this host changes the overlay,
#: so what becomes wrong is taken back by a notification.
FOREVER: Final = 1 << 30
_SECOND: Final = 10**9
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()

#: A name of which there is nothing: remembered, too.
NEGATIVE_ENTRY: Final = protocol.ENTRY_OUT.pack(0, 0, FOREVER, *(0,) * 19)

#: Whole numbers all; the parts of a stat result are declared as what they may be elsewhere.
Fields = tuple[float, ...]


def decoded(raw: bytes | memoryview) -> str:
    """A name from the wire, as `os.fsdecode` has it, without a copy in between."""
    return str(raw, _ENCODING, _ERRORS)


def names(raw: memoryview) -> list[str]:
    """The names in a message, each ended by NUL."""
    return [decoded(name) for name in bytes(raw).split(b"\0")[:-1]]


def fields(shown: Shown) -> Fields:
    """The fields of `protocol.ATTR` for what the engine shows."""
    status, inode, nlink, blocks = shown
    atime, mtime, ctime = status[7], status[8], status[9]
    return (
        inode,
        status.st_size,
        blocks,
        atime,
        mtime,
        ctime,
        status.st_atime_ns - atime * _SECOND,
        status.st_mtime_ns - mtime * _SECOND,
        status.st_ctime_ns - ctime * _SECOND,
        status.st_mode,
        nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev & 0xFFFFFFFF,
        status.st_blksize,
        0,
    )


def entry(nodeid: int, shown: Shown, *, keep: bool = True) -> bytes:
    """An entry with its metadata, which the kernel may keep unless told not to."""
    valid = FOREVER if keep else 0
    return protocol.ENTRY_OUT.pack(nodeid, 0, FOREVER, valid, 0, 0, *fields(shown))


def attributes(shown: Shown, *, keep: bool = True) -> bytes:
    """Metadata, which the kernel may keep unless told not to."""
    return protocol.ATTR_OUT.pack(FOREVER if keep else 0, 0, 0, *fields(shown))


def opened(*, flags: int = 0, backing: int = 0, fh: int = 0) -> bytes:
    """An open file or directory."""
    return protocol.OPEN_OUT.pack(fh, flags, backing)


def sized(value: bytes, limit: int) -> bytes | None:
    """A value or list of attributes under the caller's limit; 0 asks for the length alone.

    None means that it is too long: ERANGE.
    """
    if limit == 0:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= limit else None


def space(status: os.statvfs_result) -> bytes:
    """What statfs(2) tells."""
    return protocol.STATFS_OUT.pack(
        status.f_blocks,
        status.f_bfree,
        status.f_bavail,
        status.f_files,
        status.f_ffree,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
    )
