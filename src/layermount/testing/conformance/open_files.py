"""Cases: open(2) and its flags, files that are open while something happens. Rules H, R4, N6."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack

from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.trees import Tree, directory, fifo, file, symlink

COLLECTION = Collection("open_files")
case = COLLECTION.case

_TREE: Tree = {
    "f": file(b"lower"),
    "d/x": file(),
    "l": symlink("f"),
    "new_link": symlink("made"),
    "p": fifo(),
}


def _opens(shown: Showing, path: str, flags: int) -> Callable[[], None]:
    def opening() -> None:
        with shown.face.open(path, flags):
            pass

    return opening


@case(_TREE, upper={"u": file(b"upper")})
def refusals(shown: Showing) -> None:
    """H1: open(2) refuses as everywhere: EEXIST, ENOENT, EISDIR, ELOOP, ENOTDIR."""
    for path in ("f", "u", "l", "d"):
        fails(errno.EEXIST, _opens(shown, path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    fails(errno.EEXIST, _opens(shown, "new_link", os.O_CREAT | os.O_EXCL | os.O_RDWR))
    fails(errno.ENOENT, _opens(shown, "none", os.O_RDWR))
    fails(errno.ENOENT, _opens(shown, "new_link", os.O_RDWR))
    fails(errno.EISDIR, _opens(shown, "d", os.O_RDWR))
    fails(errno.EISDIR, _opens(shown, "d", os.O_CREAT | os.O_RDWR))
    fails(errno.ELOOP, _opens(shown, "l", os.O_RDONLY | os.O_NOFOLLOW))
    fails(errno.ENOTDIR, _opens(shown, "f/x", os.O_RDONLY))
    fails(errno.ENXIO, _opens(shown, "p", os.O_WRONLY | os.O_NONBLOCK))


@case(_TREE, needs=[Trait.PATHS])
def refusals_by_flags(shown: Showing) -> None:
    """H1: O_DIRECTORY takes directories alone, O_PATH opens anything and copies nothing up."""
    fails(errno.ENOTDIR, _opens(shown, "f", os.O_RDONLY | os.O_DIRECTORY))
    for path in ("f", "d", "p"):
        with shown.face.open(path, os.O_PATH) as fd:
            fails(errno.EBADF, os.read, fd, 1)
            same(os.fstat(fd).st_ino, shown.face.stat(path).st_ino)
    same(os.listdir(shown.layers.upper or ""), [])


@case(_TREE)
def created_on_opening(shown: Showing) -> None:
    """H1, N1: O_CREAT opens what is there and makes what is not, also where a link leads."""
    with shown.face.open("f", os.O_CREAT | os.O_RDWR, 0o600) as fd:
        same(os.pread(fd, 10, 0), b"lower")
    with shown.face.open("n", os.O_CREAT | os.O_RDWR, 0o640) as fd:
        os.pwrite(fd, b"new", 0)
    with shown.face.open("new_link", os.O_CREAT | os.O_WRONLY, 0o600) as fd:
        os.pwrite(fd, b"made", 0)
    with shown.face.open("w", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o400) as fd:
        os.pwrite(fd, b"read-only, but for who made it", 0)
    same((shown.face.read("n"), shown.face.read("made")), (b"new", b"made"))
    same(shown.face.stat("w").st_mode & 0o7777, 0o400)
    same(shown.face.stat("f").st_mode & 0o7777, 0o644)


@case(_TREE)
def access_modes(shown: Showing) -> None:
    """H1: what is open for reading is not written, what is open for writing is not read."""
    with shown.face.open("f", os.O_RDONLY) as fd:
        fails(errno.EBADF, os.pwrite, fd, b"x", 0)
        fails(errno.EINVAL, os.ftruncate, fd, 0)
    with shown.face.open("f", os.O_WRONLY) as fd:
        fails(errno.EBADF, os.pread, fd, 1, 0)
        os.pwrite(fd, b"L", 0)
    same(shown.face.read("f"), b"Lower")


@case(_TREE)
def appending(shown: Showing) -> None:
    """H1: O_APPEND writes at the end as it is then, whoever else writes."""
    flags = os.O_WRONLY | os.O_APPEND
    with shown.face.open("f", flags) as first, shown.face.open("f", flags) as second:
        os.write(first, b" one")
        os.write(second, b" two")
        os.write(first, b" three")
        os.ftruncate(second, 5)
        os.write(first, b"!")
    same(shown.face.read("f"), b"lower!")


@case(_TREE)
def several_at_once(shown: Showing) -> None:
    """H1: files open on one entry show one content and one size."""
    with ExitStack() as stack:
        fds = [stack.enter_context(shown.face.open("f", os.O_RDWR)) for _ in range(4)]
        for number, fd in enumerate(fds):
            os.pwrite(fd, b"x", number * 3)
            same({os.fstat(other).st_size for other in fds}, {max(5, number * 3 + 1)})
            same(len({os.pread(other, 100, 0) for other in fds}), 1)
        os.ftruncate(fds[0], 1)
        same({os.pread(other, 100, 0) for other in fds}, {b"x"})


@case({"f": file(b"old" * 2000)}, needs=[Trait.READER_FOLLOWS])
def reader_follows(shown: Showing) -> None:
    """H2: a file open for reading sees what is written after its copy-up."""
    with shown.face.open("f", os.O_RDONLY) as reader:
        same(os.pread(reader, 3, 0), b"old")
        with shown.face.open("f", os.O_RDWR) as writer:
            os.pwrite(writer, b"new", 0)
            same(os.pread(reader, 6, 0), b"newold")
            os.ftruncate(writer, 2)
            same(os.pread(reader, 6, 0), b"ne")
        shown.face.append("f", b"!")
        same(os.pread(reader, 6, 0), b"ne!")
        same(os.fstat(reader).st_size, 3)


@case({"f": file(b"old" * 2000)}, needs=[Trait.READER_FOLLOWS, Trait.LINKS_ARE_ONE])
def reader_follows_after_metadata(shown: Showing) -> None:
    """H2, C5: so does one of a file whose metadata came up first, or that got another name."""
    with shown.face.open("f", os.O_RDONLY) as reader:
        shown.face.chmod("f", 0o600)
        shown.face.link("f", "g")
        same(os.pread(reader, 3, 0), b"old")
        shown.face.write("g", b"new", 0)
        same(os.pread(reader, 3, 0), b"new")
        shown.face.rename("g", "f", 0)
        shown.face.write("f", b"end", 0)
        same(os.pread(reader, 3, 0), b"end")


_LARGE = b"old!" * (1 << 17)


@case({"f": file(_LARGE)}, needs=[Trait.LARGE_READER_FOLLOWS])
def large_reader_follows(shown: Showing) -> None:
    """H2, H7: so does one of a large file, which a host may leave to the kernel to read."""
    with shown.face.open("f", os.O_RDONLY) as reader:
        same(os.pread(reader, 4, 1000), b"old!")
        shown.face.write("f", b"new!", 1000)
        same(os.pread(reader, 8, 1000), b"new!old!")
        shown.face.truncate("f", 1002)
        same(os.pread(reader, 8, 1000), b"ne")


@case({"f": file(_LARGE)}, needs=[Trait.LARGE_READER_STAYS])
def large_reader_stays(shown: Showing) -> None:
    """H7: of a large file, who has it open goes on with what was opened, to its end."""
    with shown.face.open("f", os.O_RDONLY) as reader:
        same(os.pread(reader, 4, 1000), b"old!")
        shown.face.write("f", b"new!", 1000)
        shown.face.truncate("f", 1004)
        same(os.pread(reader, 8, 1000), b"old!old!")
        same(os.pread(reader, 8, len(_LARGE) - 4), b"old!")
        with shown.face.open("f", os.O_RDONLY) as later:
            same(os.pread(later, 8, 1000), b"new!")
        same(os.fstat(reader).st_ino, shown.face.stat("f").st_ino)


@case({"f": file(_LARGE), "d/g": file(_LARGE)}, upper={"u": file(_LARGE)})
def large_files_changed_while_read(shown: Showing) -> None:
    """H7, H8: whatever a reader of a large file sees, whoever opens it afterwards sees the changes.

    And the lower is not written: each case ends with that.
    """
    for path in ("f", "d/g", "u"):
        with ExitStack() as stack:
            readers = [stack.enter_context(shown.face.open(path, os.O_RDONLY)) for _ in range(3)]
            same({os.pread(fd, 4, 4000) for fd in readers}, {b"old!"})
            writer = stack.enter_context(shown.face.open(path, os.O_RDWR))
            os.pwrite(writer, b"new!", 4000)
            same(os.pread(writer, 8, 4000), b"new!old!")
            assert {os.pread(fd, 4, 4000) for fd in readers} <= {b"old!", b"new!"}, path
            later = stack.enter_context(shown.face.open(path, os.O_RDONLY))
            same(os.pread(later, 8, 4000), b"new!old!")
            os.ftruncate(writer, 4004)
            same((os.fstat(later).st_size, os.pread(later, 8, 4000)), (4004, b"new!"))
            same(shown.face.stat(path).st_size, 4004)
            shown.face.rename(path, "moved", 0)
            shown.face.append("moved", b"end")
            same(os.pread(later, 8, 4000), b"new!end")
            shown.face.unlink("moved")
            same(os.pread(later, 8, 4000), b"new!end")
            assert {os.pread(fd, 4, 4000) for fd in readers} <= {b"old!", b"new!"}, path


@case({"f": file(b"old" * 2000)}, needs=[Trait.READER_STAYS])
def reader_stays(shown: Showing) -> None:
    """H1: a file open for reading before the copy-up keeps the data it was opened with."""
    with shown.face.open("f", os.O_RDONLY) as reader:
        same(os.pread(reader, 3, 0), b"old")
        shown.face.write("f", b"new", 0)
        same(os.pread(reader, 3, 0), b"old")
        with shown.face.open("f", os.O_RDONLY) as later:
            same(os.pread(later, 3, 0), b"new")


@case({"f": file(b"lower")}, upper={"u": file(b"upper")})
def removed_while_open(shown: Showing) -> None:
    """R4, H3: a removed file is read and written as long as it is open, and has no name."""
    for path in ("f", "u"):
        with shown.face.open(path, os.O_RDWR) as fd:
            data = os.pread(fd, 10, 0)
            shown.face.unlink(path)
            fails(errno.ENOENT, shown.face.stat, path)
            same(os.fstat(fd).st_nlink, 0)
            same(os.pread(fd, 10, 0), data)
            os.pwrite(fd, b"!", 5)
            same(os.pread(fd, 10, 0), data + b"!")
            os.ftruncate(fd, 2)
            same((os.fstat(fd).st_size, os.pread(fd, 10, 0)), (2, data[:2]))
            shown.face.create(path, 0o644, b"other")
            same(os.pread(fd, 10, 0), data[:2])
        same(shown.face.read(path), b"other")


@case({"f": file(b"lower")})
def reader_of_a_removed_file(shown: Showing) -> None:
    """R4, H3: a lower's file that was removed is read by who had it open."""
    with shown.face.open("f", os.O_RDONLY) as fd:
        shown.face.unlink("f")
        same(os.pread(fd, 10, 0), b"lower")
        shown.face.create("f", 0o644, b"other")
        same(os.pread(fd, 10, 0), b"lower")


@case({"f": file(b"lower")}, upper={"u": file(b"upper")}, needs=[Trait.PATHS])
def removed_and_changed(shown: Showing) -> None:
    """R4, H5: mode, times and attributes of a removed file are changed through its descriptor."""
    for path in ("f", "u"):
        with shown.face.open(path, os.O_RDWR) as fd:
            shown.face.unlink(path)
            os.fchmod(fd, 0o604)
            os.setxattr(fd, "user.k", b"v")
            os.utime(fd, ns=(3, 4))
            found = os.fstat(fd)
            same((found.st_mode & 0o7777, found.st_mtime_ns, found.st_nlink), (0o604, 4, 0))
            same((os.getxattr(fd, "user.k"), os.listxattr(fd)), (b"v", ["user.k"]))
            os.fsync(fd)
    same(shown.face.listdir("."), [])


@case({"f": file(b"data")}, needs=[Trait.PATHS, Trait.LINKS_ARE_ONE])
def one_name_removed(shown: Showing) -> None:
    """R4, N5: a file that is open by a removed name is the same as by its other name."""
    shown.face.link("f", "g")
    with shown.face.open("f", os.O_RDWR) as fd:
        shown.face.unlink("f")
        same(os.fstat(fd).st_nlink, 1)
        os.pwrite(fd, b"D", 0)
        same(shown.face.read("g"), b"Data")
        shown.face.append("g", b"!")
        same(os.pread(fd, 10, 0), b"Data!")
        os.fchmod(fd, 0o600)
        same(shown.face.stat("g").st_mode & 0o7777, 0o600)
        same(os.fstat(fd).st_ino, shown.face.stat("g").st_ino)


@case({"f": file(b"f"), "g": file(b"g")}, needs=[Trait.PATHS])
def replaced_while_open(shown: Showing) -> None:
    """R4, H3: a file that was replaced by a rename goes on, without a name."""
    with shown.face.open("g", os.O_RDWR) as fd:
        shown.face.rename("f", "g", 0)
        same(os.fstat(fd).st_nlink, 0)
        os.pwrite(fd, b"own", 0)
        same((os.pread(fd, 10, 0), shown.face.read("g")), (b"own", b"f"))


@case({"d": directory()}, needs=[Trait.PATHS, Trait.TEMPORARY_FILES])
def without_a_name(shown: Showing) -> None:
    """N6: O_TMPFILE makes a file without a name, which linkat(2) may give one."""
    fd = os.open(shown.at("d"), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o640)
    try:
        os.pwrite(fd, b"data", 0)
        same((shown.face.listdir("d"), os.fstat(fd).st_nlink), ([], 0))
        _give_name(fd, shown.at("d"), "named")
        same(os.fstat(fd).st_nlink, 1)
        os.pwrite(fd, b"D", 0)
        same(shown.face.read("d/named"), b"Data")
        same(shown.face.stat("d/named").st_mode & 0o7777, 0o640)
        same(os.fstat(fd).st_ino, shown.face.stat("d/named").st_ino)
    finally:
        os.close(fd)
    fd = os.open(shown.at("d"), os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, b"x", 0)
        fails(errno.ENOENT, _give_name, fd, shown.at("d"), "no")
    finally:
        os.close(fd)
    same([name for name, _ in shown.face.listdir("d")], ["named"])


def _give_name(fd: int, directory: str, name: str) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which `os.link` says only beside a directory descriptor."""
    directory_fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)
    finally:
        os.close(directory_fd)


_MANY: Tree = {f"d{number % 10}/f{number}": file(b"%d" % number) for number in range(1000)}


@case(_MANY, compared=False)
def ten_thousand(shown: Showing) -> None:
    """H1: 10,000 files are open at once, for reading and for writing (less where the limit is)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = 12_000 if hard == resource.RLIM_INFINITY else min(hard, 12_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    count = min(10_000, max(soft, wanted) - 1000)
    paths = list(_MANY)
    try:
        with ExitStack() as stack:
            opened = [
                (
                    paths[n % 1000],
                    stack.enter_context(
                        shown.face.open(paths[n % 1000], os.O_RDONLY if n % 10 else os.O_RDWR)
                    ),
                )
                for n in range(count)
            ]
            for path, fd in opened[:: max(1, count // 500)]:
                same(os.pread(fd, 10, 0), path.rpartition("f")[2].encode())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
