"""Open files: one descriptor each, which follows the file when it is copied up. Rules: H1 to H4."""

from __future__ import annotations

import errno
import os
import threading

from layermount.engine.counters import Counters
from layermount.engine.node import Node
from layermount.errors import ClosedError

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class Handle:
    """An open file of the overlay; every position is given, none is kept.

    Thread-safe: calls on one handle follow each other, so that a close or a copy-up never pulls the
    descriptor away under a read.

    Attributes:
        node: The entry it was opened by, which may have been removed since.
        flags: The open(2) flags it was opened with.
    """

    def __init__(self, node: Node, fd: int, flags: int, counters: Counters, *, sync: bool) -> None:
        self.node = node
        self.flags = flags
        self._fd: int | None = fd
        self._counters = counters
        self._sync = sync
        self._lock = threading.Lock()
        counters.active_handles += 1

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd is None

    @property
    def is_writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & _ACCESS != os.O_RDONLY

    def fileno(self) -> int:
        """The borrowed descriptor; its number stays the same as long as the handle is open.

        Raises:
            ClosedError: The handle is closed.
        """
        if self._fd is None:
            raise ClosedError("the file is closed")
        return self._fd

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end of the file, none after it.

        Raises:
            OSError: EBADF when not open for reading, EINVAL for a negative offset, EIO.
        """
        with self._lock:
            data = os.pread(self.fileno(), size, offset)
        self._counters.reads += 1
        self._counters.bytes_read += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; the number of bytes, 0 at the end of the file."""
        with self._lock:
            count = os.preadv(self.fileno(), [buffer], offset)
        self._counters.reads += 1
        self._counters.bytes_read += count
        return count

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at `offset`, or at the end when opened with O_APPEND; the number of bytes written.

        Raises:
            OSError: EBADF when not open for writing, ENOSPC, EDQUOT, EFBIG, EIO.
        """
        with self._lock:
            count = os.pwrite(self.fileno(), data, offset)
        self._counters.writes += 1
        self._counters.bytes_written += count
        return count

    def truncate(self, size: int) -> None:
        """Set the file's size.

        Raises:
            OSError: EINVAL when not open for writing or negative, EFBIG, ENOSPC.
        """
        with self._lock:
            os.ftruncate(self.fileno(), size)

    def fsync(self, *, data_only: bool = False) -> None:
        """Put the file on disk; with durability `volatile` this does nothing, as it promises."""
        with self._lock:
            fd = self.fileno()
            if not self._sync:
                return
            try:
                (os.fdatasync if data_only else os.fsync)(fd)
            except OSError as error:
                # A lower on a read-only filesystem has nothing to sync.
                if error.errno not in (errno.EROFS, errno.EINVAL):
                    raise

    def seek(self, offset: int, whence: int) -> int:
        """Where data or a hole begins (SEEK_DATA, SEEK_HOLE of lseek(2)); no position is kept."""
        with self._lock:
            return os.lseek(self.fileno(), offset, whence)

    def fstat(self) -> os.stat_result:
        """The file's own metadata, as its layer has it, also when it has no name any more."""
        with self._lock:
            return os.fstat(self.fileno())

    def follow(self, fd: int) -> None:
        """Go on with the file open as `fd`, which is taken over.

        The new file takes the old number in one step: a read in another thread has one or the
        other.
        """
        with self._lock:
            try:
                if self._fd is not None:
                    os.dup2(fd, self._fd, inheritable=False)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                self._counters.active_handles -= 1
                os.close(fd)
