"""Sequences that once showed something else than the kernel, found by the walks and made short."""

from __future__ import annotations

import os

import pytest

from layermount.linux import files
from layermount.testing.trees import Tree, directory, fifo, file, symlink, whiteout
from tests.property import layers as given
from tests.property.machine import OverlayMachine
from tests.property.test_oracle import MACHINES

Call = tuple[str, *tuple[object, ...]]

CASES: dict[str, tuple[list[Tree], list[Call]]] = {
    "what is moved onto a lower's name still covers it": (
        [{"b": file(b"x")}, {"c": file()}],
        [("rename", "b", "c", 0), ("unlink", "c")],
    ),
    "another name of a copy without data leads open files along": (
        [{"a": file(b"hello"), "c/x": file()}],
        [
            ("link", "a", "c/d"),
            ("open_file", 2, "a", os.O_RDONLY),
            ("unlink", "a"),
            ("overwrite", "c/d", b"changed"),
            ("read_file", 2, 10, 0),
        ],
    ),
    "opening leaves the root's time": ([{"a": file()}], []),
    "truncating to the same size leaves the time": (
        [{"a": file(b"xx"), "b": file()}],
        [("truncate", "a", 2), ("truncate", "b", 0)],
    ),
    "truncating takes set-user-id away": (
        [{"a": file(b"xx", mode=0o4755)}],
        [("truncate", "a", 1)],
    ),
    "copying up what may not be written": (
        [{"a": file(b"x", mode=0o444, xattrs={"user.k": b"v"}), "d/x": file()}],
        [("rename", "a", "b", 0), ("unlink", "b")],
    ),
    "attributes that nothing of a kind can have": (
        [{"l": symlink("a"), "p": fifo(), "a": file()}],
        [
            ("setxattr", "l", given.ACL_KEYS[0], b"\2\0\0\0", 0),
            ("chmod", "l", 0o600),
            ("setxattr", "p", "user.k", b"v", os.XATTR_REPLACE),
            ("removexattr", "a", given.ACL_KEYS[1]),
        ],
    ),
    "which refusal comes first": (
        [{"a": file(), "d/x": file()}],
        [
            ("rename", "missing", "n" * 256, 0),
            ("rename", ".", "a", files.RENAME_NOREPLACE),
            ("link", "d", "a"),
            ("mknod", "a", 0o020666, 0),
            ("unlink", "."),
            ("truncate", "d", -1),
        ],
    ),
    "two records on the way to a copy's data, in one layer": (
        [
            {"b/b/a": fifo(), "a/c": file(b"hello"), "a/a/c": symlink("c/b"), "c/a": file()},
            {"b": directory(), "a": file(b"x"), "c/b/b": file()},
        ],
        [
            ("rename", "b", "c/c", 0),
            ("rename", "a/c", "c/c/b/c", 0),
            ("rename", "c", "a/a/c", files.RENAME_EXCHANGE),
            ("seal",),
            ("unlink", "c"),
            ("rename", "a/a/c/c/b/c", "a/a/c/c/b/d", 0),
            ("read", "a/a/c/c/b/d"),
        ],
    ),
    "a lower's directory onto one that is not empty": (
        [{"c": whiteout(), "d/e": directory()}, {"b/x": file(), "c": file()}],
        [("rename", "d", "b", 0)],
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("layers", "calls"), CASES.values(), ids=CASES)
def test_found(machine: type[OverlayMachine], layers: list[Tree], calls: list[Call]) -> None:
    replay(machine, layers, calls)


def replay(machine: type[OverlayMachine], layers: list[Tree], calls: list[Call]) -> None:
    """Do the same everywhere and compare."""
    comparison = machine()
    try:
        comparison.begin(layers)
        for name, *arguments in calls:
            if name == "seal":
                comparison.seal()
            else:
                comparison.do(name, *arguments)
        comparison.finish()
    finally:
        comparison.clean_up()
