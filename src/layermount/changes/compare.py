"""What differs between an entry of one overlay and an entry of another."""

from __future__ import annotations

import os
from stat import S_IMODE

from layermount.engine.node import Node
from layermount.engine.overlay import Overlay
from layermount.layer.base import BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, LINK, REGULAR

_PIECE = 1024 * 1024


def differences(old: Overlay, old_node: Node, new: Overlay, new_node: Node) -> tuple[str, ...]:
    """What differs, in the words of `Change.what`, sorted; empty when nothing does.

    Contents are compared byte by byte: sizes and times can be made to look the same.
    """
    if old_node.kind != new_node.kind:
        return ("type",)
    before, after = old.getattr(old_node), new.getattr(new_node)
    found = set(_metadata(before, after))
    if new_node.kind != DIRECTORY and before.st_mtime_ns != after.st_mtime_ns:
        found.add("times")
    if _xattrs(old, old_node) != _xattrs(new, new_node):
        found.add("xattrs")
    if new_node.kind == REGULAR:
        if before.st_size != after.st_size or not has_same_content(old, old_node, new, new_node):
            found.add("content")
    elif new_node.kind == LINK:
        if old.readlink(old_node) != new.readlink(new_node):
            found.add("target")
    elif new_node.kind in (CHARACTER_DEVICE, BLOCK_DEVICE) and before.st_rdev != after.st_rdev:
        found.add("device")
    return tuple(sorted(found))


def _metadata(before: os.stat_result, after: os.stat_result) -> list[str]:
    found = []
    if S_IMODE(before.st_mode) != S_IMODE(after.st_mode):
        found.append("mode")
    if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
        found.append("owner")
    return found


def _xattrs(overlay: Overlay, node: Node) -> dict[str, bytes]:
    return {key: overlay.getxattr(node, key) for key in overlay.listxattr(node)}


def has_same_content(old: Overlay, old_node: Node, new: Overlay, new_node: Node) -> bool:
    """Whether two regular files have the same bytes."""
    before, after = old.open(old_node, os.O_RDONLY), new.open(new_node, os.O_RDONLY)
    try:
        if os.path.sameopenfile(before.fileno(), after.fileno()):
            return True
        offset = 0
        while True:
            piece = before.read(_PIECE, offset)
            if piece != after.read(_PIECE, offset):
                return False
            if not piece:
                return True
            offset += len(piece)
    finally:
        before.close()
        after.close()
