"""The kernel's log from one moment on: where overlayfs says why it refuses a mount.

Only a user who may read /dev/kmsg gets anything. Source: Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import errno
import os

_UNREADABLE = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODEV, errno.ENXIO)
_LINE_SIZE = 8192


class LogMark:
    """A place in the kernel's log; a `with` block around what may write to it."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def __enter__(self) -> LogMark:
        try:
            fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _UNREADABLE:
                return self
            raise
        self._fd = fd
        os.lseek(fd, 0, os.SEEK_END)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def lines(self, prefix: str) -> list[str]:
        """What was logged after the mark and starts with `prefix`, oldest first, without it.

        Empty where the log may not be read. Lines of other processes are among them.
        """
        texts = (_text(record) for record in self._records())
        return [text.removeprefix(prefix).strip() for text in texts if text.startswith(prefix)]

    def _records(self) -> list[bytes]:
        records: list[bytes] = []
        while self._fd is not None:
            try:
                records.append(os.read(self._fd, _LINE_SIZE))
            except OSError as error:
                if error.errno == errno.EPIPE:
                    # The oldest records were overwritten; the next read has the first that is left.
                    continue
                if error.errno == errno.EAGAIN:
                    break
                raise
        return records


def _text(record: bytes) -> str:
    message = record.partition(b";")[2].partition(b"\n")[0]
    return os.fsdecode(message)
