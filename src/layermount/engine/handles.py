"""Open files: one descriptor each, which follows the file when it is copied up. Rules: H1 to H6."""

from __future__ import annotations

import contextlib
import errno
import os

from layermount.engine.counters import Counters
from layermount.engine.node import Node
from layermount.engine.open_attributes import OpenAttributes
from layermount.engine.refusals import refusal
from layermount.layer.base import Directory
from layermount.layer.directory import LayerDirectory
from layermount.layer.marks import OCI, Marks
from layermount.linux import files

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class Handle(OpenAttributes):
    """An open file of the overlay; every position is given, none is kept.

    Thread-safe: calls on one handle follow each other, so that a close or a copy-up never pulls the
    descriptor away under a read.

    Attributes:
        node: The entry it was opened by, which may have been removed since.
        flags: The open(2) flags it was opened with.
    """

    __slots__ = ("__weakref__", "_counters", "_opened", "flags", "node")

    def __init__(
        self, opened: OpenHandles, node: Node, fd: int, flags: int, lower: Directory | None
    ) -> None:
        """Take `fd` over, which is a file of the upper or of the directory `lower`."""
        marks = opened.marks if lower is None else _marks_of(lower)
        super().__init__(fd, marks, in_upper=lower is None)
        self.node = node
        self.flags = flags
        self._opened = opened
        self._counters = opened.counters

    @property
    def is_writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & _ACCESS != os.O_RDONLY

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

    def read_now(self, size: int, offset: int) -> memoryview | None:
        """As `read`, but None when the disk would be waited for."""
        with self._lock:
            data = read_now(self.fileno(), size, offset)
        if data is not None:
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

    def copy_range_to(self, target: Handle, offset: int, target_offset: int, size: int) -> int:
        """Copy inside the kernel, sharing blocks where it can; the number of bytes copied.

        Fewer than `size` are no error; 0 is the end of this file.

        Raises:
            OSError: EXDEV or EOPNOTSUPP when the layers' filesystems cannot, EBADF when one is not
                open for it or `target` appends, EINVAL for parts of one file that overlap, ENOSPC.

        Source: copy_file_range(2).
        """
        # Two threads that copy in opposite directions must lock in one order.
        handles = sorted({self, target}, key=id)
        with handles[0]._lock, handles[1]._lock if len(handles) > 1 else contextlib.nullcontext():
            count = os.copy_file_range(self.fileno(), target.fileno(), size, offset, target_offset)
        self._counters.bytes_read += count
        target._counters.bytes_written += count
        return count

    def truncate(self, size: int) -> None:
        """Set the file's size.

        Raises:
            OSError: EINVAL when not open for writing or negative, EFBIG, ENOSPC.
        """
        with self._lock:
            os.ftruncate(self.fileno(), size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Reserve, zero, punch, collapse or insert a range: fallocate(2) with its FALLOC_FL_* bits.

        Raises:
            OSError: EBADF when not open for writing, EINVAL, ENOSPC, EFBIG; EOPNOTSUPP when the
                upper's filesystem does not know the mode.
        """
        with self._lock:
            files.fallocate(self.fileno(), mode, offset, length)

    def fsync(self, *, data_only: bool = False) -> None:
        """Put the file on disk; with durability `volatile` this does nothing, as it promises."""
        with self._lock:
            fd = self.fileno()
            if not self._opened.sync:
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

    def reopen(self, flags: int) -> Handle:
        """Another open file of the same file, which need not have a name.

        Raises:
            OSError: EROFS for writing to a lower's file, EACCES.
        """
        if flags & (_ACCESS | os.O_TRUNC) and not self.in_upper:
            raise refusal(errno.EROFS, self.node.name)
        with self._lock:
            fd = os.open(f"/proc/self/fd/{self.fileno()}", flags | os.O_CLOEXEC)
        handle = self._opened.add(self.node, fd, flags)
        handle._marks, handle.in_upper = self._marks, self.in_upper
        return handle

    def follow(self, fd: int) -> None:
        """Go on with the upper's file open as `fd`, which is taken over.

        The new file takes the old number in one step: a read in another thread has one or the
        other.
        """
        with self._lock:
            try:
                if self._fd is not None:
                    os.dup2(fd, self._fd, inheritable=False)
                    self.in_upper, self._marks = True, self._opened.marks
            finally:
                os.close(fd)

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                self._opened.remove(self)
                os.close(fd)


class OpenHandles:
    """The open files of one overlay, and what they have in common.

    Attributes:
        counters: Where they count.
        sync: Whether fsync does anything.
        marks: The upper's dialect.
    """

    def __init__(self, counters: Counters, *, sync: bool, marks: Marks | None) -> None:
        """`marks` is None where there is no upper."""
        self.counters = counters
        self.sync = sync
        self.marks: Marks = OCI if marks is None else marks
        # Held, not referred to weakly: a handle that nobody closes would lose its descriptor.
        self._handles: set[Handle] = set()

    def add(self, node: Node, fd: int, flags: int, lower: Directory | None = None) -> Handle:
        """The handle of a file open as `fd`, of the upper or of the directory `lower`."""
        handle = Handle(self, node, fd, flags, lower)
        self._handles.add(handle)
        self.counters.active_handles += 1
        return handle

    def remove(self, handle: Handle) -> None:
        """The handle is closed."""
        self._handles.discard(handle)
        self.counters.active_handles -= 1

    def close(self) -> None:
        """Close every one that is open."""
        for handle in tuple(self._handles):
            handle.close()


def read_now(fd: int, size: int, offset: int) -> memoryview | None:
    """Up to `size` bytes of an open file, or None when the disk would be waited for.

    A filesystem that cannot tell the two apart is waited for. Source: preadv2(2), RWF_NOWAIT.
    """
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return None
        if error.errno != errno.EOPNOTSUPP:
            raise
        count = os.preadv(fd, [buffer], offset)
    # A short answer is the end of the file, or of what is in memory.
    if count < size and offset + count < os.lseek(fd, 0, os.SEEK_END):
        return None
    return memoryview(buffer)[:count]


def _marks_of(directory: Directory) -> Marks:
    """The dialect of the layer a directory is of; what is no plain directory stores no marks."""
    return directory.layer.marks if isinstance(directory, LayerDirectory) else OCI
