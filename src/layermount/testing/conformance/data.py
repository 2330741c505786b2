"""Cases: reading and writing, mappings, holes, syncing. Rules H, C3."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import signal
from collections.abc import Callable

from layermount.linux.files import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from layermount.linux.mounts import syncfs
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.conformance.children import fork
from layermount.testing.trees import Tree, directory, file

COLLECTION = Collection("data")
case = COLLECTION.case

_PAGE = 4096
_BYTES = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(200)) * 5
_TREE: Tree = {"f": file(_BYTES), "d": directory()}


@case(_TREE, upper={"u": file(_BYTES)})
def positions(shown: Showing) -> None:
    """H1: every byte is read where it is, before the end, across it and after it."""
    for path in ("f", "u"):
        with shown.face.open(path, os.O_RDWR) as fd:
            for start, size in ((0, 10), (4095, 2), (31990, 100), (32000, 10), (99999, 1)):
                same(os.pread(fd, size, start), _BYTES[start : start + size], f"{path} {start}")
            same(os.pwrite(fd, b"end", 40000), 3)
            same(os.pread(fd, 8010, 32000), bytes(8000) + b"end")
            same(os.fstat(fd).st_size, 40003)
            fails(errno.EINVAL, os.pread, fd, 1, -1)


@case(_TREE)
def large_transfers(shown: Showing) -> None:
    """H1: large reads and writes arrive whole."""
    data = _BYTES * 120
    with shown.face.open("large", os.O_CREAT | os.O_RDWR, 0o644) as fd:
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], written)
        same(os.fstat(fd).st_size, len(data))
        read = b""
        while piece := os.pread(fd, 1 << 22, len(read)):
            read += piece
        same(hashlib.sha256(read).digest(), hashlib.sha256(data).digest())
        buffers = [bytearray(5000), bytearray(3), bytearray(70000)]
        same(os.preadv(fd, buffers, 11), 75003)
        same(b"".join(buffers), data[11:75014])
    shown.face.truncate("large", 100)


@case(_TREE, upper={"u": file(b"upper")}, needs=[Trait.ONE_FILESYSTEM])
def copied_in_the_kernel(shown: Showing) -> None:
    """H1, H6: copy_file_range(2) and sendfile(2) copy between files of any layer."""
    for source in ("f", "u"):
        data = shown.face.read(source)
        flags = os.O_CREAT | os.O_RDWR
        with (
            shown.face.open(source, os.O_RDONLY) as old,
            shown.face.open("new", flags, 0o644) as new,
        ):
            same(os.copy_file_range(old, new, len(data) + 100, 0, 0), len(data))
            same(os.pread(new, len(data) + 1, 0), data)
            same(os.copy_file_range(old, new, 3, 1, 20), 3)
            same(os.pread(new, 3, 20), data[1:4])
            os.lseek(new, 0, os.SEEK_SET)
            same(os.sendfile(new, old, 2, 3), 3)
            same(os.pread(new, 3, 0), data[2:5])
        shown.face.unlink("new")


@case(_TREE)
def copied_within_a_file(shown: Showing) -> None:
    """H6: copy_file_range(2) copies within a file of a lower, which comes up for it."""
    with shown.face.open("f", os.O_RDWR) as fd:
        same(os.copy_file_range(fd, fd, 100, 0, 10000), 100)
        same(os.pread(fd, 100, 10000), _BYTES[:100])
        fails(errno.EINVAL, os.copy_file_range, fd, fd, 100, 0, 50)


@case({"d": directory()})
def holes(shown: Showing) -> None:
    """C3: SEEK_DATA and SEEK_HOLE find what was written; holes are zeros and take no room."""
    with shown.face.open("d/sparse", os.O_CREAT | os.O_RDWR, 0o644) as fd:
        _make_sparse(fd)
    with shown.face.open("d/sparse", os.O_RDONLY) as fd:
        _check_holes(fd)
        same(os.pread(fd, _PAGE, 50 * _PAGE), bytes(_PAGE))
    found = shown.face.stat("d/sparse")
    assert found.st_blocks * 512 < 50 * _PAGE, f"{found.st_blocks} blocks"


@case({"d": directory()}, needs=[Trait.HOLES_AT_ONCE])
def holes_of_a_file_that_is_written(shown: Showing) -> None:
    """C3: they are found as soon as they are there."""
    with shown.face.open("d/sparse", os.O_CREAT | os.O_RDWR, 0o644) as fd:
        _make_sparse(fd)
        _check_holes(fd)


def _make_sparse(fd: int) -> None:
    os.pwrite(fd, b"x" * _PAGE, 100 * _PAGE)
    os.ftruncate(fd, 200 * _PAGE)


def _check_holes(fd: int) -> None:
    same(os.lseek(fd, 0, os.SEEK_DATA), 100 * _PAGE)
    same(os.lseek(fd, 100 * _PAGE, os.SEEK_HOLE), 101 * _PAGE)
    same(os.lseek(fd, 0, os.SEEK_HOLE), 0)
    fails(errno.ENXIO, os.lseek, fd, 150 * _PAGE, os.SEEK_DATA)
    fails(errno.ENXIO, os.lseek, fd, 200 * _PAGE, os.SEEK_DATA)


@case(_TREE)
def reserved_and_punched(shown: Showing) -> None:
    """C3: fallocate(2) reserves room, with and without a new size, and punches holes."""
    with shown.face.open("f", os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 50000)
        same(os.fstat(fd).st_size, 50000)
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 90000)
        same(os.fstat(fd).st_size, 50000)
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192)
        around = _BYTES[4090:4096] + bytes(8192) + _BYTES[12288:16383]
        same(os.pread(fd, 3 * _PAGE + 5, 4090), around)
        same(os.pread(fd, 4096, 0), _BYTES[:4096])
        fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
    with shown.face.open("f", os.O_RDONLY) as fd:
        fails(errno.EBADF, fallocate, fd, 0, 0, 10)


@case({"f": file(_BYTES * 5)}, upper={"u": file(_BYTES * 5)})
def mappings_of_large_files(shown: Showing) -> None:
    """H1, H7: mappings of large files, for reading and for writing, show what is in the file."""
    for path in ("f", "u"):
        with (
            shown.face.open(path, os.O_RDONLY) as fd,
            mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped,
        ):
            same(mapped[150_000:150_010], (_BYTES * 5)[150_000:150_010])
        with shown.face.open(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
            mapped[150_000:150_004] = b"MMAP"
            same(os.pread(fd, 4, 150_000), b"MMAP")
            os.pwrite(fd, b"WRIT", 10)
            same(mapped[10:14], b"WRIT")
        found = shown.face.read(path)
        same((found[10:14], found[150_000:150_004]), (b"WRIT", b"MMAP"))


@case(_TREE, upper={"u": file(_BYTES)})
def shared_mappings(shown: Showing) -> None:
    """H1: what is written through a mapping is read, and the other way round."""
    for path in ("f", "u"):
        with (
            shown.face.open(path, os.O_RDWR) as fd,
            mmap.mmap(fd, len(_BYTES), mmap.MAP_SHARED) as mapped,
        ):
            same(mapped[:], _BYTES)
            mapped[100:104] = b"MMAP"
            same(os.pread(fd, 4, 100), b"MMAP")
            with shown.face.open(path, os.O_RDONLY) as reader:
                same(os.pread(reader, 4, 100), b"MMAP")
            os.pwrite(fd, b"WRIT", 5000)
            same(mapped[5000:5004], b"WRIT")
            mapped.flush()
        same(shown.face.read(path)[98:106], _BYTES[98:100] + b"MMAP" + _BYTES[104:106])


@case(_TREE, upper={"u": file(_BYTES)}, needs=[Trait.PATHS])
def mappings_of_two_opens(shown: Showing) -> None:
    """H1: two mappings of a file, of two opens, are the same memory."""
    for path in ("f", "u"):
        with (
            shown.face.open(path, os.O_RDWR) as one,
            shown.face.open(path, os.O_RDWR) as two,
            mmap.mmap(one, 0) as first,
            mmap.mmap(two, 0) as second,
        ):
            first[0:3] = b"one"
            same(second[0:3], b"one")
            second[_PAGE : _PAGE + 3] = b"two"
            same(first[_PAGE : _PAGE + 3], b"two")
        same(shown.face.read(path)[:3], b"one")
        elsewhere = shown.in_child(lambda face: {name: face.read(name) for name in ("f", "u")})
        same(elsewhere[path][_PAGE:][:3], b"two")


@case(_TREE)
def private_mappings(shown: Showing) -> None:
    """H1: a private mapping shows the file, and what is written to it stays in the process."""
    with (
        shown.face.open("f", os.O_RDONLY) as fd,
        mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        same(mapped[:], _BYTES)
        mapped[:4] = b"mine"
        same(os.pread(fd, 4, 0), _BYTES[:4])
    same(shown.face.read("f"), _BYTES)
    same(os.listdir(shown.layers.upper or ""), [])


@case(_TREE, needs=[Trait.PATHS])
def truncated_while_mapped(shown: Showing) -> None:
    """H1: pages beyond a new end are SIGBUS, and zeros once the file is longer again."""
    with shown.face.open("f", os.O_RDWR) as fd, mmap.mmap(fd, 4 * _PAGE) as mapped:
        same(mapped[3 * _PAGE], _BYTES[3 * _PAGE])
        shown.face.truncate("f", _PAGE)
        same(_dies(lambda: mapped[3 * _PAGE]), signal.SIGBUS)
        shown.face.truncate("f", 4 * _PAGE)
        same(mapped[_PAGE:], bytes(3 * _PAGE))
        mapped[2 * _PAGE : 2 * _PAGE + 1] = b"x"
    same(shown.face.read("f"), _BYTES[:_PAGE] + bytes(_PAGE) + b"x" + bytes(2 * _PAGE - 1))


def _dies(act: Callable[[], object]) -> int:
    """The signal that ends a child which does this; 0 if it goes well."""
    pid = fork()
    if pid == 0:
        # Whoever catches it here would hang or print.
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        act()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@case({"f": file(_BYTES)}, needs=[Trait.PATHS])
def mapped_and_removed(shown: Showing) -> None:
    """R4: a mapping outlives its descriptor and the file's name."""
    with shown.face.open("f", os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 0)
    with mapped:
        shown.face.unlink("f")
        same(mapped[-10:], _BYTES[-10:])
        mapped[:4] = b"last"
        same(mapped[:4], b"last")


@case({"f": file(_BYTES)}, needs=[Trait.PATHS, Trait.READER_FOLLOWS])
def reader_follows_writes_of_others(shown: Showing) -> None:
    """H2: a reader in this process sees what another process writes after the copy-up."""
    with shown.face.open("f", os.O_RDONLY) as fd:
        same(os.pread(fd, 4, 0), _BYTES[:4])
        shown.in_child(lambda face: face.write("f", b"over", 0))
        same(os.pread(fd, 4, 0), b"over")
        shown.in_child(lambda face: face.truncate("f", 2))
        same((os.pread(fd, 4, 0), os.fstat(fd).st_size), (b"ov", 2))


@case({"f": file(_BYTES)}, needs=[Trait.MAPPINGS_FOLLOW])
def reader_mapping_follows(shown: Showing) -> None:
    """H2: a mapping of a file open for reading shows what is written after its copy-up."""
    with (
        shown.face.open("f", os.O_RDONLY) as fd,
        mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped,
    ):
        same(mapped[:4], _BYTES[:4])
        shown.face.write("f", b"over", 0)
        same(mapped[:8], b"over" + _BYTES[4:8])


@case(_TREE, upper={"u": file(b"upper")})
def syncing(shown: Showing) -> None:
    """S1: fsync, fdatasync and syncfs succeed, on files of any layer."""
    for path in ("f", "u"):
        with shown.face.open(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"x", 0)
            os.fdatasync(fd)
            os.fsync(fd)
            syncfs(fd)
    with shown.face.open("d/new", os.O_CREAT | os.O_WRONLY | os.O_DSYNC, 0o644) as fd:
        os.write(fd, b"x")


@case(_TREE, needs=[Trait.PATHS])
def syncing_directories(shown: Showing) -> None:
    """S1: so do they on directories, and on a lower's file open for reading."""
    for path in ("d", ".", "f"):
        fd = os.open(shown.at(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.fdatasync(fd)
            syncfs(fd)
        finally:
            os.close(fd)


_ROUNDS = 600
_MOST = 150_000


@case({"f": file(_BYTES)}, needs=[Trait.PATHS])
def random_changes(shown: Showing) -> None:
    """H1, C3: any order of writes, mappings, truncations and holes gives what memory would."""
    _change_at_random(shown, _BYTES)


@case({"f": file(_BYTES * 5)}, needs=[Trait.PATHS])
def random_changes_of_a_large_file(shown: Showing) -> None:
    """H1, H7, C3: the same of a file that a host may leave to the kernel."""
    _change_at_random(shown, _BYTES * 5)


def _change_at_random(shown: Showing, data: bytes) -> None:
    choices = random.Random(4711)  # noqa: S311  # the same order every time
    model = bytearray(data)
    with shown.face.open("f", os.O_RDWR) as one, shown.face.open("f", os.O_RDWR) as two:
        for _ in range(_ROUNDS):
            fd = choices.choice((one, two))
            offset, length = choices.randrange(_MOST), choices.randrange(1, 20_000)
            act = choices.choice(_CHANGES)
            act(fd, model, offset, length)
            check = choices.choice((one, two))
            at = choices.randrange(max(1, len(model)))
            same(os.pread(check, 9000, at), bytes(model[at : at + 9000]), act.__name__)
        same(os.pread(one, _MOST * 2, 0), bytes(model))
    same(shown.face.read("f"), bytes(model))


def _write(fd: int, model: bytearray, offset: int, length: int) -> None:
    piece = bytes([offset % 255 + 1]) * length
    os.pwrite(fd, piece, offset)
    model.extend(bytes(max(0, offset + length - len(model))))
    model[offset : offset + length] = piece


def _truncate(fd: int, model: bytearray, offset: int, _length: int) -> None:
    os.ftruncate(fd, offset)
    model.extend(bytes(max(0, offset - len(model))))
    del model[offset:]


def _punch(fd: int, model: bytearray, offset: int, length: int) -> None:
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
    end = min(len(model), offset + length)
    if offset < end:
        model[offset:end] = bytes(end - offset)


def _map(fd: int, model: bytearray, offset: int, length: int) -> None:
    end = min(len(model), offset + length)
    if offset >= end:
        return
    with mmap.mmap(fd, len(model)) as mapped:
        same(mapped[offset:end], bytes(model[offset:end]), "mapping")
        mapped[offset:end] = b"m" * (end - offset)
    model[offset:end] = b"m" * (end - offset)


def _copy(fd: int, model: bytearray, offset: int, length: int) -> None:
    half = len(model) // 2
    length = min(length, half)
    if length and offset + length <= half:
        done = os.copy_file_range(fd, fd, length, offset, half)
        model[half : half + done] = model[offset : offset + done]


_CHANGES = (_write, _write, _write, _map, _truncate, _punch, _copy)
