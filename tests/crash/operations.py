"""The operations that are interrupted: how the upper is before, and the one thing that is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.linux.files import RENAME_EXCHANGE
from tests.crash.views import LONG_AGO_NS

Act = Callable[[Overlay], None]
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One operation.

    Attributes:
        name: For people.
        act: What is interrupted.
        arrange: What is done to the upper, and not interrupted, before.
    """

    name: str
    act: Act
    arrange: Act = lambda _: None


def build_lowers(base: Path) -> list[Path]:
    """Two lowers with something of everything; all times are long ago."""
    near, far = base / "near", base / "far"
    for directory in (
        near / "dir/sub/below", near / "merged", near / "empty", near / "group", far / "dir/sub",
        far / "merged", far / "distant",
    ):  # fmt: skip
        directory.mkdir(parents=True)
    _build_near(near)
    (far / "dir/far").write_bytes(b"far")
    (far / "dir/sub/hidden").write_bytes(b"from far")
    (far / "merged/two").write_bytes(b"2")
    (far / "distant/file").write_bytes(b"distant")
    (far / "small").write_bytes(b"hidden by near")
    for layer in (near, far):
        for above, _, files in os.walk(layer, topdown=False):
            for name in files:
                _age(os.path.join(above, name))
            _age(above)
    return [near, far]


def _build_near(near: Path) -> None:
    (near / "small").write_bytes(b"hello")
    (near / "small").chmod(0o640)
    os.chown(near / "small", 5, 6)
    os.setxattr(near / "small", "user.color", b"blue")
    with (near / "sparse").open("wb") as file:
        file.write(b"start" * 100)
        file.seek(_MEBIBYTE)
        file.write(b"middle" * 100)
        file.truncate(2 * _MEBIBYTE)
    (near / "meta").write_bytes(b"data" * 3000)
    (near / "script").write_bytes(b"#!/bin/sh\n")
    (near / "script").chmod(0o4755)
    (near / "other").write_bytes(b"other")
    (near / "dir/file").write_bytes(b"in dir")
    (near / "dir/sub/below/deep").write_bytes(b"deep")
    (near / "merged/one").write_bytes(b"1")
    (near / "group").chmod(0o2775)
    os.chown(near / "group", 0, 7)
    (near / "group/old").write_bytes(b"old")
    os.symlink("small", near / "link")
    os.mkfifo(near / "fifo")


def _age(path: str) -> None:
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)


def at(overlay: Overlay, path: str) -> Node:
    """The node at a path."""
    node: Node = overlay.root
    for name in filter(None, path.split("/")):
        assert isinstance(node, DirectoryNode)
        node = overlay.lookup(node, name)
    return node


def directory(overlay: Overlay, path: str) -> DirectoryNode:
    """The directory at a path."""
    node = at(overlay, path)
    assert isinstance(node, DirectoryNode)
    return node


def _split(overlay: Overlay, path: str) -> tuple[DirectoryNode, str]:
    above, _, name = path.rpartition("/")
    return directory(overlay, above), name


def opening(path: str, flags: int, data: bytes = b"") -> Act:
    def act(overlay: Overlay) -> None:
        handle = overlay.open(at(overlay, path), flags)
        if data:
            handle.write(data, 0)
        handle.close()

    return act


def creating(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.create(*_split(overlay, path), os.O_RDWR, 0o640)[1].close()

    return act


def making(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.mkdir(*_split(overlay, path), 0o755)

    return act


def linking(old: str, new: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.link(at(overlay, old), *_split(overlay, new))

    return act


def symlinking(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.symlink(*_split(overlay, path), "where/ever")

    return act


def unlinking(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.unlink(*_split(overlay, path))

    return act


def removing(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.rmdir(*_split(overlay, path))

    return act


def renaming(old: str, new: str, flags: int = 0) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.rename(*_split(overlay, old), *_split(overlay, new), flags)

    return act


def whiting_out(path: str) -> Act:
    def act(overlay: Overlay) -> None:
        overlay.whiteout(*_split(overlay, path))

    return act


def on(path: str, do: Callable[[Overlay, Node], None]) -> Act:
    """`do` on the node at a path."""
    return lambda overlay: do(overlay, at(overlay, path))


def changing_mode(path: str) -> Act:
    return on(path, lambda overlay, node: overlay.chmod(node, 0o700))


def all_of(*acts: Act) -> Act:
    def act(overlay: Overlay) -> None:
        for one in acts:
            one(overlay)

    return act


_MERGED_EMPTY = all_of(unlinking("merged/one"), unlinking("merged/two"))

CASES = (
    Case("copy up small", opening("small", os.O_WRONLY)),
    Case("copy up deep", opening("dir/sub/below/deep", os.O_RDWR)),
    Case("copy up sparse and write", opening("sparse", os.O_RDWR, b"new")),
    Case("copy up set-user-id file", opening("script", os.O_RDWR)),
    Case("copy up link", on("link", lambda o, n: o.utimens(n, LONG_AGO_NS, LONG_AGO_NS))),
    Case("copy up fifo", changing_mode("fifo")),
    Case("copy up directories", changing_mode("dir/sub/below")),
    Case("chmod without data", changing_mode("meta")),
    Case("chown", on("meta", lambda o, n: o.chown(n, 8, 9))),
    Case("utimens", on("meta", lambda o, n: o.utimens(n, LONG_AGO_NS, LONG_AGO_NS))),
    Case("complete a shell", opening("meta", os.O_RDWR), changing_mode("meta")),
    Case(
        "complete a shell with capability",
        opening("meta", os.O_RDWR),
        on(
            "meta",
            lambda o, n: o.setxattr(
                n, "security.capability", bytes.fromhex("0000000200200000000000000000000000000000")
            ),
        ),
    ),
    Case(
        "complete a moved shell",
        opening("dir/moved", os.O_RDWR),
        all_of(changing_mode("meta"), renaming("meta", "dir/moved")),
    ),
    Case("open to truncate", opening("meta", os.O_WRONLY | os.O_TRUNC)),
    Case("open a shell to truncate", opening("meta", os.O_WRONLY | os.O_TRUNC), changing_mode("meta")),
    Case("truncate", on("meta", lambda o, n: o.truncate(n, 5))),
    Case("truncate sparse longer", on("sparse", lambda o, n: o.truncate(n, 3 * _MEBIBYTE))),
    Case("truncate a shell", on("meta", lambda o, n: o.truncate(n, 5)), changing_mode("meta")),
    Case("truncate in upper", on("own", lambda o, n: o.truncate(n, 5)), creating("own")),
    Case("setxattr", on("small", lambda o, n: o.setxattr(n, "user.size", b"XL"))),
    Case("removexattr", on("small", lambda o, n: o.removexattr(n, "user.color"))),
    Case("unlink in upper", unlinking("own"), creating("own")),
    Case("unlink copy", unlinking("small"), opening("small", os.O_RDWR)),
    Case("unlink in lower", unlinking("dir/file")),
    Case("rmdir in upper", removing("own"), making("own")),
    Case("rmdir with marks", removing("merged"), _MERGED_EMPTY),
    Case("rmdir in lower", removing("empty")),
    Case("rename lower", renaming("small", "new")),
    Case("rename lower to other directory", renaming("small", "dir/sub/new")),
    Case("rename upper", renaming("own", "new"), creating("own")),
    Case("rename over lower", renaming("small", "other")),
    Case("rename upper over lower", renaming("own", "dir/file"), creating("own")),
    Case("rename over copy", renaming("small", "other"), opening("other", os.O_RDWR)),
    Case("rename lower over whiteout", renaming("small", "other"), unlinking("other")),
    Case(
        "rename upper over whiteout",
        renaming("own", "other"),
        all_of(unlinking("other"), creating("own")),
    ),
    Case("rename directory", renaming("dir", "new")),
    Case("rename directory away", renaming("dir/sub", "merged/new")),
    Case("rename directory twice", renaming("new/sub", "merged/new"), renaming("dir", "new")),
    Case("rename directory over lower", renaming("dir", "empty")),
    Case("rename directory over marks", renaming("dir", "merged"), _MERGED_EMPTY),
    Case("rename directory over whiteout", renaming("dir", "empty"), removing("empty")),
    Case("rename own directory over marks", renaming("own", "merged"), all_of(_MERGED_EMPTY, making("own"))),
    Case(
        "rename own directory over whiteout",
        renaming("own", "empty"),
        all_of(removing("empty"), making("own"), creating("own/file")),
    ),
    Case("rename own directory into merged", renaming("own", "dir/own"), making("own")),
    Case("exchange files", renaming("small", "dir/file", RENAME_EXCHANGE)),
    Case("exchange directories", renaming("dir", "merged", RENAME_EXCHANGE)),
    Case("exchange file and directory", renaming("small", "dir/sub", RENAME_EXCHANGE)),
    Case("exchange with own directory", renaming("own", "dir", RENAME_EXCHANGE), making("own")),
    Case("mkdir", making("dir/sub/new")),
    Case("mkdir over whiteout", making("empty"), removing("empty")),
    Case("mkdir over whiteout of a tree", making("dir"), whiting_out("dir")),
    Case("mkdir inheriting over whiteout", making("group/old"), unlinking("group/old")),
    Case("create", creating("dir/sub/new")),
    Case("create over whiteout", creating("small"), unlinking("small")),
    Case("create inheriting over whiteout", creating("group/old"), unlinking("group/old")),
    Case("link lower", linking("meta", "dir/new")),
    Case("link shell over whiteout", linking("meta", "other"), all_of(changing_mode("meta"), unlinking("other"))),
    Case("link upper", linking("own", "new"), creating("own")),
    Case("symlink", symlinking("new")),
    Case("symlink over whiteout", symlinking("small"), unlinking("small")),
    Case("mknod", lambda o: o.mknod(o.root, "pipe", 0o010644) and None),
    Case("set opaque", on("dir", lambda o, n: o.set_opaque(directory(o, n.path)))),
    Case("whiteout tree", whiting_out("dir")),
    Case("whiteout copied tree", whiting_out("dir"), opening("dir/sub/below/deep", os.O_RDWR)),
    Case("whiteout absent", whiting_out("absent")),
)
