"""Reading what one owns and may not read: a file of mode 000, a directory nobody may enter."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from layermount.linux import namespaces

_T = TypeVar("_T")
_REFUSED = (errno.EPERM, errno.ENOSPC, errno.EINVAL, errno.EACCES, errno.ENOSYS)


def as_owner(function: Callable[[], _T]) -> _T:
    """What `function` returns; where a mode keeps its owner out, it is let in and called once more.

    For that the process enters a user namespace and stays there: it keeps its user, and modes do
    not count for what that user owns. The process must have one thread.

    Raises:
        PermissionError: Something belongs to somebody else, or no such namespace can be had.
    """
    try:
        return function()
    except PermissionError:
        if os.geteuid() == 0 or not _enter():
            raise
    return function()


def _enter() -> bool:
    try:
        namespaces.unshare_user()
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True
