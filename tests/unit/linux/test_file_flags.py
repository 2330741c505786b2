from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.linux import file_flags


@pytest.fixture
def fd(ext4_dir: Path) -> Iterator[int]:
    fd = os.open(ext4_dir / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_what_is_set_is_what_lsattr_shows(fd: int, ext4_dir: Path) -> None:
    before = file_flags.get_flags(fd)
    new = before | file_flags.FS_NOATIME_FL | file_flags.FS_NODUMP_FL
    file_flags.set_flags(fd, new)
    assert file_flags.get_flags(fd) == new
    shown = subprocess.run(
        ["lsattr", ext4_dir / "file"], capture_output=True, text=True, check=True
    )
    assert {"A", "d"} <= set(shown.stdout.split()[0])
    file_flags.set_flags(fd, before)
    assert file_flags.get_flags(fd) == before


def test_the_longer_form_knows_the_same_flags(fd: int) -> None:
    before = file_flags.get_extended_flags(fd)
    assert (before.flags, before.project) == (0, 0)
    file_flags.set_flags(fd, file_flags.get_flags(fd) | file_flags.FS_NOATIME_FL)
    noatime = file_flags.get_extended_flags(fd)
    assert noatime.flags == 0x40  # FS_XFLAG_NOATIME
    file_flags.set_extended_flags(fd, before)
    assert not file_flags.get_flags(fd) & file_flags.FS_NOATIME_FL
    file_flags.set_extended_flags(fd, before._replace(flags=0x80))  # FS_XFLAG_NODUMP
    assert file_flags.get_flags(fd) & file_flags.FS_NODUMP_FL


def test_where_there_are_none_it_is_said() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Errno") as caught:
        file_flags.get_flags(reader)
    assert caught.value.errno == errno.ENOTTY
    os.close(reader)
    os.close(writer)


@pytest.mark.needs("gcc")
def test_the_numbers_are_the_headers(tmp_path: Path) -> None:
    (tmp_path / "size.c").write_text(
        "#include <linux/fs.h>\n#include <stdio.h>\n"
        'int main(void) { printf("%zu %zx %zx %zx %zx", sizeof(struct fsxattr), '
        "(size_t)FS_IOC_GETFLAGS, (size_t)FS_IOC_SETFLAGS, "
        "(size_t)FS_IOC_FSGETXATTR, (size_t)FS_IOC_FSSETXATTR); }\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    told = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True)
    numbers = (
        file_flags.FS_IOC_GETFLAGS,
        file_flags.FS_IOC_SETFLAGS,
        file_flags.FS_IOC_FSGETXATTR,
        file_flags.FS_IOC_FSSETXATTR,
    )
    expected = [str(file_flags.FSXATTR.size), *(f"{number:x}" for number in numbers)]
    assert told.stdout.split() == expected
