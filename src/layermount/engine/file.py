"""An open file of the overlay as a Python file object."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from layermount.engine.handles import Handle

if TYPE_CHECKING:
    from layermount.engine.overlay import Overlay

    Buffer = bytes | bytearray | memoryview


class LayerMountFile(io.RawIOBase):
    """An open file: a raw binary file object, and calls that take a position.

    What is written through it goes to the upper; nothing is buffered here. A file opened for reading
    sees what is written later, also when the file was copied up in between. Renaming or deleting the
    file does not disturb it. Thread-safe; threads that use the file object's own position share it.
    """

    def __init__(self, overlay: Overlay, handle: Handle) -> None:
        """Take over an open handle; use `LayerMount.open` or `open_file` to get one."""
        super().__init__()
        self._overlay = overlay
        self._handle = handle
        self._position = 0
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
        """The mode in Python's spelling: "rb", "wb" or "rb+"."""
        access = self._handle.flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
        return {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}.get(access, "rb+")

    @property
    def info(self) -> os.stat_result:
        """The file's metadata now."""
        if self._handle.node.removed:
            return self._handle.fstat()
        return self._overlay.getattr(self._handle.node)

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; b"" at and after the end."""
        return self._handle.read(size, offset)

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Write at `offset`; the number of bytes written."""
        return self._handle.write(data, offset)

    def overwrite(self) -> None:
        """Empty the file."""
        self._handle.truncate(0)
        self._position = 0

    def fsync(self) -> None:
        """Put the file on disk."""
        self._handle.fsync()

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return not self._handle.flags & os.O_WRONLY

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._handle.is_writable

    def seekable(self) -> bool:
        """Always: positions are kept here."""
        return True

    def fileno(self) -> int:
        """The borrowed descriptor. What is done with it directly moves no position here."""
        return self._handle.fileno()

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]  # typeshed's Buffer is newer
        """Fill `buffer` from the current position; the number of bytes."""
        count = self._handle.readinto(memoryview(buffer), self._position)
        self._position += count
        return count

    def write(self, data: Buffer) -> int:  # type: ignore[override]  # typeshed's Buffer is newer
        """Write at the current position, or at the end in append mode; the number of bytes."""
        count = self._handle.write(memoryview(data), self._position)
        if self._handle.flags & os.O_APPEND:
            self._position = self._handle.fstat().st_size
        else:
            self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; SEEK_DATA and SEEK_HOLE work too. The new position."""
        if whence == os.SEEK_SET:
            position = offset
        elif whence == os.SEEK_CUR:
            position = self._position + offset
        elif whence == os.SEEK_END:
            position = self._handle.fstat().st_size + offset
        else:
            position = self._handle.seek(offset, whence)
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size, by default to the current position; the new size."""
        wanted = self._position if size is None else size
        self._handle.truncate(wanted)
        return wanted

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self.closed:
            self._handle.close()
        super().close()
