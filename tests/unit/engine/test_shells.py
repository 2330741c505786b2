"""Metadata-only copies: where their data is remembered, and when that ends. Rules: C5, C6, V6."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount import LayerMount
from layermount.engine.node import DirectoryNode, Node
from layermount.testing.trees import file
from tests.unit.overlays import BIG, in_turn, is_shell, nothing, open_overlay

pytestmark = pytest.mark.needs("root")

FILL: dict[str, Callable[[LayerMount, str], object]] = {
    "write": lambda mount, path: mount.open_file(path, os.O_WRONLY).close(),
    "truncate": lambda mount, path: mount.truncate(path, len(BIG)),
    "ensure": lambda mount, path: mount.ensure_in_upper(path),
}
#: What changes the names of a copy, and the names that it has then.
NAMES: dict[str, tuple[Callable[[LayerMount], object], list[str]]] = {
    "one": (nothing, ["f"]),
    "moved": (lambda mount: mount.rename("f", "g"), ["g"]),
    "moved away": (lambda mount: mount.rename("f", "d/g"), ["d/g"]),
    "linked": (lambda mount: mount.link("f", "g"), ["f", "g"]),
    "linked, first gone": (
        in_turn(lambda mount: mount.link("f", "g"), lambda mount: mount.unlink("f")),
        ["g"],
    ),
    "without origin": (lambda mount: forget_origin(mount, "f"), ["f"]),
}


def forget_origin(mount: LayerMount, path: str) -> None:
    """Then its own number is all it has, and it is filled in place."""
    assert mount.overlay.config.upper_path is not None
    os.removexattr(mount.overlay.config.upper_path / path, "trusted.overlay.origin")


def node_of(mount: LayerMount, path: str) -> Node:
    """The node, which is remembered as long as it is held, as a host holds it."""
    node: Node = mount.overlay.root
    for name in path.split("/"):
        assert isinstance(node, DirectoryNode)
        node = mount.overlay.lookup(node, name)
    return node


@pytest.mark.parametrize("lowers", [1, 2])
@pytest.mark.parametrize("fill", FILL)
@pytest.mark.parametrize("names", NAMES)
def test_data_that_came_up_is_what_every_name_shows(
    tmp_path: Path, names: str, fill: str, lowers: int
) -> None:
    trees = [{"f": file(BIG), "d/x": file(b"x")}, {"f": file(b"deeper")}][:lowers]
    with open_overlay(tmp_path, *trees) as mount:
        held = [node_of(mount, "f")]
        blocks = mount.stat("f").st_blocks
        mount.chmod("f", 0o600)
        assert is_shell(tmp_path, "f")
        assert mount.stat("f").st_blocks == blocks
        change, found = NAMES[names]
        change(mount)
        held += [node_of(mount, name) for name in found]
        for name in found:
            assert mount.stat(name).st_blocks == blocks
            assert mount.path(name).read_bytes() == BIG
        FILL[fill](mount, found[-1])
        with mount.open_file(found[-1], os.O_RDWR) as opened:
            opened.write(b"new")
        for name in found:
            assert mount.path(name).read_bytes() == b"new" + BIG[3:], name
            assert not is_shell(tmp_path, name)
        assert {node.data for node in held} == {None}


@pytest.mark.parametrize("mode", [0o600, 0o4711, 0o2755, 0o1777, 0])
@pytest.mark.parametrize("path", ["f", "empty", "d"])
def test_a_copy_lands_with_the_mode_that_it_is_made_for(
    tmp_path: Path, path: str, mode: int
) -> None:
    tree = {"f": file(BIG, owner=(5, 6)), "empty": file(b"", owner=(5, 6)), "d/x": file(b"x")}
    with open_overlay(tmp_path, tree) as mount:
        before = mount.stat(path)
        mount.chmod(path, mode)
        after = mount.stat(path)
        assert stat.S_IMODE(after.st_mode) == mode
        assert stat.S_IMODE(os.stat(tmp_path / "upper" / path).st_mode) == mode
        assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
        assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_second_change_of_mode_is_a_change_in_the_upper(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        mount.chmod("f", 0o640)
        mount.chmod("f", 0o600)
        assert stat.S_IMODE(mount.stat("f").st_mode) == 0o600
        assert mount.overlay.counters.copy_ups == 1


def test_a_lower_opened_again_is_looked_at_again(tmp_path: Path) -> None:
    """Nothing that is remembered outlives the overlay."""
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        mount.chmod("f", 0o600)
    with open_overlay(tmp_path) as mount:
        assert mount.path("f").read_bytes() == BIG
        assert mount.stat("f").st_blocks
        mount.ensure_in_upper("f")
        assert not is_shell(tmp_path, "f")
