from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.linux import namespaces
from layermount.views.removal import remove
from tests.forked import USER, in_child, user_directory


def make(base: Path) -> Path:
    """A tree with everything that makes removal hard for its owner."""
    tree = base / "tree"
    for name in ("open", "closed", "read-only/inner", "unlistable", "work/work/incompat/volatile"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file").write_text("x")
    (tree / "link").symlink_to(base / "outside")
    (tree / "to nothing").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    (tree / "read-only/inner").chmod(0o500)
    (tree / "read-only").chmod(0o500)
    (tree / "unlistable").chmod(0o300)
    (tree / "work/work").chmod(0)
    (tree / "closed").chmod(0)
    tree.chmod(0o500)
    return tree


def test_what_is_hard_to_remove_goes_and_nothing_else() -> None:
    def act() -> list[str]:
        (base / "outside").mkdir()
        (base / "outside/file").write_text("x")
        remove(make(base))
        return sorted(os.listdir(base)) + os.listdir(base / "outside")

    with user_directory() as base:
        assert in_child(act, user=USER) == ["outside", "file"]


def test_depth_does_not_matter(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", 0o700, dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove(tree)
    assert not tree.exists()


def test_what_is_gone_is_fine(tmp_path: Path) -> None:
    remove(tmp_path / "nosuch")
    remove(tmp_path / "nosuch/below")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="link"):
        remove(tmp_path / "link")
    assert (tmp_path / "real").is_dir()


@pytest.mark.needs("root")
def test_what_belongs_to_somebody_else_stays_and_is_named() -> None:
    def act() -> str:
        with pytest.raises(PermissionError) as caught:
            remove(base / "tree")
        return str(caught.value.filename)

    with user_directory() as base:
        (base / "tree").mkdir()
        os.chown(base / "tree", USER, USER)
        (base / "tree/foreign").mkdir()
        (base / "tree/foreign/file").write_text("x")
        assert in_child(act, user=USER).startswith(str(base / "tree"))
        assert (base / "tree/foreign/file").exists()


@pytest.mark.needs("userns")
def test_what_was_made_in_a_user_namespace_goes_outside_of_it() -> None:
    def inside() -> None:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        make(base)

    with user_directory() as base:
        in_child(inside, user=USER)
        in_child(lambda: remove(base / "tree"), user=USER)
        assert not (base / "tree").exists()
