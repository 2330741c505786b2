from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layermount.linux import files, xattrs


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "directory").mkdir()
    (tmp_path / "out").symlink_to("/")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "resolve", "number"),
    [
        ("..", files.RESOLVE_BENEATH, errno.EXDEV),
        ("/", files.RESOLVE_BENEATH, errno.EXDEV),
        ("out", files.RESOLVE_BENEATH, errno.EXDEV),
        ("out", files.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        ("nothing", files.RESOLVE_BENEATH, errno.ENOENT),
    ],
)
def test_openat2_refuses_the_way_out(dir_fd: int, name: str, resolve: int, number: int) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        files.openat2(dir_fd, name, os.O_RDONLY, resolve=resolve)
    assert (caught.value.errno, caught.value.filename) == (number, name)


def test_openat2_opens_beneath_and_closes_on_exec(dir_fd: int) -> None:
    fd = files.openat2(dir_fd, "a", os.O_RDONLY, resolve=files.RESOLVE_BENEATH)
    assert os.read(fd, 10) == b"a"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_renameat2_exchanges(tmp_path: Path, dir_fd: int) -> None:
    files.renameat2(dir_fd, "a", dir_fd, "b", files.RENAME_EXCHANGE)
    assert [(tmp_path / name).read_bytes() for name in ("a", "b")] == [b"b", b"a"]


def test_renameat2_replaces_nothing_when_told_so(tmp_path: Path, dir_fd: int) -> None:
    with pytest.raises(FileExistsError) as caught:
        files.renameat2(dir_fd, "a", dir_fd, "b", files.RENAME_NOREPLACE)
    assert (caught.value.filename, caught.value.filename2) == ("a", "b")
    assert (tmp_path / "b").read_bytes() == b"b"


@pytest.mark.needs("root")
def test_a_handle_finds_a_file_under_another_name(tmp_path: Path, dir_fd: int) -> None:
    kind, handle = files.name_to_handle(dir_fd, "a")
    inode = (tmp_path / "a").stat().st_ino
    (tmp_path / "a").rename(tmp_path / "moved")
    fd = files.open_by_handle(dir_fd, kind, handle)
    assert os.fstat(fd).st_ino == inode
    os.close(fd)


def test_data_segments_leave_the_holes_out(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
        file.flush()
        (segment,) = files.data_segments(file.fileno(), 1 << 20)
        assert segment[0] <= 1 << 19 < segment[1]
        assert segment[1] - segment[0] < 1 << 18
        assert files.data_segments(file.fileno(), 1 << 18) == []


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (lambda fd: xattrs.find_xattr(fd, "a", "user.k"), b"v"),
        (lambda fd: xattrs.find_xattr(fd, "b", "user.k"), None),
        (lambda fd: xattrs.find_xattr(fd, "out", "user.k"), None),
        (lambda fd: xattrs.find_xattr(fd, "a", "nonsense.k"), None),
        (lambda fd: "user.k" in xattrs.listxattr(fd, "a"), True),
    ],
)
def test_xattrs_by_name(dir_fd: int, look: Callable[[int], object], found: object) -> None:
    xattrs.setxattr(dir_fd, "a", "user.k", b"v")
    assert look(dir_fd) == found
    xattrs.removexattr(dir_fd, "a", "user.k")
    with pytest.raises(OSError, match="Errno") as caught:
        xattrs.getxattr(dir_fd, "a", "user.k")
    assert caught.value.errno == errno.ENODATA
