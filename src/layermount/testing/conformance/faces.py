"""The operations that a case has on a merged tree, on a mount and in process.

`oracles.Target` and what a case needs besides: descriptors, access(2), statfs(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from layermount.engine.file import LayerMountFile
from layermount.engine.pathops import PathOperations
from layermount.engine.paths import get_directory, naming
from layermount.testing.oracles import DirectoryTarget, Target

_NO_WAIT = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
#: As much as `oracles.DirectoryTarget` reads.
_MOST_BYTES = 1 << 20


class Face(Target, Protocol):
    """A merged tree by paths from its root. Each method raises `OSError` as the system call does.

    A link at the end of a path is followed by `open`, `truncate` and `access` alone.
    """

    def open(self, path: str, flags: int, mode: int = 0o666) -> AbstractContextManager[int]:
        """A descriptor as long as the context lasts, by open(2) flags."""

    def access(self, path: str, mode: int) -> bool:
        """Whether access(2) allows it: os.R_OK, os.W_OK, os.X_OK, os.F_OK."""

    def statfs(self) -> os.statvfs_result:
        """Space and limits."""


class MountedFace(DirectoryTarget):
    """A mount, by the system calls themselves."""

    @contextmanager
    def open(self, path: str, flags: int, mode: int = 0o666) -> Iterator[int]:
        """A descriptor as long as the context lasts."""
        fd = os.open(self.at(path), flags | os.O_CLOEXEC, mode)
        try:
            yield fd
        finally:
            # A case may have closed it.
            with contextlib.suppress(OSError):
                os.close(fd)

    def access(self, path: str, mode: int) -> bool:
        """Whether access(2) allows it, for the effective user."""
        return os.access(self.at(path), mode, effective_ids=True)

    def statfs(self) -> os.statvfs_result:
        """Space and limits."""
        return os.statvfs(self.at("."))


class InProcessFace:
    """An overlay in this process, by what `LayerMount` offers.

    What is done with a descriptor is done with the file in its layer: a case that changes more than
    data by one needs PATHS.
    """

    def __init__(self, operations: PathOperations) -> None:
        self.operations = operations
        self._open: dict[int, LayerMountFile] = {}

    @contextmanager
    def open(self, path: str, flags: int, mode: int = 0o666) -> Iterator[int]:
        """A descriptor as long as the context lasts."""
        with self.operations.open_file(path, flags, mode) as file:
            yield file.fileno()

    def access(self, path: str, mode: int) -> bool:
        """Whether the caller may."""
        return self.operations.access(path, mode)

    def statfs(self) -> os.statvfs_result:
        """Space and limits."""
        return self.operations.overlay.statfs()

    def listdir(self, path: str) -> list[tuple[str, int]]:
        """Every entry as (name, kind)."""
        with naming(path):
            overlay = self.operations.overlay
            return overlay.listdir(get_directory(overlay, path))

    def stat(self, path: str) -> os.stat_result:
        """The entry's metadata."""
        return self.operations.lstat(path)

    def readlink(self, path: str) -> str:
        """A symbolic link's target."""
        return self.operations.readlink(path)

    def read(self, path: str) -> bytes:
        """The bytes of what can be opened for reading."""
        with self.operations.open_file(path, os.O_RDONLY | _NO_WAIT) as file:
            return file.pread(_MOST_BYTES, 0) if file.seekable() else b""

    def listxattr(self, path: str) -> list[str]:
        """The names of the extended attributes."""
        return self.operations.listxattr(path, follow_symlinks=False)

    def getxattr(self, path: str, key: str) -> bytes:
        """One extended attribute."""
        return self.operations.getxattr(path, key, follow_symlinks=False)

    def create(self, path: str, mode: int, data: bytes) -> None:
        """A new file with O_EXCL."""
        with self.operations.create_file(path, mode) as file:
            file.pwrite(data, 0)

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
        with self.operations.open_file(path, flags | _NO_WAIT) as file:
            return file.pwrite(data, offset)

    def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""
        self.operations.truncate(path, size)

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""
        self.operations.mkdir(path, mode)

    def symlink(self, path: str, target: str) -> None:
        """symlink(2)."""
        self.operations.symlink(target, path)

    def link(self, path: str, new: str) -> None:
        """link(2)."""
        self.operations.link(path, new)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """mknod(2)."""
        self.operations.mknod(path, mode, device)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        self.operations.unlink(path)

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self.operations.rmdir(path)

    def rename(self, path: str, new: str, flags: int) -> None:
        """renameat2(2)."""
        self.operations.rename(path, new, flags=flags)

    def chmod(self, path: str, mode: int) -> None:
        """fchmodat(2) with AT_SYMLINK_NOFOLLOW."""
        self.operations.chmod(path, mode, follow_symlinks=False)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2)."""
        self.operations.chown(path, uid, gid, follow_symlinks=False)

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2) with AT_SYMLINK_NOFOLLOW."""
        self.operations.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: str, key: str, value: bytes, flags: int = 0) -> None:
        """lsetxattr(2)."""
        self.operations.setxattr(path, key, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, key: str) -> None:
        """lremovexattr(2)."""
        self.operations.removexattr(path, key, follow_symlinks=False)

    def open_file(self, number: int, path: str, flags: int) -> None:
        """Open a file and keep it open."""
        self._open[number] = self.operations.open_file(path, flags | _NO_WAIT)

    def read_file(self, number: int, size: int, offset: int) -> bytes:
        """pread(2) on an open file."""
        return self._open[number].pread(size, offset)

    def write_file(self, number: int, data: bytes, offset: int) -> int:
        """pwrite(2) on an open file."""
        return self._open[number].pwrite(data, offset)

    def truncate_file(self, number: int, size: int) -> None:
        """ftruncate(2) on an open file."""
        self._open[number].truncate(size)

    def close_file(self, number: int) -> None:
        """Close an open file."""
        self._open.pop(number).close()

    def close(self) -> None:
        """Close everything that is open, and the overlay."""
        for number in tuple(self._open):
            self.close_file(number)
        self.operations.overlay.close()
