"""A mount that a daemon serves, seen from outside: ending it and waiting for its daemon.

Making one is in `daemon.py`. It imports nothing of the engine: ending a mount is to be fast.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from pathlib import Path
from types import TracebackType

from layermount.errors import HostError
from layermount.hosts import detach, rundir
from layermount.hosts.fuse import mounting
from layermount.hosts.rundir import Record
from layermount.linux import processes

#: How long a daemon may take to close its overlay once nothing is mounted, seconds.
_PATIENCE_S = 60
#: After how many of them it is told to end: another mount namespace may have a copy of the mount.
_GRACE_S = 1
#: The first takes the mount away, the second waits for none of its users. Two of one kind that come
#: at once would be one.
_END_NOW = (signal.SIGTERM, signal.SIGHUP)


class FuseMount:
    """An overlay that a daemon shows. A context manager; leaving it unmounts.

    It is not tied to this object's life: an object that is forgotten leaves the mount.

    Attributes:
        name: "fuse".
        record: What the run directory says about it.
    """

    name = "fuse"

    def __init__(self, record: Record) -> None:
        self.record = record
        self._is_mounted = True

    @property
    def target(self) -> Path:
        """The mount point, an absolute real path."""
        return Path(self.record.target)

    @property
    def mount_id(self) -> int:
        """The kernel's number of the mount, the first field of its line in mountinfo."""
        return self.record.mount_id

    def unmount(self, *, lazy: bool = False) -> None:
        """Stop showing it; nothing happens the second time.

        When this returns the daemon has closed the overlay, so the upper is free. It does not wait
        for another mount namespace that has a copy of the mount: that copy answers ENOTCONN from
        then on. Not so with `lazy`: the daemon then goes on until the last user is gone.

        Raises:
            HostError: It is in use or covered, or this process may not; the overlay stays shown.
                Or it is unmounted, and the daemon does not end.
        """
        if self._is_mounted:
            detach_record(self.record, lazy=lazy)
            self._is_mounted = False

    def __enter__(self) -> FuseMount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unmount()


def detach_record(record: Record, *, lazy: bool = False) -> None:
    """Unmount a mount that this or another process made, and wait until its daemon has ended.

    A daemon that has still something to serve, a copy of the mount in another mount namespace, is
    told to end; one that is closing its overlay is left to it. With `lazy` nothing is waited for.
    One whose daemon is dead is taken away though it is in use.

    Raises:
        HostError: As `FuseMount.unmount`.
    """
    is_dead = not _is_served(record)
    try:
        mounting.unmount(record.target, record.mount_id, record.source, lazy=lazy or is_dead)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EPERM):
            raise
        raise detach.stays(record.target, record.mount_id, error) from error
    if not lazy:
        _wait_for_daemon(record)
    if is_dead or not lazy:
        rundir.forget(record)


def _is_served(record: Record) -> bool:
    """Whether the daemon lives, as far as its pid means anything here."""
    if rundir.place()[1] != record.pid_namespace:
        return True
    return record.owner is not None and processes.is_alive(record.owner)


def _wait_for_daemon(record: Record) -> None:
    owner = record.owner
    if owner is None or rundir.place()[1] != record.pid_namespace:
        return
    try:
        pidfd = processes.pidfd_open(owner.pid)
    except ProcessLookupError:
        return
    try:
        # Whoever has the pid now need not be the daemon; from here on nobody else can get it.
        if processes.is_alive(owner):
            _wait(pidfd, record)
    finally:
        os.close(pidfd)


def _wait(pidfd: int, record: Record) -> None:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    if ended.poll(_GRACE_S * 1000):
        return
    _tell_to_end(pidfd)
    if not ended.poll((_PATIENCE_S - _GRACE_S) * 1000):
        owner = None if record.owner is None else record.owner.pid
        raise HostError(
            f"{record.target!r} is unmounted, but its daemon (process {owner}) has not ended",
            hint="it may be writing to a slow disk; the upper is free when it has ended",
        )


def _tell_to_end(pidfd: int) -> None:
    """Ask a daemon to close its overlay; one that is doing so takes no notice."""
    for number in _END_NOW:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, PermissionError):
            return  # it has just ended, or is another user's and can only be waited for
