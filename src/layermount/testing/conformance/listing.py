"""Cases: directories that are read while they change. Rules V1, R3."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable

from layermount.layer.base import DIRECTORY, REGULAR
from layermount.linux.listing import DirectoryEntry, getdents
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.trees import Tree, directory, file, hardlink, whiteout

COLLECTION = Collection("listing")
case = COLLECTION.case

_COUNT = 10_000


def _names(prefix: str) -> Tree:
    """Half of them, names of one file: quickly made."""
    first = f"d/{prefix}0"
    rest = {f"d/{prefix}{number}": hardlink(first) for number in range(1, _COUNT // 2)}
    return {first: file(), **rest}


_LOWER: Tree = _names("lower")
_UPPER: Tree = _names("upper")
_HALF: Tree = {f"d/{number:04}": file() for number in range(1000)}


def _open(shown: Showing, path: str) -> int:
    return os.open(shown.at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _rest(fd: int) -> list[DirectoryEntry]:
    found = []
    while entries := getdents(fd):
        found += entries
    return found


@case(_LOWER, upper=_UPPER, compared=False)
def ten_thousand(shown: Showing) -> None:
    """V1: a directory of 10,000 entries of two layers is listed whole, each entry once."""
    found = [name for name, _ in shown.face.listdir("d")]
    same(len(found), _COUNT)
    same(set(found), {path.removeprefix("d/") for path in (*_LOWER, *_UPPER)})


@case({"d/f": file(), "d/e": directory()}, {"d/g": file()}, needs=[Trait.PATHS])
def dot_entries(shown: Showing) -> None:
    """V1, I3: a listing has `.` and `..` once each, the kinds, and the number of the directory."""
    fd = _open(shown, "d")
    try:
        found = {entry.name: entry for entry in _rest(fd)}
    finally:
        os.close(fd)
    same(sorted(found), [".", "..", "e", "f", "g"])
    same(found["."].inode, shown.face.stat("d").st_ino)
    same(
        {name: entry.kind for name, entry in found.items() if name in "efg"},
        {"e": DIRECTORY, "f": REGULAR, "g": REGULAR},
    )


@case({f"d/n{number}": file() for number in range(2000)}, needs=[Trait.PATHS], compared=False)
def removed_while_listed(shown: Showing) -> None:
    """R1: entries that are removed while the directory is read disturb no other entry."""
    fd = _open(shown, "d")
    seen: list[str] = []
    try:
        while entries := getdents(fd, 2048):
            for entry in entries:
                if not entry.name.startswith("."):
                    seen.append(entry.name)
                    os.unlink(entry.name, dir_fd=fd)
    finally:
        os.close(fd)
    same(len(seen), 2000)
    same(len(set(seen)), 2000)
    same(shown.face.listdir("d"), [])
    shown.face.rmdir("d")


@case(_HALF, needs=[Trait.PATHS], compared=False)
def changed_while_listed(shown: Showing) -> None:
    """V1: what is neither removed nor added meanwhile is listed exactly once."""
    fd = _open(shown, "d")
    stable = {f"{number:04}" for number in range(0, 1000, 2)}
    changing = [f"{number:04}" for number in range(1, 1000, 2)]
    seen: Counter[str] = Counter()
    turn = 0
    try:
        while entries := getdents(fd, 1024):
            seen.update(entry.name for entry in entries)
            for _ in range(10):
                if turn < len(changing):
                    shown.face.unlink(f"d/{changing[turn]}")
                    shown.face.create(f"d/new{turn}", 0o644, b"")
                    turn += 1
    finally:
        os.close(fd)
    assert turn > 100, "the whole directory came at once"
    same({name: seen[name] for name in stable if seen[name] != 1}, {})
    twice = [name for name, count in seen.items() if count > 1]
    same(twice, [], "listed twice")


@case(_HALF, needs=[Trait.PATHS])
def positions(shown: Showing) -> None:
    """V1: telldir(3) and seekdir(3): a listing goes on where it was told to, as often as asked."""
    fd = _open(shown, "d")
    try:
        every: list[DirectoryEntry] = []
        while entries := getdents(fd, 1024):
            every += entries
        same(len({entry.name for entry in every}), 1002)
        for index in (0, 1, 2, 500, 999, 1001):
            os.lseek(fd, every[index].position, os.SEEK_SET)
            rest = [entry.name for entry in _rest(fd)]
            same(rest, [entry.name for entry in every[index + 1 :]], f"after entry {index}")
        os.lseek(fd, 0, os.SEEK_SET)
        same([entry.name for entry in _rest(fd)], [entry.name for entry in every], "rewound")
    finally:
        os.close(fd)


@case({"d/a": file(), "d/b": file()}, upper={"d/c": file()}, needs=[Trait.PATHS])
def rewound(shown: Showing) -> None:
    """V1: an open directory that is read anew shows what happened since."""
    fd = _open(shown, "d")
    try:
        same(sorted(entry.name for entry in _rest(fd)), [".", "..", "a", "b", "c"])
        same(getdents(fd), [])
        shown.face.unlink("d/a")
        shown.face.create("d/new", 0o644, b"")
        shown.face.rename("d/b", "d/moved", 0)
        os.lseek(fd, 0, os.SEEK_SET)
        same(sorted(entry.name for entry in _rest(fd)), [".", "..", "c", "moved", "new"])
    finally:
        os.close(fd)


@case({"d/a": file(), "f": file()}, needs=[Trait.PATHS])
def opened_before_the_copy_up(shown: Showing) -> None:
    """C1: a directory that was open when it came up shows, and leads to, what is in it since."""
    fd = _open(shown, "d")
    try:
        same(os.listdir(fd), ["a"])
        shown.face.create("d/new", 0o644, b"new")
        same(sorted(os.listdir(fd)), ["a", "new"])
        opened = os.open("new", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
        same(os.pread(opened, 10, 0), b"new")
        os.close(opened)
        os.mkdir("sub", dir_fd=fd)
        os.unlink("a", dir_fd=fd)
    finally:
        os.close(fd)
    same(sorted(name for name, _ in shown.face.listdir("d")), ["new", "sub"])
    fails(errno.ENOTDIR, shown.face.listdir, "f")


@case({"d/a": file()}, upper={"d/a": whiteout(), "d/b": file()})
def listed_after_every_change(shown: Showing) -> None:
    """V1, V3: a listing, a look-up and a stat agree after every change."""
    steps: tuple[tuple[Callable[[], object], list[str]], ...] = (
        (lambda: shown.face.create("d/a", 0o644, b""), ["a", "b"]),
        (lambda: shown.face.unlink("d/b"), ["a"]),
        (lambda: shown.face.mkdir("d/b", 0o755), ["a", "b"]),
        (lambda: shown.face.rename("d/a", "d/c", 0), ["b", "c"]),
        (lambda: shown.face.rmdir("d/b"), ["c"]),
        (lambda: shown.face.link("d/c", "d/a"), ["a", "c"]),
        (lambda: shown.face.unlink("d/c"), ["a"]),
    )
    for number, (act, expected) in enumerate(steps):
        act()
        same(sorted(name for name, _ in shown.face.listdir("d")), expected, f"step {number}")
        for name in ("a", "b", "c"):
            if name in expected:
                shown.face.stat(f"d/{name}")
            else:
                fails(errno.ENOENT, shown.face.stat, f"d/{name}")
