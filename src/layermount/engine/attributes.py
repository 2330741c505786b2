"""Metadata: mode, owner, times, size, extended attributes and ACLs. Rules: A1 to A4.

Reading goes to the layer that answers. A change brings the entry up first, without its data where
the size does not change.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from layermount.engine.access import require_access, require_owner
from layermount.engine.copyup import CopyUp
from layermount.engine.node import Node, place
from layermount.engine.refusals import refusal
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.layer import copy
from layermount.layer.base import DIRECTORY, LINK, REGULAR
from layermount.linux import file_flags, xattrs


@contextlib.contextmanager
def opened_for_flags(node: Node) -> Iterator[int]:
    """A descriptor of a node's own file, for calls that know files by descriptor alone.

    Raises:
        OSError: ENOTTY for what is neither file nor directory, and must not be opened.
    """
    directory, name = place(node)
    if node.kind not in (REGULAR, DIRECTORY) or directory.fd is None:
        raise refusal(errno.ENOTTY, node.name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory.fd)
    try:
        yield fd
    finally:
        os.close(fd)


class Attributes:
    """Changes metadata."""

    def __init__(self, tree: Tree, upper: Upper, copy_up: CopyUp) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up

    def _physical(self, node: Node) -> tuple[int, str]:
        """The entry in the upper, for a call that changes it."""
        directory, name = place(node)
        fd = directory.fd
        if fd is None:
            raise refusal(errno.EROFS, node.path)
        return fd, name

    def chmod(self, node: Node, mode: int) -> None:
        """Set the mode's twelve low bits; a link has none of its own (EOPNOTSUPP)."""
        if node.kind == LINK:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), node.name)
        with self._tree.lock:
            require_owner(node)
        if self._copy_up.bring_up(node, data=False, mode=mode & 0o7777):
            return
        with self._tree.lock:
            fd, name = self._physical(node)
            copy.chmod(fd, name, mode & 0o7777)
            self._upper.work.sync_entry(fd)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Set the owner and the group; -1 leaves one as it is."""
        self._copy_up.bring_up(node, data=False)
        with self._tree.lock:
            fd, name = self._physical(node)
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)

    def utimens(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set access and modification time; None leaves one as it is."""
        with self._tree.lock:
            require_owner(node)
        self._copy_up.bring_up(node, data=False)
        with self._tree.lock:
            fd, name = self._physical(node)
            if atime_ns is None or mtime_ns is None:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                atime_ns = status.st_atime_ns if atime_ns is None else atime_ns
                mtime_ns = status.st_mtime_ns if mtime_ns is None else mtime_ns
            os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def truncate(self, node: Node, size: int) -> None:
        """Set a regular file's size; only the data that stays is copied up.

        Raises:
            OSError: EISDIR for a directory, EINVAL for another kind or a negative size, EACCES,
                EFBIG.
        """
        if size < 0:
            raise refusal(errno.EINVAL, node.name)
        if node.kind != REGULAR:
            number = errno.EISDIR if node.kind == DIRECTORY else errno.EINVAL
            raise refusal(number, node.name)
        with self._tree.lock:
            require_access(node, os.W_OK)
        if self._copy_up.bring_up(node, size=size):
            return
        with self._tree.lock:
            fd, name = self._physical(node)
            target = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            # By its path: unlike ftruncate(2) this leaves the time of what has the size already.
            os.truncate(f"/proc/self/fd/{target}", size)
        finally:
            os.close(target)

    def set_flags(self, node: Node, flags: int) -> None:
        """Set the FS_*_FL flags; a file comes up with its data, for they are its inode's.

        Raises:
            OSError: EOPNOTSUPP for what would stop the engine itself from changing the upper.
        """
        if flags & (file_flags.FS_IMMUTABLE_FL | file_flags.FS_APPEND_FL):
            raise refusal(errno.EOPNOTSUPP, node.name)
        if node.kind not in (REGULAR, DIRECTORY):
            raise refusal(errno.ENOTTY, node.name)
        self._copy_up.bring_up(node)
        with self._tree.lock, opened_for_flags(node) as fd:
            file_flags.set_flags(fd, flags)

    def setxattr(self, node: Node, key: str, value: bytes, flags: int = 0) -> None:
        """Set one attribute; POSIX ACLs are `system.posix_acl_access` and `…_default`.

        The entry comes up before `flags` are looked at, as in the kernel.

        Raises:
            OSError: EEXIST under XATTR_CREATE, ENODATA under XATTR_REPLACE, EOPNOTSUPP, EPERM,
                ENOSPC.
        """
        _require_settable(node, key)
        if key == copy.ACL_DEFAULT and node.kind != DIRECTORY:
            raise refusal(errno.EACCES, node.name)
        self._copy_up.bring_up(node, data=False)
        with self._tree.lock:
            fd, name = self._physical(node)
            xattrs.setxattr(fd, name, self._upper.marks.to_disk(key), value, flags)

    def removexattr(self, node: Node, key: str) -> None:
        """Remove one attribute.

        Raises:
            OSError: ENODATA when it is absent.
        """
        _require_settable(node, key)
        if key == copy.ACL_DEFAULT and node.kind != DIRECTORY:
            return
        with self._tree.lock:
            directory, name = place(node)
            # An ACL that is absent may be removed from a file of the upper, and of the upper only.
            is_acl = key in (copy.ACL_ACCESS, copy.ACL_DEFAULT)
            if not (is_acl and node.in_upper) and key not in directory.listxattr(name):
                directory.getxattr(name, key)
        self._copy_up.bring_up(node, data=False)
        with self._tree.lock:
            fd, name = self._physical(node)
            xattrs.removexattr(fd, name, self._upper.marks.to_disk(key))


def _require_settable(node: Node, key: str) -> None:
    """Refuse what no entry of this kind can have, before it is copied up.

    Raises:
        OSError: EPERM for `user.*` of what is neither file nor directory, EOPNOTSUPP for a link's
            ACL.
    """
    if key.startswith("user.") and node.kind not in (REGULAR, DIRECTORY):
        raise refusal(errno.EPERM, node.name)
    if key in (copy.ACL_ACCESS, copy.ACL_DEFAULT) and node.kind == LINK:
        raise refusal(errno.EOPNOTSUPP, node.name)
