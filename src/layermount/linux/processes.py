"""Processes: who one is, whether it lives, its children, and what happens when its parent dies.

Namespaces are in `namespaces.py`. Sources: proc_pid_stat(5), prctl(2), pidfd_open(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from layermount.linux._libc import bind, check

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

_GONE = (errno.ENOENT, errno.ESRCH)
# Fields of /proc/PID/stat counted from the state, which is the first after the name.
_STATE = 0
_PARENT = 1
_START_TIME = 19
_DEAD = (b"Z", b"X", b"x")

_prctl = bind("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that is never taken for a later one with the same pid.

    Attributes:
        pid: As seen in this pid namespace.
        start_time: Clock ticks from the machine's start to the process's.
    """

    pid: int
    start_time: int


def identity(pid: int | None = None) -> ProcessIdentity:
    """Who `pid` is; None asks for the caller.

    Raises:
        ProcessLookupError: There is no such process.
    """
    number = os.getpid() if pid is None else pid
    fields = _stat_fields(number)
    if fields is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{number}")
    return ProcessIdentity(number, int(fields[_START_TIME]))


def is_alive(process: ProcessIdentity) -> bool:
    """Whether that very process still runs; a zombie does not."""
    fields = _stat_fields(process.pid)
    if fields is None or fields[_STATE] in _DEAD:
        return False
    return int(fields[_START_TIME]) == process.start_time


def children(pid: int) -> list[int]:
    """The pids of the processes whose parent is `pid`, zombies too; true for one moment only."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat_fields(int(name))
            if fields is not None and int(fields[_PARENT]) == pid:
                found.append(int(name))
    return found


def pidfd_open(pid: int) -> int:
    """A descriptor of the process, readable when it has ended; the descriptor is the caller's.

    Raises:
        OSError: ESRCH when there is no such process.
    """
    return os.pidfd_open(pid)


def set_parent_death_signal(signal: int) -> None:
    """Let the kernel send `signal` to this process when the thread that made it ends; 0 for none.

    It is forgotten over an exec of a set-user-id program, and comes too late when the parent is
    already dead: check `os.getppid()` afterwards.
    """
    check(_prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0))


def set_child_subreaper(*, on: bool) -> None:
    """Let orphaned descendants become children of this process."""
    check(_prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0))


def set_dumpable(*, on: bool) -> None:
    """Let this process's own user look into its /proc files, also after a change of its user.

    Without it the kernel gives them to root, and a process that dropped its privileges cannot
    write its own uid_map.
    """
    check(_prctl(_PR_SET_DUMPABLE, int(on), 0, 0, 0))


def _stat_fields(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    # The name is in parentheses and may hold any byte, parentheses and spaces included.
    return stat[stat.rindex(b")") + 2 :].split()
