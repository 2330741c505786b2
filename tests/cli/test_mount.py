from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.testing.trees import digest
from tests.cli.command import Person, assert_error

needs_root = pytest.mark.needs("root", "overlay")


@pytest.fixture
def target(me: Person) -> Iterator[Path]:
    """A mount point that is free again afterwards."""
    path = me.base / "target"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        subprocess.run(["umount", "--lazy", path], check=True)


@needs_root
def test_mount_list_diff_umount(me: Person, target: Path) -> None:
    before = digest(me.project)
    upper = me.base / "upper"
    upper.mkdir()
    shown = me.json("mount", "--lower", me.project, "--upper", upper, target)
    assert (shown["target"], shown["lowers"], shown["upper"], shown["host"]) == (
        *(str(target), [str(me.project)], str(upper), "kernel"),
    )
    (target / "a").write_text("changed\n")
    (target / "b").unlink()
    (target / "sub").rename(target / "moved")
    (mount,) = me.json("list")["mounts"]
    assert mount == shown
    assert str(target).encode() in me.layermount("list").stdout
    diff = b"D b\nR sub/ -> moved/\nM a\n"
    assert me.layermount("diff", target).stdout == diff
    assert me.layermount("explain", target, "b").stdout.startswith(b"b: deleted\n")
    assert me.layermount("umount", target).returncode == 0
    assert not os.path.ismount(target)
    assert me.json("list")["mounts"] == []
    assert me.layermount("diff", "--lower", me.project, "--upper", upper).stdout == diff
    assert digest(me.project) == before


@needs_root
def test_a_busy_mount_stays_and_its_user_is_named(me: Person, target: Path) -> None:
    me.layermount("mount", "--lower", me.project, "--lower", me.base / "home", target)
    with subprocess.Popen(["sleep", "60"], cwd=target) as user:
        done = me.layermount("umount", target)
        assert_error(done, 40, "cannot unmount", str(target))
        assert f"sleep ({user.pid})".encode() in done.stderr
        assert os.path.ismount(target)
        assert me.layermount("umount", "--lazy", target).returncode == 0
        assert not os.path.ismount(target)
        user.kill()


@needs_root
def test_a_kept_view_is_mounted(me: Person, target: Path) -> None:
    me.sh("echo x > a; rm b", "--name", "x", "-q")
    assert me.layermount("mount", "--view", "x", target).returncode == 0
    assert ((target / "a").read_text(), (target / "b").exists()) == ("x\n", False)
    assert_error(me.layermount("run", "--name", "x", "true"), 14, "in use", str(target))
    assert_error(me.layermount("discard", "x"), 14, "in use", str(target))
    assert me.layermount("umount", target).returncode == 0
    assert me.layermount("discard", "x").returncode == 0


@needs_root
def test_a_view_with_a_process_left_in_it_is_not_mounted(me: Person, target: Path) -> None:
    _, out, _ = me.sh("sleep 60 >/dev/null 2>&1 & echo $!", "--name", "x")
    try:
        assert_error(me.layermount("mount", "--view", "x", target), 14, "still use")
    finally:
        os.kill(int(out), 9)


@needs_root
def test_an_upper_with_user_marks_is_mounted_with_them(me: Person, target: Path) -> None:
    """With the other marks what is deleted would come back."""
    upper = me.base / "upper"
    (upper / "sub").mkdir(parents=True)
    os.setxattr(upper, "user.overlay.impure", b"y")
    os.setxattr(upper / "sub", "user.overlay.opaque", b"y")
    assert me.layermount("mount", "--lower", me.project, "--upper", upper, target).returncode == 0
    assert list((target / "sub").iterdir()) == []


@needs_root
@pytest.mark.parametrize("flag", ["--read-only", "--volatile"])
def test_flags_of_a_mount(me: Person, target: Path, flag: str) -> None:
    upper = me.base / "upper"
    upper.mkdir()
    shown = me.json("mount", "--lower", me.project, "--upper", upper, flag, target)
    assert shown["volatile"] == (flag == "--volatile")
    assert os.access(target, os.W_OK) == (flag == "--volatile")
    assert me.layermount("umount", target).returncode == 0
    assert me.layermount("mount", "--lower", me.project, "--upper", upper, target).returncode == 0


def test_an_ordinary_user_without_fuse_cannot_mount(user: Person) -> None:
    if os.stat("/dev/fuse").st_mode & 0o002:
        pytest.skip("everybody may have FUSE")
    done = user.layermount("mount", "--lower", user.project, user.base / "home")
    assert_error(done, 41, "an ordinary user cannot have the kernel's overlayfs", "/dev/fuse")
    assert b"layermount run" in done.stderr


def test_nothing_to_unmount(user: Person) -> None:
    assert_error(user.layermount("umount", user.project), 40, "no overlay", str(user.project))


@needs_root
def test_an_unusable_work_directory(me: Person, target: Path) -> None:
    layers = ("--lower", me.project, "--upper", me.base / "home")
    done = me.layermount("mount", *layers, "--work", me.project / "a", target)
    assert_error(done, 1, "File exists", str(me.project / "a"), hint=False)
