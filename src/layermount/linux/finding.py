"""The outcome of a probe. What is tried, and how, is in the probe modules."""

from __future__ import annotations

import errno
from typing import NamedTuple

#: What the kernel answers for "not here" or "not you". Anything else (a full disk, a broken one)
#: says nothing about the feature, and is raised.
REFUSALS = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENOENT,
        errno.ENXIO,
        errno.ENODEV,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOTTY,
        errno.EISDIR,
        errno.EMLINK,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
    }
)


class Finding(NamedTuple):
    """One thing that was tried; true when it works.

    Attributes:
        name: What was tried; a fixed word.
        available: Whether it worked.
        reason: What happened, one sentence without a full stop.
        remedy: What would make it work, or None when nothing is known.
    """

    name: str
    available: bool
    reason: str
    remedy: str | None = None

    def __bool__(self) -> bool:
        return self.available
