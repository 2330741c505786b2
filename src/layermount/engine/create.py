"""New entries: the merged view decides whether the name is free, the upper gets the entry.

A name that a mark deletes is taken with one rename over the mark; a directory made there is opaque,
so that what was deleted stays deleted. Rules: N1 to N5.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from layermount.config import Capabilities
from layermount.engine.access import require_access
from layermount.engine.copyup import CopyUp
from layermount.engine.index import DirectoryIndex
from layermount.engine.node import DirectoryNode, Node, parent_of, upper_of
from layermount.engine.refusals import is_too_long, missing, refusal
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import EventKind
from layermount.layer.base import CHARACTER_DEVICE, DIRECTORY, FIFO, LINK, REGULAR, SOCKET

#: Makes an entry: directory descriptor and name.
Make = Callable[[int, str], None]


class Create:
    """Makes entries of every kind."""

    def __init__(self, tree: Tree, upper: Upper, copy_up: CopyUp, reports: Reports) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._reports = reports

    def file(self, parent: DirectoryNode, name: str, flags: int, mode: int) -> tuple[Node, int]:
        """A new regular file and its open descriptor, the caller's."""
        opened: list[int] = []
        flags = flags & ~os.O_TRUNC | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

        def make(dir_fd: int, new: str) -> None:
            opened.append(os.open(new, flags, mode, dir_fd=dir_fd))

        try:
            return self._make(parent, name, REGULAR, make), opened[0]
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise

    def directory(self, parent: DirectoryNode, name: str, mode: int) -> DirectoryNode:
        """A new directory."""
        node = self._make(parent, name, DIRECTORY, lambda fd, new: os.mkdir(new, mode, dir_fd=fd))
        assert isinstance(node, DirectoryNode)  # noqa: S101  DIRECTORY was asked for
        return node

    def symlink(self, parent: DirectoryNode, name: str, target: str) -> Node:
        """A new symbolic link to `target`."""
        return self._make(parent, name, LINK, lambda fd, new: os.symlink(target, new, dir_fd=fd))

    def special(self, parent: DirectoryNode, name: str, mode: int, device: int) -> Node:
        """A new fifo, socket, device or regular file: mknod(2).

        Raises:
            OSError: EPERM for a character device 0:0, which is the form of a whiteout.
        """
        self.require_free(parent, name)
        kind = mode >> 12 or REGULAR
        if kind == CHARACTER_DEVICE and device == 0:
            raise PermissionError(
                errno.EPERM, "a character device 0:0 is the form of a whiteout", name
            )
        if kind not in (REGULAR, FIFO, SOCKET) and not self._upper.can(Capabilities.DEVICE_NODES):
            raise PermissionError(errno.EPERM, "no right to make device nodes", name)
        return self._make(
            parent, name, kind, lambda fd, new: os.mknod(new, mode, device, dir_fd=fd)
        )

    def link(self, node: Node, parent: DirectoryNode, name: str) -> Node:
        """Another name for a file that is in the upper.

        Raises:
            OSError: EPERM for a directory, EMLINK.
        """
        source = upper_of(parent_of(node))

        def make(dir_fd: int, new: str) -> None:
            os.link(node.entry, new, src_dir_fd=source.fd, dst_dir_fd=dir_fd, follow_symlinks=False)

        linked = self._make(parent, name, node.kind, make, linked=True)
        linked.inode, linked.fresh, linked.whole = node.inode, node.fresh, node.whole
        node.data = None
        return linked

    def nameless(self, parent: DirectoryNode, flags: int, mode: int) -> tuple[Node, int]:
        """A new regular file without a name, in the filesystem's directory, and its descriptor.

        Its node is as if it had been removed.
        """
        if parent.removed:
            raise missing(parent.name)
        require_access(parent, os.W_OK | os.X_OK)
        self._copy_up.bring_up(parent)
        directory = upper_of(parent)
        flags = flags & ~(os.O_CREAT | os.O_TRUNC) | os.O_TMPFILE | os.O_CLOEXEC
        fd = os.open(".", flags, mode, dir_fd=directory.fd)
        status = os.fstat(fd)
        node = Node(parent, f"#{status.st_ino}", REGULAR)
        node.holder = directory
        node.inode = self._tree.inodes.number(status)
        node.fresh = node.whole = node.removed = True
        return node, fd

    def first_name(self, node: Node, fd: int, parent: DirectoryNode, name: str) -> None:
        """Give a file that `nameless` made, open as `fd`, a name.

        Raises:
            OSError: ENOENT when it was opened with O_EXCL, or has had a name and lost it.
        """

        def make(dir_fd: int, new: str) -> None:
            source = f"/proc/self/fd/{fd}"
            os.link(source, new, dst_dir_fd=dir_fd, follow_symlinks=True)

        self._land(parent, name, REGULAR, make, linked=True)
        node.parent, node.name, node.removed = parent, name, False
        node.holder, node.entry = upper_of(parent), name
        parent.children[name] = node

    def require_links(self) -> None:
        """Refuse hard links where there are none.

        Raises:
            OSError: EPERM.
        """
        if not self._upper.can(Capabilities.HARD_LINKS):
            raise PermissionError(errno.EPERM, "the upper has no hard links")

    def _make(
        self, parent: DirectoryNode, name: str, kind: int, make: Make, *, linked: bool = False
    ) -> Node:
        self._land(parent, name, kind, make, linked=linked)
        return self._tree.put_new(parent, name, kind)

    def _land(
        self, parent: DirectoryNode, name: str, kind: int, make: Make, *, linked: bool
    ) -> None:
        index = self.require_free(parent, name)
        require_access(parent, os.W_OK | os.X_OK)
        self._copy_up.bring_up(parent)
        directory = upper_of(parent)
        if name in index.whiteouts:
            self._over_whiteout(parent, name, kind, make, linked=linked)
        else:
            make(directory.fd, name)
            self._upper.note(directory)
        index.put_upper(name, kind)
        self._reports.note(EventKind.CREATED, parent, name)

    def require_free(self, parent: DirectoryNode, name: str) -> DirectoryIndex:
        """Refuse a name that cannot be made here; the directory's index if it can.

        Raises:
            OSError: EEXIST, ENAMETOOLONG, or ENOENT when the directory was removed.
        """
        if parent.removed:
            raise missing(name)
        check_name(name)
        index = self._tree.index(parent)
        if name in index or name in (".", ".."):
            raise refusal(errno.EEXIST, name)
        return index

    def _over_whiteout(
        self, parent: DirectoryNode, name: str, kind: int, make: Make, *, linked: bool
    ) -> None:
        work, directory = self._upper.work, upper_of(parent)
        with self._made_in_work(parent, make, linked=linked) as new:
            if kind == DIRECTORY:
                self._upper.set_record(work.fd, new, "opaque", b"y")
                self._upper.exchange(new, directory, name)
            else:
                self._upper.replace(new, directory, name)

    @contextlib.contextmanager
    def _made_in_work(self, parent: DirectoryNode, make: Make, *, linked: bool) -> Iterator[str]:
        """The new entry as a work file, with what it inherits from the directory it is for."""
        work, directory = self._upper.work, upper_of(parent)
        new = work.name()
        if linked or not self._upper.inherits(directory):
            with work.discarding(new):
                make(work.fd, new)
                yield new
            return
        mirror = self._upper.mirror(directory)
        try:
            fd = os.open(mirror, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work.fd)
            try:
                make(fd, new)
                os.rename(new, new, src_dir_fd=fd, dst_dir_fd=work.fd)
            finally:
                os.close(fd)
            with work.discarding(new):
                yield new
        finally:
            work.drop(mirror)


def check_name(name: str) -> None:
    """Refuse what is no single name.

    Raises:
        OSError: ENOENT for an empty name, EINVAL for one with a slash, ENAMETOOLONG over 255 bytes.
    """
    if not name:
        raise refusal(errno.ENOENT, name)
    if "/" in name:
        raise refusal(errno.EINVAL, name)
    if is_too_long(name):
        raise missing(name)
