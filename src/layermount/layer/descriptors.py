"""A bounded set of open directories, the least recently used closed first."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from typing import Protocol

_MOST = 4096


class _Holder(Protocol):
    _fd: int | None


def default_capacity() -> int:
    """A quarter of the descriptors this process may have, at least 16, at most 4096."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(16, min(_MOST, soft // 4))


class DescriptorPool:
    """Holds the descriptors of directories and closes the ones not used for longest.

    Not thread-safe: its owner holds the overlay's lock around every use. A descriptor is safe to
    use until the next call of `add`.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # As long as there is plenty of room nobody is closed, so nobody need be in order.
        self._plenty = capacity // 2
        self._open: OrderedDict[_Holder, None] = OrderedDict()

    def touch(self, holder: _Holder) -> None:
        """Mark as just used."""
        if len(self._open) > self._plenty:
            self._open.move_to_end(holder)

    def add(self, holder: _Holder) -> None:
        """Take in a holder whose descriptor has just been opened."""
        self._open[holder] = None
        while len(self._open) > self._capacity:
            oldest, _ = self._open.popitem(last=False)
            _close(oldest)

    def drop(self, holder: _Holder) -> None:
        """Close this holder's descriptor, if it is open."""
        if holder in self._open:
            del self._open[holder]
            _close(holder)

    def close(self) -> None:
        """Close everything."""
        while self._open:
            _close(self._open.popitem()[0])


def _close(holder: _Holder) -> None:
    fd, holder._fd = holder._fd, None
    if fd is not None:
        os.close(fd)
