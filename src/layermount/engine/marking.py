"""Marks set on purpose: an opaque directory, a name deleted with all below it. Rules: R5, R6."""

from __future__ import annotations

import errno
import os

from layermount.engine.access import require_access
from layermount.engine.copyup import CopyUp
from layermount.engine.create import check_name
from layermount.engine.node import DirectoryNode, Node, upper_of
from layermount.engine.refusals import missing, refusal
from layermount.engine.remove import detach, is_physical
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import EventKind
from layermount.layer.base import DIRECTORY, REGULAR


class Marking:
    """Sets marks."""

    def __init__(self, tree: Tree, upper: Upper, copy_up: CopyUp, reports: Reports) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._reports = reports

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
        self._complete_files(directory)
        self._upper.set_record(upper_of(directory).fd, ".", "opaque", b"y")
        self._upper.note(upper_of(directory))
        self._cut_off(directory)
        self._reports.note(EventKind.OPAQUE_SET, directory)

    def whiteout(self, parent: DirectoryNode, name: str) -> None:
        """Delete `name` by a mark in the upper.

        Raises:
            OSError: ENOENT when the parent was removed, EACCES, ENAMETOOLONG.
        """
        if parent.removed:
            raise missing(name)
        check_name(name)
        if name in (".", ".."):
            raise refusal(errno.EINVAL, name)
        require_access(parent, os.W_OK | os.X_OK)
        self._copy_up.bring_up(parent)
        index = self._tree.index(parent)
        if name in index.whiteouts:
            return
        node = self._tree.find(parent, name)
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
        self._reports.note(EventKind.WHITEOUT_CREATED, parent, name)
        if node is not None:
            self._reports.note(EventKind.REMOVED, parent, name)

    def _remove_all(self, node: Node) -> None:
        """Everything below goes with it."""
        if isinstance(node, DirectoryNode):
            for child in node.children.values():
                self._remove_all(child)
        detach(self._tree, node)

    def _complete_files(self, directory: DirectoryNode) -> None:
        """The upper's files stay: metadata-only ones get their data while it can be found."""
        for name, kind in tuple(self._tree.index(directory)):
            if kind not in (DIRECTORY, REGULAR):
                continue
            child = self._tree.get(directory, name)
            if not is_physical(child):
                continue
            if not isinstance(child, DirectoryNode):
                self._copy_up.bring_up(child)
            elif child.lowers and not _comes_from_elsewhere(child):
                self._complete_files(child)

    def _cut_off(self, directory: DirectoryNode) -> None:
        """The lowers show no more here: what they alone had is gone, the rest is the upper's."""
        directory.lowers, directory.depths = (), ()
        directory.inode = None
        self._tree.forget(directory)
        for child in directory.children.values():
            if not is_physical(child):
                self._remove_all(child)
            elif isinstance(child, DirectoryNode) and not _comes_from_elsewhere(child):
                self._cut_off(child)


def _comes_from_elsewhere(directory: DirectoryNode) -> bool:
    """Whether its record leads from the lowers' roots, past the directory it is in."""
    record = upper_of(directory).redirect(".")
    return record is not None and record.startswith("/")
