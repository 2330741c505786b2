"""Files without a name, and file flags: the engine beside the kernel's overlayfs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from layermount.config import LayerMountConfig
from layermount.engine.handles import Handle
from layermount.engine.overlay import Overlay
from layermount.engine.paths import get_directory, get_node, locate
from layermount.layer.marks import OVERLAY
from layermount.linux import file_flags
from layermount.linux.statx import statx
from layermount.testing.oracles import KernelTarget, attempt
from layermount.testing.trees import (
    PathView,
    Tree,
    assert_same,
    build,
    directory,
    file,
    snapshot,
    without,
)

pytestmark = pytest.mark.needs("root", "overlay")

_LOWER: Tree = {
    "file": file(b"text", xattrs={"user.color": b"blue"}),
    "gone": file(b"gone"),
    "taken": file(b"taken"),
    "group": directory(mode=0o2775, owner=(0, 7)),
}
#: POSIX ACL: user::rw-, user:7:r--, group::r--, mask::rw-, other::---.
_ACL = bytes.fromhex(
    "02000000 01000600ffffffff 0200040007000000 04000400ffffffff 10000600ffffffff 20000000ffffffff"
)


class Side(Protocol):
    """What a script needs of either."""

    def tmpfile(self, path: str, flags: int, mode: int) -> None: ...
    def open(self, path: str, flags: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def write(self, data: bytes) -> int: ...
    def name(self, path: str) -> None: ...
    def fchmod(self, mode: int) -> None: ...
    def xattr(self, key: str) -> bytes: ...
    def look(self) -> tuple[int, ...]: ...


class KernelSide:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd = -1

    def tmpfile(self, path: str, flags: int, mode: int) -> None:
        self.fd = os.open(self.root / path, flags | os.O_TMPFILE | os.O_CLOEXEC, mode)

    def open(self, path: str, flags: int) -> None:
        self.fd = os.open(self.root / path, flags | os.O_CLOEXEC)

    def unlink(self, path: str) -> None:
        (self.root / path).unlink()

    def write(self, data: bytes) -> int:
        return os.pwrite(self.fd, data, 0)

    def name(self, path: str) -> None:
        dir_fd = os.open(self.root, os.O_PATH | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{self.fd}", path, dst_dir_fd=dir_fd, follow_symlinks=True)
        finally:
            os.close(dir_fd)

    def fchmod(self, mode: int) -> None:
        os.fchmod(self.fd, mode)

    def xattr(self, key: str) -> bytes:
        return os.getxattr(self.fd, key)

    def look(self) -> tuple[int, ...]:
        return _told(os.fstat(self.fd))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@dataclass
class EngineSide:
    overlay: Overlay
    handle: Handle | None = None

    @property
    def file(self) -> Handle:
        assert self.handle is not None
        return self.handle

    def tmpfile(self, path: str, flags: int, mode: int) -> None:
        self.handle = self.overlay.tmpfile(get_directory(self.overlay, path), flags, mode)[1]

    def open(self, path: str, flags: int) -> None:
        self.handle = self.overlay.open(get_node(self.overlay, path), flags)

    def unlink(self, path: str) -> None:
        place = locate(self.overlay, path, follow=False)
        self.overlay.unlink(place.parent, place.name)

    def write(self, data: bytes) -> int:
        return self.file.write(data, 0)

    def name(self, path: str) -> None:
        place = locate(self.overlay, path, follow=False)
        self.overlay.link_handle(self.file, place.parent, path.rpartition("/")[2])

    def fchmod(self, mode: int) -> None:
        self.file.chmod(mode)

    def xattr(self, key: str) -> bytes:
        return self.file.getxattr(key)

    def look(self) -> tuple[int, ...]:
        return _told(self.file.fstat())


def _told(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size


Step = Callable[[Side], object]
SCRIPTS: dict[str, tuple[Step, ...]] = {
    "named": (
        lambda s: s.tmpfile(".", os.O_RDWR, 0o666),
        lambda s: s.write(b"new"),
        lambda s: s.look(),
        lambda s: s.fchmod(0o4755),
        lambda s: s.name("taken"),
        lambda s: s.name("new"),
        lambda s: s.look(),
        lambda s: s.name("again"),
        lambda s: s.look(),
        lambda s: s.unlink("new"),
        lambda s: s.unlink("again"),
        lambda s: s.name("third"),
        lambda s: s.look(),
    ),
    "over a mark": (
        lambda s: s.unlink("gone"),
        lambda s: s.tmpfile("group", os.O_RDWR, 0o640),
        lambda s: s.write(b"back"),
        lambda s: s.look(),
        lambda s: s.name("gone"),
        lambda s: s.look(),
    ),
    "exclusive": (
        lambda s: s.tmpfile(".", os.O_WRONLY | os.O_EXCL, 0o600),
        lambda s: s.name("taken"),
        lambda s: s.name("new"),
        lambda s: s.look(),
    ),
    "inherits": (
        lambda s: s.tmpfile("group", os.O_RDWR, 0o666),
        lambda s: s.xattr("system.posix_acl_access"),
        lambda s: s.look(),
        lambda s: s.name("group/new"),
    ),
    "for reading": (lambda s: s.tmpfile(".", os.O_RDONLY, 0o600),),
    "in no directory": (lambda s: s.tmpfile("file", os.O_RDWR, 0o600),),
    "written and unlinked": (
        lambda s: s.open("file", os.O_RDWR),
        lambda s: s.unlink("file"),
        lambda s: s.fchmod(0o600),
        lambda s: s.write(b"more text"),
        lambda s: s.look(),
        lambda s: s.xattr("user.color"),
        lambda s: s.xattr("trusted.overlay.origin"),
        lambda s: s.name("new"),
    ),
    "read and unlinked": (
        lambda s: s.open("file", os.O_RDONLY),
        lambda s: s.unlink("file"),
        lambda s: s.xattr("user.color"),
        lambda s: s.write(b"x"),
        lambda s: s.name("new"),
    ),
}


@contextmanager
def sides(base: Path) -> Iterator[tuple[EngineSide, KernelSide, Path]]:
    for name in ("engine", "kernel"):
        build(base / name / "lower", _LOWER, marks=OVERLAY)
        build(base / name / "upper", {}, marks=OVERLAY)
        os.setxattr(base / name / "lower/group", "system.posix_acl_default", _ACL)
    config = LayerMountConfig(
        base / "engine/upper", [base / "engine/lower"], work_dir_path=base / "engine/work"
    )
    kernel = base / "kernel"
    target = KernelTarget(
        kernel / "merged", kernel / "upper", kernel / "work", [kernel / "lower"], "metacopy=off"
    )
    one, other = EngineSide(Overlay(config)), KernelSide(kernel / "merged")
    try:
        yield one, other, base
    finally:
        other.close()
        target.close()
        one.overlay.close()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_kernel_answers_the_same(ext4_dir: Path, name: str) -> None:
    with sides(ext4_dir) as (engine, kernel, base):
        for step in SCRIPTS[name]:
            assert attempt(step, engine) == attempt(step, kernel)
        shown = snapshot(PathView(base / "kernel/merged"))
        engine.overlay.close()
        engine_base = base / "engine"
        target = KernelTarget(
            base / "seen", engine_base / "upper", engine_base / "work", [engine_base / "lower"]
        )
        try:
            seen = snapshot(target)
            assert_same(without(seen, "inode", "mtime_ns"), without(shown, "inode", "mtime_ns"))
        finally:
            target.close()


# Flags.


def lsattr(path: Path) -> set[str]:
    told = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=True)
    return set(told.stdout.split()[0]) - {"-", "e"}


@pytest.mark.parametrize("path", ["file", "group"])
def test_flags_are_set_as_the_kernel_sets_them(ext4_dir: Path, path: str) -> None:
    new = file_flags.FS_NOATIME_FL | file_flags.FS_NODUMP_FL
    with sides(ext4_dir) as (engine, kernel, base):
        node = get_node(engine.overlay, path)
        before = engine.overlay.get_flags(node)
        engine.overlay.set_flags(node, before | new)
        assert engine.overlay.get_flags(node) == before | new
        subprocess.run(["chattr", "+Ad", kernel.root / path], check=True)
        found = {name: lsattr(base / name / "upper" / path) for name in ("engine", "kernel")}
        assert found == {"engine": {"A", "d"}, "kernel": {"A", "d"}}
        assert not lsattr(base / "engine/lower" / path)


@pytest.mark.parametrize("flag", [file_flags.FS_IMMUTABLE_FL, file_flags.FS_APPEND_FL])
def test_x13_what_would_bind_the_engine_is_refused(ext4_dir: Path, flag: int) -> None:
    with sides(ext4_dir) as (engine, _, base):
        node = get_node(engine.overlay, "file")
        with pytest.raises(OSError, match="Errno") as caught:
            engine.overlay.set_flags(node, flag)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert os.listdir(base / "engine/upper") == []


def test_x14_the_flags_of_a_lower_are_not_copied_up(ext4_dir: Path) -> None:
    with sides(ext4_dir) as (engine, kernel, base):
        for name in ("engine", "kernel"):
            subprocess.run(["chattr", "+A", base / name / "lower/file"], check=True)
        node = get_node(engine.overlay, "file")
        assert engine.overlay.get_flags(node) & file_flags.FS_NOATIME_FL
        engine.overlay.copy_up(node)
        assert not engine.overlay.get_flags(node) & file_flags.FS_NOATIME_FL
        os.close(os.open(kernel.root / "file", os.O_RDWR | os.O_CLOEXEC))
        assert lsattr(base / "kernel/upper/file") == {"A"}


def test_x15_a_lower_s_file_without_a_name_cannot_be_changed(ext4_dir: Path) -> None:
    with sides(ext4_dir) as (engine, kernel, _):
        numbers = []
        for side in (engine, kernel):
            side.open("file", os.O_RDONLY)
            side.unlink("file")
            with pytest.raises(OSError, match="Errno") as caught:
                side.fchmod(0o600)
            numbers.append(caught.value.errno)
        assert numbers == [errno.EROFS, errno.EEXIST]


def test_other_kinds_have_no_flags(ext4_dir: Path) -> None:
    with sides(ext4_dir) as (engine, _, _):
        node = engine.overlay.mknod(engine.overlay.root, "fifo", stat.S_IFIFO | 0o600)
        for act in (engine.overlay.get_flags, lambda node: engine.overlay.set_flags(node, 0)):
            with pytest.raises(OSError, match="Errno") as caught:
                act(node)
            assert caught.value.errno == errno.ENOTTY


@pytest.mark.parametrize("path", ["file", "group"])
def test_birth_and_number_are_the_kernel_s(ext4_dir: Path, path: str) -> None:
    with sides(ext4_dir) as (engine, _, base):
        node = get_node(engine.overlay, path)
        lower = os.open(base / "engine/lower", os.O_PATH | os.O_CLOEXEC)
        upper = os.open(base / "engine/upper", os.O_PATH | os.O_CLOEXEC)
        before = engine.overlay.statx(node)
        assert before.birth_ns == statx(lower, path).birth_ns
        engine.overlay.copy_up(node)
        after = engine.overlay.statx(node)
        assert after.birth_ns == statx(upper, path).birth_ns
        assert (after.inode, after.device) == (before.inode, before.device)
        assert after.inode == engine.overlay.getattr(node).st_ino
        os.close(lower)
        os.close(upper)
