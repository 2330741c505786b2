"""Refusals in the kernel's words: an `OSError` with its errno, of the subclass that fits."""

from __future__ import annotations

import errno
import os

NAME_MAX = 255


def refusal(number: int, name: str | None = None) -> OSError:
    """The error that the kernel answers with `number`."""
    return OSError(number, os.strerror(number), name)


def missing(name: str) -> OSError:
    """ENOENT for `name`, or ENAMETOOLONG as the kernel answers before it looks."""
    return refusal(errno.ENAMETOOLONG if is_too_long(name) else errno.ENOENT, name)


def is_too_long(name: str) -> bool:
    """Whether no filesystem can have this name."""
    # No character takes more than four bytes.
    return len(name) > NAME_MAX // 4 and len(os.fsencode(name)) > NAME_MAX
