from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.linux import mounts
from layermount.linux.fuse_device import BACKING_MAP, backing_close, backing_open

_INIT_OUT = struct.Struct("<IIIIHHIIHHIIHH20x")
_INIT_EXT = 1 << 30
_PASSTHROUGH = 1 << (37 - 32)


@contextlib.contextmanager
def connected(point: Path, *, passthrough: bool) -> Iterator[int]:
    """A device with a filesystem mounted that has got as far as INIT."""
    point.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mounts.mount("test", str(point), "fuse.test", 0, options)
    try:
        unique = struct.unpack_from("<Q", os.read(device, 1 << 21), 8)[0]
        more, depth = (_PASSTHROUGH, 1) if passthrough else (0, 0)
        answer = _INIT_OUT.pack(7, 40, 0, _INIT_EXT, 12, 10, 1 << 20, 1, 256, 0, more, depth, 0, 0)
        os.write(device, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
        yield device
    finally:
        mounts.umount2(str(point), mounts.MNT_DETACH)
        os.close(device)


def file_at(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


@pytest.mark.needs("root", "fuse")
def test_numbers_come_and_go(tmp_path: Path) -> None:
    fd = file_at(tmp_path / "file")
    with connected(tmp_path / "mounted", passthrough=True) as device:
        numbers = [backing_open(device, fd) for _ in range(3)]
        assert min(numbers) > 0
        assert len(set(numbers)) == 3
        for number in numbers:
            backing_close(device, number)
        with pytest.raises(FileNotFoundError):
            backing_close(device, numbers[0])
    os.close(fd)


@pytest.mark.needs("root", "fuse")
def test_what_cannot_be_read_by_the_kernel_itself_is_refused(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    pipe = os.pipe()
    cases = {directory: errno.EISDIR, pipe[0]: errno.EINVAL, 12345: errno.EBADF}
    with connected(tmp_path / "mounted", passthrough=True) as device:
        for fd, number in cases.items():
            with pytest.raises(OSError, match="Errno") as caught:
                backing_open(device, fd)
            assert caught.value.errno == number
    for fd in (directory, *pipe):
        os.close(fd)


@pytest.mark.needs("root", "fuse")
def test_without_passthrough_it_is_refused(tmp_path: Path) -> None:
    fd = file_at(tmp_path / "file")
    with (
        connected(tmp_path / "mounted", passthrough=False) as device,
        pytest.raises(PermissionError),
    ):
        backing_open(device, fd)
    os.close(fd)


@pytest.mark.needs("gcc")
def test_the_layout_is_the_headers(tmp_path: Path) -> None:
    (tmp_path / "size.c").write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        "#include <linux/ioctl.h>\n#include <linux/fuse.h>\n"
        "#ifndef FUSE_DEV_IOC_BACKING_OPEN\n"
        "struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };\n"
        "#define FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct fuse_backing_map)\n"
        "#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)\n"
        "#endif\n"
        'int main(void) { printf("%zu %zx %zx", sizeof(struct fuse_backing_map), '
        "(size_t)FUSE_DEV_IOC_BACKING_OPEN, (size_t)FUSE_DEV_IOC_BACKING_CLOSE); }\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    told = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True)
    assert told.stdout == f"{BACKING_MAP.size} 4010e501 4004e502"
