"""Requests about metadata: attributes, extended attributes, space."""

from __future__ import annotations

import errno
import os
import stat
import time

from layermount.engine.refusals import refusal
from layermount.errors import LayerMountError
from layermount.hosts.fuse import protocol, replies
from layermount.hosts.fuse.known import Known
from layermount.hosts.fuse.protocol import Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Serving
from layermount.linux.statx import STATX_BASIC_STATS, STATX_BTIME

_SECOND = 10**9
#: CLOCK_REALTIME_COARSE of clock_gettime(2): the clock that the kernel stamps files with.
_COARSE = 5
_ATIME = protocol.FATTR_ATIME, protocol.FATTR_ATIME_NOW
_MTIME = protocol.FATTR_MTIME, protocol.FATTR_MTIME_NOW
_CHANGES = (
    protocol.FATTR_MODE | protocol.FATTR_UID | protocol.FATTR_GID | protocol.FATTR_SIZE
    | protocol.FATTR_ATIME | protocol.FATTR_MTIME
)  # fmt: skip


class Attributes:
    """Handlers of requests about metadata."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._overlay = serving.overlay
        self._table = serving.table

    def handlers(self) -> dict[Opcode, Handler]:
        """What is handled here."""
        return {
            Opcode.GETATTR: self.getattr,
            Opcode.SETATTR: self.setattr,
            Opcode.STATX: self.statx,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.SETXATTR: self.setxattr,
            Opcode.REMOVEXATTR: self.removexattr,
            Opcode.STATFS: self.statfs,
            Opcode.SYNCFS: self.syncfs,
        }

    def getattr(self, request: Request) -> bytes:
        """The metadata of an inode."""
        return self._attributes(self._table[request.nodeid])

    def _attributes(self, known: Known) -> bytes:
        shown = self._serving.shown(known)
        known.note(shown)
        return replies.attributes(shown, keep=self._serving.keeps_attributes(known))

    def statx(self, request: Request) -> bytes:
        """The metadata of an inode with its time of birth."""
        known = self._table[request.nodeid]
        status, inode, nlink, blocks = self._serving.shown(known)
        birth = None if known.node.removed else self._overlay.statx(known.node).birth_ns
        mask = STATX_BASIC_STATS | (0 if birth is None else STATX_BTIME)
        times = [
            part
            for time_ns in (status.st_atime_ns, birth or 0, status.st_ctime_ns, status.st_mtime_ns)
            for part in divmod(time_ns, _SECOND)
        ]
        return protocol.STATX_OUT.pack(
            0, 0, 0,
            mask, status.st_blksize, 0, nlink, status.st_uid, status.st_gid, status.st_mode,
            inode, status.st_size, blocks, 0,
            *times,
            os.major(status.st_rdev), os.minor(status.st_rdev), 0, 0,
        )  # fmt: skip

    # Changing.

    def setattr(self, request: Request) -> bytes | None:
        """Change owner, mode, size or times; the answer is what is shown then."""
        valid, size = self._wanted(request)
        known = self._table[request.nodeid]
        node = known.node
        if valid & protocol.FATTR_SIZE and self._serving.must_retire(known):
            self._serving.retire(known)
            raise refusal(errno.ESTALE, node.name)
        data = bool(valid & protocol.FATTR_SIZE and size) or not self._serving.makes_shells
        if self._serving.is_slow(node, data=data):
            self._serving.after_copy_up(request, node, self.setattr, data=data)
            return None
        before = self._serving.tree.counters.copy_ups
        try:
            self._apply(known, request, valid)
        except (OSError, LayerMountError):
            self._serving.copied_up_since(before, node)
            raise
        if node.parent is not None:
            # The answer has the metadata of the node itself.
            self._serving.copied_up_since(before + 1, node.parent)
        return self._attributes(known)

    def _wanted(self, request: Request) -> tuple[int, int]:
        fields = protocol.SETATTR_IN.unpack_from(request.body)
        return fields[0], fields[3]

    def _apply(self, known: Known, request: Request, valid: int) -> None:
        """The order is the kernel's: an owner takes set-user-id away, a mode may bring it."""
        (_, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            protocol.SETATTR_IN.unpack_from(request.body)
        )
        target = self._serving.target(known)
        if valid & (protocol.FATTR_UID | protocol.FATTR_GID) or not valid & _CHANGES:
            # With nothing to change it is chown(2) of -1 and -1, which takes set-user-id away.
            target.chown(
                uid if valid & protocol.FATTR_UID else -1, gid if valid & protocol.FATTR_GID else -1
            )
        if valid & protocol.FATTR_MODE:
            target.chmod(stat.S_IMODE(mode))
        if valid & protocol.FATTR_SIZE:
            is_same = valid & protocol.FATTR_FH and self._serving.shown(known)[0].st_size == size
            target.truncate(size)
            if is_same:
                # Unlike truncate(2), ftruncate(2) sets the time of what has the size already.
                target.utimens(None, time.clock_gettime_ns(_COARSE))
        if valid & protocol.FATTR_KILL_SUIDGID and known.is_setid:
            self._serving.drop_setid(known)
        if valid & (protocol.FATTR_ATIME | protocol.FATTR_MTIME):
            accessed = _time(valid, _ATIME, atime, atime_ns)
            target.utimens(accessed, _time(valid, _MTIME, mtime, mtime_ns))

    # Extended attributes.

    def getxattr(self, request: Request) -> bytes:
        """One extended attribute, or its length."""
        limit, _ = protocol.GETXATTR_IN.unpack_from(request.body)
        key = replies.decoded(request.body[protocol.GETXATTR_IN.size : -1])
        value = self._serving.source(self._table[request.nodeid]).getxattr(key)
        return _limited(value, limit, key)

    def listxattr(self, request: Request) -> bytes:
        """The names of the extended attributes, or their length."""
        limit, _ = protocol.GETXATTR_IN.unpack_from(request.body)
        keys = self._serving.target(self._table[request.nodeid]).listxattr()
        if request.uid:
            # As the kernel's filesystems do: without the right to read them they are not told.
            keys = [key for key in keys if not key.startswith("trusted.")]
        return _limited(b"".join(os.fsencode(key) + b"\0" for key in keys), limit, "")

    def setxattr(self, request: Request) -> bytes | None:
        """Set one extended attribute."""
        longer = self._serving.extended_setxattr
        layout = protocol.SETXATTR_IN if longer else protocol.SETXATTR_IN_OLD
        size, flags, *extra = layout.unpack_from(request.body)
        key, _, rest = bytes(request.body[layout.size :]).partition(b"\0")
        known = self._table[request.nodeid]
        if self._serving.is_slow(known.node, data=not self._serving.makes_shells):
            self._serving.after_copy_up(request, known.node, self.setxattr, data=False)
            return None
        before = self._serving.tree.counters.copy_ups
        target = self._serving.target(known)
        try:
            target.setxattr(os.fsdecode(key), rest[:size], flags)
            if extra and extra[0] & protocol.SETXATTR_ACL_KILL_SGID:
                target.chmod(stat.S_IMODE(self._serving.shown(known)[0].st_mode) & ~stat.S_ISGID)
        finally:
            # Also what is refused may have copied up.
            self._serving.copied_up_since(before, known.node)
        return b""

    def removexattr(self, request: Request) -> bytes | None:
        """Remove one extended attribute."""
        key = replies.decoded(request.body[:-1])
        known = self._table[request.nodeid]
        if self._serving.is_slow(known.node, data=not self._serving.makes_shells):
            self._serving.after_copy_up(request, known.node, self.removexattr, data=False)
            return None
        before = self._serving.tree.counters.copy_ups
        try:
            self._serving.target(known).removexattr(key)
        finally:
            self._serving.copied_up_since(before, known.node)
        return b""

    # The filesystem.

    def statfs(self, _request: Request) -> bytes:
        """Space on the filesystem that takes the changes."""
        return replies.space(self._overlay.statfs())

    def syncfs(self, request: Request) -> None:
        """Everything on disk."""
        self._serving.wire.later(request, self._synced)

    def _synced(self, _request: Request) -> bytes:
        self._overlay.sync()
        return b""


def _time(valid: int, bits: tuple[int, int], seconds: int, nanoseconds: int) -> int | None:
    """A time as it is to be set; `bits` say in `valid` that it is, and that it is the present."""
    is_wanted, is_now = bits
    if not valid & is_wanted:
        return None
    if valid & is_now:
        # A finer clock would be ahead of what is written next.
        return time.clock_gettime_ns(_COARSE)
    return seconds * _SECOND + nanoseconds


def _limited(value: bytes, limit: int, key: str) -> bytes:
    answer = replies.sized(value, limit)
    if answer is None:
        raise refusal(errno.ERANGE, key)
    return answer
