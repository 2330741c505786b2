"""What open files see of each other, however the bytes travel. Rules: B4, H1 to H3, H7."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layermount.testing import trees
from tests.fuse import places
from tests.fuse.places import Place

pytestmark = pytest.mark.needs("root", "fuse")

#: Below and above the size from which the kernel reads a lower's file itself.
SIZES = {"small": 2_000, "big": 600_000}


@pytest.fixture(params=["passthrough", "all", "fuse"])
def fuse(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    place = places.made(tmp_path / "overlay", request.param)
    for name, size in SIZES.items():
        (place.lower / name).write_bytes(b"l" * size)
    return place


@pytest.fixture
def root(fuse: Place) -> Iterator[Path]:
    before = trees.digest(fuse.lower)
    with fuse.mount():
        yield fuse.target
    assert trees.digest(fuse.lower) == before


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", SIZES)
def test_a_writer_never_reaches_the_lower(fuse: Place, root: Path, name: str) -> None:
    before = trees.digest(fuse.lower)
    with (root / name).open("rb") as reader:
        assert reader.read(1) == b"l"
        with (root / name).open("r+b") as writer:
            writer.write(b"written")
        with (root / name).open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as pages:
            pages[10:16] = b"mapped"
    assert trees.digest(fuse.lower) == before
    assert (fuse.upper / name).read_bytes().startswith(b"writtenlllmapped")


@pytest.mark.parametrize("name", SIZES)
def test_a_new_open_file_sees_what_was_written_at_once(root: Path, name: str) -> None:
    with (root / name).open("rb") as old:
        old.read(1)
        with (root / name).open("ab") as writer:
            writer.write(b"more")
            writer.flush()
            assert (root / name).read_bytes()[-5:] == b"lmore"
            assert (root / name).stat().st_size == SIZES[name] + 4
            assert (root / name).stat().st_ino == os.fstat(old.fileno()).st_ino


def test_a_reader_of_a_small_lower_file_follows_the_copy_up(root: Path) -> None:
    with (root / "small").open("rb", buffering=0) as reader:
        assert reader.read(1) == b"l"
        (root / "small").write_bytes(b"changed")
        assert os.pread(reader.fileno(), 100, 0) == b"changed"


def test_a_reader_of_a_big_lower_file_sees_it_whole(fuse: Place, root: Path) -> None:
    """All of the old content where the kernel reads the lower itself, else all of the new."""
    with (root / "big").open("rb", buffering=0) as reader:
        assert reader.read(1) == b"l"
        (root / "big").write_bytes(b"n" * 500_000)
        seen = os.pread(reader.fileno(), 1_000_000, 0)
        kept = fuse.host == "all"
        assert seen == (b"l" * SIZES["big"] if kept else b"n" * 500_000)
        assert os.fstat(reader.fileno()).st_size == len(seen)
        with mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert pages[:] == seen
        assert os.lseek(reader.fileno(), 0, os.SEEK_HOLE) == len(seen)
    assert (root / "big").read_bytes() == b"n" * 500_000


def test_a_truncation_leaves_a_big_lower_file_to_its_reader(fuse: Place, root: Path) -> None:
    with (root / "big").open("rb", buffering=0) as reader:
        os.truncate(root / "big", 5)
        assert (root / "big").read_bytes() == b"lllll"
        kept = fuse.host == "all"
        assert len(os.pread(reader.fileno(), 10, 0)) == (10 if kept else 5)


@pytest.mark.parametrize("name", SIZES)
def test_a_change_of_metadata_joins_readers(root: Path, name: str) -> None:
    with (root / name).open("rb", buffering=0) as reader:
        (root / name).chmod(0o600)
        assert os.fstat(reader.fileno()).st_mode & 0o777 == 0o600
        with (root / name).open("rb", buffering=0) as other:
            assert other.read() == reader.read()


@pytest.mark.parametrize("name", SIZES)
def test_pages_read_before_a_write_are_not_shown_after_it(root: Path, name: str) -> None:
    path = root / name
    assert path.read_bytes()[:3] == b"lll"
    with path.open("r+b") as writer:
        writer.write(b"new")
    assert path.read_bytes()[:6] == b"newlll"
    with path.open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as pages:
        pages[:3] = b"two"
    assert path.read_bytes()[:6] == b"twolll"
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("name", SIZES)
def test_a_write_through_a_map_shows_in_the_times(root: Path, name: str) -> None:
    path = root / name
    with path.open("r+b") as writer:
        os.utime(writer.fileno(), ns=(10**18, 10**18))
        assert path.stat().st_mtime_ns == 10**18
        with mmap.mmap(writer.fileno(), 0) as pages:
            pages[:3] = b"map"
            pages.flush()
    assert path.stat().st_mtime_ns > 10**18


@pytest.mark.parametrize("name", SIZES)
def test_a_file_is_truncated_by_who_only_reads_it(root: Path, name: str) -> None:
    fd = os.open(root / name, os.O_RDONLY | os.O_TRUNC)
    try:
        assert os.pread(fd, 1, 0) == b""
        (root / name).write_bytes(b"new")
        assert os.pread(fd, 10, 0) == b"new"
    finally:
        os.close(fd)
    assert (root / name).stat().st_size == 3


def test_names_of_one_file_share_their_bytes(root: Path) -> None:
    one, two = root / "one", root / "two"
    one.write_bytes(b"a" * 5_000)
    os.link(one, two)
    assert two.read_bytes() == b"a" * 5_000
    with one.open("r+b") as writer:
        writer.write(b"new")
        writer.flush()
        assert two.read_bytes()[:4] == b"newa"
    one.unlink()
    assert two.stat().st_nlink == 1
    with two.open("ab") as writer:
        writer.write(b"end")
    assert two.read_bytes()[-4:] == b"aend"


@pytest.mark.parametrize("name", SIZES)
def test_an_open_file_outlives_its_name(root: Path, name: str) -> None:
    with (root / name).open("r+b", buffering=0) as file, (root / name).open("rb") as reader:
        (root / name).unlink()
        file.write(b"still here")
        assert os.pread(reader.fileno(), 10, 0) == b"still here"
        os.fchmod(file.fileno(), 0o640)
        os.ftruncate(file.fileno(), 5)
        os.setxattr(file.fileno(), "user.key", b"value")
        status = os.fstat(reader.fileno())
        assert (status.st_nlink, status.st_size, status.st_mode & 0o777) == (0, 5, 0o640)
        assert os.getxattr(reader.fileno(), "user.key") == b"value"
        os.fsync(file.fileno())
    assert not (root / name).exists()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_file_without_a_name_is_opened_again(root: Path, flags: int) -> None:
    with (root / "small").open("r+b", buffering=0) as file:
        (root / "small").unlink()
        again = os.open(f"/proc/self/fd/{file.fileno()}", flags)
        try:
            assert os.pread(again, 3, 0) == b"lll"
        finally:
            os.close(again)


def test_a_file_made_without_a_name_gets_one(root: Path) -> None:
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"content")
        assert os.fstat(fd).st_nlink == 0
        with opened(root) as directory:
            # With a directory's descriptor Python calls linkat(2), which can follow the link.
            os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 1
        os.write(fd, b" more")
    finally:
        os.close(fd)
    assert (root / "named").read_bytes() == b"content more"
    assert (root / "named").stat().st_mode & 0o777 == 0o640


def test_copying_between_open_files(root: Path) -> None:
    with (root / "big").open("rb") as source, (root / "copy").open("wb") as target:
        left = SIZES["big"]
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (root / "copy").read_bytes() == (root / "big").read_bytes()


def test_many_files_are_open_at_once(root: Path) -> None:
    fds = []
    try:
        for number in range(3_000):
            fds.append(os.open(root / f"file{number}", os.O_CREAT | os.O_RDWR, 0o600))
            os.write(fds[-1], str(number).encode())
        for number, fd in enumerate(fds):
            assert os.pread(fd, 10, 0) == str(number).encode()
    finally:
        for fd in fds:
            os.close(fd)
