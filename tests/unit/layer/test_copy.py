"""Copying data and metadata from one layer to another. Rules: C2, C3."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layermount.layer import copy
from layermount.linux import files
from tests.conftest import FilesystemFactory

BLOCK = 1 << 16
#: Pieces of a file: bytes of data, or how long a hole is.
FILES: dict[str, list[bytes | int]] = {
    "empty": [],
    "short": [b"x"],
    "a block": [b"x" * BLOCK],
    "hole only": [4 * BLOCK],
    "hole first": [2 * BLOCK, b"x" * BLOCK],
    "hole last": [b"x" * BLOCK, 2 * BLOCK],
    "holes": [b"a" * BLOCK, 3 * BLOCK, b"b" * BLOCK, BLOCK, b"c" * 5, 2 * BLOCK + 1],
    "odd": [b"a" * 7, BLOCK * 3 - 1, b"b" * 3],
}


def make(path: Path, pieces: list[bytes | int]) -> bytes:
    with path.open("wb") as opened:
        for piece in pieces:
            if isinstance(piece, int):
                opened.seek(piece, os.SEEK_CUR)
            else:
                opened.write(piece)
        opened.truncate(opened.tell())
    return b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in pieces)


def stored(fd: int, size: int) -> int:
    return sum(end - start for start, end in files.data_segments(fd, size))


@contextmanager
def pair(base: Path) -> Iterator[tuple[int, int]]:
    source = os.open(base / "source", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(base / "target", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield source, target
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("reflink", [True, False])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["here", "ext4", "xfs", "btrfs"])
def test_data_and_holes(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    name: str,
    reflink: bool,
    sparse: bool,
) -> None:
    base = tmp_path
    if kind != "here":
        make_directory: FilesystemFactory = request.getfixturevalue("filesystem")
        base = make_directory(kind)
    data = make(base / "source", FILES[name])
    with pair(base) as (source, target):
        copy.copy_data(source, target, len(data), reflink=reflink, sparse=sparse)
        assert (base / "target").read_bytes() == data
        if sparse:
            # XFS rounds what it calls data generously, more for one file than for the other.
            slack = 2 * BLOCK if kind == "xfs" else 0
            assert stored(target, len(data)) <= stored(source, len(data)) + slack


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 5 * BLOCK])
def test_the_first_bytes_only(tmp_path: Path, size: int) -> None:
    data = make(tmp_path / "source", FILES["holes"])
    with pair(tmp_path) as (source, target):
        copy.copy_data(source, target, size)
        assert (tmp_path / "target").read_bytes() == data[:size]


@pytest.mark.needs("reflink")
def test_blocks_are_shared_where_they_can_be(xfs_dir: Path) -> None:
    size = 64 << 20
    (xfs_dir / "source").write_bytes(os.urandom(1 << 20) * 64)
    before = os.statvfs(xfs_dir).f_bavail * os.statvfs(xfs_dir).f_bsize
    with pair(xfs_dir) as (source, target):
        copy.copy_data(source, target, size)
        os.fsync(target)
    free = os.statvfs(xfs_dir).f_bavail * os.statvfs(xfs_dir).f_bsize
    assert before - free < size // 8


def test_from_what_knows_no_offloading(tmp_path: Path) -> None:
    """Files of procfs have no size and cannot be copied inside the kernel."""
    source = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        copy.copy_data(source, target, 100, sparse=False)
    finally:
        os.close(source)
        os.close(target)
    assert (tmp_path / "target").read_bytes().startswith(b"Name:")
    assert (tmp_path / "target").stat().st_size == 100


def test_chmod_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    dir_fd = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError, match="Errno"):
            copy.chmod(dir_fd, "link", 0o777)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        copy.chmod(dir_fd, "file", 0o4751)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o4751
    finally:
        os.close(dir_fd)


@pytest.mark.needs("root")
@pytest.mark.parametrize("is_open", [True, False])
def test_owner_first_then_mode(tmp_path: Path, is_open: bool) -> None:
    (tmp_path / "source").write_bytes(b"")
    os.chown(tmp_path / "source", 5, 6)
    (tmp_path / "source").chmod(0o6755)
    (tmp_path / "target").write_bytes(b"")
    dir_fd = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CLOEXEC)
    try:
        target = copy.WorkFile(dir_fd, "target", fd if is_open else None)
        target.set_owner((tmp_path / "source").stat())
        target.set_mode((tmp_path / "source").stat().st_mode)
    finally:
        os.close(fd)
        os.close(dir_fd)
    found = (tmp_path / "target").stat()
    # Giving a file away clears these bits, so the order matters.
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o6755)
