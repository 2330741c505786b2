"""Cases: modes, owners, times, sizes. Rules A."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from layermount.linux.file_flags import FS_NODUMP_FL, get_flags, set_flags
from layermount.linux.statx import statx
from layermount.linux.times import UTIME_NOW, UTIME_OMIT, timespec, utimensat
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.trees import LONG_AGO_NS, Tree, directory, fifo, file, symlink

COLLECTION = Collection("attributes")
case = COLLECTION.case

_TREE: Tree = {
    "f": file(b"data"),
    "d/x": file(),
    "l": symlink("f"),
    "p": fifo(),
}
#: Without privilege the engine must read and search what it serves (X12).
_MODES = (0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0o700)


@case(_TREE, upper={"u": file(), "d": directory()})
def modes(shown: Showing) -> None:
    """A1: the twelve bits of the mode can be set, of any kind, in any layer; they stay set."""
    for path in ("f", "d", "p", "u"):
        for mode in _MODES:
            shown.face.chmod(path, mode)
            same(shown.face.stat(path).st_mode & 0o7777, mode, path)
    fails(errno.EOPNOTSUPP, shown.face.chmod, "l", 0o600)
    shown.show_again()
    same({shown.face.stat(path).st_mode & 0o7777 for path in ("f", "d", "p", "u")}, {0o700})


@case(_TREE, needs=[Trait.ROOT])
def modes_without_any_right(shown: Showing) -> None:
    """A1: for root a file that nobody may read is as any other."""
    for path in ("f", "d"):
        shown.face.chmod(path, 0)
    shown.face.append("f", b"!")
    shown.face.create("d/new", 0, b"new")
    same((shown.face.read("f"), shown.face.read("d/new")), (b"data!", b"new"))
    same(shown.face.stat("d/new").st_mode & 0o7777, 0)


@case(_TREE, needs=[Trait.ROOT])
def owners(shown: Showing) -> None:
    """A1: owner and group are set, one may be left as it is, a link's own are set."""
    for path in ("f", "d", "l", "p"):
        shown.face.chown(path, 11, 12)
        shown.face.chown(path, -1, 13)
        shown.face.chown(path, 14, -1)
        found = shown.face.stat(path)
        same((found.st_uid, found.st_gid), (14, 13), path)
    found = shown.face.stat("d/x")
    same((found.st_uid, found.st_gid), (os.geteuid(), os.getegid()))


@case({"f": file(mode=0o6755), "d": directory(mode=0o6755)}, needs=[Trait.ROOT])
def owners_clear_bits(shown: Showing) -> None:
    """A1: a program that changes hands loses set-user-id; a directory keeps its bits."""
    shown.face.chown("f", 11, 12)
    shown.face.chown("d", 11, 12)
    same(shown.face.stat("f").st_mode & 0o7777, 0o755)
    same(shown.face.stat("d").st_mode & 0o7777, 0o6755)


_TIMES = (0, 1, 999_999_999, 1_234_567_890_123_456_789, LONG_AGO_NS, 4_000_000_000 * 10**9)


@case(_TREE)
def times(shown: Showing) -> None:
    """A1: both times are set to the nanosecond, of any kind; a link's own too."""
    for path in ("f", "d", "p", "l"):
        for value in _TIMES:
            shown.face.utimens(path, value, value + 1)
            found = shown.face.stat(path)
            # Looking at it may have set the access time.
            same(found.st_mtime_ns, value + 1, path)
    same(shown.face.stat("d/x").st_mtime_ns, LONG_AGO_NS)


@case(_TREE, needs=[Trait.PATHS])
def times_left_and_now(shown: Showing) -> None:
    """A1: UTIME_OMIT leaves a time, UTIME_NOW takes the clock's; an open file's times are set."""
    fd = os.open(shown.at(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in ("f", "d", "p"):
            utimensat(fd, path, timespec(5), timespec(7))
            utimensat(fd, path, (0, UTIME_OMIT), timespec(9))
            same(_both(shown, path), (5, 9), path)
            utimensat(fd, path, timespec(11), (0, UTIME_OMIT))
            same(_both(shown, path), (11, 9), path)
            before = time.time_ns()
            utimensat(fd, path, (0, UTIME_OMIT), (0, UTIME_NOW))
            accessed, modified = _both(shown, path)
            same(accessed, 11, path)
            # The kernel's clock for files is a few milliseconds coarse.
            assert modified > before - 10**8, path
    finally:
        os.close(fd)
    with shown.face.open("f", os.O_RDONLY) as opened:
        os.utime(opened, ns=(1, 2))
        same(_both(shown, "f"), (1, 2))


def _both(shown: Showing, path: str) -> tuple[int, int]:
    found = shown.face.stat(path)
    return found.st_atime_ns, found.st_mtime_ns


@case(_TREE)
def change_times(shown: Showing) -> None:
    """A1: every change of metadata sets the change time, and the modification time stays."""
    acts: tuple[Callable[[], object], ...] = (
        lambda: shown.face.chmod("f", 0o600),
        lambda: shown.face.setxattr("f", "user.k", b"v", 0),
        lambda: shown.face.removexattr("f", "user.k"),
        lambda: shown.face.link("f", "g"),
        lambda: shown.face.unlink("g"),
    )
    for number, act in enumerate(acts):
        before = time.time_ns()
        act()
        found = shown.face.stat("f")
        assert found.st_ctime_ns > before - 10**8, f"act {number} left the change time"
        same(found.st_mtime_ns, LONG_AGO_NS, f"act {number}")


@case(_TREE, upper={"u": file(b"data")})
def writing_sets_times(shown: Showing) -> None:
    """A1: writing sets the modification time, reading does not."""
    for path in ("f", "u"):
        shown.face.read(path)
        same(shown.face.stat(path).st_mtime_ns, LONG_AGO_NS, path)
        shown.face.write(path, b"x", 0)
        assert shown.face.stat(path).st_mtime_ns > LONG_AGO_NS, path
        shown.face.utimens(path, 1, 1)
        shown.face.truncate(path, 2)
        assert shown.face.stat(path).st_mtime_ns > 1, path
        shown.face.utimens(path, 1, 1)
        shown.face.overwrite(path, b"")
        assert shown.face.stat(path).st_mtime_ns > 1, path


@case(_TREE, upper={"u": file(b"upper")})
def sizes(shown: Showing) -> None:
    """A1: truncate(2) makes files shorter and longer; what was cut off does not come back."""
    for path in ("f", "u"):
        shown.face.truncate(path, 2)
        shown.face.truncate(path, 6)
        same(shown.face.read(path), {"f": b"da", "u": b"up"}[path] + bytes(4))
        same(shown.face.stat(path).st_size, 6)
        shown.face.truncate(path, 0)
        same(shown.face.read(path), b"")
    fails(errno.EISDIR, shown.face.truncate, "d", 0)
    fails(errno.EINVAL, shown.face.truncate, "p", 0)
    fails(errno.EINVAL, shown.face.truncate, "f", -1)
    fails(errno.ENOENT, shown.face.truncate, "none", 0)
    shown.face.truncate("l", 3)
    same(shown.face.stat("f").st_size, 3, "through a link")


@case({"d/n/x": file(), "e": directory()}, {"d/f/y": file()})
def link_counts(shown: Showing) -> None:
    """A3, X2: a merged directory shows link count 1, a file that of its names."""
    same(shown.face.stat("d").st_nlink, 1)
    same(shown.face.stat("d/n/x").st_nlink, 1)


@case(_TREE, needs=[Trait.PATHS])
def changes_by_descriptor(shown: Showing) -> None:
    """A1: an open file's mode, size, times and attributes are changed through its descriptor."""
    with shown.face.open("f", os.O_RDWR) as fd:
        os.fchmod(fd, 0o604)
        os.ftruncate(fd, 2)
        os.setxattr(fd, "user.k", b"v")
        same(os.fstat(fd).st_mode & 0o7777, 0o604)
        same(os.fstat(fd).st_size, 2)
        same(os.getxattr(fd, "user.k"), b"v")
        os.utime(fd, ns=(3, 4))
    found = shown.face.stat("f")
    same((found.st_mode & 0o7777, found.st_size, found.st_mtime_ns), (0o604, 2, 4))
    same(shown.face.getxattr("f", "user.k"), b"v")


@case({"f": file(b"lower"), "d": directory()}, needs=[Trait.PATHS])
def changes_by_a_reader(shown: Showing) -> None:
    """A1, C1: a lower's file open for reading is changed through its descriptor, in the upper."""
    with shown.face.open("f", os.O_RDONLY) as fd, shown.face.open("d", os.O_RDONLY) as directory_fd:
        os.fchmod(fd, 0o604)
        os.setxattr(fd, "user.k", b"v")
        os.utime(fd, ns=(3, 4))
        same(os.fstat(fd).st_mode & 0o7777, 0o604)
        os.fchmod(directory_fd, 0o705)
        same(os.fstat(directory_fd).st_mode & 0o7777, 0o705)
        same(os.pread(fd, 10, 0), b"lower")
    found = shown.face.stat("f")
    same((found.st_mode & 0o7777, found.st_mtime_ns), (0o604, 4))
    same(shown.face.stat("d").st_mode & 0o7777, 0o705)


@case(_TREE, upper={"u": file()}, needs=[Trait.PATHS, Trait.FILE_FLAGS])
def file_flags(shown: Showing) -> None:
    """A5: file flags, as chattr(1) sets them, are kept over a copy-up and in the next run."""
    for path in ("f", "u"):
        with shown.face.open(path, os.O_RDONLY) as fd:
            set_flags(fd, get_flags(fd) | FS_NODUMP_FL)
            assert get_flags(fd) & FS_NODUMP_FL, path
        with shown.face.open(path, os.O_RDONLY) as fd:
            assert get_flags(fd) & FS_NODUMP_FL, f"{path}, opened again"
    same(shown.face.read("f"), b"data")
    shown.show_again()
    with shown.face.open("f", os.O_RDONLY) as fd:
        assert get_flags(fd) & FS_NODUMP_FL, "in the next run"


@case(_TREE, needs=[Trait.PATHS, Trait.BIRTH_TIMES])
def birth_times(shown: Showing) -> None:
    """A1: statx(2) tells when a file was made, and the numbers that stat(2) tells."""
    before = time.time_ns()
    shown.face.create("new", 0o644, b"")
    shown.face.utimens("new", 1, 1)
    fd = os.open(shown.at(), os.O_PATH | os.O_CLOEXEC)
    try:
        found = statx(fd, "new")
    finally:
        os.close(fd)
    status = shown.face.stat("new")
    same((found.inode, found.device), (status.st_ino, status.st_dev))
    assert found.birth_ns is not None, "no time of birth"
    assert before - 10**8 < found.birth_ns < time.time_ns() + 10**8, found.birth_ns


@case({"d": directory()})
def umask(shown: Showing) -> None:
    """N2: new entries have the mode that the umask leaves."""
    for mask in (0, 0o027, 0o077):
        old = os.umask(mask)
        try:
            shown.face.create(f"f{mask}", 0o666, b"")
            shown.face.mkdir(f"d{mask}", 0o777)
            shown.face.mknod(f"p{mask}", 0o010666, 0)
        finally:
            os.umask(old)
        for name, wanted in (("f", 0o666), ("d", 0o777), ("p", 0o666)):
            same(shown.face.stat(f"{name}{mask}").st_mode & 0o7777, wanted & ~mask, name)
