"""Random I/O on a few files of a directory, each answer held against a model in memory.

Several descriptors and memory maps, here and in a second process, are open on the same files at the
same time. A run is made from a number and can be made again, on any host of `places.py`::

    python -m tests.fuse.fsx fuse 1234

A run that fails is made short by leaving out steps, as far as it fails without them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from layermount.testing import trees
from tests import forked
from tests.fuse import places
from tests.fuse.places import Place

Fresh = Callable[[], Place]
STEPS = 500
PAGE = mmap.PAGESIZE
LARGEST = 400_000
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_SIZES = (0, 100, 5000, 70_000, 140_000, 300_000)
_FLAGS = (
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_TRUNC,
)
_MOST_OPEN = 6
#: How often each operation is taken, of all these together.
WEIGHTS = {
    "open_file": 6,
    "close_file": 4,
    "close_all": 3,
    "read": 12,
    "write": 10,
    "append": 3,
    "truncate": 4,
    "truncate_path": 2,
    "map": 5,
    "unmap": 3,
    "read_map": 8,
    "write_map": 8,
    "sync_map": 2,
    "allocate": 4,
    "punch": 3,
    "zero": 3,
    "copy": 5,
    "direct": 2,
    "holes": 3,
    "sync": 1,
    "forget_cache": 3,
    "chmod": 1,
    "replace": 1,
    "read_all": 2,
    "open_elsewhere": 3,
    "read_elsewhere": 8,
    "map_elsewhere": 3,
    "read_map_elsewhere": 6,
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(eq=False)
class File:
    """What one file must hold.

    Attributes:
        data: Its bytes.
        in_lower: Whether nothing was written to it yet.
    """

    data: bytearray
    in_lower: bool


@dataclass(eq=False)
class Opened:
    """A descriptor here, or a number that stands for one in the other process.

    Attributes:
        number: The descriptor.
        file: What it is of.
        flags: What it was opened with.
        frozen: What the file held when it was copied up after the open.
    """

    number: int
    file: File
    flags: int = os.O_RDONLY
    frozen: bytes | None = None

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass(eq=False)
class Mapped:
    """A map of a file's first bytes.

    Attributes:
        number: Tells it from others.
        file: What it shows.
        size: How many bytes.
        map: The map itself; None when the other process has it.
        writable: Whether it may be written.
        frozen: What the file held when it was copied up after the open: a map may go on showing
            the lower's file, as the kernel's overlayfs does.
    """

    number: int
    file: File
    size: int
    map: mmap.mmap | None
    writable: bool = False
    frozen: bytes | None = None

    @property
    def usable(self) -> int:
        """How much can be touched without a SIGBUS."""
        limit = min(self.size, len(self.file.data))
        return limit if self.frozen is None else min(limit, len(self.frozen))


@dataclass
class Run:
    """The files of one directory under random I/O.

    Attributes:
        root: The directory.
        lower: What its files are at first.
        log: Where each operation is told before it is done: a bad map ends the process.
        keeps_old: Whether what is open for reading may go on with what it opened when that is
            copied up.
        done: How often each operation was done.
    """

    root: Path
    lower: dict[str, bytes]
    log: int
    keeps_old: bool
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.files = {n: File(bytearray(data), in_lower=True) for n, data in self.lower.items()}
        self.opened: list[Opened] = []
        self.maps: list[Mapped] = []
        self.elsewhere: list[Opened] = []
        self.maps_elsewhere: list[Mapped] = []
        self.count = 0
        self.other = _start_reader()

    def end(self) -> None:
        """Close everything."""
        for mapped in self.maps:
            assert mapped.map is not None
            mapped.map.close()
        for opened in self.opened:
            os.close(opened.number)
        self.other.send(None)
        self.other.recv()
        self.other.close()

    def step(self, random: Random) -> None:
        name = random.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        getattr(self, name)(random)
        for path, file in self.files.items():
            size = (self.root / path).stat().st_size
            assert size == len(file.data), f"{path}: {size} bytes, must be {len(file.data)}"
        for opened in self.opened:
            size = os.fstat(opened.number).st_size
            sizes = {len(data) for data in self.allowed(opened)}
            assert size in sizes, f"fd {opened.number}: {size} bytes, must be {sizes}"

    def say(self, name: str, line: str) -> None:
        self.done[name] += 1
        os.write(self.log, f"{line}\n".encode())

    # Opening and closing.

    def open_file(self, random: Random) -> None:
        if len(self.opened) >= _MOST_OPEN:
            self.close_one(self.opened, random)
        path, flags = random.choice([*self.files]), random.choice(_FLAGS)
        if random.random() < 0.25:
            flags &= ~os.O_TRUNC
        file = self.files[path]
        self.say("open_file", f"open {path} {flags:#o}, {len(file.data)} bytes")
        self.change(file, needed=flags & os.O_ACCMODE != os.O_RDONLY)
        number = os.open(self.root / path, flags | os.O_CLOEXEC)
        if flags & os.O_TRUNC:
            del file.data[:]
        self.opened.append(Opened(number, file, flags))
        os.write(self.log, f"  is fd {number}\n".encode())

    def close_one(self, opened: list[Opened], random: Random) -> None:
        gone = opened.pop(random.randrange(len(opened)))
        if opened is self.opened:
            self.say("close_file", f"close fd {gone.number}")
            os.close(gone.number)
        else:
            self.say("close_elsewhere", f"elsewhere: close {gone.number}")
            self.ask("close", gone.number)

    def close_file(self, random: Random) -> None:
        if self.opened:
            self.close_one(self.opened, random)

    def close_all(self, random: Random) -> None:
        """Nobody has the file open any more."""
        path = random.choice([*self.files])
        file = self.files[path]
        self.say("close_all", f"close all of {path}")
        for mapped in [m for m in self.maps if m.file is file]:
            assert mapped.map is not None
            mapped.map.close()
        for opened in [o for o in self.opened if o.file is file]:
            os.close(opened.number)
        for mapped in [m for m in self.maps_elsewhere if m.file is file]:
            self.ask("unmap", mapped.number)
        for opened in [o for o in self.elsewhere if o.file is file]:
            self.ask("close", opened.number)
        self.maps = [m for m in self.maps if m.file is not file]
        self.opened = [o for o in self.opened if o.file is not file]
        self.maps_elsewhere = [m for m in self.maps_elsewhere if m.file is not file]
        self.elsewhere = [o for o in self.elsewhere if o.file is not file]

    def change(self, file: File, *, needed: bool = True) -> None:
        """Before a file is written for the first time: maps may go on showing the lower's file."""
        if not (needed and file.in_lower):
            return
        file.in_lower = False
        maps: list[Opened | Mapped] = [*self.maps, *self.maps_elsewhere]
        for user in (*maps, *self.opened, *self.elsewhere):
            if user.file is file:
                user.frozen = bytes(file.data)

    def allowed(self, opened: Opened) -> list[bytes | bytearray]:
        """What a descriptor may show."""
        if opened.frozen is None or not self.keeps_old:
            return [opened.file.data]
        return [opened.file.data, opened.frozen]

    def one(self, random: Random, *, writable: bool = False) -> Opened | None:
        wanted = [o for o in self.opened if (o.writable if writable else o.readable)]
        return random.choice(wanted) if wanted else None

    def current(self, random: Random) -> Opened | None:
        """One that is known to show what is there now."""
        wanted = [o for o in self.opened if o.readable and len(self.allowed(o)) == 1]
        return random.choice(wanted) if wanted else None

    # Reading.

    def read(self, random: Random) -> None:
        if (opened := self.one(random)) is None:
            return
        offset, size = _range(random, len(opened.file.data) + PAGE)
        self.say("read", f"read fd {opened.number}, {size} at {offset}")
        found = os.pread(opened.number, size, offset)
        _compare(found, self.allowed(opened), offset, size)

    def read_all(self, random: Random) -> None:
        path = random.choice([*self.files])
        self.say("read_all", f"read all of {path}")
        _compare((self.root / path).read_bytes(), [self.files[path].data], 0, LARGEST * 4)

    def direct(self, random: Random) -> None:
        """Read past the page cache, in whole pages."""
        path, page = random.choice([*self.files]), random.randrange(LARGEST // PAGE)
        self.say("direct", f"read {path} with O_DIRECT, {2 * PAGE} at {page * PAGE}")
        with mmap.mmap(-1, 2 * PAGE) as buffer:
            fd = os.open(self.root / path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                size = os.preadv(fd, [buffer], page * PAGE)
            finally:
                os.close(fd)
            _compare(buffer[:size], [self.files[path].data], page * PAGE, 2 * PAGE)

    def holes(self, random: Random) -> None:
        """Data and holes alternate up to the end, and holes read as zeros."""
        if (opened := self.current(random)) is None:
            return
        fd, data, offset = opened.number, opened.file.data, 0
        self.say("holes", f"holes of fd {fd}")
        while offset < len(data):
            start = _seek(fd, offset, os.SEEK_DATA, len(data))
            assert offset <= start <= len(data), f"data at {start}, asked from {offset}"
            assert not any(data[offset:start]), f"a hole from {offset} to {start} has data"
            if start == len(data):
                break
            offset = _seek(fd, start, os.SEEK_HOLE, -1)
            assert start < offset <= len(data), f"a hole at {offset}, asked from {start}"
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert _seek(fd, len(data), whence, -1) == -1, "found something behind the end"

    # Writing.

    def write(self, random: Random) -> None:
        if (opened := self.one(random, writable=True)) is None:
            return
        data = opened.file.data
        offset, size = _range(random, min(LARGEST, len(data) + 3 * PAGE))
        self.say("write", f"write fd {opened.number}, {size} at {offset}")
        self.put(opened, self.content(size), offset)

    def append(self, random: Random) -> None:
        """With O_APPEND, or at the end; sometimes behind it."""
        opened = self.one(random, writable=True)
        if opened is None or len(opened.file.data) > LARGEST:
            return
        offset = len(opened.file.data) + random.choice((0, 0, 1, 5 * PAGE))
        size = random.randrange(1, 3 * PAGE)
        self.say("append", f"append fd {opened.number}, {size} at {offset}")
        self.put(opened, self.content(size), offset)

    def put(self, opened: Opened, content: bytes, offset: int) -> None:
        data = opened.file.data
        written = os.pwrite(opened.number, content, offset)
        assert written == len(content), f"{written} of {len(content)} bytes written"
        # Linux appends whatever the offset says.
        _put(data, content, len(data) if opened.flags & os.O_APPEND else offset)

    def truncate(self, random: Random) -> None:
        if (opened := self.one(random, writable=True)) is None:
            return
        size = random.choice((0, random.randrange(LARGEST), len(opened.file.data) // 2))
        self.say("truncate", f"truncate fd {opened.number} from {len(opened.file.data)} to {size}")
        os.ftruncate(opened.number, size)
        _resize(opened.file.data, size)

    def truncate_path(self, random: Random) -> None:
        path = random.choice([*self.files])
        file = self.files[path]
        size = random.choice((random.randrange(LARGEST), len(file.data) * 2 // 3))
        self.say("truncate_path", f"truncate {path} from {len(file.data)} to {size}")
        self.change(file)
        os.truncate(self.root / path, size)
        _resize(file.data, size)

    def allocate(self, random: Random) -> None:
        self.fallocate(random, random.choice((0, KEEP_SIZE)))

    def punch(self, random: Random) -> None:
        self.fallocate(random, PUNCH_HOLE | KEEP_SIZE)

    def zero(self, random: Random) -> None:
        self.fallocate(random, ZERO_RANGE | random.choice((0, KEEP_SIZE)))

    def fallocate(self, random: Random, mode: int) -> None:
        if (opened := self.one(random, writable=True)) is None:
            return
        data = opened.file.data
        offset, size = _range(random, min(LARGEST, len(data) + 3 * PAGE))
        line = f"fallocate fd {opened.number}, mode {mode}, {size} at {offset}"
        if not _fallocate(opened.number, mode, offset, size):
            os.write(self.log, f"{line}: not here\n".encode())
            return
        self.say(f"fallocate {mode}", line)
        if not mode & KEEP_SIZE:
            _resize(data, max(len(data), offset + size))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(offset + size, len(data))
            data[offset:end] = bytes(max(0, end - offset))

    def copy(self, random: Random) -> None:
        """copy_file_range(2) within a file or between two."""
        source, target = self.current(random), self.one(random, writable=True)
        if source is None or target is None or target.flags & os.O_APPEND:
            return
        offset, size = _range(random, len(source.file.data) + PAGE)
        to = random.randrange(LARGEST)
        if source.file is target.file and offset < to + size and to < offset + size:
            return  # EINVAL
        line = f"copy fd {source.number} to fd {target.number}, {size} from {offset} to {to}"
        self.say("copy", line)
        expected = bytes(source.file.data[offset : offset + size])
        done = os.copy_file_range(source.number, target.number, size, offset, to)
        assert done <= len(expected), f"{done} bytes copied, there are {len(expected)}"
        assert done > 0 or not expected, "nothing copied"
        if done:
            _put(target.file.data, expected[:done], to)

    def replace(self, random: Random) -> None:
        """A new file takes the name; who has the old one open goes on with that."""
        path = random.choice([*self.files])
        content = self.content(random.choice(_SIZES[:3]))
        self.say("replace", f"replace {path}, {len(content)} bytes")
        (self.root / "new").write_bytes(content)
        (self.root / "new").replace(self.root / path)
        self.files[path] = File(bytearray(content), in_lower=False)

    # Maps.

    def map(self, random: Random) -> None:
        if len(self.maps) >= _MOST_OPEN:
            self.unmap(random)
        opened = self.one(random)
        if opened is None:
            return
        size, writable = min(map(len, self.allowed(opened))), opened.writable
        if not size:
            return
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.count += 1
        self.say("map", f"map fd {opened.number}, {size} bytes: map {self.count}")
        made = mmap.mmap(opened.number, size, mmap.MAP_SHARED, access)
        mapped = Mapped(self.count, opened.file, size, made, writable, opened.frozen)
        self.maps.append(mapped)

    def unmap(self, random: Random) -> None:
        if self.maps:
            mapped = self.maps.pop(random.randrange(len(self.maps)))
            self.say("unmap", f"unmap {mapped.number}")
            assert mapped.map is not None
            mapped.map.close()

    def mapped(self, random: Random, maps: list[Mapped], *, writable: bool) -> Mapped | None:
        found = [m for m in maps if m.usable and (m.writable or not writable)]
        return random.choice(found) if found else None

    def read_map(self, random: Random) -> None:
        if (mapped := self.mapped(random, self.maps, writable=False)) is None:
            return
        assert mapped.map is not None
        offset, size = _range(random, mapped.usable)
        self.say("read_map", f"read map {mapped.number}, {size} at {offset}")
        _compare_map(mapped.map[offset : min(offset + size, mapped.usable)], mapped, offset)

    def write_map(self, random: Random) -> None:
        if (mapped := self.mapped(random, self.maps, writable=True)) is None:
            return
        assert mapped.map is not None
        offset, size = _range(random, mapped.usable)
        content = self.content(min(size, mapped.usable - offset))
        self.say("write_map", f"write map {mapped.number}, {len(content)} at {offset}")
        mapped.map[offset : offset + len(content)] = content
        _put(mapped.file.data, content, offset)

    def sync_map(self, random: Random) -> None:
        if (mapped := self.mapped(random, self.maps, writable=True)) is not None:
            assert mapped.map is not None
            self.say("sync_map", f"msync {mapped.number}")
            mapped.map.flush()

    # What changes nothing.

    def sync(self, random: Random) -> None:
        if (opened := self.one(random, writable=True)) is not None:
            self.say("sync", f"fsync fd {opened.number}")
            random.choice((os.fsync, os.fdatasync))(opened.number)

    def forget_cache(self, random: Random) -> None:
        if (opened := self.one(random)) is not None:
            self.say("forget_cache", f"fadvise fd {opened.number}")
            os.posix_fadvise(opened.number, 0, 0, os.POSIX_FADV_DONTNEED)

    def chmod(self, random: Random) -> None:
        """Copies up metadata alone when the file is still in the lower."""
        path, mode = random.choice([*self.files]), random.choice((0o600, 0o644))
        self.say("chmod", f"chmod {path} {mode:o}")
        (self.root / path).chmod(mode)

    # The other process.

    def ask(self, *question: object) -> bytes:
        self.other.send(question)
        answer = self.other.recv()
        if isinstance(answer, OSError):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    def open_elsewhere(self, random: Random) -> None:
        if len(self.elsewhere) >= _MOST_OPEN:
            self.close_one(self.elsewhere, random)
        path = random.choice([*self.files])
        self.count += 1
        self.say("open_elsewhere", f"elsewhere: open {path} as {self.count}")
        self.ask("open", self.count, str(self.root / path))
        self.elsewhere.append(Opened(self.count, self.files[path]))

    def read_elsewhere(self, random: Random) -> None:
        if not self.elsewhere:
            return
        opened = random.choice(self.elsewhere)
        offset, size = _range(random, len(opened.file.data) + PAGE)
        self.say("read_elsewhere", f"elsewhere: read {opened.number}, {size} at {offset}")
        found = self.ask("read", opened.number, size, offset)
        _compare(found, self.allowed(opened), offset, size)

    def map_elsewhere(self, random: Random) -> None:
        if len(self.maps_elsewhere) >= _MOST_OPEN:
            self.ask("unmap", self.maps_elsewhere.pop(0).number)
        found = [opened for opened in self.elsewhere if all(self.allowed(opened))]
        if not found:
            return
        opened, self.count = random.choice(found), self.count + 1
        size = min(map(len, self.allowed(opened)))
        self.say("map_elsewhere", f"elsewhere: map {opened.number}, {size} bytes: {self.count}")
        self.ask("map", self.count, opened.number, size)
        mapped = Mapped(self.count, opened.file, size, None, frozen=opened.frozen)
        self.maps_elsewhere.append(mapped)

    def read_map_elsewhere(self, random: Random) -> None:
        mapped = self.mapped(random, self.maps_elsewhere, writable=False)
        if mapped is None:
            return
        offset, size = _range(random, mapped.usable)
        size = min(size, mapped.usable - offset)
        self.say("read_map_elsewhere", f"elsewhere: read map {mapped.number}, {size} at {offset}")
        _compare_map(self.ask("peek", mapped.number, size, offset), mapped, offset)

    def content(self, size: int) -> bytes:
        """Bytes that tell which write they are from."""
        self.count += 1
        return (b"%06d." % self.count * (size // 7 + 1))[:size]


def _range(random: Random, limit: int) -> tuple[int, int]:
    """An offset below `limit` and a size, whole pages or not."""
    offset = random.randrange(max(1, limit))
    size = random.choice((random.randrange(1, 200), random.randrange(1, 5 * PAGE), 100_000))
    if random.random() < 0.3:
        offset -= offset % PAGE
        size += -size % PAGE
    return offset, size


def _put(data: bytearray, content: bytes, offset: int) -> None:
    _resize(data, max(len(data), offset))
    data[offset : offset + len(content)] = content


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def _compare(found: bytes, allowed: Sequence[bytes | bytearray], offset: int, size: int) -> None:
    expected = [bytes(data[offset : offset + size]) for data in allowed]
    assert found in expected, _difference(found, expected[0], offset)


def _compare_map(found: bytes, mapped: Mapped, offset: int) -> None:
    expected = bytes(mapped.file.data[offset : offset + len(found)])
    if found == expected:
        return
    assert mapped.frozen is not None, _difference(found, expected, offset)
    old = mapped.frozen[offset : offset + len(found)]
    assert found == old, "neither new nor old: " + _difference(found, expected, offset)


def _difference(found: bytes, expected: bytes, offset: int) -> str:
    if len(found) != len(expected):
        return f"{len(found)} bytes at {offset}, must be {len(expected)}"
    at = next(n for n, both in enumerate(zip(found, expected, strict=True)) if both[0] != both[1])
    return f"byte {offset + at}: {found[at : at + 14]!r}, must be {expected[at : at + 14]!r}"


def _seek(fd: int, offset: int, whence: int, default: int) -> int:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return default
        raise


def _fallocate(fd: int, mode: int, offset: int, size: int) -> bool:
    """fallocate(2); False where the filesystem has no such mode."""
    if _libc.fallocate(fd, mode, offset, size) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EOPNOTSUPP:
        return False
    raise OSError(number, os.strerror(number))


def _start_reader() -> Connection:
    """A second process that opens, reads and maps what it is told to."""
    ours, theirs = Pipe()
    if forked.fork() == 0:
        ours.close()
        try:
            _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def _serve(asked: Connection) -> None:
    files: dict[int, int] = {}
    maps: dict[int, mmap.mmap] = {}
    while (question := asked.recv()) is not None:
        try:
            asked.send(_answer(files, maps, *question))
        except OSError as error:
            asked.send(error)
    for made in maps.values():
        made.close()
    for fd in files.values():
        os.close(fd)
    asked.send(b"")


def _answer(
    files: dict[int, int], maps: dict[int, mmap.mmap], name: str, number: int, *rest: object
) -> bytes:
    match name, *rest:
        case "open", str(path):
            files[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        case ("close",):
            os.close(files.pop(number))
        case "read", int(size), int(offset):
            return os.pread(files[number], size, offset)
        case "map", int(opened), int(size):
            maps[number] = mmap.mmap(files[opened], size, mmap.MAP_SHARED, mmap.PROT_READ)
        case ("unmap",):
            maps.pop(number).close()
        case "peek", int(size), int(offset):
            return maps[number][offset : offset + size]
    return b""


@dataclass(frozen=True)
class Result:
    """What a run did, and what went wrong in it."""

    done: Counter[str]
    said: Sequence[str]
    failure: str | None


def run(place: Place, seed: int, steps: Sequence[int]) -> Result:
    """Mount, take the steps, remount and look at the files again; unmounted at the end.

    The steps are taken in a process of their own, because a wrong map can end it.
    """
    random = Random(seed)  # noqa: S311  # test data, no secret
    lower = {name: _initial(random) for name in ("a", "b")}
    trees.build(place.lower, {name: trees.file(data) for name, data in lower.items()})
    digest = trees.digest(place.lower)
    path = place.base / "log"
    try:
        with place.mount():
            done, shown = forked.in_child(lambda: _steps(place, lower, path, seed, steps))
        assert trees.digest(place.lower) == digest, "the lower was changed"
        with place.mount():
            for name, data in shown.items():
                _compare((place.target / name).read_bytes(), [data], 0, 1 << 30)
        assert places.empty_work(place), "the work directory is not empty"
    except (AssertionError, OSError) as error:
        return Result(Counter(), _said(path), f"{type(error).__name__}: {error}")
    return Result(done, _said(path), None)


def _steps(
    place: Place, lower: dict[str, bytes], path: Path, seed: int, steps: Sequence[int]
) -> tuple[Counter[str], dict[str, bytearray]]:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    running = Run(place.target, lower, log, place.host in places.KEEP_OLD)
    try:
        for step in steps:
            running.step(Random(f"{seed}.{step}"))  # noqa: S311  # test data, no secret
    finally:
        running.end()
        os.close(log)
    return running.done, {name: file.data for name, file in running.files.items()}


def _initial(random: Random) -> bytes:
    """What a file of the lower holds, runs of zeros in it."""
    size, data = random.choice(_SIZES), bytearray()
    while len(data) < size:
        length = random.choice((10, 1000, 3 * PAGE, 20 * PAGE))
        data += bytes(length) if random.random() < 0.4 else b"lower.." * (length // 7 + 1)
    return bytes(data[:size])


def _said(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.exists() else ()


def check(fresh: Fresh, seed: int, count: int = STEPS) -> Counter[str]:
    """Take `count` steps; how often each operation was done.

    Args:
        fresh: Makes an empty place, unmounted, for each try.
        seed: What makes the run.
        count: How many steps.

    Raises:
        AssertionError: Something was wrong. The message has what was done, made short.
    """
    result = run(fresh(), seed, range(count))
    if result.failure is None:
        return result.done
    # What came after the failure is not needed; of the rest, ever smaller pieces are left out.
    steps = [*range(count)]
    for fewer in _pieces(steps):
        if (shorter := run(fresh(), seed, fewer)).failure is not None:
            steps[:], result = fewer, shorter
    lines = "\n".join(result.said)
    raise AssertionError(f"fsx, seed {seed}, steps {steps}\n{lines}\n{result.failure}")


def _pieces(steps: list[int]) -> Iterator[list[int]]:
    """The steps, as they are by then, without one piece of them."""
    size = len(steps)
    while (size := size // 2) > 0:
        start = len(steps)
        while (start := start - size) >= 0:
            yield steps[:start] + steps[start + size :]


def _fresh(host: str, base: Path) -> Fresh:
    def fresh() -> Place:
        return places.made(Path(tempfile.mkdtemp(dir=base)), host)

    return fresh


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="layermount-fsx-") as directory:
        os.environ["LAYERMOUNT_RUN_DIR"] = f"{directory}/run"
        check(_fresh(sys.argv[1], Path(directory)), int(sys.argv[2]))
