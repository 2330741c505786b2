"""What an open file can do besides reading and writing, with a name and without."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layermount import LayerMount
from layermount.engine.handles import Handle
from layermount.engine.node import Node
from layermount.engine.paths import get_directory, get_node
from layermount.layer.marks import OVERLAY_USER
from layermount.linux import files
from layermount.testing.trees import file
from tests.unit.overlays import MARKS, make_layers, open_layers, open_overlay

_OLD = b"old" * 1000


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[LayerMount]:
    lower = {
        "lower": file(_OLD, mode=0o640, xattrs={"user.color": b"blue"}),
        "shell": file(_OLD),
    }
    upper = {"upper": file(_OLD), "other": file(b"other" * 1000)}
    with open_overlay(tmp_path, lower, upper=upper) as mount:
        yield mount


def opened(mount: LayerMount, path: str, flags: int = os.O_RDONLY) -> Handle:
    return mount.overlay.open(get_node(mount.overlay, path), flags)


def unlinked(mount: LayerMount, path: str, flags: int = os.O_RDONLY) -> Handle:
    handle = opened(mount, path, flags)
    mount.unlink(path)
    return handle


@pytest.mark.parametrize(
    ("path", "flags", "in_upper"),
    [
        ("lower", os.O_RDONLY, False),
        ("upper", os.O_RDONLY, True),
        ("upper", os.O_RDWR, True),
        ("lower", os.O_RDWR, True),
        ("shell", os.O_RDONLY, False),
    ],
)
def test_it_knows_whose_file_it_is(
    mount: LayerMount, path: str, flags: int, *, in_upper: bool
) -> None:
    mount.chmod("shell", 0o600)
    handle = opened(mount, path, flags)
    assert handle.in_upper is in_upper
    mount.overlay.copy_up(handle.node)
    assert handle.in_upper
    handle.close()


def test_it_follows_in_what_it_knows(mount: LayerMount) -> None:
    handle = opened(mount, "lower")
    with mount.open("lower", "r+b") as writer:
        writer.write(b"new")
    assert handle.in_upper
    assert handle.read(6, 0) == b"newold"
    handle.close()


# Without a name.

CHANGES: dict[str, Callable[[Handle], None]] = {
    "chmod": lambda handle: handle.chmod(0o600),
    "chown": lambda handle: handle.chown(-1, os.getgid()),
    "utimens": lambda handle: handle.utimens(5, None),
    "setxattr": lambda handle: handle.setxattr("user.size", b"XL"),
    "removexattr": lambda handle: handle.removexattr("user.size"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_in_the_upper_cannot_be_changed(mount: LayerMount, change: str) -> None:
    handle = unlinked(mount, "lower")
    with pytest.raises(OSError, match="Errno") as caught:
        CHANGES[change](handle)
    assert caught.value.errno == errno.EROFS
    handle.close()


def test_what_was_of_the_upper_still_can(mount: LayerMount) -> None:
    handle = unlinked(mount, "upper")
    for change in CHANGES.values():
        change(handle)
    status = handle.fstat()
    assert (status.st_mode & 0o7777, status.st_atime_ns, status.st_nlink) == (0o600, 5, 0)
    assert handle.listxattr() == []
    handle.close()


def test_attributes_of_a_lower_s_file_are_read(mount: LayerMount) -> None:
    handle = unlinked(mount, "lower")
    assert handle.listxattr() == ["user.color"]
    assert handle.getxattr("user.color") == b"blue"
    with pytest.raises(OSError, match="Errno") as caught:
        handle.getxattr("user.none")
    assert caught.value.errno == errno.ENODATA
    handle.close()


def test_marks_are_hidden_and_escaped(mount: LayerMount, tmp_path: Path) -> None:
    handle = opened(mount, "lower", os.O_RDWR)
    assert MARKS.key("origin") in os.listxattr(tmp_path / "upper/lower")
    mount.unlink("lower")
    assert handle.listxattr() == ["user.color"]
    handle.setxattr(MARKS.key("opaque"), b"mine")
    assert set(handle.listxattr()) == {"user.color", MARKS.key("opaque")}
    assert handle.getxattr(MARKS.key("opaque")) == b"mine"
    assert os.getxattr(handle.fileno(), MARKS.key("overlay.opaque")) == b"mine"
    handle.removexattr(MARKS.key("opaque"))
    assert handle.listxattr() == ["user.color"]
    handle.close()


def test_the_dialect_is_that_of_the_layer_it_reads(tmp_path: Path) -> None:
    key = OVERLAY_USER.key("thing")
    make_layers(tmp_path, {"file": file(b"x")})
    os.setxattr(tmp_path / "lower0/file", OVERLAY_USER.key("overlay.thing"), b"inner")
    with open_layers(tmp_path, dialect="overlay-user") as mount:
        handle = unlinked(mount, "file")
        assert handle.listxattr() == [key]
        assert handle.getxattr(key) == b"inner"
        handle.close()


# Space and copies.


@pytest.mark.parametrize(
    ("mode", "offset", "length", "size", "head"),
    [
        (0, 0, 9000, 9000, b"old"),
        (files.FALLOC_FL_KEEP_SIZE, 0, 9000, 3000, b"old"),
        (files.FALLOC_FL_KEEP_SIZE | files.FALLOC_FL_PUNCH_HOLE, 0, 3, 3000, b"\0\0\0"),
    ],
)
def test_room_is_reserved_and_given_back(
    mount: LayerMount, mode: int, offset: int, length: int, size: int, head: bytes
) -> None:
    handle = opened(mount, "lower", os.O_RDWR)
    handle.fallocate(mode, offset, length)
    assert (handle.fstat().st_size, handle.read(3, 0)) == (size, head)
    handle.close()


def test_room_is_not_reserved_by_readers(mount: LayerMount) -> None:
    handle = opened(mount, "upper")
    for mode, number in ((0, errno.EBADF), (0x4000, errno.EOPNOTSUPP)):
        with pytest.raises(OSError, match="Errno") as caught:
            handle.fallocate(mode, 0, 1)
        assert caught.value.errno == number
    handle.close()


def test_ranges_are_copied(mount: LayerMount) -> None:
    source, target = opened(mount, "other"), opened(mount, "lower", os.O_RDWR)
    before = mount.get_stats()
    assert source.copy_range_to(target, 5, 3, 10) == 10
    assert target.read(16, 0) == b"oldotherother" + _OLD[13:16]
    assert source.copy_range_to(target, 5000, 0, 10) == 0
    after = mount.get_stats()
    assert after.bytes_written - before.bytes_written == 10
    with pytest.raises(OSError, match="Errno") as caught:
        target.copy_range_to(source, 0, 0, 1)
    assert caught.value.errno == errno.EBADF
    source.close()
    target.close()


def test_a_range_is_copied_within_a_file(mount: LayerMount) -> None:
    handle = opened(mount, "upper", os.O_RDWR)
    assert handle.copy_range_to(handle, 1, 100, 5) == 5
    assert handle.read(5, 100) == b"ldold"
    with pytest.raises(OSError, match="Errno") as caught:
        handle.copy_range_to(handle, 0, 2, 5)
    assert caught.value.errno == errno.EINVAL
    handle.close()


def test_copies_in_opposite_directions_do_not_wait_for_each_other(mount: LayerMount) -> None:
    pair = opened(mount, "upper", os.O_RDWR), opened(mount, "other", os.O_RDWR)
    start = threading.Barrier(2)

    def copy(source: Handle, target: Handle) -> None:
        start.wait(60)
        for _ in range(2000):
            source.copy_range_to(target, 0, 0, 100)

    threads = [threading.Thread(target=copy, args=ends) for ends in (pair, pair[::-1])]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    for handle in pair:
        handle.close()


# Files without a name.


def made(mount: LayerMount, flags: int = os.O_RDWR, mode: int = 0o640) -> tuple[Node, Handle]:
    return mount.overlay.tmpfile(mount.overlay.root, flags, mode)


def test_a_file_without_a_name_is_nowhere(mount: LayerMount, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path / "upper"))
    node, handle = made(mount)
    handle.write(b"text", 0)
    status = handle.fstat()
    assert (node.removed, node.kind, node.inode) == (True, 8, status.st_ino)
    assert (status.st_nlink, status.st_mode & 0o7777) == (0, 0o640)
    assert sorted(os.listdir(tmp_path / "upper")) == before
    with pytest.raises(FileNotFoundError):
        mount.overlay.getattr(node)
    handle.close()


def test_it_gets_a_name_and_another(mount: LayerMount, tmp_path: Path) -> None:
    node, handle = made(mount)
    handle.write(b"text", 0)
    root = mount.overlay.root
    assert mount.overlay.link_handle(handle, root, "first") is node
    assert (node.removed, node.path) == (False, "first")
    assert mount.overlay.lookup(root, "first") is node
    assert mount.overlay.link_handle(handle, root, "second") is not node
    assert mount.stat("first").st_ino == mount.stat("second").st_ino == node.inode
    assert mount.stat("first").st_nlink == 2
    assert (tmp_path / "upper/second").read_bytes() == b"text"
    handle.close()


def test_the_first_name_may_be_one_that_was_deleted(mount: LayerMount) -> None:
    mount.unlink("lower")
    node, handle = made(mount)
    handle.write(b"text", 0)
    mount.overlay.link_handle(handle, mount.overlay.root, "lower")
    handle.close()
    with mount.open("lower", "rb") as again:
        assert again.read() == b"text"
    assert mount.overlay.getattr(node).st_nlink == 1
    assert mount.overlay.upper is not None
    assert os.listdir(mount.overlay.upper.work.fd) == []


@pytest.mark.parametrize(
    ("prepare", "name", "number"),
    [
        (lambda mount: made(mount)[1], "lower", errno.EEXIST),
        (lambda mount: made(mount)[1], "a/b", errno.EINVAL),
        (lambda mount: made(mount, os.O_RDWR | os.O_EXCL)[1], "new", errno.ENOENT),
        (lambda mount: unlinked(mount, "upper"), "new", errno.ENOENT),
        (lambda mount: unlinked(mount, "lower"), "new", errno.ENOENT),
        (lambda mount: unlinked(mount, "lower", os.O_RDWR), "new", errno.ENOENT),
    ],
)
def test_what_gets_no_name(
    mount: LayerMount, tmp_path: Path, prepare: Callable[[LayerMount], Handle], name: str,
    number: int,
) -> None:  # fmt: skip
    handle = prepare(mount)
    before = sorted(os.listdir(tmp_path / "upper"))
    with pytest.raises(OSError, match="Errno") as caught:
        mount.overlay.link_handle(handle, mount.overlay.root, name)
    assert caught.value.errno == number
    assert sorted(os.listdir(tmp_path / "upper")) == before
    handle.close()


def test_a_file_without_a_name_is_opened_for_writing(mount: LayerMount) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        made(mount, os.O_RDONLY)
    assert caught.value.errno == errno.EINVAL


def test_its_directory_comes_up(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"a/b/file": file(b"x")}) as mount:
        parent = get_directory(mount.overlay, "a/b")
        _, handle = mount.overlay.tmpfile(parent, os.O_RDWR, 0o600)
        mount.overlay.link_handle(handle, parent, "made")
        handle.close()
        assert sorted(mount.listdir("a/b")) == ["file", "made"]
    assert os.listdir(tmp_path / "upper/a/b") == ["made"]


def test_open_files_end_with_the_overlay(tmp_path: Path) -> None:
    mount = open_overlay(tmp_path, {"file": file(b"x")})
    handles = [opened(mount, "file"), made(mount)[1]]
    assert mount.get_stats().active_handles == 2
    mount.close()
    assert all(handle.is_closed for handle in handles)
