"""Metadata: mode, owner, times, size, extended attributes and ACLs. Rules: A1 to A4.

Reading goes to the layer that answers. A change brings the entry up first, without its data where
the size does not change.
"""

from __future__ import annotations

import errno
import os

from layermount.engine.access import require_access, require_owner
from layermount.engine.copyup import CopyUp
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import missing, refusal
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.layer import copy
from layermount.layer.base import DIRECTORY, LINK, REGULAR, Directory
from layermount.linux import xattrs


def place(node: Node) -> tuple[Directory, str]:
    """Where an entry's own metadata is: the layer's directory and the name in it.

    Raises:
        OSError: ENOENT when the entry was removed.
    """
    if node.removed:
        raise missing(node.name)
    if isinstance(node, DirectoryNode):
        return node.top, "."
    return node.holder, node.entry


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
            require_owner(self._tree.getattr(node))
        self._copy_up.bring_up(node, data=False)
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
            require_owner(self._tree.getattr(node))
        self._copy_up.bring_up(node, data=False)
        with self._tree.lock:
            fd, name = self._physical(node)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            times = (
                status.st_atime_ns if atime_ns is None else atime_ns,
                status.st_mtime_ns if mtime_ns is None else mtime_ns,
            )
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

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
