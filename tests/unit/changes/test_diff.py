from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.changes.change import Change, ChangeKind
from layermount.changes.diff import Difference
from layermount.config import LayerMountConfig
from layermount.errors import ConfigError, LayerUnavailableError
from layermount.testing.trees import (
    Tree,
    build,
    device,
    digest,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
    whiteout,
)
from tests.unit.overlays import MARKS

NEW = 5


def changes(base: Path, upper: Tree, *lowers: Tree) -> list[Change]:
    """What an upper changes; neither it nor a lower is touched by asking."""
    build(base / "upper", upper, marks=MARKS)
    for number, tree in enumerate(lowers):
        build(base / f"lower{number}", tree, marks=MARKS)
    before = digest(base)
    paths = [base / f"lower{number}" for number in range(len(lowers))]
    with Difference(LayerMountConfig(base / "upper", paths)) as difference:
        found = difference.changes()
    assert digest(base) == before
    return found


def told(change: Change) -> str:
    name = change.path if change.old_path is None else f"{change.old_path} -> {change.path}"
    return f"{change.kind} {name} {change.entry} {' '.join(change.what)}".rstrip()


CASES: dict[str, tuple[Tree, Tree, list[str]]] = {
    "nothing": ({}, {"a": file()}, []),
    "added": ({"a": file(b"x")}, {}, ["added a file"]),
    "added with what is in it": (
        {"d/a": file(b"x")}, {}, ["added d directory", "added d/a file"],
    ),
    "deleted": ({"a": whiteout()}, {"a": file()}, ["deleted a file"]),
    "a deleted directory is one change": (
        {"d": whiteout()}, {"d/a": file(), "d/b": file()}, ["deleted d directory"],
    ),
    "a mark on nothing": ({"a": whiteout()}, {}, []),
    "a mark on nothing in an added directory": (
        {"d": directory(), "d/a": whiteout()}, {}, ["added d directory"],
    ),
    "content": (
        {"a": file(b"y", mtime_ns=NEW)}, {"a": file(b"x")}, ["modified a file content times"],
    ),
    "content of the same size and time": (
        {"a": file(b"y")}, {"a": file(b"x")}, ["modified a file content"],
    ),
    "copied up and otherwise the same": ({"a": file(b"x")}, {"a": file(b"x")}, []),
    "times": ({"a": file(mtime_ns=NEW)}, {"a": file()}, ["modified a file times"]),
    "mode": ({"a": file(mode=0o600)}, {"a": file()}, ["modified a file mode"]),
    "mode of a directory": (
        {"d": directory(mode=0o700)}, {"d/a": file()}, ["modified d directory mode"],
    ),
    "times of a directory are not compared": (
        {"d": directory(mtime_ns=NEW)}, {"d": directory()}, [],
    ),
    "xattrs": (
        {"a": file(xattrs={"user.x": b"2"})}, {"a": file(xattrs={"user.x": b"1"})},
        ["modified a file xattrs"],
    ),
    "an xattr less": ({"a": file()}, {"a": file(xattrs={"user.x": b"1"})},
                      ["modified a file xattrs"]),
    "target": ({"a": symlink("y")}, {"a": symlink("x")}, ["modified a link target"]),
    "a file becomes a directory": (
        {"a": directory(), "a/b": file()}, {"a": file()},
        ["modified a directory type", "added a/b file"],
    ),
    "a directory becomes a file": (
        {"a": file()}, {"a/b": file()}, ["modified a file type"],
    ),
    "a directory becomes a link": ({"a": symlink("x")}, {"a/b": file()}, ["modified a link type"]),
    "a fifo": ({"a": fifo()}, {}, ["added a fifo"]),
    "an opaque directory": (
        {"d": directory(opaque=True), "d/a": file(b"new"), "d/n": file()},
        {"d/a": file(b"old"), "d/b": file(), "d/e/f": file()},
        ["modified d/a file content", "deleted d/b file", "deleted d/e directory",
         "added d/n file"],
    ),
    "an opaque directory with a mark": (
        {"d": directory(opaque=True), "d/a": whiteout()}, {"d/a": file()}, ["deleted d/a file"],
    ),
    "hard links": (
        {"a": file(b"x"), "b": hardlink("a")}, {"a": file(b"x")}, ["added b file"],
    ),
    "odd names": (
        {os.fsdecode(b"\xff\n"): file(b"x"), ".wh.a": file()}, {},
        ["added .wh.a file", f"added {os.fsdecode(bytes([255, 10]))} file"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("upper", "lower", "expected"), CASES.values(), ids=CASES)
def test_a_change(tmp_path: Path, upper: Tree, lower: Tree, expected: list[str]) -> None:
    assert [told(change) for change in changes(tmp_path, upper, lower)] == expected


@pytest.mark.needs("root")
def test_what_takes_privilege(tmp_path: Path) -> None:
    upper = {"a": file(owner=(1, 2)), "d": device(1, 5), "e": device(1, 3), "f": file()}
    lower = {"a": file(), "d": device(1, 3), "f": device(1, 3)}
    assert [told(change) for change in changes(tmp_path, upper, lower)] == [
        *("modified a file owner", "modified d device device"),
        *("added e device", "modified f file type"),
    ]


def test_the_lowers_together_are_the_base(tmp_path: Path) -> None:
    upper = {"a": whiteout(), "b": file(b"x"), "c": whiteout(), "d": file(b"x")}
    near = {"a": file(), "b": whiteout(), "c": whiteout()}
    far = {"b": file(b"x"), "c": file(), "d": file(b"y")}
    assert [told(change) for change in changes(tmp_path, upper, near, far)] == [
        *("deleted a file", "added b file", "modified d file content"),
    ]


def test_sizes(tmp_path: Path) -> None:
    upper = {"a": whiteout(), "b": file(b"xyz"), "c": file(b"x"), "d": directory()}
    lower = {"a": file(b"1"), "b": file(b"12"), "d": directory(mode=0o700)}
    found = changes(tmp_path, upper, lower)
    sizes = {change.path: (change.old_size, change.new_size) for change in found}
    assert sizes == {"a": (1, None), "b": (2, 3), "c": (None, 1), "d": (None, None)}


def test_a_moved_file_by_its_origin(tmp_path: Path) -> None:
    """In the form that the kernel leaves in a user namespace: copied up, from where is not said."""
    build(tmp_path / "lower", {"old": file(b"x"), "other": file(b"y")}, marks=MARKS)
    upper = {"old": whiteout(), "other": whiteout(), "new": file(b"x"), "fresh": file(b"y")}
    build(tmp_path / "upper", upper, marks=MARKS)
    os.setxattr(tmp_path / "upper/new", MARKS.key("origin"), b"")
    with Difference(LayerMountConfig(tmp_path / "upper", [tmp_path / "lower"])) as difference:
        found = difference.changes()
    assert [told(change) for change in found] == [
        *("added fresh file", "renamed old -> new file", "deleted other file"),
    ]
    assert found[1].kind is ChangeKind.RENAMED


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one lower"):
        Difference(LayerMountConfig(None, [tmp_path]))
    with pytest.raises(ConfigError, match="at least one lower"):
        Difference(LayerMountConfig(tmp_path))
    (tmp_path / "upper").mkdir()
    with pytest.raises(LayerUnavailableError):
        Difference(LayerMountConfig(tmp_path / "upper", [tmp_path / "nosuch"]))
