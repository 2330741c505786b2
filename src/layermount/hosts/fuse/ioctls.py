"""Requests by ioctl(2): the attribute bits of files (chattr, lsattr). Everything else is refused.

Source: ioctl_iflags(2).
"""

from __future__ import annotations

import errno
import struct

from layermount.engine.refusals import refusal
from layermount.hosts.fuse import protocol
from layermount.hosts.fuse.protocol import Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Serving
from layermount.linux import file_flags

_FLAGS = struct.Struct("=I")


class Ioctls:
    """The handler of ioctls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def handlers(self) -> dict[Opcode, Handler]:
        """What is handled here."""
        return {Opcode.IOCTL: self.ioctl}

    def ioctl(self, request: Request) -> bytes:
        """Read or set the attribute bits of a file or directory; its project is read only.

        Raises:
            OSError: ENOTTY for anything else.
        """
        _, _, command, _, _, _ = protocol.IOCTL_IN.unpack_from(request.body)
        node = self._serving.table[request.nodeid].node
        if command == file_flags.FS_IOC_GETFLAGS:
            return _answer(_FLAGS.pack(self._serving.overlay.get_flags(node)))
        if command == file_flags.FS_IOC_FSGETXATTR:
            # The kernel asks so before it sets flags, too.
            found = self._serving.overlay.get_extended_flags(node)
            return _answer(file_flags.FSXATTR.pack(*found))
        if command == file_flags.FS_IOC_SETFLAGS:
            (flags,) = _FLAGS.unpack_from(request.body, protocol.IOCTL_IN.size)
            before = self._serving.tree.counters.copy_ups
            self._serving.overlay.set_flags(node, flags)
            self._serving.copied_up_since(before, node)
            return _answer(b"")
        raise refusal(errno.ENOTTY, node.name)


def _answer(output: bytes) -> bytes:
    return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + output
