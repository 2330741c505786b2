"""The same operations, by path, on the engine, on a plain directory, and on the kernel's overlayfs.

An operation returns what can be compared or raises `OSError`; `attempt` makes a value of both. What
differs by design between the three is not decided here but by who compares.

Paths have no leading slash, "." is the root. Links on the way are followed, a link at the end is
not, except by `truncate`, as the system calls have it. Links must lead to relative targets without
"..", so that none leads out of a plain directory.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layermount.config import LayerMountConfig
from layermount.engine.handles import Handle
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.layer.base import LINK
from layermount.linux import files, mounts
from layermount.testing.trees import PathView, View

_MOST_LINKS = 40
_NO_WAIT = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
#: More than any test writes: a device may have no end.
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that raised `OSError` with this errno."""

    number: int

    def __repr__(self) -> str:
        return f"Failure({errno.errorcode.get(self.number, self.number)})"


def attempt(operation: Callable[..., object], *arguments: object) -> object:
    """What the operation returns, or the `Failure` it ends in."""
    try:
        return operation(*arguments)
    except OSError as error:
        if error.errno is None:
            raise
        return Failure(error.errno)


class Target(View, Protocol):
    """A tree that can be changed. Open files are kept under a number that the caller chooses."""

    def create(self, path: str, mode: int, data: bytes) -> None:
        """A new file with O_EXCL."""

    def write(self, path: str, data: bytes, offset: int) -> int:
        """Open for writing, write at `offset`, close."""

    def append(self, path: str, data: bytes) -> int:
        """Open with O_APPEND, write, close."""

    def overwrite(self, path: str, data: bytes) -> int:
        """Open with O_TRUNC, write, close."""

    def truncate(self, path: str, size: int) -> None:
        """truncate(2); a link at the end is followed."""

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""

    def symlink(self, path: str, target: str) -> None:
        """symlink(2)."""

    def link(self, path: str, new: str) -> None:
        """link(2)."""

    def mknod(self, path: str, mode: int, device: int) -> None:
        """mknod(2)."""

    def unlink(self, path: str) -> None:
        """unlink(2)."""

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""

    def rename(self, path: str, new: str, flags: int) -> None:
        """renameat2(2)."""

    def chmod(self, path: str, mode: int) -> None:
        """fchmodat(2) with AT_SYMLINK_NOFOLLOW."""

    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2)."""

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2) with AT_SYMLINK_NOFOLLOW."""

    def setxattr(self, path: str, key: str, value: bytes, flags: int) -> None:
        """lsetxattr(2)."""

    def removexattr(self, path: str, key: str) -> None:
        """lremovexattr(2)."""

    def open_file(self, number: int, path: str, flags: int) -> None:
        """Open a file and keep it open."""

    def read_file(self, number: int, size: int, offset: int) -> bytes:
        """pread(2) on an open file."""

    def write_file(self, number: int, data: bytes, offset: int) -> int:
        """pwrite(2) on an open file."""

    def truncate_file(self, number: int, size: int) -> None:
        """ftruncate(2) on an open file."""

    def close_file(self, number: int) -> None:
        """Close an open file."""

    def close(self) -> None:
        """Close everything that is open."""


class DirectoryTarget(PathView):
    """A directory of this machine, or a mount, by the system calls themselves."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._open: dict[int, int] = {}

    def read(self, path: str) -> bytes:
        """The bytes of what can be opened for reading."""
        fd = os.open(self.at(path), os.O_RDONLY | _NO_WAIT)
        try:
            return os.pread(fd, _MOST_BYTES, 0)
        finally:
            os.close(fd)

    def create(self, path: str, mode: int, data: bytes) -> None:
        """A new file with O_EXCL."""
        fd = os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_WAIT, mode)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def write(self, path: str, data: bytes, offset: int) -> int:
        """Open for writing, write at `offset`, close."""
        return self._write(path, os.O_WRONLY, data, offset)

    def append(self, path: str, data: bytes) -> int:
        """Open with O_APPEND, write, close."""
        return self._write(path, os.O_WRONLY | os.O_APPEND, data, 0)

    def overwrite(self, path: str, data: bytes) -> int:
        """Open with O_TRUNC, write, close."""
        return self._write(path, os.O_RDWR | os.O_TRUNC, data, 0)

    def _write(self, path: str, flags: int, data: bytes, offset: int) -> int:
        fd = os.open(self.at(path), flags | _NO_WAIT)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""
        os.truncate(self.at(path), size)

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""
        os.mkdir(self.at(path), mode)

    def symlink(self, path: str, target: str) -> None:
        """symlink(2)."""
        os.symlink(target, self.at(path))

    def link(self, path: str, new: str) -> None:
        """link(2)."""
        os.link(self.at(path), self.at(new), follow_symlinks=False)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """mknod(2)."""
        os.mknod(self.at(path), mode, device)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        os.unlink(self.at(path))

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        os.rmdir(self.at(path))

    def rename(self, path: str, new: str, flags: int) -> None:
        """renameat2(2)."""
        files.renameat2(mounts.AT_FDCWD, self.at(path), mounts.AT_FDCWD, self.at(new), flags)

    def chmod(self, path: str, mode: int) -> None:
        """fchmodat(2) with AT_SYMLINK_NOFOLLOW, by way of a path descriptor."""
        fd = os.open(self.at(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2)."""
        os.lchown(self.at(path), uid, gid)

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2) with AT_SYMLINK_NOFOLLOW."""
        os.utime(self.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: str, key: str, value: bytes, flags: int) -> None:
        """lsetxattr(2)."""
        os.setxattr(self.at(path), key, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, key: str) -> None:
        """lremovexattr(2)."""
        os.removexattr(self.at(path), key, follow_symlinks=False)

    def open_file(self, number: int, path: str, flags: int) -> None:
        """Open a file and keep it open."""
        self._open[number] = os.open(self.at(path), flags | _NO_WAIT)

    def read_file(self, number: int, size: int, offset: int) -> bytes:
        """pread(2) on an open file."""
        return os.pread(self._open[number], size, offset)

    def write_file(self, number: int, data: bytes, offset: int) -> int:
        """pwrite(2) on an open file."""
        return os.pwrite(self._open[number], data, offset)

    def truncate_file(self, number: int, size: int) -> None:
        """ftruncate(2) on an open file."""
        os.ftruncate(self._open[number], size)

    def close_file(self, number: int) -> None:
        """Close an open file."""
        os.close(self._open.pop(number))

    def close(self) -> None:
        """Close everything that is open."""
        for number in tuple(self._open):
            self.close_file(number)


class KernelTarget(DirectoryTarget):
    """The kernel's overlayfs, mounted on `root`; needs the right to mount."""

    def __init__(
        self, root: Path, upper: Path, work: Path, lowers: Sequence[Path], *options: str
    ) -> None:
        """Mount.

        Args:
            root: The mount point, made when missing, as are `upper` and `work`.
            upper: The upper; its path and the others must be without commas and colons.
            work: The work directory.
            lowers: The lowers, nearest first.
            options: As mount(8) takes them, such as "metacopy=on".

        Raises:
            OSError: As mount(2).
        """
        super().__init__(root)
        for path in (root, upper, work):
            path.mkdir(parents=True, exist_ok=True)
        layers = ":".join(map(str, lowers))
        data = [f"lowerdir={layers}", f"upperdir={upper}", f"workdir={work}", *options]
        mounts.mount("overlay", str(root), "overlay", 0, ",".join(data))

    def close(self) -> None:
        """Close everything that is open, and unmount."""
        super().close()
        mounts.umount2(str(self.root))


class EngineTarget:
    """The engine by its nodes; paths are walked here, name by name."""

    def __init__(self, config: LayerMountConfig) -> None:
        self.overlay = Overlay(config)
        self._open: dict[int, Handle] = {}

    def _node(self, path: str, *, follow: bool = False) -> Node:
        node: Node = self.overlay.root
        names, links = deque(path.split("/")), 0
        while names:
            name = names.popleft()
            if not isinstance(node, DirectoryNode):
                raise _error(errno.ENOTDIR, path)
            child = self.overlay.lookup(node, name)
            if child.kind != LINK or not (names or follow):
                node = child
                continue
            links += 1
            if links > _MOST_LINKS:
                raise _error(errno.ELOOP, path)
            names.extendleft(reversed(self.overlay.readlink(child).split("/")))
        return node

    def _place(self, path: str) -> tuple[DirectoryNode, str]:
        above, _, name = path.rpartition("/")
        node = self._node(above or ".", follow=True)
        if not isinstance(node, DirectoryNode):
            raise _error(errno.ENOTDIR, path)
        return node, name

    def copy_up(self, path: str) -> None:
        """Bring the entry into the upper; nothing else has such an operation."""
        self.overlay.copy_up(self._node(path))

    def listdir(self, path: str) -> list[tuple[str, int]]:
        """Every entry as (name, kind)."""
        node = self._node(path, follow=True)
        if not isinstance(node, DirectoryNode):
            raise _error(errno.ENOTDIR, path)
        return self.overlay.listdir(node)

    def stat(self, path: str) -> os.stat_result:
        """The entry's metadata."""
        return self.overlay.getattr(self._node(path))

    def readlink(self, path: str) -> str:
        """A symbolic link's target."""
        return self.overlay.readlink(self._node(path))

    def read(self, path: str) -> bytes:
        """The bytes of what can be opened for reading."""
        node = self._node(path)
        if isinstance(node, DirectoryNode):
            raise _error(errno.EISDIR, path)
        handle = self.overlay.open(node, os.O_RDONLY | _NO_WAIT)
        try:
            return handle.read(_MOST_BYTES, 0)
        finally:
            handle.close()

    def listxattr(self, path: str) -> list[str]:
        """The names of the extended attributes."""
        return self.overlay.listxattr(self._node(path))

    def getxattr(self, path: str, key: str) -> bytes:
        """One extended attribute."""
        return self.overlay.getxattr(self._node(path), key)

    def create(self, path: str, mode: int, data: bytes) -> None:
        """A new file with O_EXCL."""
        parent, name = self._place(path)
        _, handle = self.overlay.create(parent, name, os.O_RDWR, mode)
        try:
            handle.write(data, 0)
        finally:
            handle.close()

    def write(self, path: str, data: bytes, offset: int) -> int:
        """Open for writing, write at `offset`, close."""
        return self._write(path, os.O_WRONLY, data, offset)

    def append(self, path: str, data: bytes) -> int:
        """Open with O_APPEND, write, close."""
        return self._write(path, os.O_WRONLY | os.O_APPEND, data, 0)

    def overwrite(self, path: str, data: bytes) -> int:
        """Open with O_TRUNC, write, close."""
        return self._write(path, os.O_RDWR | os.O_TRUNC, data, 0)

    def _write(self, path: str, flags: int, data: bytes, offset: int) -> int:
        handle = self.overlay.open(self._node(path), flags | _NO_WAIT)
        try:
            return handle.write(data, offset)
        finally:
            handle.close()

    def truncate(self, path: str, size: int) -> None:
        """truncate(2), which looks at the size before the path."""
        if size < 0:
            raise _error(errno.EINVAL, path)
        self.overlay.truncate(self._node(path, follow=True), size)

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""
        self.overlay.mkdir(*self._place(path), mode)

    def symlink(self, path: str, target: str) -> None:
        """symlink(2)."""
        self.overlay.symlink(*self._place(path), target)

    def link(self, path: str, new: str) -> None:
        """link(2)."""
        self.overlay.link(self._node(path), *self._place(new))

    def mknod(self, path: str, mode: int, device: int) -> None:
        """mknod(2)."""
        self.overlay.mknod(*self._place(path), mode, device)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        self.overlay.unlink(*self._place(path))

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self.overlay.rmdir(*self._place(path))

    def rename(self, path: str, new: str, flags: int) -> None:
        """renameat2(2), which looks at the flags before the paths."""
        if flags & files.RENAME_NOREPLACE and flags & files.RENAME_EXCHANGE:
            raise _error(errno.EINVAL, path)
        self.overlay.rename(*self._place(path), *self._place(new), flags)

    def chmod(self, path: str, mode: int) -> None:
        """fchmodat(2) with AT_SYMLINK_NOFOLLOW."""
        self.overlay.chmod(self._node(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2)."""
        self.overlay.chown(self._node(path), uid, gid)

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2) with AT_SYMLINK_NOFOLLOW."""
        self.overlay.utimens(self._node(path), atime_ns, mtime_ns)

    def setxattr(self, path: str, key: str, value: bytes, flags: int) -> None:
        """lsetxattr(2)."""
        self.overlay.setxattr(self._node(path), key, value, flags)

    def removexattr(self, path: str, key: str) -> None:
        """lremovexattr(2)."""
        self.overlay.removexattr(self._node(path), key)

    def open_file(self, number: int, path: str, flags: int) -> None:
        """Open a file and keep it open."""
        self._open[number] = self.overlay.open(self._node(path), flags | _NO_WAIT)

    def read_file(self, number: int, size: int, offset: int) -> bytes:
        """pread(2) on an open file."""
        return self._open[number].read(size, offset)

    def write_file(self, number: int, data: bytes, offset: int) -> int:
        """pwrite(2) on an open file."""
        return self._open[number].write(data, offset)

    def truncate_file(self, number: int, size: int) -> None:
        """ftruncate(2) on an open file."""
        self._open[number].truncate(size)

    def close_file(self, number: int) -> None:
        """Close an open file."""
        self._open.pop(number).close()

    def close(self) -> None:
        """Close everything that is open, and the overlay."""
        self._open.clear()
        self.overlay.close()


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
