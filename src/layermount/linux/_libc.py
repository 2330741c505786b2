"""The only door to libc: bind a symbol once, check a result once.

Wrappers in this folder make one call each and have no opinion: no logging, no fallback, no default
that hides a flag. Retries and second choices belong to their callers.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_quick = ctypes.PyDLL(None)

Call = Callable[..., int]


def bind(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Call:
    """The libc function `name`, with its C signature, or a stand-in that fails with ENOSYS."""
    function: Any = getattr(_libc, name, None)
    if function is None:
        return _missing
    function.argtypes = argtypes
    function.restype = restype
    call: Call = function
    return call


def bind_quick(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Call:
    """As `bind`, for a call that never waits and tells nothing by errno: at half the price.

    Other threads stand still while it runs.
    """
    function: Any = getattr(_quick, name)
    function.argtypes = argtypes
    function.restype = restype
    call: Call = function
    return call


def bind_syscall(number: int, *argtypes: Any) -> Call:
    """A system call that this glibc has no function for, by number."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *argtypes, use_errno=True)
    function = prototype(("syscall", _libc))

    def call(*arguments: Any) -> int:
        return int(function(number, *arguments))

    return call


def _missing(*_arguments: Any) -> int:
    ctypes.set_errno(errno.ENOSYS)
    return -1


def check(result: int, path: str | int | None = None, path2: str | None = None) -> int:
    """Return `result`, or raise what errno says when it is negative.

    Raises:
        OSError: Of the subclass that fits errno, with `path` and `path2` as its file names.
    """
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if path2 is not None:
        raise OSError(number, os.strerror(number), path, None, path2)
    raise OSError(number, os.strerror(number), path)
