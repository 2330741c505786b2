"""Cases: what a copy-up keeps, and the inode numbers. Rules C, I, X1."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layermount.linux.listing import getdents
from layermount.testing.conformance import children
from layermount.testing.conformance.case import Collection, Layers, Showing, Trait, fails, same
from layermount.testing.conformance.faces import Face
from layermount.testing.trees import (
    LONG_AGO_NS,
    Snapshot,
    Tree,
    differences,
    directory,
    fifo,
    file,
    hardlink,
    snapshot,
    symlink,
    without,
)

COLLECTION = Collection("copying")
case = COLLECTION.case

_DATA = b"0123456789" * 2000
_RICH: Tree = {
    "d": directory(mode=0o711, xattrs={"user.d": b"d"}),
    "d/e/f": file(_DATA, mode=0o4751, xattrs={"user.a": b"1", "user.b": bytes(300)}),
    "d/e/other": file(b"other"),
    "d/l": symlink("e/f"),
    "d/p": fifo(mode=0o640),
}

Act = Callable[[Face], object]
#: What is done to an entry, and the fields of `Shown` that it may change.
_ACTS: dict[str, tuple[str, Act, set[str]]] = {
    "chmod": ("d/e/f", lambda face: face.chmod("d/e/f", 0o600), {"mode"}),
    "setxattr": ("d/e/f", lambda face: face.setxattr("d/e/f", "user.c", b"3", 0), {"xattrs"}),
    "removexattr": ("d/e/f", lambda face: face.removexattr("d/e/f", "user.a"), {"xattrs"}),
    "utimens": ("d/e/f", lambda face: face.utimens("d/e/f", 5, 7), {"mtime_ns"}),
    "write": ("d/e/f", lambda face: face.write("d/e/f", b"x", 3), {"content", "mtime_ns", "mode"}),
    "truncate": (
        "d/e/f", lambda face: face.truncate("d/e/f", 5), {"content", "mtime_ns", "size", "mode"},
    ),
    "fifo": ("d/p", lambda face: face.chmod("d/p", 0o600), {"mode"}),
    "symlink": ("d/l", lambda face: face.utimens("d/l", 5, 7), {"mtime_ns"}),
    "directory": ("d", lambda face: face.chmod("d", 0o700), {"mode"}),
}  # fmt: skip


def _changed(before: Snapshot, after: Snapshot) -> dict[str, set[str]]:
    """The fields that differ, by path, but link counts (X2) and numbers, which have cases."""
    blank = ("nlink", "inode")
    found: dict[str, set[str]] = {}
    for line in differences(without(before, *blank), without(after, *blank)):
        path, field, *_ = line.split(": ")
        found.setdefault(path, set()).add(field)
    return found


def _check(shown: Showing, act: str) -> None:
    path, operation, allowed = _ACTS[act]
    before = snapshot(shown.face)
    operation(shown.face)
    found = _changed(before, snapshot(shown.face))
    same(set(found), {path}, "what changed")
    assert found[path] <= allowed, f"{path}: {found[path] - allowed} changed too"
    shown.show_again()
    found = _changed(before, snapshot(shown.face))
    beyond = found.get(path, set()) - allowed
    same((set(found), beyond), ({path}, set()), "what is changed when shown again")


@case(_RICH)
def chmod(shown: Showing) -> None:
    """C1, C2, C5: a change of the mode changes nothing else, of the entry and of all others."""
    _check(shown, "chmod")


@case(_RICH)
def setxattr(shown: Showing) -> None:
    """C1, C2, C5: a new attribute changes nothing else."""
    _check(shown, "setxattr")


@case(_RICH)
def removexattr(shown: Showing) -> None:
    """C1, C2, C5: removing an attribute changes nothing else."""
    _check(shown, "removexattr")


@case(_RICH)
def utimens(shown: Showing) -> None:
    """C1, C2, C5: new times change nothing else."""
    _check(shown, "utimens")


@case(_RICH)
def write(shown: Showing) -> None:
    """C1, C2, C3: writing changes data and times of this one file."""
    _check(shown, "write")


@case(_RICH)
def truncate(shown: Showing) -> None:
    """C1, C2, C7: truncating changes data, size and times of this one file."""
    _check(shown, "truncate")
    same(shown.face.read("d/e/f"), _DATA[:5])


@case(_RICH)
def directories(shown: Showing) -> None:
    """C1, C2: a directory comes up with all it has."""
    _check(shown, "directory")


@case(_RICH)
def other_kinds(shown: Showing) -> None:
    """C1, C2: a fifo and a link come up with all they have."""
    before = snapshot(shown.face)
    for name in ("fifo", "symlink"):
        path, operation, allowed = _ACTS[name]
        operation(shown.face)
        same(_changed(before, snapshot(shown.face))[path], allowed, name)


_OWNED: Tree = {
    "d": directory(mode=0o2750, owner=(1, 2)),
    "d/f": file(b"f", mode=0o640, owner=(3, 4)),
    "d/l": symlink("f"),
}


@case(_OWNED, needs=[Trait.ROOT])
def owners(shown: Showing) -> None:
    """C2: copies keep their owners, parents too."""
    shown.face.append("d/f", b"!")
    shown.face.create("d/new", 0o644, b"")
    for path, owner in (("d", (1, 2)), ("d/f", (3, 4)), ("d/new", (os.geteuid(), 2))):
        found = shown.face.stat(path)
        same((found.st_uid, found.st_gid), owner, path)
    same(shown.face.stat("d").st_mode & 0o7777, 0o2750)


@case(_RICH)
def opening_alone_changes_nothing(shown: Showing) -> None:
    """C1, C2: a file opened for writing and closed again is as it was, whoever looks."""
    before = snapshot(shown.face)
    with shown.face.open("d/e/f", os.O_RDWR):
        same(_changed(before, snapshot(shown.face)), {})
    same(_changed(before, snapshot(shown.face)), {})
    with shown.face.open("d/e/f", os.O_RDONLY):
        pass
    shown.show_again()
    same(_changed(before, snapshot(shown.face)), {})


@case(_RICH)
def truncated_on_opening(shown: Showing) -> None:
    """C7: O_TRUNC leaves nothing of the data, and what is written afterwards."""
    with shown.face.open("d/e/f", os.O_WRONLY | os.O_TRUNC) as fd:
        same(shown.face.stat("d/e/f").st_size, 0)
        os.pwrite(fd, b"new", 2)
    same(shown.face.read("d/e/f"), b"\0\0new")


@case(_RICH)
def metadata_first_then_data(shown: Showing) -> None:
    """C5: the data is there after any change of metadata, whatever way it is asked for."""
    shown.face.chmod("d/e/f", 0o644)
    same(shown.face.read("d/e/f"), _DATA)
    shown.face.setxattr("d/e/f", "user.late", b"late", 0)
    shown.face.write("d/e/f", b"X", 19999)
    same(shown.face.read("d/e/f"), _DATA[:-1] + b"X")
    same(shown.face.getxattr("d/e/f", "user.late"), b"late")
    shown.face.chmod("d/e/other", 0o600)
    shown.show_again()
    shown.face.truncate("d/e/other", 3)
    same(shown.face.read("d/e/other"), b"oth")


_MIB = 1 << 20


def _with_holes(layers: Layers) -> None:
    fd = os.open(layers.lowers[0] / "holes", os.O_RDWR)
    try:
        os.pwrite(fd, b"start", 0)
        os.pwrite(fd, b"middle", 4 * _MIB)
        os.ftruncate(fd, 8 * _MIB)
    finally:
        os.close(fd)
    os.utime(layers.lowers[0] / "holes", ns=(LONG_AGO_NS, LONG_AGO_NS))


@case({"holes": file()}, prepare=_with_holes)
def holes(shown: Showing) -> None:
    """C3: a copy of a file with holes has the data where it was, and holes stay holes."""
    with shown.face.open("holes", os.O_RDWR) as fd:
        os.pwrite(fd, b"X", 4 * _MIB)
        same(os.pread(fd, 7, 4 * _MIB), b"Xiddle\0")
        same(os.pread(fd, 5, 0), b"start")
        same(os.pread(fd, 100, 6 * _MIB), bytes(100))
    found = shown.face.stat("holes")
    same(found.st_size, 8 * _MIB)
    # The kernel copies a MiB around each piece of data.
    assert found.st_blocks * 512 < 5 * _MIB, f"{found.st_blocks} blocks"


@case({"f": file(b"")}, needs=[Trait.PATHS])
def several_processes(shown: Showing) -> None:
    """C9: writers of one file of a lower, at the same moment, write to one copy."""

    def work(number: int) -> Callable[[], None]:
        def lines() -> None:
            fd = os.open("f", os.O_WRONLY | os.O_APPEND)
            for line in range(50):
                os.write(fd, b"%d %d\n" % (number, line))

        return lines

    running = [children.Child(work(number), directory=shown.at()) for number in range(4)]
    for child in running:
        child.result()
    expected = sorted(b"%d %d" % (number, line) for number in range(4) for line in range(50))
    same(sorted(shown.face.read("f").splitlines()), expected)


_MIXED: Tree = {"d/f": file(b"f"), "d/l": symlink("f"), "d/p": fifo(), "g": file(b"g")}


@case(
    _MIXED,
    {"d/deep": file(), "e": directory()},
    upper={"u": file(), "d/v": file()},
    needs=[Trait.NUMBERS_STAY],
)
def inode_numbers(shown: Showing) -> None:
    """I1, I2, I3: numbers differ, and are the same in the next run; the device is one for all."""
    files = ("d/f", "d/deep", "d/v", "g", "u")
    before = {path: shown.face.stat(path).st_ino for path in (*files, "d", "e")}
    same(len(set(before.values())), len(before), "different numbers")
    shown.face.append("d/f", b"!")
    shown.face.chmod("g", 0o600)
    shown.face.create("e/new", 0o644, b"")
    same({path: shown.face.stat(path).st_ino for path in before}, before, "after a copy-up")
    shown.show_again()
    same({path: shown.face.stat(path).st_ino for path in before}, before, "in the next run")
    same(len({shown.face.stat(path).st_dev for path in files}), 1, "devices")


@case(_MIXED, {"d/deep": file(), "e/x": file()}, upper={"u": file()}, needs=[Trait.PATHS])
def inode_numbers_in_listings(shown: Showing) -> None:
    """I1, I2: a listing has the numbers that stat(2) has, before a copy-up and after."""
    shown.face.append("d/f", b"!")
    for path in (".", "d", "e"):
        same(_listed(shown.at(path)), _stated(shown.at(path)), path)
    shown.face.chmod("d/deep", 0o600)
    shown.face.rename("g", "d/g", 0)
    shown.face.chmod("e", 0o700)
    for path in (".", "d", "e"):
        same(_listed(shown.at(path)), _stated(shown.at(path)), path)


def _listed(path: str) -> dict[str, int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = {}
        while entries := getdents(fd):
            found.update({entry.name: entry.inode for entry in entries})
    finally:
        os.close(fd)
    # The root's parent is on another filesystem.
    return {name: number for name, number in found.items() if name != ".."}


def _stated(path: str) -> dict[str, int]:
    return {name: os.lstat(f"{path}/{name}").st_ino for name in (".", *os.listdir(path))}


@case({"a": file(b"a"), "b": hardlink("a"), "c": file(b"c")})
def numbers_of_broken_links(shown: Showing) -> None:
    """I4, X1: names of one file of a lower have one number, until one of them is copied up."""
    same(shown.face.stat("a").st_ino, shown.face.stat("b").st_ino)
    old = shown.face.stat("b").st_ino
    shown.face.append("a", b"!")
    same(shown.face.stat("b").st_ino, old)
    assert shown.face.stat("a").st_ino != old, "the copy has the number of the other name"


@case(_RICH)
def nothing_left_by_a_refusal(shown: Showing) -> None:
    """C4: what is refused for its name or its arguments copies nothing up."""
    face = shown.face
    fails(errno.EINVAL, face.truncate, "d/e/f", -1)
    fails(errno.EISDIR, face.write, "d", b"x", 0)
    fails(errno.EEXIST, face.mkdir, "d/e", 0o755)
    fails(errno.EEXIST, face.link, "d/e/f", "d/p")
    fails(errno.ENODATA, face.removexattr, "d/e/f", "user.none")
    fails(errno.ENOENT, face.chmod, "d/e/none", 0o600)
    same(os.listdir(shown.layers.upper or ""), [])
