"""Marks set on purpose: a directory made opaque, a name deleted whatever is below it. Rule: R5, R6."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layermount.engine.access import require_access
from layermount.engine.copyup import CopyUp
from layermount.engine.create import check_name
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.remove import detach, is_physical
from layermount.engine.tree import Tree, missing, upper_of
from layermount.engine.upper import Upper
from layermount.events import Event, EventKind


class Marking:
    """Sets marks."""

    def __init__(
        self, tree: Tree, upper: Upper, copy_up: CopyUp, emit: Callable[[Event], None]
    ) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._emit = emit

    def set_opaque(self, directory: DirectoryNode) -> None:
        """Hide what the lowers have in a directory.

        Raises:
            OSError: EINVAL for the root, where the kernel looks for no mark; ENOENT, EACCES.
        """
        if directory.removed:
            raise missing(directory.name)
        if directory.parent is None:
            raise OSError(errno.EINVAL, "the root of an overlay cannot be opaque")
        require_access(directory, os.W_OK | os.X_OK)
        self._copy_up.bring_up(directory)
        self._upper.set_record(upper_of(directory).fd, ".", "opaque", b"y")
        self._upper.work.sync_entry(upper_of(directory).fd)
        self._cut_off(directory)
        self._emit(Event(EventKind.OPAQUE_SET, directory.path))

    def whiteout(self, parent: DirectoryNode, name: str) -> None:
        """Delete `name` by a mark in the upper.

        Raises:
            OSError: ENOENT when the parent was removed, EACCES, ENAMETOOLONG.
        """
        if parent.removed:
            raise missing(name)
        check_name(name)
        if name in (".", ".."):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        require_access(parent, os.W_OK | os.X_OK)
        self._copy_up.bring_up(parent)
        index = self._tree.index(parent)
        if name in index.whiteouts:
            return
        node = self._tree.find(parent, name)
        path = f"{parent.path}/{name}".removeprefix("/")
        if node is not None and is_physical(node):
            mark = self._upper.work.whiteout()
            with self._upper.work.discarding(mark):
                self._upper.exchange(mark, upper_of(parent), name)
        else:
            self._upper.put_whiteout(upper_of(parent), name)
        if node is not None:
            self._remove_all(node)
        if parent.index is not None:
            parent.index.mark(name)
        self._emit(Event(EventKind.WHITEOUT_CREATED, path))

    def _remove_all(self, node: Node) -> None:
        """Everything below goes with it."""
        if isinstance(node, DirectoryNode):
            for child in tuple(node.children.values()):
                self._remove_all(child)
        detach(self._tree, node)

    def _cut_off(self, directory: DirectoryNode) -> None:
        """The lowers show no more here: what only they had is gone, what was merged is the upper's."""
        directory.lowers, directory.depths = (), ()
        self._tree.forget(directory)
        for child in tuple(directory.children.values()):
            if not is_physical(child):
                self._remove_all(child)
            elif isinstance(child, DirectoryNode):
                self._cut_off(child)
