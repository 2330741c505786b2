"""Files of layers that the kernel reads and writes by itself (FUSE passthrough).

A registered file is opened anew by the kernel with the caller's flags and this process's rights:
the mode of the descriptor given limits nothing. So a writer never gets a lower's file, and where
this process may, lowers come from a read-only clone of their mount (rule B4). Source: the kernel's
Documentation/filesystems/fuse/fuse-passthrough.rst.
"""

from __future__ import annotations

import errno

from layermount.hosts.fuse.open_state import PASSTHROUGH, OpenState
from layermount.linux import fuse_device

#: How many files that nobody has open stay registered. Opening one again costs no call; each keeps
#: an open file in the kernel.
IDLE_LIMIT = 1024
#: No right; no passthrough in this kernel; the layer lies on a stack too deep; a file of a
#: filesystem that cannot.
_REFUSALS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY, errno.ELOOP, errno.EINVAL)


class BackingFiles:
    """Files that are registered with the kernel, and some that stay so while nobody has them open.

    Attributes:
        reason: Why nothing is registered, None as long as it works.
    """

    def __init__(self, device_fd: int, *, reason: str | None) -> None:
        self._device_fd = device_fd
        self.reason = reason
        self._idle: dict[OpenState, None] = {}

    @property
    def is_on(self) -> bool:
        """Whether files are registered."""
        return self.reason is None

    def register(self, state: OpenState, fd: int, *, is_upper: bool) -> bool:
        """Register an open file for an inode, in place of the one it may have.

        Returns:
            Whether the kernel took it. It never takes one again after it refused once.
        """
        if not self.is_on:
            return False
        self.release(state)
        try:
            backing = fuse_device.backing_open(self._device_fd, fd)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            if error.errno == errno.EPERM:
                self.reason = "only root may let the kernel read and write files of layers itself"
            return False
        state.backing, state.backs_upper = backing, is_upper
        return True

    def use(self, state: OpenState) -> None:
        """Note that a registered file is open."""
        self._idle.pop(state, None)
        state.mode = PASSTHROUGH

    def idle(self, state: OpenState) -> None:
        """Note that nobody has a registered file open any more."""
        self._idle[state] = None
        if len(self._idle) > IDLE_LIMIT:
            self.release(next(iter(self._idle)))

    def release(self, state: OpenState) -> None:
        """Take back the registration of an inode's file, if there is one."""
        if state.backing:
            self._idle.pop(state, None)
            backing, state.backing = state.backing, 0
            state.backs_upper = False
            fuse_device.backing_close(self._device_fd, backing)
