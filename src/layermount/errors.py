"""Every exception of the library.

What the kernel would answer with an errno is an `OSError` of the right subclass, with the merged
path; no class here hides one. The tree below is for what has no errno::

    LayerMountError
    ├── ConfigError                     the configuration cannot be used
    ├── LayerError
    │   ├── LayerUnavailableError       a layer cannot be opened
    │   ├── LayerChangedError           a lower changed underneath
    │   ├── LayerCorruptError           a mark or record that cannot be read
    │   └── LayerBusyError              another process owns the upper or the work directory
    ├── HostError                       a mount that cannot be made or ended
    │   └── HostUnavailableError        this machine or this user cannot have that host
    ├── ViewError                       a kept view that cannot be used as asked
    │   ├── ViewNotFoundError
    │   └── ViewExistsError
    ├── AccessDeniedError               a gate refused (also a PermissionError)
    └── ClosedError                     used after close (also a ValueError)

Each class has an `exit_code` for the command line and a `posix_errno` for hosts.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class LayerMountError(Exception):
    """Base of every error that is not the operating system's own.

    Attributes:
        hint: What the user can do about it, one sentence without a full stop; None if nothing is
            known.
    """

    exit_code: ClassVar[int] = 1
    posix_errno: ClassVar[int] = errno.EIO

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self.args[0]), self.hint), self._state())

    def _state(self) -> dict[str, object]:
        """What a copy needs beside the message, notes among it."""
        return self.__dict__


def _rebuild(kind: type[LayerMountError], message: str, hint: str | None) -> LayerMountError:
    return kind(message, hint=hint)


class ConfigError(LayerMountError):
    """The configuration contradicts itself or names something that cannot serve."""

    exit_code = 2
    posix_errno = errno.EINVAL


class LayerError(LayerMountError):
    """Something is wrong with a layer."""

    exit_code = 10


class LayerUnavailableError(LayerError):
    """A layer cannot be opened."""

    exit_code = 11


class LayerChangedError(LayerError):
    """A lower layer changed while it was being used."""

    exit_code = 12


class LayerCorruptError(LayerError):
    """A mark or a record in a layer cannot be read, or says something impossible."""

    exit_code = 13


class LayerBusyError(LayerError):
    """The upper or the work directory belongs to another running overlay."""

    exit_code = 14
    posix_errno = errno.EBUSY


class HostError(LayerMountError):
    """A host could not show the overlay, or could not stop showing it."""

    exit_code = 40


class HostUnavailableError(HostError):
    """This machine, or this user, cannot have the host that was asked for."""

    exit_code = 41
    posix_errno = errno.ENOSYS


class ViewError(LayerMountError):
    """A kept view cannot be used as asked."""

    exit_code = 45


class ViewNotFoundError(ViewError):
    """No view is kept under that name."""

    exit_code = 46
    posix_errno = errno.ENOENT


class ViewExistsError(ViewError):
    """A view is already kept under that name."""

    exit_code = 47
    posix_errno = errno.EEXIST


class AccessDeniedError(LayerMountError, PermissionError):
    """A gate refused the operation."""

    exit_code = 51
    posix_errno = errno.EACCES

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno.EACCES
        self.strerror = message

    def _state(self) -> dict[str, object]:
        paths = {"filename": self.filename, "filename2": self.filename2}
        return self.__dict__ | {name: path for name, path in paths.items() if path is not None}


class ClosedError(LayerMountError, ValueError):
    """An overlay or a file was used after it was closed."""

    exit_code = 60
    posix_errno = errno.EBADF
