from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layermount.linux import mountinfo
from layermount.linux.statx import LAYOUT, STATX_ATTR_MOUNT_ROOT, statx


def open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@pytest.mark.parametrize("name", ["file", "directory", "link", "fifo"])
def test_it_tells_what_os_stat_and_stat1_tell(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    fd = open_directory(tmp_path)
    found = statx(fd, name)
    status = os.lstat(tmp_path / name)
    assert (found.inode, found.device) == (status.st_ino, status.st_dev)
    assert found.mount_id == mountinfo.mount_id_of(fd)
    os.close(fd)
    told = subprocess.run(
        ["stat", "--format=%W", tmp_path / name], capture_output=True, text=True, check=True
    )
    birth = 0 if found.birth_ns is None else found.birth_ns // 1_000_000_000
    assert birth == int(told.stdout)


def test_a_mount_is_known_by_its_root() -> None:
    fd = open_directory(Path("/"))
    assert statx(fd, "proc").attributes & STATX_ATTR_MOUNT_ROOT
    os.close(fd)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    fd = open_directory(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        statx(fd, "nothing")
    os.close(fd)


@pytest.mark.needs("gcc")
def test_the_layout_is_the_headers(tmp_path: Path) -> None:
    (tmp_path / "size.c").write_text(
        "#include <linux/stat.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        'int main(void) { printf("%zu %zu %zu", sizeof(struct statx), '
        "offsetof(struct statx, stx_btime), offsetof(struct statx, stx_mnt_id)); }\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    told = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True)
    assert told.stdout == f"256 {64 + 16} {LAYOUT.size - 8}"
