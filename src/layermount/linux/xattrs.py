"""Extended attributes of an entry, by directory descriptor and name; links are not followed.

Source: xattr(7).

`os` reaches an entry's attributes only by path. `/proc/self/fd/N/NAME` is a path of one real
component below a directory descriptor, so nothing but the entry itself is ever reached.
"""

from __future__ import annotations

import errno
import os

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)


def entry_path(dir_fd: int, name: str) -> str:
    """A path that means the entry `name` of `dir_fd`; "." is the directory itself."""
    return f"/proc/self/fd/{dir_fd}/{name}"


def getxattr(dir_fd: int, name: str, key: str) -> bytes:
    """The attribute's value.

    Raises:
        OSError: ENODATA when it is absent, EOPNOTSUPP when there can be no such attribute.
    """
    return os.getxattr(entry_path(dir_fd, name), key, follow_symlinks=False)


def find_xattr(dir_fd: int, name: str, key: str) -> bytes | None:
    """The attribute's value, or None when it is absent or there can be no such attribute."""
    try:
        return getxattr(dir_fd, name, key)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def listxattr(dir_fd: int, name: str) -> list[str]:
    """The attributes' names; empty when the filesystem has none at all."""
    try:
        return os.listxattr(entry_path(dir_fd, name), follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def setxattr(dir_fd: int, name: str, key: str, value: bytes, flags: int = 0) -> None:
    """Set one attribute. `flags` is 0, os.XATTR_CREATE or os.XATTR_REPLACE.

    Raises:
        OSError: ENOTSUP, EPERM, ENOSPC, EDQUOT, E2BIG and the rest of setxattr(2).
    """
    os.setxattr(entry_path(dir_fd, name), key, value, flags, follow_symlinks=False)


def removexattr(dir_fd: int, name: str, key: str) -> None:
    """Remove one attribute.

    Raises:
        OSError: ENODATA when it is absent.
    """
    os.removexattr(entry_path(dir_fd, name), key, follow_symlinks=False)
