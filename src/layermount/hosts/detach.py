"""Unmounting one certain mount, and who is in its way. Why and when is for hosts."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from layermount.errors import HostError
from layermount.linux import mountinfo, mounts

_UNREADABLE = (
    *(errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENOTDIR),
    # On a FUSE mount that nobody serves any more.
    *(errno.ENOTCONN, errno.ECONNABORTED),
)


class User(NamedTuple):
    """A process that uses a mount."""

    pid: int
    name: str


def unmount(target: str, mount_id: int, source: str, *, lazy: bool) -> None:
    """Unmount that very mount; it is fine when it is gone already.

    Args:
        target: Its mount point.
        mount_id: Its number.
        source: Its source; the kernel gives the number of a mount that is gone to another one.
        lazy: Take it out of the tree although it is in use.

    Raises:
        OSError: EBUSY while it is in use or something else is mounted over it, EPERM without the
            right.
    """
    found = mountinfo.find(mount_id)
    if found is None or found.source != source:
        return
    # umount2(2) takes whatever is on top, so what is on top must be looked at first.
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        top = mountinfo.mount_id_of(fd)
    finally:
        os.close(fd)
    if top != mount_id:
        raise OSError(errno.EBUSY, "something else is mounted over it", target)
    mounts.umount2(target, mounts.UMOUNT_NOFOLLOW | (mounts.MNT_DETACH if lazy else 0))


def stays(target: str, mount_id: int, error: OSError) -> HostError:
    """What to tell when `unmount` failed: why, and who uses it."""
    message = f"cannot unmount {target!r}: {error.strerror}"
    if error.errno != errno.EBUSY:
        return HostError(message, hint="run it as the user who mounted it, or as root")
    named = ", ".join(f"{user.name} ({user.pid})" for user in users(target, mount_id))
    hint = "end what uses it, or unmount lazily"
    return HostError(message, hint=f"{hint}; in use by {named}" if named else hint)


def users(target: str, mount_id: int) -> list[User]:
    """The processes that keep the mount at `target` busy, as far as this one may look.

    Found by their working directory, root and open files; a file that is only mapped is not seen.
    """
    device = _device(target)
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        if _stands_on(pid, device) or _has_open(pid, mount_id):
            found.append(User(pid, _name(pid)))
    return found


def _stands_on(pid: int, device: int | None) -> bool:
    return device is not None and any(
        _device(f"/proc/{pid}/{link}") == device for link in ("cwd", "root", "exe")
    )


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError as error:
        if error.errno in _UNREADABLE:
            return None
        raise


def _has_open(pid: int, mount_id: int) -> bool:
    line = f"mnt_id:\t{mount_id}\n"
    folder = f"/proc/{pid}/fdinfo"
    try:
        return any(line in _text(f"{folder}/{fd}") for fd in os.listdir(folder))
    except OSError as error:
        if error.errno in _UNREADABLE:
            return False
        raise


def _name(pid: int) -> str:
    return _text(f"/proc/{pid}/comm").strip() or "?"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        if error.errno in _UNREADABLE:
            return ""
        raise
