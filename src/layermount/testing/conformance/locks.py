"""Cases: file locks between processes: flock(2), fcntl(2), open file description locks. Rule H1."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from layermount.testing.conformance import children
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.trees import Tree, file

COLLECTION = Collection("locks")
case = COLLECTION.case

_TREE: Tree = {"f": file(b"x" * 100)}
_TAKEN = (errno.EAGAIN, errno.EACCES)
#: `struct flock` of <fcntl.h> on 64-bit machines: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhxxxxqqixxxx")
#: fcntl(2); Python names them from 3.9 on, type checkers do not know them everywhere.
_OFD_GETLK, _OFD_SETLK, _OFD_SETLKW = 36, 37, 38


@contextmanager
def _opened(flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open("f", flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _fcntl(fd: int, command: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, ...]:
    request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found: tuple[int, ...] = _FLOCK.unpack(fcntl.fcntl(fd, command, request))
    return found


def _elsewhere(shown: Showing, act: Callable[[int], object], flags: int = os.O_RDWR) -> None:
    """Do this with a descriptor of the file in another process."""

    def work() -> None:
        with _opened(flags) as fd:
            act(fd)

    children.in_child(work, directory=shown.at())


def _shut(fd: int) -> None:
    fails(_TAKEN, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _free(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case(_TREE, needs=[Trait.PATHS])
def flock(shown: Showing) -> None:
    """H1: flock(2) holds between processes, shared and exclusive, until closed."""
    with shown.face.open("f", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        _elsewhere(shown, _shut)
        _elsewhere(shown, lambda other: fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB))
        fcntl.flock(fd, fcntl.LOCK_EX)
        _elsewhere(
            shown, lambda other: fails(_TAKEN, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        )
        fcntl.flock(fd, fcntl.LOCK_UN)
        _elsewhere(shown, _free)
        fcntl.flock(fd, fcntl.LOCK_EX)
    _elsewhere(shown, _free)


@case(_TREE, needs=[Trait.PATHS])
def flock_of_two_opens(shown: Showing) -> None:
    """H1: flock(2) holds between two opens of one process, not between copies of one descriptor."""
    with shown.face.open("f", os.O_RDWR) as one, shown.face.open("f", os.O_RDONLY) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        _shut(two)
        copy = os.dup(one)
        fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(one)
        _shut(two)
        os.close(copy)
        _free(two)


@case(_TREE, needs=[Trait.PATHS])
def record_locks(shown: Showing) -> None:
    """H1: fcntl(2) locks ranges between processes and tells who holds them."""
    with shown.face.open("f", os.O_RDWR) as fd:
        same(_fcntl(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 10, 20)[0], fcntl.F_WRLCK)
        owner = os.getpid()

        def overlapping(other: int) -> None:
            for start, length in ((10, 1), (29, 1), (0, 0), (5, 10)):
                fails(_TAKEN, _fcntl, other, fcntl.F_SETLK, fcntl.F_RDLCK, start, length)
            found = _fcntl(other, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)
            same(found, (fcntl.F_WRLCK, os.SEEK_SET, 10, 20, owner))

        def beside(other: int) -> None:
            _fcntl(other, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
            _fcntl(other, fcntl.F_SETLK, fcntl.F_WRLCK, 30, 0)
            same(_fcntl(other, fcntl.F_GETLK, fcntl.F_WRLCK, 40, 1)[0], fcntl.F_UNLCK)

        _elsewhere(shown, overlapping)
        _elsewhere(shown, beside)
        _fcntl(fd, fcntl.F_SETLK, fcntl.F_UNLCK, 10, 20)
        _elsewhere(shown, lambda other: _fcntl(other, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0))


@case(_TREE, needs=[Trait.PATHS])
def record_locks_end_with_a_close(shown: Showing) -> None:
    """H1: closing any descriptor of the file gives up a process's fcntl(2) locks."""
    with shown.face.open("f", os.O_RDWR) as fd:
        _fcntl(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
        with shown.face.open("f", os.O_RDONLY):
            pass
        _elsewhere(shown, lambda other: _fcntl(other, fcntl.F_SETLK, fcntl.F_WRLCK))


@case(_TREE, needs=[Trait.PATHS])
def description_locks(shown: Showing) -> None:
    """H1: open file description locks hold between opens, whatever process they are of."""
    with shown.face.open("f", os.O_RDWR) as one, shown.face.open("f", os.O_RDWR) as two:
        _fcntl(one, _OFD_SETLK, fcntl.F_WRLCK, 0, 50)
        fails(_TAKEN, _fcntl, two, _OFD_SETLK, fcntl.F_WRLCK, 49, 1)
        _fcntl(two, _OFD_SETLK, fcntl.F_WRLCK, 50, 1)
        same(_fcntl(two, _OFD_GETLK, fcntl.F_WRLCK, 0, 1)[4], -1)
        _elsewhere(
            shown,
            lambda other: fails(_TAKEN, _fcntl, other, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 10),
        )
        os.close(one)
        _fcntl(two, _OFD_SETLK, fcntl.F_WRLCK, 0, 50)


@case(_TREE, needs=[Trait.PATHS])
def waiting(shown: Showing) -> None:
    """H1: who waits for a lock gets it when it is given up, and not before."""
    ways: tuple[tuple[Callable[[int], object], Callable[[int], object]], ...] = (
        (
            lambda fd: fcntl.flock(fd, fcntl.LOCK_EX),
            lambda fd: fcntl.flock(fd, fcntl.LOCK_UN),
        ),
        (
            lambda fd: _fcntl(fd, fcntl.F_SETLKW, fcntl.F_WRLCK),
            lambda fd: _fcntl(fd, fcntl.F_SETLKW, fcntl.F_UNLCK),
        ),
        (
            lambda fd: _fcntl(fd, _OFD_SETLKW, fcntl.F_WRLCK),
            lambda fd: _fcntl(fd, _OFD_SETLKW, fcntl.F_UNLCK),
        ),
    )
    for lock, unlock in ways:

        def wait(lock: Callable[[int], object] = lock) -> int:
            with _opened() as other:
                lock(other)
                return time.monotonic_ns()

        with shown.face.open("f", os.O_RDWR) as fd:
            lock(fd)
            child = children.Child(wait, directory=shown.at())
            _until_blocked(child.pid)
            given_up = time.monotonic_ns()
            unlock(fd)
            assert child.result() >= given_up, "the lock was had before it was given up"


def _until_blocked(pid: int) -> None:
    """Until the process sleeps in the kernel on a lock, as far as one can see; at most 5 s."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as text:
            number = text.read().split()[0]
        # flock and fcntl on x86-64 and elsewhere; "running" while it is not in one.
        if number in ("73", "72", "32", "25"):
            return
        time.sleep(0.001)


@case(_TREE, upper={"u": file()}, needs=[Trait.PATHS])
def locks_outlast_a_copy_up(shown: Showing) -> None:
    """H1: a lock taken before the file was copied up holds for who opens it afterwards."""
    with shown.face.open("f", os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        shown.face.append("f", b"!")
        _elsewhere(shown, _shut)
        shown.face.rename("f", "u", 0)
        shown.face.rename("u", "f", 0)
        _elsewhere(shown, _shut)
    _elsewhere(shown, _free)
