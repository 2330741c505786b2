"""What hosts have in common: what one looks like, why one cannot be had, what the kernel is told.

How a host shows an overlay is in its own module; which one is chosen is for the caller.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from layermount.errors import LayerMountError


class Host(Protocol):
    """An overlay that is being shown at a directory.

    It is a context manager; leaving it is `unmount()`.
    """

    @property
    def name(self) -> str:
        """Which host it is: "kernel", "fuse"."""

    @property
    def target(self) -> Path:
        """The mount point, an absolute real path."""

    def unmount(self, *, lazy: bool = False) -> None:
        """Stop showing it; nothing happens the second time.

        Args:
            lazy: Take it out of the tree at once and end it when its last user is gone, instead of
                refusing while it is in use.

        Raises:
            HostError: It is in use, or something else is mounted over it; it goes on being shown.
        """

    def __enter__(self) -> Host: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Verdict(NamedTuple):
    """Whether a host can be had here, and why.

    Attributes:
        host: Its name.
        available: Whether it can be had.
        reason: What was tried and what happened, one sentence without a full stop.
        remedy: What would make it available, or None when nothing is known.
    """

    host: str
    available: bool
    reason: str
    remedy: str | None = None

    def __bool__(self) -> bool:
        return self.available


def errno_of(error: BaseException) -> int:
    """The errno a host answers for an exception; EIO for what is nobody's plan."""
    if isinstance(error, LayerMountError):
        return error.posix_errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
