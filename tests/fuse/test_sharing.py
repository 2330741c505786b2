"""Several processes on the same files of a mounted overlay: maps, locks, names, watches.

Rules: H1 to H3.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest

from layermount.testing import trees
from tests import forked
from tests.fuse import places
from tests.fuse.places import Place

SIZE = 5 * mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_EVERY_EVENT = 0x00000FFF
_QUEUED = struct.Struct("iIII")


class Peer:
    """A second process that does what it is told, and goes on having open what it opened."""

    def __init__(self) -> None:
        self._asked, theirs = Pipe()
        if forked.fork() == 0:
            self._asked.close()
            try:
                while True:
                    theirs.send(_tried(*theirs.recv()))
            finally:
                os._exit(0)
        theirs.close()

    def __call__(self, function: Callable[..., object], *arguments: object) -> object:
        """What the function returns there; an OSError of it is raised here."""
        self._asked.send((function, arguments))
        answer = self._asked.recv()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def end(self) -> None:
        self._asked.close()
        os.wait()


def _tried(function: Callable[..., object], arguments: tuple[object, ...]) -> object:
    try:
        return function(*arguments)
    except OSError as error:
        return error


@contextmanager
def peer_on(place: Place) -> Iterator[Peer]:
    """A second process beside this one, while the overlay is mounted."""
    with place.mount():
        peer = Peer()
        try:
            yield peer
        finally:
            peer.end()


#: What the peer has mapped.
_maps: dict[str, mmap.mmap] = {}


def map_it(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _maps[str(path)] = mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)


def map_read(path: Path, offset: int, size: int) -> bytes:
    return _maps[str(path)][offset : offset + size]


def map_write(path: Path, offset: int, content: bytes) -> None:
    _maps[str(path)][offset : offset + len(content)] = content


def lock_whole(fd: int, operation: int) -> None:
    fcntl.flock(fd, operation | fcntl.LOCK_NB)


def lock_range(fd: int, operation: int, start: int, size: int) -> None:
    no_wait = 0 if operation == fcntl.LOCK_UN else fcntl.LOCK_NB
    fcntl.lockf(fd, operation | no_wait, size, start)


class TestMaps:
    def test_two_processes_see_what_the_other_wrote(self, place: Place) -> None:
        """By maps of both, and by read and write; the file starts in the lower."""
        trees.build(place.lower, {"file": trees.file(bytes(SIZE))})
        path = place.target / "file"
        with peer_on(place) as peer:
            map_it(path)
            peer(map_it, path)
            fd = os.open(path, os.O_RDWR)
            for n in range(200):
                content, offset = b"%07d" % n, n * 97 % (SIZE - 7)
                writers: list[Callable[[], object]] = [
                    lambda at=offset, new=content: map_write(path, at, new),  # type: ignore[misc]  # bound now
                    lambda at=offset, new=content: peer(map_write, path, at, new),  # type: ignore[misc]  # bound now
                    lambda at=offset, new=content: os.pwrite(fd, new, at),  # type: ignore[misc]  # bound now
                ]
                writers[n % 3]()
                assert map_read(path, offset, 7) == content
                assert peer(map_read, path, offset, 7) == content
                assert os.pread(fd, 7, offset) == content
            whole = os.pread(fd, SIZE, 0)
            os.close(fd)
            _maps.pop(str(path)).close()
        with place.mount():
            assert path.read_bytes() == whole

    def test_a_map_outlives_its_name(self, place: Place) -> None:
        trees.build(place.lower, {"file": trees.file(bytes(SIZE))})
        path = place.target / "file"
        with peer_on(place) as peer:
            peer(map_it, path)
            peer(map_write, path, 0, b"before")
            path.unlink()
            peer(map_write, path, 0, b"after.")
            assert peer(map_read, path, 0, 6) == b"after."
            assert not path.exists()


class TestLocks:
    @pytest.mark.parametrize("copied_up", [False, True], ids=["lower", "copied up meanwhile"])
    def test_flock(self, place: Place, copied_up: bool) -> None:
        trees.build(place.lower, {"file": trees.file(b"x")})
        path = place.target / "file"
        with peer_on(place) as peer:
            fd = os.open(path, os.O_RDONLY)
            lock_whole(fd, fcntl.LOCK_EX)
            if copied_up:
                path.write_bytes(b"new")
            theirs = peer(os.open, path, os.O_RDWR)
            with pytest.raises(BlockingIOError):
                peer(lock_whole, theirs, fcntl.LOCK_SH)
            lock_whole(fd, fcntl.LOCK_SH)
            peer(lock_whole, theirs, fcntl.LOCK_SH)
            with pytest.raises(BlockingIOError):
                lock_whole(fd, fcntl.LOCK_EX)
            peer(os.close, theirs)
            lock_whole(fd, fcntl.LOCK_EX)
            os.close(fd)

    @pytest.mark.parametrize("copied_up", [False, True], ids=["lower", "copied up meanwhile"])
    def test_fcntl(self, place: Place, copied_up: bool) -> None:
        trees.build(place.lower, {"file": trees.file(bytes(100))})
        path = place.target / "file"
        with peer_on(place) as peer:
            fd = os.open(path, os.O_RDWR if copied_up else os.O_RDONLY)
            kind = fcntl.LOCK_EX if copied_up else fcntl.LOCK_SH
            lock_range(fd, kind, 10, 20)
            theirs = peer(os.open, path, os.O_RDWR)
            with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
                peer(lock_range, theirs, fcntl.LOCK_EX, 29, 5)
            assert caught.value.errno in (errno.EAGAIN, errno.EACCES)
            peer(lock_range, theirs, fcntl.LOCK_EX, 30, 5)
            lock_range(fd, fcntl.LOCK_UN, 20, 10)
            peer(lock_range, theirs, fcntl.LOCK_EX, 25, 5)
            peer(os.close, theirs)
            os.close(fd)

    def test_a_lock_ends_with_its_process(self, place: Place) -> None:
        path = place.target / "file"
        with place.mount():
            path.write_bytes(b"x")
            peer = Peer()
            theirs = peer(os.open, path, os.O_RDWR)
            peer(lock_whole, theirs, fcntl.LOCK_EX)
            peer(lock_range, theirs, fcntl.LOCK_EX, 0, 1)
            peer.end()
            with path.open("r+b") as file:
                lock_whole(file.fileno(), fcntl.LOCK_EX)
                lock_range(file.fileno(), fcntl.LOCK_EX, 0, 1)


class TestOneFile:
    @pytest.mark.parametrize("size", [100, 1_000_000])
    def test_a_reader_sees_what_is_written_later(self, place: Place, size: int) -> None:
        """Opened before the copy-up; what the kernel reads by itself is not exchanged."""
        trees.build(place.lower, {"file": trees.file(b"l" * size)})
        path = place.target / "file"
        with peer_on(place) as peer:
            before = peer(os.open, path, os.O_RDONLY)
            assert peer(os.pread, before, 10, size - 10) == b"l" * 10
            with path.open("r+b") as file:
                file.seek(size - 5)
                file.write(b"upper and more")
            keeps = place.host in places.KEEP_OLD and size > places.LARGE
            seen = b"l" * 10 if keeps else b"lllllupper and more"
            assert peer(os.pread, before, 20, size - 10) == seen
            after = peer(os.open, path, os.O_RDONLY)
            assert peer(os.pread, after, 20, size - 10) == b"lllllupper and more"
            peer(os.close, before)
            peer(os.close, after)

    def test_an_unlinked_file_lives_on(self, place: Place) -> None:
        trees.build(place.lower, {"file": trees.file(b"lower")})
        path = place.target / "file"
        with peer_on(place) as peer:
            theirs = peer(os.open, path, os.O_RDONLY)
            path.unlink()
            path.write_bytes(b"another")
            assert peer(os.pread, theirs, 10, 0) == b"lower"
            ours = os.open(path, os.O_RDWR)
            path.unlink()
            os.pwrite(ours, b"ANO", 0)
            assert os.fstat(ours).st_nlink == 0
            assert os.pread(ours, 10, 0) == b"ANOther"
            assert os.fstat(ours).st_size == 7
            os.close(ours)

    def test_appending_together(self, place: Place) -> None:
        """No record of two processes is lost or torn."""
        trees.build(place.lower, {"log": trees.file(b"")})
        path = place.target / "log"
        with place.mount():
            children = [_in_background(append_many, path, name) for name in (b"a", b"b", b"c")]
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            lines = path.read_bytes().splitlines()
            assert sorted(lines) == sorted(n * 60 for n in (b"a", b"b", b"c") for _ in range(300))

    def test_exclusive_creation(self, place: Place) -> None:
        """Of several processes that make the same names, one makes each."""
        with place.mount():
            children = [_in_background(create_many, place.target, n) for n in range(3)]
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            made = sum(int(path.read_text()) for path in place.target.glob("count*"))
            assert made == len([*place.target.glob("made*")]) == 200


def append_many(path: Path, name: bytes) -> None:
    for _ in range(300):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, name * 60 + b"\n")
        os.close(fd)


def create_many(root: Path, number: int) -> None:
    made = 0
    for n in range(200):
        try:
            os.close(os.open(root / f"made{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            made += 1
        except FileExistsError:
            continue
    (root / f"count{number}").write_text(str(made))


def _in_background(function: Callable[..., None], *arguments: object) -> int:
    pid = forked.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    return pid


def test_inotify(place: Place, tmp_path: Path) -> None:
    """A watch tells the same as on a plain directory."""
    tree = {"lower": trees.file(b"lower"), "gone": trees.file(), "dir/x": trees.file()}
    trees.build(place.lower, tree)
    plain = trees.build(tmp_path / "plain", tree)
    with place.mount():
        assert watched(place.target) == watched(plain)


def watched(root: Path) -> list[tuple[int, str]]:
    """The events of a directory in which this and that is done."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert _libc.inotify_add_watch(fd, os.fsencode(root), _EVERY_EVENT) >= 0
        (root / "new").write_bytes(b"x")
        (root / "lower").read_bytes()
        with (root / "lower").open("ab") as file:
            file.write(b"x")
        (root / "lower").chmod(0o600)
        (root / "new").rename(root / "moved")
        (root / "dir").rename(root / "elsewhere")
        (root / "gone").unlink()
        (root / "made").mkdir()
        (root / "made").rmdir()
        os.truncate(root / "lower", 1)
        return [*_events(os.read(fd, 1 << 16))]
    finally:
        os.close(fd)


def _events(raw: bytes) -> Iterator[tuple[int, str]]:
    offset = 0
    while offset < len(raw):
        _, mask, _, length = _QUEUED.unpack_from(raw, offset)
        offset += _QUEUED.size
        yield mask, raw[offset : offset + length].rstrip(b"\0").decode()
        offset += length
