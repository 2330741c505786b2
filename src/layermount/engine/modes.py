"""What owner, mode and ACL allow a caller, worked out here: for entries that no system call knows.

For entries with a file behind them the kernel is asked (`access.py`). Sources: path_resolution(7),
acl(5), include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from stat import S_IMODE

_HEADER_SIZE = 4
_ENTRY = struct.Struct("<HHI")
_USER, _GROUP_OBJECT, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


def allows(
    status: os.stat_result, acl: bytes | None, uid: int, groups: Collection[int], wanted: int
) -> bool:
    """Whether a user without any capability may do what `wanted` says.

    Args:
        status: The entry's metadata.
        acl: Its ACL as `system.posix_acl_access` holds it, None when there is none.
        uid: The user.
        groups: All groups of the user, the effective one included.
        wanted: os.R_OK, os.W_OK and os.X_OK.
    """
    return any(not wanted & ~bits for bits in _entries(status, acl, uid, groups))


def _entries(
    status: os.stat_result, acl: bytes | None, uid: int, groups: Collection[int]
) -> list[int]:
    """The bits of each entry that counts for a user; one of them must have all that is wanted."""
    mode = S_IMODE(status.st_mode)
    if uid == status.st_uid:
        return [mode >> 6 & 7]
    if acl is None:
        return [mode >> 3 & 7 if status.st_gid in groups else mode & 7]
    entries = list(_ENTRY.iter_unpack(acl[_HEADER_SIZE:]))
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    for tag, bits, named in entries:
        if tag == _USER and named == uid:
            return [bits & mask]
    found = [
        bits & mask
        for tag, bits, named in entries
        if (tag == _GROUP_OBJECT and status.st_gid in groups) or (tag == _GROUP and named in groups)
    ]
    return found or [mode & 7]
