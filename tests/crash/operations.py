"""The operations that are interrupted: how the upper is before, and the one thing that is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layermount.engine.node import DirectoryNode
from layermount.linux.files import RENAME_EXCHANGE
from layermount.testing.oracles import EngineTarget
from layermount.testing.trees import (
    LONG_AGO_NS,
    Tree,
    build,
    directory,
    fifo,
    file,
    symlink,
)

Act = Callable[[EngineTarget], object]
_MIDDLE = 1 << 17
#: `cap_net_raw+ep`, as setcap(8) stores it.
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

_NEAR: Tree = {
    "small": file(b"hello", mode=0o640, owner=(5, 6), xattrs={"user.color": b"blue"}),
    "meta": file(b"data" * 3000),
    "script": file(b"#!/bin/sh\n", mode=0o4755),
    "other": file(b"other"),
    "link": symlink("small"),
    "fifo": fifo(),
    "empty": directory(),
    "dir/file": file(b"in dir"),
    "dir/sub/below/deep": file(b"deep"),
    "merged/one": file(b"1"),
    "group": directory(mode=0o2775, owner=(0, 7)),
    "group/old": file(b"old"),
}
_FAR: Tree = {
    "small": file(b"hidden by near"),
    "dir/far": file(b"far"),
    "dir/sub/hidden": file(b"from far"),
    "merged/two": file(b"2"),
}


def build_lowers(base: Path) -> list[Path]:
    """Two lowers, nearest first, with something of everything; all times are long ago."""
    near, far = build(base / "near", _NEAR), build(base / "far", _FAR)
    sparse = near / "sparse"
    build(near, {"sparse": file(b"start" * 100)})
    with sparse.open("r+b") as opened:
        opened.seek(_MIDDLE)
        opened.write(b"middle" * 100)
        opened.truncate(2 * _MIDDLE)
    return [near, far]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation.

    Attributes:
        name: For people.
        act: What is interrupted.
        arrange: What is done to the upper, and not interrupted, before.
        truncates: It opens to truncate what a lower has: if the open itself fails after the empty
            copy has landed, the file is truncated all the same, as it is in the kernel.
        in_place: It fills a copy with several names: until that is done, a crash leaves the time of
            the change on it, as it does in the kernel.
    """

    name: str
    act: Act
    arrange: Act = lambda _: None
    truncates: bool = False
    in_place: bool = False


def _all(*acts: Act) -> Act:
    return lambda target: [act(target) for act in acts]


def _write(path: str, data: bytes = b"") -> Act:
    return lambda target: target.write(path, data, 0)


def _empty(path: str) -> Act:
    return lambda target: target.overwrite(path, b"")


def _truncate(path: str, size: int) -> Act:
    return lambda target: target.truncate(path, size)


def _create(path: str) -> Act:
    return lambda target: target.create(path, 0o640, b"")


def _mkdir(path: str) -> Act:
    return lambda target: target.mkdir(path, 0o755)


def _symlink(path: str) -> Act:
    return lambda target: target.symlink(path, "where/ever")


def _link(path: str, new: str) -> Act:
    return lambda target: target.link(path, new)


def _unlink(path: str) -> Act:
    return lambda target: target.unlink(path)


def _rmdir(path: str) -> Act:
    return lambda target: target.rmdir(path)


def _rename(path: str, new: str, flags: int = 0) -> Act:
    return lambda target: target.rename(path, new, flags)


def _chmod(path: str) -> Act:
    return lambda target: target.chmod(path, 0o700)


def _utimens(path: str) -> Act:
    return lambda target: target.utimens(path, LONG_AGO_NS, LONG_AGO_NS)


def _setxattr(path: str, key: str, value: bytes) -> Act:
    return lambda target: target.setxattr(path, key, value, 0)


def _node(target: EngineTarget, path: str) -> DirectoryNode:
    node = target.overlay.root
    for name in filter(None, path.split("/")):
        child = target.overlay.lookup(node, name)
        assert isinstance(child, DirectoryNode)
        node = child
    return node


def _set_opaque(path: str) -> Act:
    return lambda target: target.overlay.set_opaque(_node(target, path))


def _whiteout(path: str) -> Act:
    above, _, name = path.rpartition("/")
    return lambda target: target.overlay.whiteout(_node(target, above), name)


_NO_MERGED_FILES = _all(_unlink("merged/one"), _unlink("merged/two"))
_LINKED_SHELL = _all(_chmod("meta"), _link("meta", "dir/second"))

CASES = (
    Case("copy up small", _write("small")),
    Case("copy up deep", _write("dir/sub/below/deep")),
    Case("copy up sparse and write", _write("sparse", b"new")),
    Case("copy up set-user-id file", _write("script")),
    Case("copy up link", _utimens("link")),
    Case("copy up fifo", _chmod("fifo")),
    Case("copy up directories", _chmod("dir/sub/below")),
    Case("chmod without data", _chmod("meta")),
    Case("chown", lambda target: target.chown("meta", 8, 9)),
    Case("utimens", _utimens("meta")),
    Case("fill shell", _write("meta"), _chmod("meta")),
    Case(
        "fill capable shell", _write("meta"), _setxattr("meta", "security.capability", _CAPABILITY)
    ),
    Case("fill moved shell", _write("dir/new"), _all(_chmod("meta"), _rename("meta", "dir/new"))),
    Case("fill linked shell", _write("dir/second"), _LINKED_SHELL, in_place=True),
    Case("open to truncate", _empty("meta"), truncates=True),
    Case("open shell to truncate", _empty("meta"), _chmod("meta"), truncates=True),
    Case("truncate", _truncate("meta", 5)),
    Case("truncate sparse longer", _truncate("sparse", 3 * _MIDDLE)),
    Case("truncate shell", _truncate("meta", 5), _chmod("meta")),
    Case("truncate linked shell", _truncate("meta", 5), _LINKED_SHELL, in_place=True),
    Case("truncate in upper", _truncate("own", 5), _create("own")),
    Case("setxattr", _setxattr("small", "user.size", b"XL")),
    Case("removexattr", lambda target: target.removexattr("small", "user.color")),
    Case("unlink in upper", _unlink("own"), _create("own")),
    Case("unlink copy", _unlink("small"), _write("small")),
    Case("unlink in lower", _unlink("dir/file")),
    Case("rmdir in upper", _rmdir("own"), _mkdir("own")),
    Case("rmdir with marks", _rmdir("merged"), _NO_MERGED_FILES),
    Case("rmdir in lower", _rmdir("empty")),
    Case("rename lower", _rename("small", "new")),
    Case("rename lower to other directory", _rename("small", "dir/sub/new")),
    Case("rename upper", _rename("own", "new"), _create("own")),
    Case("rename over lower", _rename("small", "other")),
    Case("rename upper over lower", _rename("own", "dir/file"), _create("own")),
    Case("rename over copy", _rename("small", "other"), _write("other")),
    Case("rename lower over whiteout", _rename("small", "other"), _unlink("other")),
    Case(
        "rename upper over whiteout",
        _rename("own", "other"),
        _all(_unlink("other"), _create("own")),
    ),
    Case("rename directory", _rename("dir", "new")),
    Case("rename directory away", _rename("dir/sub", "merged/new")),
    Case("rename directory twice", _rename("new/sub", "merged/new"), _rename("dir", "new")),
    Case("rename directory over lower", _rename("dir", "empty")),
    Case("rename directory over marks", _rename("dir", "merged"), _NO_MERGED_FILES),
    Case("rename directory over whiteout", _rename("dir", "empty"), _rmdir("empty")),
    Case(
        "rename own directory over marks",
        _rename("own", "merged"),
        _all(_NO_MERGED_FILES, _mkdir("own")),
    ),
    Case(
        "rename own directory over whiteout",
        _rename("own", "empty"),
        _all(_rmdir("empty"), _mkdir("own"), _create("own/file")),
    ),
    Case("rename own directory into merged", _rename("own", "dir/own"), _mkdir("own")),
    Case("exchange files", _rename("small", "dir/file", RENAME_EXCHANGE)),
    Case("exchange directories", _rename("dir", "merged", RENAME_EXCHANGE)),
    Case("exchange file and directory", _rename("small", "dir/sub", RENAME_EXCHANGE)),
    Case("exchange own directory", _rename("own", "dir", RENAME_EXCHANGE), _mkdir("own")),
    Case("mkdir", _mkdir("dir/sub/new")),
    Case("mkdir over whiteout", _mkdir("empty"), _rmdir("empty")),
    Case("mkdir over whiteout of tree", _mkdir("dir"), _whiteout("dir")),
    Case("mkdir inheriting over whiteout", _mkdir("group/old"), _unlink("group/old")),
    Case("create", _create("dir/sub/new")),
    Case("create over whiteout", _create("small"), _unlink("small")),
    Case("create inheriting over whiteout", _create("group/old"), _unlink("group/old")),
    Case("link lower", _link("meta", "dir/new")),
    Case(
        "link shell over whiteout", _link("meta", "other"), _all(_chmod("meta"), _unlink("other"))
    ),
    Case("link upper", _link("own", "new"), _create("own")),
    Case("symlink", _symlink("new")),
    Case("symlink over whiteout", _symlink("small"), _unlink("small")),
    Case("mknod", lambda target: target.mknod("pipe", 0o010644, 0)),
    Case("set opaque", _set_opaque("dir")),
    Case("whiteout tree", _whiteout("dir")),
    Case("whiteout copied tree", _whiteout("dir"), _write("dir/sub/below/deep")),
    Case("whiteout absent", _whiteout("absent")),
)
