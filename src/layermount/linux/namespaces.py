"""User and mount namespaces: entering them, and the maps that go with them.

What is done inside one, and whether a machine allows it, does not belong here.
Sources: unshare(2), setns(2), user_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

from layermount.linux import mounts
from layermount.linux._libc import bind, check

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_unshare = bind("unshare", ctypes.c_int)
_setns = bind("setns", ctypes.c_int, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class IdMap:
    """One line of a uid_map or gid_map.

    Attributes:
        inside: First id inside the namespace.
        outside: First id outside it, as seen by the process that writes the map.
        count: How many ids, at least 1.
    """

    inside: int
    outside: int
    count: int = 1


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` (CLONE_NEW*) for new ones.

    Raises:
        OSError: EPERM without the right or when a policy forbids it, ENOSPC at a limit of
            /proc/sys/user, EINVAL for CLONE_NEWUSER in a process with several threads.
    """
    check(_unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    """Enter the namespace that `fd` names.

    Args:
        fd: An open /proc/PID/ns/*, or a pidfd.
        kind: CLONE_NEW* the namespace must be of (with a pidfd, all to enter); 0 for any.

    Raises:
        OSError: EPERM without the right, EINVAL for a wrong kind or several threads.
    """
    check(_setns(fd, kind))


def write_id_maps(
    users: Sequence[IdMap], groups: Sequence[IdMap], *, pid: int | None = None, deny_setgroups: bool
) -> None:
    """Give a new user namespace its maps; this works once.

    Args:
        users: What uids mean inside.
        groups: What gids mean inside.
        pid: A process in the namespace; None is the caller.
        deny_setgroups: Give up setgroups(2) in the namespace, which a caller without CAP_SETGID
            outside must.

    Raises:
        OSError: EPERM for ids the caller may not give away or a second map, EINVAL for maps that
            overlap or are empty.
    """
    process = "self" if pid is None else str(pid)
    if deny_setgroups:
        _write(f"/proc/{process}/setgroups", "deny")
    _write(f"/proc/{process}/uid_map", _map_text(users))
    _write(f"/proc/{process}/gid_map", _map_text(groups))


def unshare_user(flags: int = 0) -> None:
    """Enter a new user namespace in which the caller keeps its uid and gid, and nobody else is.

    The caller has every capability in it until the next exec. Other owners show as the overflow
    ids; supplementary groups keep their rights.

    Args:
        flags: More CLONE_NEW*, made in the same step and owned by the user namespace.

    Raises:
        OSError: As `unshare` and `write_id_maps`.
    """
    # Both ids are read before: inside, before the maps are written, they are the overflow ids.
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | flags)
    write_id_maps([IdMap(user, user)], [IdMap(group, group)], deny_setgroups=True)


def set_propagation(flags: int = mounts.MS_SLAVE) -> None:
    """Make every mount of the namespace a slave (or MS_PRIVATE, MS_SHARED).

    A slave still gets what is mounted and unmounted outside, and gives nothing back.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN over the mount namespace.
    """
    mounts.mount("none", "/", "none", mounts.MS_REC | flags)


def _map_text(maps: Sequence[IdMap]) -> str:
    return "".join(f"{m.inside} {m.outside} {m.count}\n" for m in maps)


def _write(path: str, text: str) -> None:
    # One write call: the kernel takes a map whole or not at all.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
