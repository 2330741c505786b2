"""Removal: what only the upper has goes away, what a lower has gets a mark, in one step.

When both hold, the mark takes the entry's place with one rename, so that the lower's entry never
shows in between. Rules: R1 to R4.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from layermount.engine.access import require_access
from layermount.engine.copyup import CopyUp
from layermount.engine.create import check_name
from layermount.engine.hardlinks import LinkIndex
from layermount.engine.node import DirectoryNode, Node, upper_of
from layermount.engine.refusals import missing, refusal
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import EventKind
from layermount.layer.base import DIRECTORY


class Remove:
    """Removes files and directories."""

    def __init__(self, tree: Tree, upper: Upper, copy_up: CopyUp, reports: Reports) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._reports = reports

    def unlink(self, parent: DirectoryNode, name: str) -> None:
        """Remove what is no directory.

        Raises:
            OSError: ENOENT, EISDIR for a directory, EACCES.
        """
        node = parent if name in (".", "..") else self._victim(parent, name)
        if isinstance(node, DirectoryNode):
            raise refusal(errno.EISDIR, name)
        with self.last_name(node):
            self._take_away(parent, node)

    def last_name(self, node: Node) -> contextlib.AbstractContextManager[None]:
        """Around the removal of one name of a file: where links are indexed, the index follows."""
        links = self._tree.links
        if links is None or isinstance(node, DirectoryNode):
            return contextlib.nullcontext()
        return self._indexed(node, links)

    @contextlib.contextmanager
    def _indexed(self, node: Node, links: LinkIndex) -> Iterator[None]:
        if links.entry_for(node, node.holder.stat(node.entry)) is not None or links.holds(node):
            # The count of names is kept on the copy, so there must be one.
            self._copy_up.bring_up(node, data=False)
        entry = links.entry_of(node)
        links.before_change(node)
        yield
        links.after_unlink(entry)

    def rmdir(self, parent: DirectoryNode, name: str) -> None:
        """Remove a directory that shows no entry.

        Raises:
            OSError: ENOENT, ENOTDIR, ENOTEMPTY, EACCES; EINVAL for ".", ENOTEMPTY for "..".
        """
        if name == ".":
            raise refusal(errno.EINVAL, name)
        if name == "..":
            raise refusal(errno.ENOTEMPTY, name)
        node = self._victim(parent, name)
        if not isinstance(node, DirectoryNode):
            raise refusal(errno.ENOTDIR, name)
        if len(self._tree.index(node)):
            raise refusal(errno.ENOTEMPTY, name)
        self._take_away(parent, node)

    def _victim(self, parent: DirectoryNode, name: str) -> Node:
        if parent.removed:
            raise missing(name)
        check_name(name)
        node = self._tree.get(parent, name)
        require_access(parent, os.W_OK | os.X_OK)
        return node

    def _take_away(self, parent: DirectoryNode, node: Node) -> None:
        self._copy_up.bring_up(parent)
        name, directory = node.name, upper_of(parent)
        index = self._tree.index(parent)
        covers, physical = index.is_in_lower(name), is_physical(node)
        if covers and physical:
            whiteout = self._upper.work.whiteout()
            land = self._upper.exchange if node.kind == DIRECTORY else self._upper.replace
            with self._upper.work.discarding(whiteout):
                land(whiteout, directory, name)
        elif covers:
            self._upper.put_whiteout(directory, name)
        elif isinstance(node, DirectoryNode):
            self._upper.take_out(directory, name)
        else:
            self._upper.unlink(directory, name)
        if parent.index is not None:
            parent.index.remove(name)
        detach(self._tree, node)
        if covers:
            self._reports.note(EventKind.WHITEOUT_CREATED, parent, name)
        self._reports.note(EventKind.REMOVED, parent, name)


def is_physical(node: Node) -> bool:
    """Whether the upper has an entry under the node's own name."""
    if isinstance(node, DirectoryNode):
        return node.upper is not None
    return node.in_upper and node.parent is not None and node.holder is node.parent.upper


def detach(tree: Tree, node: Node) -> None:
    """The node is visible no more; open files of it go on."""
    if node.parent is not None:
        node.parent.children.pop(node.name)
    node.removed = True
    if isinstance(node, DirectoryNode):
        tree.forget(node)
        if node.upper is not None:
            node.upper.forget()
