"""An open file of the overlay as a Python file object."""

from __future__ import annotations

import errno
import io
import os
from typing import IO, TYPE_CHECKING, Any

from layermount.engine.handles import Handle
from layermount.engine.refusals import refusal
from layermount.layer.base import REGULAR

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from layermount.engine.overlay import Overlay


class LayerMountFile(io.RawIOBase):
    """An open file: a raw binary file object, and calls that take a position.

    What is written through it goes to the upper; nothing is buffered here. A file opened for
    reading sees what is written later, also when the file was copied up in between. Renaming or
    deleting the file does not disturb it. Thread-safe; threads that use the file object's own
    position share it.
    """

    def __init__(self, overlay: Overlay, handle: Handle) -> None:
        """Take over an open handle; use `LayerMount.open` or `open_file` to get one."""
        super().__init__()
        self._overlay = overlay
        self._handle = handle
        self._position = 0
        self._is_seekable = handle.node.kind == REGULAR or _can_seek(handle.fileno())
        if handle.flags & os.O_APPEND:
            self._position = handle.fstat().st_size

    @property
    def path(self) -> str:
        """Where the file is now, or was when it was removed; no leading slash."""
        return self._handle.node.path

    @property
    def name(self) -> str:
        """The same as `path`, as Python's file objects call it."""
        return self.path

    @property
    def mode(self) -> str:
        """The mode in the spelling of Python's own files: "rb", "wb", "rb+", "ab", "xb+"."""
        flags = self._handle.flags
        plus = "+" if flags & os.O_RDWR else ""
        if flags & os.O_EXCL:
            return "xb" + plus
        if flags & os.O_APPEND:
            return "ab" + plus
        return "wb" if flags & os.O_WRONLY else "rb" + plus

    @property
    def info(self) -> os.stat_result:
        """The file's metadata now."""
        self._require_open()
        if self._handle.node.removed:
            return self._handle.fstat()
        return self._overlay.getattr(self._handle.node)

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; b"" at and after the end."""
        return self._handle.read(size, offset)

    def pwrite(self, data: ReadableBuffer, offset: int) -> int:
        """Write at `offset`; the number of bytes written."""
        return self._handle.write(memoryview(data), offset)

    def overwrite(self) -> None:
        """Empty the file."""
        self.truncate(0)
        self._position = 0

    def fsync(self) -> None:
        """Put the file on disk."""
        self._handle.fsync()

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._require_open()
        return not self._handle.flags & os.O_WRONLY

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._require_open()
        return self._handle.is_writable

    def seekable(self) -> bool:
        """Whether it has positions: a fifo has none."""
        self._require_open()
        return self._is_seekable

    def fileno(self) -> int:
        """The borrowed descriptor. What is done with it directly moves no position here."""
        return self._handle.fileno()

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` from the current position; the number of bytes.

        Raises:
            io.UnsupportedOperation: It was not opened for reading.
        """
        if not self.readable():
            raise io.UnsupportedOperation("not open for reading")
        if not self._is_seekable:
            # A fifo waits for its other end: not under the handle's lock.
            return os.readv(self.fileno(), [buffer])
        count = self._handle.readinto(memoryview(buffer), self._position)
        self._position += count
        return count

    def write(self, data: ReadableBuffer) -> int:
        """Write at the current position, or at the end in append mode; the number of bytes.

        Raises:
            io.UnsupportedOperation: It was not opened for writing.
        """
        if not self.writable():
            raise io.UnsupportedOperation("not open for writing")
        if not self._is_seekable:
            return os.write(self.fileno(), data)
        count = self._handle.write(memoryview(data), self._position)
        if self._handle.flags & os.O_APPEND:
            self._position = self._handle.fstat().st_size
        else:
            self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; SEEK_DATA and SEEK_HOLE work too. The new position.

        Raises:
            OSError: EINVAL for a negative position, ENXIO for no more data, ESPIPE for a fifo.
        """
        if not self.seekable():
            raise refusal(errno.ESPIPE)
        if whence == os.SEEK_SET:
            position = offset
        elif whence == os.SEEK_CUR:
            position = self._position + offset
        elif whence == os.SEEK_END:
            position = self._handle.fstat().st_size + offset
        else:
            position = self._handle.seek(offset, whence)
        if position < 0:
            raise refusal(errno.EINVAL)
        self._position = position
        return position

    def tell(self) -> int:
        """The current position."""
        if not self.seekable():
            raise refusal(errno.ESPIPE)
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size, by default to the current position; the new size.

        Raises:
            io.UnsupportedOperation: It was not opened for writing.
        """
        if not self.writable():
            raise io.UnsupportedOperation("not open for writing")
        wanted = self._position if size is None else size
        self._handle.truncate(wanted)
        return wanted

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self.closed:
            self._handle.close()
        super().close()

    def readall(self) -> bytes:
        """Everything from the current position on."""
        pieces = []
        while piece := self.read(self._rest()):
            pieces.append(piece)
        return b"".join(pieces)

    def _rest(self) -> int:
        """How much to ask for at once, so that one call gets the whole file."""
        return max(io.DEFAULT_BUFFER_SIZE, self._handle.fstat().st_size - self._position + 1)

    def _require_open(self) -> None:
        self._handle.fileno()


def _can_seek(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError as error:
        if error.errno == errno.ESPIPE:
            return False
        raise
    return True


def wrapped(
    raw: LayerMountFile,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[Any]:
    """The file object that the built-in `open` would give for these arguments, over `raw`."""
    if buffering == 0:
        return raw  # type: ignore[return-value]  # a RawIOBase serves as IO[bytes]
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffered: io.BufferedIOBase
    if raw.readable() and raw.writable():
        buffered = io.BufferedRandom(raw, size)
    else:
        buffered = (io.BufferedWriter if raw.writable() else io.BufferedReader)(raw, size)
    if "b" in mode:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode  # type: ignore[misc]  # the built-in sets it, too
    return text
