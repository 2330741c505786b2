"""Ending recorded mounts, whichever host made them. How each host does it is in its own module."""

from __future__ import annotations

from layermount.hosts import detach, rundir
from layermount.hosts.rundir import Record, Swept


def sweep() -> list[Swept]:
    """Unmount what has lost its owner and forget what is not there any more, of every host.

    A FUSE mount whose daemon is dead gives ENOTCONN to everybody; it is taken away though it is in
    use, also by an ordinary user.

    Raises:
        HostError: A record cannot be read.
    """
    return rundir.sweep(_unmount)


def detach_record(record: Record, *, lazy: bool = False) -> None:
    """Unmount a mount that this or another process made, and forget it.

    Raises:
        HostError: It is in use or covered, or this process may not; the overlay stays shown.
    """
    if record.host == "fuse":
        from layermount.hosts.fuse import mounted  # noqa: PLC0415  one of the two is needed

        mounted.detach_record(record, lazy=lazy)
    else:
        from layermount.hosts import kernel  # noqa: PLC0415  one of the two is needed

        kernel.detach_record(record, lazy=lazy)


def _unmount(record: Record) -> None:
    if record.host == "fuse":
        from layermount.hosts.fuse import mounting  # noqa: PLC0415  seldom anything is stale

        mounting.unmount(record.target, record.mount_id, record.source, lazy=True)
    else:
        detach.unmount(record.target, record.mount_id, record.source, lazy=False)
