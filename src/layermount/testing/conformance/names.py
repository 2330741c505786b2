"""Cases: making entries, removing them, hard links. Rules N, R, X1."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.conformance.visibility import names
from layermount.testing.trees import (
    Tree,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
    whiteout,
)

COLLECTION = Collection("names")
case = COLLECTION.case

_TAKEN: Tree = {"f": file(b"f"), "d/x": file(), "l": symlink("nowhere"), "p": fifo()}


@case(_TAKEN, upper={"u": file(b"u")})
def names_that_are_taken(shown: Showing) -> None:
    """N1: EEXIST, whatever layer has the name and whatever is there."""
    for path in (*_TAKEN, "u", "d"):
        fails(errno.EEXIST, shown.face.create, path, 0o644, b"")
        fails(errno.EEXIST, shown.face.mkdir, path, 0o755)
        fails(errno.EEXIST, shown.face.symlink, path, "x")
        fails(errno.EEXIST, shown.face.mknod, path, stat.S_IFIFO | 0o644, 0)
        fails(errno.EEXIST, shown.face.link, "f", path)
    same(os.listdir(shown.layers.upper or ""), ["u"], "nothing was copied up")


@case({"d": directory()}, upper={"u": directory()})
def new_files(shown: Showing) -> None:
    """N2: a new file is there at once, with its data, in a directory of any layer."""
    for path in ("new", "d/new", "u/new"):
        shown.face.create(path, 0o640, b"data")
        same(shown.face.read(path), b"data")
        found = shown.face.stat(path)
        same(stat.S_IFMT(found.st_mode), stat.S_IFREG)
        same((found.st_mode & 0o7777, found.st_size, found.st_nlink), (0o640, 4, 1))
        same((found.st_uid, found.st_gid), (os.geteuid(), os.getegid()))
    same(names(shown), ["d", "new", "u"])


@case({"d": directory()})
def parents_get_the_time(shown: Showing) -> None:
    """N2: making and removing an entry sets the times of the directory it is in."""
    acts: tuple[Callable[[], object], ...] = (
        lambda: shown.face.create("d/f", 0o644, b""),
        lambda: shown.face.mkdir("d/d", 0o755),
        lambda: shown.face.symlink("d/l", "f"),
        lambda: shown.face.link("d/f", "d/g"),
        lambda: shown.face.rename("d/g", "d/h", 0),
        lambda: shown.face.unlink("d/h"),
        lambda: shown.face.rmdir("d/d"),
    )
    for number, act in enumerate(acts):
        shown.face.utimens("d", 1, 1)
        act()
        assert shown.face.stat("d").st_mtime_ns > 1, f"act {number} left the time"


@case({"d": directory()})
def other_kinds(shown: Showing) -> None:
    """N2: links, fifos and sockets are made as such."""
    shown.face.symlink("d/link", "any target")
    shown.face.mknod("d/fifo", stat.S_IFIFO | 0o640, 0)
    shown.face.mknod("d/socket", stat.S_IFSOCK | 0o600, 0)
    shown.face.mknod("d/file", stat.S_IFREG | 0o600, 0)
    same(shown.face.readlink("d/link"), "any target")
    same(shown.face.stat("d/link").st_size, len("any target"))
    for name, kind in (("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK), ("file", stat.S_IFREG)):
        same(stat.S_IFMT(shown.face.stat(f"d/{name}").st_mode), kind)
    same(shown.face.stat("d/fifo").st_mode & 0o7777, 0o640)


@case({"d": directory()}, needs=[Trait.ROOT])
def devices(shown: Showing) -> None:
    """N2: device nodes have their kind and number."""
    shown.face.mknod("d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    shown.face.mknod("block", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    same(shown.face.stat("d/null").st_rdev, os.makedev(1, 3))
    same(stat.S_IFMT(shown.face.stat("block").st_mode), stat.S_IFBLK)
    same(shown.face.stat("block").st_rdev, os.makedev(7, 250))


@case({"d": directory()})
def whiteout_devices(shown: Showing) -> None:
    """T4, X6: a character device 0:0 is a mark; making one is EPERM."""
    fails(errno.EPERM, shown.face.mknod, "mark", stat.S_IFCHR | 0o600, 0)
    fails(errno.ENOENT, shown.face.stat, "mark")


@case({"f": file(), "l": symlink("f")})
def parents_that_are_none(shown: Showing) -> None:
    """N1: below what is no directory ENOTDIR, below nothing ENOENT."""
    for parent, number in (("f", errno.ENOTDIR), ("l", errno.ENOTDIR), ("none", errno.ENOENT)):
        path = f"{parent}/new"
        fails(number, shown.face.create, path, 0o644, b"")
        fails(number, shown.face.mkdir, path, 0o755)
        fails(number, shown.face.symlink, path, "x")
        fails(number, shown.face.unlink, path)
        fails(number, shown.face.rmdir, path)
        fails(number, shown.face.listdir, parent)


@case({"a": file(b"old"), "d/b": file(b"old"), "l": symlink("x")})
def made_over_a_whiteout(shown: Showing) -> None:
    """N3: what is made where a lower's entry was deleted is new, and stays so."""
    for path in ("a", "d/b", "l"):
        shown.face.unlink(path)
        fails(errno.ENOENT, shown.face.stat, path)
    shown.face.create("a", 0o600, b"new")
    shown.face.symlink("d/b", "target")
    shown.face.mknod("l", stat.S_IFIFO | 0o600, 0)
    shown.show_again()
    same(shown.face.read("a"), b"new")
    same(shown.face.readlink("d/b"), "target")
    same(stat.S_IFMT(shown.face.stat("l").st_mode), stat.S_IFIFO)


@case({"d/deep/f": file(), "d/g": file()}, {"d/h": file()})
def directory_over_a_whiteout(shown: Showing) -> None:
    """N4: a directory made where one was deleted is empty, and stays so."""
    for path in ("d/deep/f", "d/g", "d/h"):
        shown.face.unlink(path)
    shown.face.rmdir("d/deep")
    shown.face.rmdir("d")
    shown.face.mkdir("d", 0o750)
    same(names(shown, "d"), [])
    shown.show_again()
    same(names(shown, "d"), [])
    same(shown.face.stat("d").st_mode & 0o7777, 0o750)


@case({"f": file(b"data"), "d": directory()}, needs=[Trait.LINKS_ARE_ONE])
def hard_links(shown: Showing) -> None:
    """N5: names of one file show one number, one content and the count of names, all at once."""
    face = shown.face
    same(face.stat("f").st_nlink, 1)
    face.link("f", "g")
    face.link("g", "d/h")
    every = ("f", "g", "d/h")
    same({face.stat(path).st_nlink for path in every}, {3})
    same(len({face.stat(path).st_ino for path in every}), 1)
    same({face.read(path) for path in every}, {b"data"})
    face.append("g", b" more")
    same({(face.read(path), face.stat(path).st_size) for path in every}, {(b"data more", 9)})
    face.chmod("d/h", 0o600)
    same({face.stat(path).st_mode & 0o7777 for path in every}, {0o600})
    face.unlink("f")
    same({face.stat(path).st_nlink for path in ("g", "d/h")}, {2})
    face.rename("g", "f", 0)
    same({face.read(path) for path in ("f", "d/h")}, {b"data more"})
    shown.show_again()
    same({shown.face.stat(path).st_nlink for path in ("f", "d/h")}, {2})
    same(len({shown.face.stat(path).st_ino for path in ("f", "d/h")}), 1)


@case({"f": file(b"x" * 9000)})
def hard_links_with_cached_reads(shown: Showing) -> None:
    """N5: what was read by one name and is kept in a cache is seen changed by the other."""
    face = shown.face
    face.link("f", "g")
    with face.open("f", os.O_RDONLY) as first, face.open("g", os.O_RDWR) as second:
        same(os.pread(first, 4, 0), b"xxxx")
        os.pwrite(second, b"abcd", 0)
        same(os.pread(first, 4, 0), b"abcd")
        os.ftruncate(second, 2)
        same(os.pread(first, 4, 0), b"ab")
    same((face.read("f"), face.stat("f").st_size), (b"ab", 2))


@case({"a": file(b"one"), "b": hardlink("a")})
def lower_links_break(shown: Showing) -> None:
    """N5, X1: copying up one name of a lower's file leaves its other names as they are."""
    same(shown.face.stat("a").st_nlink, 2)
    shown.face.append("a", b" two")
    same((shown.face.read("a"), shown.face.read("b")), (b"one two", b"one"))


@case(_TAKEN)
def links_to_other_kinds(shown: Showing) -> None:
    """N5: links to links, fifos and sockets are made; one to a directory is EPERM."""
    fails(errno.EPERM, shown.face.link, "d", "x")
    shown.face.link("l", "l2")
    same(shown.face.readlink("l2"), "nowhere")
    shown.face.link("p", "p2")
    same(stat.S_IFMT(shown.face.stat("p2").st_mode), stat.S_IFIFO)
    fails(errno.ENOENT, shown.face.link, "none", "x")


_REMOVED: Tree = {"f": file(), "l": symlink("x"), "p": fifo(), "d/f": file()}


@case(_REMOVED, upper={"u": file(), "d/u": file(), "f": file(b"in both")})
def unlink(shown: Showing) -> None:
    """R1: what is removed is gone, from whatever layer, and stays gone."""
    for path in ("f", "l", "p", "d/f", "u", "d/u"):
        shown.face.unlink(path)
        fails(errno.ENOENT, shown.face.unlink, path)
    same((names(shown), names(shown, "d")), (["d"], []))
    shown.show_again()
    same((names(shown), names(shown, "d")), (["d"], []))


@case({"d/f": file(), "f": file(), "l": symlink("d")})
def removals_refused(shown: Showing) -> None:
    """R1, R3: unlink of a directory is EISDIR, rmdir of anything else ENOTDIR."""
    fails(errno.EISDIR, shown.face.unlink, "d")
    fails(errno.ENOTDIR, shown.face.rmdir, "f")
    fails(errno.ENOTDIR, shown.face.rmdir, "l")
    fails(errno.ENOENT, shown.face.rmdir, "none")
    fails(errno.ENOTEMPTY, shown.face.rmdir, "d")
    fails(errno.EINVAL, shown.face.rmdir, "d/.")
    fails((errno.EBUSY, errno.ENOTEMPTY), shown.face.rmdir, "d/..")
    same(os.listdir(shown.layers.upper or ""), [])


@case({"d/a": file(), "d/b": file()}, {"d/c": file()}, upper={"d/b": whiteout(), "d/u": file()})
def rmdir(shown: Showing) -> None:
    """R3: a directory goes when nothing of any layer is seen in it, marks or not."""
    for path in ("d/a", "d/c", "d/u"):
        fails(errno.ENOTEMPTY, shown.face.rmdir, "d")
        shown.face.unlink(path)
    shown.face.rmdir("d")
    fails(errno.ENOENT, shown.face.stat, "d")
    shown.show_again()
    same(names(shown), [])


@case({"d": directory()}, upper={"u/v": directory()})
def rmdir_of_one_layer(shown: Showing) -> None:
    """R3: an empty directory of the lower, or of the upper alone, goes."""
    shown.face.rmdir("d")
    fails(errno.ENOTEMPTY, shown.face.rmdir, "u")
    shown.face.rmdir("u/v")
    shown.face.rmdir("u")
    same(names(shown), [])


@case({"d/f": file(b"f")}, needs=[Trait.PATHS])
def removed_working_directory(shown: Showing) -> None:
    """R4: a directory that was removed is empty and takes nothing, for who is still in it."""
    fd = os.open(shown.at("d"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shown.face.unlink("d/f")
        shown.face.rmdir("d")
        same(os.listdir(fd), [])
        fails(errno.ENOENT, lambda: os.mkdir("x", dir_fd=fd))
        fails(errno.ENOENT, lambda: os.open("x", os.O_CREAT | os.O_RDWR, dir_fd=fd))
        fails(errno.ENOENT, lambda: os.stat("f", dir_fd=fd))
        shown.face.mkdir("d", 0o755)
        shown.face.create("d/new", 0o644, b"")
        same(os.listdir(fd), [])
    finally:
        os.close(fd)


@case({"a/b/c/f": file(), "a/b/g": file()}, upper={"a/b/u": file()})
def whole_tree_removed(shown: Showing) -> None:
    """R1, R3: a tree of several layers is removed from the leaves up, and made again empty."""
    for path in ("a/b/c/f", "a/b/g", "a/b/u"):
        shown.face.unlink(path)
    for path in ("a/b/c", "a/b", "a"):
        shown.face.rmdir(path)
    for path in ("a", "a/b", "a/b/c"):
        shown.face.mkdir(path, 0o755)
    same(names(shown, "a/b"), ["c"])
    same(names(shown, "a/b/c"), [])
    shown.show_again()
    same((names(shown, "a"), names(shown, "a/b"), names(shown, "a/b/c")), (["b"], ["c"], []))
