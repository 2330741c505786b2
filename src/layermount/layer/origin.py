"""The origin record: which lower file an upper file was copied up from.

It is the kernel's own record (struct ovl_fb in fs/overlayfs/overlayfs.h), so that inode numbers
stay the same whoever mounts next::

    offset size meaning
    0      1    version, 0
    1      1    magic, 0xfb
    2      1    length of the whole record
    3      1    flags: 1 big-endian file handle, 2 handle valid on any machine, 4 of the upper
    4      1    type of the file handle
    5      16   UUID of the filesystem
    21     -    file handle, as name_to_handle_at(2) gives it

An empty record means "copied up, from where is not known".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEADER = struct.Struct("<BBBBB16s")
_VERSION, _MAGIC = 0, 0xFB
_BIG_ENDIAN, _ANY_ENDIAN = 1, 2
_MAX_LENGTH = 255


class Origin(NamedTuple):
    """A lower file by its filesystem's UUID and file handle."""

    uuid: bytes
    handle_type: int
    handle: bytes

    def pack(self) -> bytes:
        """The record as the kernel writes it; an empty one when the handle is too long for it."""
        length = _HEADER.size + len(self.handle)
        if length > _MAX_LENGTH or not 0 <= self.handle_type <= _MAX_LENGTH:
            return b""
        return _HEADER.pack(_VERSION, _MAGIC, length, 0, self.handle_type, self.uuid) + self.handle


def parse_origin(raw: bytes) -> Origin | None:
    """The origin in a record, or None when the record names none that this machine can read.

    A record that cannot be used is no damage: the kernel too goes on with the upper's own number.
    """
    if len(raw) < _HEADER.size:
        return None
    version, magic, length, flags, handle_type, uuid = _HEADER.unpack_from(raw)
    foreign = bool(flags & _BIG_ENDIAN) and not flags & _ANY_ENDIAN
    if version != _VERSION or magic != _MAGIC or length != len(raw) or foreign:
        return None
    return Origin(uuid, handle_type, raw[_HEADER.size :])
