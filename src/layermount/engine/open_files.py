"""What ends in an open file. What that can do is in `handles.py`. Rules: H1, H2, N1, N6."""

from __future__ import annotations

import errno
import os

from layermount.engine.access import require_access
from layermount.engine.core import OverlayCore
from layermount.engine.handles import Handle
from layermount.engine.node import DirectoryNode, Node, place
from layermount.engine.refusals import missing, refusal
from layermount.events import Operation
from layermount.layer.base import LINK, REGULAR

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_MAKING = os.O_CREAT | os.O_EXCL


class OpenFiles(OverlayCore):
    """The operations that end in an open file."""

    def open(self, node: Node, flags: int) -> Handle:
        """An open file. What is opened for writing is in the upper from then on.

        A file opened for reading follows its copy-up: later reads see what others write.

        Args:
            node: No directory; a link is not followed (ELOOP).
            flags: As open(2); O_CREAT belongs to `create`.
        """
        writes = flags & _ACCESS != os.O_RDONLY or bool(flags & os.O_TRUNC)
        self._ask(Operation.WRITE if writes else Operation.OPEN, node)
        if node.kind != REGULAR:
            return self._open_other(node, flags, writes=writes)
        with self._looking:
            self._check_access(node, flags, writes=writes)
            if not writes or self._is_up(node):
                return self._open_regular(node, flags)
        with self._changing_in_steps as writers:
            writers.copy_up.bring_up(node, size=0 if flags & os.O_TRUNC else None)
        with self._looking:
            return self._open_regular(node, flags)

    def _is_up(self, node: Node) -> bool:
        return self._writers is not None and self._writers.copy_up.is_up(node)

    def _check_access(self, node: Node, flags: int, *, writes: bool) -> None:
        if writes and self.upper is None:
            raise refusal(errno.EROFS, node.name)
        wanted = os.W_OK if writes else 0
        if flags & _ACCESS != os.O_WRONLY:
            wanted |= os.R_OK
        require_access(node, wanted)

    def _open_regular(self, node: Node, flags: int) -> Handle:
        if node.removed:
            raise missing(node.name)
        depth, directory, name = self.tree.data_of(node)
        if depth:
            handle = self._handles.add(node, directory.open(name), flags, directory)
            self.tree.followers.of(node).add(handle)
            return handle
        flags = flags & ~_MAKING | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._handles.add(node, os.open(name, flags, dir_fd=directory.fd), flags)

    def _open_other(self, node: Node, flags: int, *, writes: bool) -> Handle:
        """A fifo waits for its other end: outside the lock, through a descriptor of its own."""
        if isinstance(node, DirectoryNode):
            raise refusal(errno.EISDIR if writes else errno.EINVAL, node.name)
        if node.kind == LINK:
            raise refusal(errno.ELOOP, node.name)
        with self._looking:
            directory, name = place(node)
            if directory.fd is None:
                # What a virtual layer has is no fifo and no device that anybody could open.
                raise refusal(errno.ENXIO, node.name)
            lower = None if node.in_upper else directory
            path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            kept = flags & ~(_MAKING | os.O_TRUNC | os.O_NOFOLLOW)
            fd = os.open(f"/proc/self/fd/{path_fd}", kept | os.O_CLOEXEC)
        finally:
            os.close(path_fd)
        return self._handles.add(node, fd, flags, lower)

    def create(
        self, parent: DirectoryNode, name: str, flags: int = os.O_RDWR, mode: int = 0o666
    ) -> tuple[Node, Handle]:
        """A new regular file, open.

        Raises:
            OSError: EEXIST whatever layer has the name, ENAMETOOLONG, EACCES, ENOSPC, EROFS.
        """
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            node, fd = writers.create.file(parent, name, flags, mode)
            return node, self._handles.add(node, fd, flags)

    def tmpfile(
        self, parent: DirectoryNode, flags: int = os.O_RDWR, mode: int = 0o600
    ) -> tuple[Node, Handle]:
        """A new regular file without a name, open: O_TMPFILE of open(2).

        `link_handle` gives it one, unless O_EXCL is in `flags`. Its node counts as removed until
        then; the file ends with the handle. The parent comes up.

        Raises:
            OSError: EINVAL when not opened for writing; EOPNOTSUPP when the upper's filesystem has
                no such files; ENOENT, EACCES, ENOSPC, EROFS.
        """
        self._ask(Operation.CREATE, parent)
        with self._changing as writers:
            node, fd = writers.create.nameless(parent, flags, mode)
            return node, self._handles.add(node, fd, flags)
