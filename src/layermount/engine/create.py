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
from layermount.engine.node import DirectoryNode, Node, parent_of, upper_of
from layermount.engine.refusals import missing, refusal
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import Event, EventKind
from layermount.layer.base import CHARACTER_DEVICE, DIRECTORY, FIFO, LINK, REGULAR, SOCKET

#: Makes an entry: directory descriptor and name.
Make = Callable[[int, str], None]


class Create:
    """Makes entries of every kind."""

    def __init__(
        self, tree: Tree, upper: Upper, copy_up: CopyUp, emit: Callable[[Event], None]
    ) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._emit = emit

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
        linked.inode = node.inode
        return linked

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
        self.require_free(parent, name)
        require_access(parent, os.W_OK | os.X_OK)
        self._copy_up.bring_up(parent)
        directory = upper_of(parent)
        if name in self._tree.index(parent).whiteouts:
            self._over_whiteout(parent, name, kind, make, linked=linked)
        else:
            make(directory.fd, name)
            self._upper.note(directory)
        if parent.index is not None:
            parent.index.put_upper(name, kind)
        self._emit(Event(EventKind.CREATED, f"{parent.path}/{name}".removeprefix("/")))
        return self._tree.get(parent, name)

    def require_free(self, parent: DirectoryNode, name: str) -> None:
        """Refuse a name that cannot be made here.

        Raises:
            OSError: EEXIST, ENAMETOOLONG, or ENOENT when the directory was removed.
        """
        if parent.removed:
            raise missing(name)
        check_name(name)
        if name in (".", "..") or name in self._tree.index(parent):
            raise refusal(errno.EEXIST, name)

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
    if len(os.fsencode(name)) > 255:
        raise missing(name)
