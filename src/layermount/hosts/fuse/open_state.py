"""How an inode of the kernel is open, and what is kept of that. Data only."""

from __future__ import annotations

import enum

from layermount.engine.handles import Handle


class Mode(enum.Enum):
    """How the open files of one inode reach its data; the kernel refuses a mixture."""

    CLOSED = 0
    CACHED = 1
    """Through requests and the page cache of the mount."""
    PASSTHROUGH = 2
    """By the kernel itself, in the layer's file."""


#: Taken out of the enumeration, where looking one up costs as much as a system call.
CLOSED, CACHED, PASSTHROUGH = Mode


class OpenState:
    """What is kept of an inode while it is open, and of its data in between.

    Attributes:
        opens: How many open files there are.
        writers: How many of them may write.
        mode: How all of them reach the data.
        backing: The registered file of a layer, 0 for none; kept after the last close.
        backs_upper: Whether that file is the upper's, which may be written.
        is_stale: The page cache of the mount is older than the file.
        retired: The file has been copied up while the kernel reads the lower's: these open files
            go on with what they opened, and nobody joins them.
        reader: Open for reading, when it was needed.
        writer: Open for writing, when it was needed.
    """

    __slots__ = (
        "backing", "backs_upper", "is_stale", "mode", "opens", "reader", "retired", "writer",
        "writers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opens = 0
        self.writers = 0
        self.mode = CLOSED
        self.backing = 0
        self.backs_upper = False
        self.is_stale = False
        self.retired = False
        self.reader: Handle | None = None
        self.writer: Handle | None = None

    @property
    def handle(self) -> Handle | None:
        """An open handle, the one that may write if there is one."""
        return self.writer or self.reader

    def close_handles(self) -> None:
        """Give the descriptors back."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.writer is not None:
            self.writer.close()
            self.writer = None
