"""The content of changed text files, as a unified diff."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

from layermount.changes.change import Change, ChangeKind
from layermount.changes.diff import Difference
from layermount.engine.overlay import Overlay
from layermount.engine.paths import get_node
from layermount.layer.base import LINK

#: Larger files are named, not shown.
LARGEST = 4 * 1024 * 1024


def patch(difference: Difference, change: Change) -> Iterator[str]:
    """A change as lines of a unified diff, without line ends; empty when no content differs.

    What is no text (it has a NUL byte) or larger than `LARGEST` is one line that says so. Bytes that
    are no UTF-8 are kept as `surrogateescape` has them.
    """
    if change.entry == "link":
        yield from _links(difference, change)
        return
    if change.entry != "file" or (change.what and "content" not in change.what):
        return
    old_path = change.old_path or change.path
    old = None if change.old_size is None else _read(difference.base, old_path, change.old_size)
    new = (
        None if change.new_size is None else _read(difference.merged, change.path, change.new_size)
    )
    if change.kind is ChangeKind.RENAMED and not change.what:
        return
    if _is_binary(old) or _is_binary(new):
        yield f"Binary files {_label('a', old_path, old)} and {_label('b', change.path, new)} differ"
        return
    yield from difflib.unified_diff(
        _lines(old),
        _lines(new),
        _label("a", old_path, old),
        _label("b", change.path, new),
        lineterm="",
    )


def _links(difference: Difference, change: Change) -> Iterator[str]:
    if change.kind is not ChangeKind.ADDED:
        old = _target(difference.base, change.old_path or change.path)
        if old is not None:
            yield f"-{change.path} -> {old}"
    if change.kind is not ChangeKind.DELETED:
        yield f"+{change.path} -> {_target(difference.merged, change.path)}"


def _target(overlay: Overlay, path: str) -> str | None:
    node = get_node(overlay, path, follow=False)
    return overlay.readlink(node) if node.kind == LINK else None


def _read(overlay: Overlay, path: str, size: int) -> bytes | None:
    """The file's bytes; a NUL byte for one that is too large, which makes it binary."""
    if size > LARGEST:
        return b"\0"
    handle = overlay.open(get_node(overlay, path, follow=False), os.O_RDONLY)
    try:
        return handle.read(size, 0)
    finally:
        handle.close()


def _is_binary(data: bytes | None) -> bool:
    return data is not None and b"\0" in data


def _lines(data: bytes | None) -> list[str]:
    return (data or b"").decode("utf-8", "surrogateescape").splitlines()


def _label(side: str, path: str, data: bytes | None) -> str:
    return "/dev/null" if data is None else f"{side}/{path}"
