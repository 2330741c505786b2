"""What the kernel knows: inodes by their number on the wire, counted until it forgets them.

An inode of the kernel is one file with its page cache. The engine has a node for each name, so the
names of one file lead to one inode here. Used under the host's lock.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import refusal
from layermount.engine.tree import Shown
from layermount.hosts.fuse.open_state import OpenState
from layermount.hosts.fuse.protocol import ROOT_ID

#: From this size on reading goes by the layer's file itself; below, registering it costs more than
#: it saves (bytes).
BIG = 128 * 1024
_SETID = stat.S_ISUID | stat.S_ISGID


class Known:
    """One inode of the kernel.

    Attributes:
        nodeid: Its number on the wire.
        node: The engine's node; of several names of a file the one that leads to it.
        lookups: How often the kernel was told of it and has not forgotten it.
        is_big: Whether it was big when last looked at.
        is_setid: Whether it had set-user-id or set-group-id when last looked at.
        state: What is open, None when nothing was.
        epitaph: The metadata of what has no name any more.
    """

    __slots__ = ("epitaph", "is_big", "is_setid", "lookups", "node", "nodeid", "state")

    def __init__(self, nodeid: int, node: Node) -> None:
        self.nodeid = nodeid
        self.node = node
        self.lookups = 0
        self.is_big = False
        self.is_setid = False
        self.state: OpenState | None = None
        self.epitaph: Shown | None = None

    def note(self, shown: Shown) -> None:
        """Note what counts for how the file is opened."""
        status = shown[0]
        self.is_big = status.st_size >= BIG
        self.is_setid = status.st_mode & _SETID > 0


class Table:
    """The inodes that the kernel knows."""

    def __init__(self, root: DirectoryNode, *, has_link_index: bool) -> None:
        self._known: dict[int, Known] = {}
        self._next = ROOT_ID
        # Files with several names by the number that is shown, and their names but the leading one.
        self._linked: dict[int, Known] = {}
        self._keys: dict[Known, int] = {}
        self._names: dict[Known, list[Node]] = {}
        self._has_link_index = has_link_index
        self._add(root).lookups = 1

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Known]:
        return iter(self._known.values())

    def __getitem__(self, nodeid: int) -> Known:
        known = self._known.get(nodeid)
        if known is None:
            raise OSError(errno.ESTALE, "no such inode", str(nodeid))
        return known

    def directory(self, nodeid: int) -> DirectoryNode:
        """The directory of that number.

        Raises:
            OSError: ESTALE, ENOTDIR.
        """
        node = self[nodeid].node
        if not isinstance(node, DirectoryNode):
            raise refusal(errno.ENOTDIR, node.name)
        return node

    def of(self, node: Node) -> Known | None:
        """The inode of a node, if the kernel knows it."""
        known = node.host
        return known if isinstance(known, Known) else None

    def learn(self, node: Node, shown: Shown) -> Known:
        """The inode of a node, counted once more."""
        known = node.host
        if not isinstance(known, Known):
            known = self._linked_to(node, shown) if self._linked or shown[2] > 1 else None
            if known is None:
                known = self._add(node)
        known.lookups += 1
        known.note(shown)
        return known

    def _add(self, node: Node) -> Known:
        known = Known(self._next, node)
        self._known[self._next] = known
        self._next += 1
        node.host = known
        return known

    def _linked_to(self, node: Node, shown: Shown) -> Known | None:
        """The inode of another name of the same file; from now on this one is found like that."""
        if isinstance(node, DirectoryNode) or not (node.in_upper or self._has_link_index):
            return None
        known = self._linked.get(shown[1])
        if known is not None and (not known.node.removed or self._is_open(known, shown)):
            self.add_name(known, node, shown)
            return known
        if shown[2] > 1:
            known = self._add(node)
            self._enter(known, shown)
            return known
        return None

    def _enter(self, known: Known, shown: Shown) -> None:
        self._linked[shown[1]] = known
        self._keys[known] = shown[1]

    def _is_open(self, known: Known, shown: Shown) -> bool:
        """Whether a file that lost its known names is this one: a number may be given anew."""
        handle = None if known.state is None else known.state.handle
        if handle is None:
            return False
        status, other = handle.fstat(), shown[0]
        return (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino)

    def add_name(self, known: Known, node: Node, shown: Shown) -> None:
        """Note another name of a known file."""
        node.host = known
        self._enter(known, shown)
        if known.node.removed:
            known.node = node
        elif known.node is not node:
            self._names.setdefault(known, []).append(node)

    def lose_name(self, known: Known) -> None:
        """Note that a name was removed: another one leads to the file now, if there is one."""
        names = [node for node in self._names.pop(known, ()) if not node.removed]
        if known.node.removed and names:
            known.node = names.pop()
        if names:
            self._names[known] = names

    def retire(self, known: Known, shown: Shown) -> None:
        """Let a name lead to a new inode from now on; this one keeps what is open."""
        if known.state is not None:
            known.state.retired = True
        known.epitaph = shown
        known.node.host = None

    def forget(self, nodeid: int, count: int) -> Known | None:
        """Take back `count` of what the kernel was told; the inode if it is forgotten now."""
        known = self._known[nodeid]
        known.lookups -= count
        if known.lookups > 0 or nodeid == ROOT_ID:
            return None
        del self._known[nodeid]
        for node in (known.node, *self._names.pop(known, ())):
            if node.host is known:
                node.host = None
        key = self._keys.pop(known, None)
        if key is not None and self._linked[key] is known:
            del self._linked[key]
        return known
