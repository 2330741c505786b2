"""The metadata of an open file by its descriptor: also of one that has no name. Rules: A2, H5.

What has a name is reached by it, in `attributes.py`, and comes up before it is changed.
"""

from __future__ import annotations

import errno
import os
import threading

from layermount.engine.refusals import refusal
from layermount.errors import ClosedError
from layermount.layer.marks import Marks


class OpenAttributes:
    """An open file's metadata.

    Attributes:
        in_upper: Whether the descriptor is the upper's file. It is not while the data is a lower's,
            that of a metadata-only copy included.
    """

    __slots__ = ("_fd", "_lock", "_marks", "in_upper")

    def __init__(self, fd: int, marks: Marks, *, in_upper: bool) -> None:
        """Take `fd` over; `marks` is the dialect of the layer it is of."""
        self._fd: int | None = fd
        self._lock = threading.Lock()
        self._marks = marks
        self.in_upper = in_upper

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._fd is None

    def fileno(self) -> int:
        """The borrowed descriptor; its number stays the same as long as the file is open.

        Raises:
            ClosedError: The file is closed.
        """
        if self._fd is None:
            raise ClosedError("the file is closed")
        return self._fd

    def _changeable(self) -> int:
        """The descriptor, for a change of metadata."""
        fd = self.fileno()
        if not self.in_upper:
            raise refusal(errno.EROFS)
        return fd

    def fstat(self) -> os.stat_result:
        """The file's own metadata, as its layer has it, also when it has no name any more."""
        with self._lock:
            return os.fstat(self.fileno())

    def chmod(self, mode: int) -> None:
        """Set the mode's twelve low bits: fchmod(2).

        Raises:
            OSError: EPERM, and EROFS for what is not in the upper, as every change here.
        """
        with self._lock:
            os.fchmod(self._changeable(), mode & 0o7777)

    def chown(self, uid: int, gid: int) -> None:
        """Set the owner and the group, -1 leaves one as it is: fchown(2)."""
        with self._lock:
            os.fchown(self._changeable(), uid, gid)

    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set access and modification time, None leaves one as it is: futimens(3)."""
        with self._lock:
            fd = self._changeable()
            status = os.fstat(fd)
            times = (
                status.st_atime_ns if atime_ns is None else atime_ns,
                status.st_mtime_ns if mtime_ns is None else mtime_ns,
            )
            os.utime(fd, ns=times)

    def getxattr(self, key: str) -> bytes:
        """One extended attribute.

        Raises:
            OSError: ENODATA when it is absent, EOPNOTSUPP when there can be no such attribute.
        """
        with self._lock:
            return os.getxattr(self.fileno(), self._marks.to_disk(key))

    def listxattr(self) -> list[str]:
        """The names of the extended attributes; the layer's own marks are not among them."""
        with self._lock:
            fd = self.fileno()
            try:
                present = os.listxattr(fd)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    return []
                raise
        return [key for key in map(self._marks.from_disk, present) if key is not None]

    def setxattr(self, key: str, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute: fsetxattr(2)."""
        with self._lock:
            os.setxattr(self._changeable(), self._marks.to_disk(key), value, flags)

    def removexattr(self, key: str) -> None:
        """Remove one extended attribute: fremovexattr(2)."""
        with self._lock:
            os.removexattr(self._changeable(), self._marks.to_disk(key))
