from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.linux import mountinfo, mounts, namespaces
from tests.forked import in_child

FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# Python's name, the header's name.
CONSTANTS = {
    "AT_EMPTY_PATH": "AT_EMPTY_PATH",
    "AT_RECURSIVE": "AT_RECURSIVE",
    "MS_BIND": "MS_BIND",
    "MS_REC": "MS_REC",
    "MS_PRIVATE": "MS_PRIVATE",
    "MS_SLAVE": "MS_SLAVE",
    "MS_SHARED": "MS_SHARED",
    "MNT_FORCE": "MNT_FORCE",
    "MNT_DETACH": "MNT_DETACH",
    "MNT_EXPIRE": "MNT_EXPIRE",
    "UMOUNT_NOFOLLOW": "UMOUNT_NOFOLLOW",
    "MOUNT_ATTR_RDONLY": "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_NOSUID": "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NODEV": "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC": "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_IDMAP": "MOUNT_ATTR_IDMAP",
    "OPEN_TREE_CLONE": "OPEN_TREE_CLONE",
    "_FSOPEN_CLOEXEC": "FSOPEN_CLOEXEC",
    "_FSMOUNT_CLOEXEC": "FSMOUNT_CLOEXEC",
    "_OPEN_TREE_CLOEXEC": "OPEN_TREE_CLOEXEC",
    "_MOVE_MOUNT_F_EMPTY_PATH": "MOVE_MOUNT_F_EMPTY_PATH",
    "_MOVE_MOUNT_T_EMPTY_PATH": "MOVE_MOUNT_T_EMPTY_PATH",
    "_FSCONFIG_SET_FLAG": "FSCONFIG_SET_FLAG",
    "_FSCONFIG_SET_STRING": "FSCONFIG_SET_STRING",
    "_FSCONFIG_SET_FD": "FSCONFIG_SET_FD",
    "_FSCONFIG_CMD_CREATE": "FSCONFIG_CMD_CREATE",
}
NAMESPACE_CONSTANTS = tuple(name for name in dir(namespaces) if name.startswith("CLONE_"))
HEADERS = (
    "#define _GNU_SOURCE",
    "#include <stddef.h>",
    "#include <stdio.h>",
    "#include <sched.h>",
    "#include <fcntl.h>",
    "#include <sys/mount.h>",
)


@pytest.fixture
def context() -> Iterator[int]:
    fd = mounts.fsopen("overlay")
    yield fd
    os.close(fd)


def compiled(lines: list[str], tmp_path: Path) -> list[int]:
    """The numbers a C program prints, one expression each."""
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    body = "".join(f'printf("%lld\\n", (long long)({line}));' for line in lines)
    source.write_text("\n".join([*HEADERS, f"int main(void) {{ {body} return 0; }}"]))
    subprocess.run(["gcc", "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.needs("gcc")
def test_the_structure_is_the_headers(tmp_path: Path) -> None:
    fields = [name for name, _type in mounts.MountAttr._fields_]
    lines = ["sizeof(struct mount_attr)"]
    lines += [f"offsetof(struct mount_attr, {name})" for name in fields]
    ours = [getattr(mounts.MountAttr, name).offset for name in fields]
    assert compiled(lines, tmp_path) == [ctypes.sizeof(mounts.MountAttr), *ours]


@pytest.mark.needs("gcc")
def test_the_constants_are_the_headers(tmp_path: Path) -> None:
    ours = [getattr(mounts, name) for name in CONSTANTS]
    assert compiled(list(CONSTANTS.values()), tmp_path) == ours
    ours = [getattr(namespaces, name) for name in NAMESPACE_CONSTANTS]
    assert compiled(list(NAMESPACE_CONSTANTS), tmp_path) == ours


@pytest.mark.needs("root")
def test_an_unknown_filesystem_is_enodev() -> None:
    with pytest.raises(OSError, match="no-such-fs") as caught:
        mounts.fsopen("no-such-fs")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.needs("root", "overlay")
class TestTheKernelsWordsAreInTheError:
    def test_an_unknown_option(self, context: int) -> None:
        with pytest.raises(OSError, match="Unknown parameter 'nonsense'") as caught:
            mounts.fsconfig_string(context, "nonsense", "x")
        assert caught.value.errno == errno.EINVAL
        assert caught.value.filename == "nonsense"

    def test_an_unknown_flag(self, context: int) -> None:
        with pytest.raises(OSError, match="Unknown parameter 'nonsense'"):
            mounts.fsconfig_flag(context, "nonsense")

    def test_a_descriptor_for_an_option_that_takes_none(self, context: int) -> None:
        with pytest.raises(OSError, match="Bad value for 'redirect_dir'"):
            mounts.fsconfig_fd(context, "redirect_dir", 0)

    def test_a_missing_directory_keeps_its_errno(self, context: int, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            mounts.fsconfig_string(context, "upperdir", str(tmp_path / "missing"))

    def test_nothing_is_said_twice(self, context: int) -> None:
        with pytest.raises(OSError, match="nonsense"):
            mounts.fsconfig_flag(context, "nonsense")
        assert mounts.messages(context) == []

    def test_a_step_without_words_has_the_errnos(self, context: int) -> None:
        with pytest.raises(OSError, match="Invalid argument"):
            mounts.fsconfig_create(context)


def tmpfs() -> int:
    context = mounts.fsopen("tmpfs")
    try:
        mounts.fsconfig_string(context, "source", "a source")
        mounts.fsconfig_string(context, "size", "1M")
        mounts.fsconfig_create(context)
        return mounts.fsmount(context, attributes=mounts.MOUNT_ATTR_NOSUID)
    finally:
        os.close(context)


@pytest.mark.needs("userns")
def test_a_detached_mount_is_seen_by_nobody_and_ends_with_its_descriptor() -> None:
    def child() -> tuple[bool, list[str]]:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        fd = tmpfs()
        os.mkdir("inside", dir_fd=fd)
        number = mountinfo.mount_id_of(fd)
        found = mountinfo.find(number) is None, os.listdir(f"/proc/self/fd/{fd}")
        os.close(fd)
        return found

    assert in_child(child) == (True, ["inside"])


@pytest.mark.needs("userns")
def test_move_and_unmount(tmp_path: Path) -> None:
    def child() -> None:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        mount_fd, target_fd = tmpfs(), os.open(tmp_path, FLAGS)
        mounts.move_mount(mount_fd, target_fd, str(tmp_path))
        found = mountinfo.find(mountinfo.mount_id_of(mount_fd))
        assert found is not None
        assert found.target == str(tmp_path)
        assert found.source == "a source"
        assert "nosuid" in found.options
        assert found.values("size") == ("1024k",)
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            mounts.umount2(str(tmp_path))
        assert caught.value.errno == errno.EBUSY
        os.close(mount_fd)
        mounts.umount2(str(tmp_path), mounts.UMOUNT_NOFOLLOW)
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            mounts.umount2(str(tmp_path))
        assert caught.value.errno == errno.EINVAL

    in_child(child)


@pytest.mark.needs("userns")
def test_an_error_of_move_mount_names_the_target(tmp_path: Path) -> None:
    def child() -> None:
        outside = os.open(tmp_path, FLAGS)
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            mounts.move_mount(tmpfs(), outside, str(tmp_path))
        assert caught.value.errno == errno.EINVAL

    in_child(child)


@pytest.mark.needs("userns")
def test_a_copy_of_a_mount_made_read_only(tmp_path: Path) -> None:
    def child() -> None:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        root = tmpfs()
        mounts.move_mount(root, os.open(tmp_path, FLAGS))
        (tmp_path / "sub").mkdir()
        copy = mounts.open_tree(
            mounts.AT_FDCWD, str(tmp_path / "sub"), flags=mounts.OPEN_TREE_CLONE
        )
        mounts.mount_setattr(
            copy,
            attributes_set=mounts.MOUNT_ATTR_RDONLY,
            propagation=mounts.MS_PRIVATE,
            recursive=True,
        )
        with pytest.raises(OSError, match="Read-only") as caught:
            os.mkdir("x", dir_fd=copy)
        assert caught.value.errno == errno.EROFS
        mounts.mount_setattr(copy, attributes_clear=mounts.MOUNT_ATTR_RDONLY)
        os.mkdir("x", dir_fd=copy)
        assert os.listdir(tmp_path / "sub") == ["x"]

    in_child(child)


@pytest.mark.needs("root", "userns")
def test_an_idmapped_copy_shows_other_owners(tmp_path: Path) -> None:
    def child() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(mounts.MS_PRIVATE)
        (tmp_path / "file").touch()
        copy = mounts.open_tree(mounts.AT_FDCWD, str(tmp_path), flags=mounts.OPEN_TREE_CLONE)
        userns_fd = in_mapped_namespace()
        mounts.mount_setattr(copy, attributes_set=mounts.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
        assert os.stat("file", dir_fd=copy).st_uid == 1234

    in_child(child)


def in_mapped_namespace() -> int:
    """A user namespace in which id 0 is 1234 outside."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    maps = [namespaces.IdMap(0, 1234, 1)]
    namespaces.write_id_maps(maps, maps, pid=pid, deny_setgroups=False)
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return fd


@pytest.mark.needs("userns")
def test_classic_mount_takes_flags_and_data(tmp_path: Path) -> None:
    def child() -> None:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        flags = mounts.MS_NODEV | mounts.MS_NOSUID
        mounts.mount("name", str(tmp_path), "tmpfs", flags, "size=2M")
        found = mountinfo.mounts()[-1]
        assert (found.target, found.source) == (str(tmp_path), "name")
        assert {"nodev", "nosuid"} <= set(found.options)
        assert found.values("size") == ("2048k",)

    in_child(child)


def test_syncfs(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    mounts.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        mounts.syncfs(fd)
