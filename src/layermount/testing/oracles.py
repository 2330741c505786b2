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

    __slots__ = ("_open",)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        object.__setattr__(self, "_open", {})

    _open: dict[int, int]
