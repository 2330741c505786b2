from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from layermount.errors import HostError, HostUnavailableError
from layermount.hosts.fuse import mounting
from layermount.hosts.fuse.mounting import Attached, Settings
from layermount.linux import mountinfo, mounts
from tests.forked import user_directory
from tests.fuse.ordinary import as_user

needs_root = pytest.mark.needs("root", "fuse")
needs_fuse = pytest.mark.needs("fuse")

SOURCE = "layermount:0123456789abcdef"
PLAIN = Settings(source=SOURCE)
OF_USER = Settings(source=SOURCE, restricted=True)


def mount_of(target: str) -> mountinfo.Mount | None:
    return next((m for m in reversed(mountinfo.mounts()) if m.target == target), None)


def attach(target: Path, settings: Settings = PLAIN) -> Attached:
    return mounting.attach(target, settings, lambda *_: None)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A mount point that is free again afterwards."""
    path = tmp_path / "target, with\n odd\\ characters"
    path.mkdir()
    yield path
    while os.path.ismount(path) or mount_of(str(path)) is not None:
        mounts.umount2(str(path), mounts.MNT_DETACH)


# Settings, and the mount's options that they make.
SETTINGS = {
    "plain": (PLAIN, {"rw"}, set()),
    "read-only": (Settings(source=SOURCE, read_only=True), {"ro"}, set()),
    "for all": (Settings(source=SOURCE, allow_other=True), {"rw"}, {"allow_other"}),
    "restricted": (Settings(source=SOURCE, restricted=True), {"rw", "nosuid", "nodev"}, set()),
}


@needs_root
@pytest.mark.parametrize("way", ["detached", "mount(2)", "fusermount3"])
@pytest.mark.parametrize(("settings", "options", "more"), SETTINGS.values(), ids=SETTINGS)
def test_what_is_mounted(
    target: Path, way: str, settings: Settings, options: set[str], more: set[str]
) -> None:
    with ExitStack() as device:
        if way == "detached":
            device.callback(os.close, attach(target, settings).device_fd)
        elif way == "mount(2)":
            fd = os.open(target, os.O_PATH)
            device.callback(os.close, fd)
            assert mounting._by_call(device, fd, settings) is not None
        else:
            mounting._by_helper(device, str(target), settings)
        mount = mount_of(str(target))
        assert mount is not None
        assert (mount.fstype, mount.source) == ("fuse.layermount", SOURCE)
        ours = {"rw", "ro", "nosuid", "nodev"}
        assert ours.intersection(mount.options) == options
        shown = {key for key, _ in mount.super_options}
        assert shown - {"max_read"} == {"default_permissions", "user_id", "group_id", *more} | (
            {"ro"} if settings.read_only else {"rw"}
        )
        mounting.unmount(str(target), mount.mount_id, SOURCE, lazy=False)
        assert not os.path.ismount(target)


@needs_root
def test_it_is_announced_with_its_number_before_it_is_there(target: Path) -> None:
    told = []

    def announce(shown_at: str, number: int) -> None:
        told.append((shown_at, number, os.path.ismount(target)))

    attached = mounting.attach(target, PLAIN, announce)
    os.close(attached.device_fd)
    assert told == [(str(target), attached.mount_id, False)]
    assert attached.target == str(target)


@needs_root
def test_what_cannot_be_announced_is_not_mounted(target: Path) -> None:
    def refuse(_target: str, _number: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OSError, match="no room"):
        mounting.attach(target, PLAIN, refuse)
    assert mount_of(str(target)) is None


@needs_root
def test_a_mount_that_nobody_serves_is_taken_away_though_in_use(target: Path) -> None:
    attached = attach(target)
    fd = os.open(target, os.O_PATH)
    try:
        os.close(attached.device_fd)
        with pytest.raises(OSError, match="not connected") as caught:
            target.stat()
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError, match="busy"):
            mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=False)
        mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=True)
        assert not os.path.ismount(target)
    finally:
        os.close(fd)


@needs_root
def test_only_the_mount_that_is_meant_is_taken_away(target: Path) -> None:
    attached = attach(target)
    os.close(attached.device_fd)
    mounts.mount("another", str(target), "tmpfs")
    with pytest.raises(OSError, match="something else is mounted over it"):
        mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=True)
    mounts.umount2(str(target))
    mounting.unmount(str(target), attached.mount_id, "layermount:0", lazy=True)
    assert mount_of(str(target)) is not None
    mounting.unmount(str(target), mounting.UNKNOWN, "layermount:0", lazy=True)
    assert mount_of(str(target)) is not None
    mounting.unmount(str(target), mounting.UNKNOWN, SOURCE, lazy=True)
    assert mount_of(str(target)) is None


TARGETS = {
    "missing": ("missing", FileNotFoundError),
    "a file": ("file", NotADirectoryError),
}


@needs_fuse
@pytest.mark.parametrize(("name", "error"), TARGETS.values(), ids=TARGETS)
def test_a_target_that_is_no_directory(tmp_path: Path, name: str, error: type[OSError]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error) as caught:
        attach(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)


# As an ordinary user, by fusermount3.


@needs_fuse
def test_an_ordinary_user_mounts_and_unmounts() -> None:
    with user_directory() as target:

        def user() -> tuple[list[str], bool, bool, list[bool]]:
            told = []
            attached = mounting.attach(target, OF_USER, lambda *place: told.append(place))
            mount = mountinfo.find(attached.mount_id)
            assert mount is not None
            assert told == [(str(target), mounting.UNKNOWN)]
            inherited = os.get_inheritable(attached.device_fd)
            os.close(attached.device_fd)
            found = [os.path.ismount(target) or mount_of(str(target)) is not None]
            mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=True)
            found.append(mount_of(str(target)) is not None)
            restricted = {"nosuid", "nodev"} <= set(mount.options)
            return [mount.fstype, mount.source], restricted, inherited, found

        assert as_user(user) == (["fuse.layermount", SOURCE], True, False, [True, False])


@needs_fuse
def test_an_ordinary_user_is_told_that_a_mount_is_busy() -> None:
    with user_directory() as target:

        def user() -> int | None:
            attached = attach(target, OF_USER)
            fd = os.open(target, os.O_PATH)
            with pytest.raises(OSError, match="busy") as caught:
                mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=False)
            os.close(fd)
            os.close(attached.device_fd)
            mounting.unmount(str(target), attached.mount_id, SOURCE, lazy=False)
            return caught.value.errno

        assert as_user(user) == errno.EBUSY


@needs_fuse
def test_what_fusermount_says_is_told() -> None:
    def user() -> str:
        with pytest.raises(HostError) as caught:
            attach(Path("/usr"), OF_USER)
        return str(caught.value)

    text = as_user(user)
    assert text.startswith("cannot mount at '/usr': ")
    assert "write access" in text or "not owned" in text


@needs_root
def test_without_the_device_it_is_unavailable() -> None:
    """In a mount namespace whose /dev is empty."""
    from layermount.linux import namespaces
    from tests.forked import in_child

    def child() -> tuple[str, str | None, bool]:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(mounts.MS_PRIVATE)
        mounts.mount("empty", "/dev", "tmpfs")
        with pytest.raises(HostUnavailableError) as caught:
            attach(Path("/mnt"))
        return str(caught.value), caught.value.hint, bool(mounting.verdict())

    text, hint, available = in_child(child)
    assert text == "no FUSE filesystem can be had: /dev/fuse: No such file or directory"
    assert hint is not None
    assert "modprobe fuse" in hint
    assert not available


@needs_fuse
def test_the_verdict() -> None:
    verdict = mounting.verdict()
    assert verdict
    assert (verdict.host, verdict.remedy) == ("fuse", None)
