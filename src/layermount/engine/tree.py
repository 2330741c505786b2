"""The tree of nodes over the layers: look-up, merged listing, and the memory both live in.

It reads; the modules beside it write. Everything here is done under `Tree.lock`. Rules: V1 to V7.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from layermount.engine.counters import Counters
from layermount.engine.followers import Followers
from layermount.engine.hardlinks import LinkIndex
from layermount.engine.index import DirectoryIndex, build_index
from layermount.engine.inodes import InodeNumbers
from layermount.engine.node import DirectoryNode, Node, as_upper, upper_of
from layermount.engine.refusals import missing
from layermount.engine.search import Level, Search
from layermount.layer.base import DIRECTORY, REGULAR, Directory, Layer
from layermount.layer.directory import DirectoryLayer, LayerDirectory

#: The fields of `os.stat_result` that are not in its tuple.
_BEYOND_TUPLE = (
    "st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize",
    "st_blocks", "st_rdev",
)  # fmt: skip


#: A layer's own metadata of an entry, and what is shown instead of its inode number, its link count
#: and its number of blocks.
Shown = tuple[os.stat_result, int, int, int]


class Tree:
    """One visible tree over an upper and any number of lowers.

    Attributes:
        lock: Held around every use of nodes; reentrant.
        upper: The writable layer, None for a read-only union.
        lowers: Read-only layers, nearest first.
        redirects: Whether records of moved directories and metadata-only copies are followed.
        followers: Open files that wait for data to be copied up.
        links: The index of copied-up hard links that the kernel keeps beside the upper, if it does.
        counters: What has been done so far; the tree counts its look-ups.
    """

    def __init__(
        self,
        upper: DirectoryLayer | None,
        lowers: Sequence[Layer],
        *,
        redirects: bool,
        capacity: int,
    ) -> None:
        self.lock = threading.RLock()
        self.upper = upper
        self.lowers = tuple(lowers)
        self.redirects = redirects
        self.links: LinkIndex | None = None
        self.followers = Followers()
        self.counters = Counters()
        self.root = _root(upper, self.lowers)
        self.search = Search(self.lowers, redirects=redirects)
        self.inodes = InodeNumbers([directory for _, directory in self.root.stack()])
        self._capacity = capacity
        # As long as there is plenty of room nobody is evicted, so nobody need be in order.
        self._plenty = capacity // 2
        self._recent: OrderedDict[DirectoryNode, None] = OrderedDict()

    def index(self, directory: DirectoryNode) -> DirectoryIndex:
        """The merged index of a directory, read from its layers at the first use.

        Raises:
            OSError: A layer's directory cannot be read; nothing is remembered.
        """
        index = directory.index
        if index is None:
            self.counters.cache_misses += 1
            index = build_index((at, part.scan()) for at, part in directory.stack())
            directory.index = index
            self._remember(directory)
        elif len(self._recent) > self._plenty:
            self._recent.move_to_end(directory)
        return index

    def _remember(self, directory: DirectoryNode) -> None:
        self._recent[directory] = None
        while len(self._recent) > self._capacity:
            oldest, _ = self._recent.popitem(last=False)
            oldest.index = None

    def forget(self, directory: DirectoryNode) -> None:
        """Drop what is remembered of a directory; it is read again at its next use."""
        self._recent.pop(directory, None)
        directory.index = None

    def find(self, parent: DirectoryNode, name: str) -> Node | None:
        """The visible entry `name` of a directory, or None."""
        self.counters.cache_hits += parent.index is not None
        node = parent.children.get(name)
        if node is not None:
            return node
        found = self.index(parent).get(name)
        if found is None:
            return None
        position, kind = found
        if kind == DIRECTORY:
            node = self._directory_node(parent, name)
        else:
            node = self._file_node(parent, name, position, kind)
        parent.children[name] = node
        return node

    def get(self, parent: DirectoryNode, name: str) -> Node:
        """The visible entry `name` of a directory.

        Raises:
            OSError: ENOENT when there is none, ENAMETOOLONG when there cannot be one.
        """
        node = self.find(parent, name)
        if node is None:
            raise missing(name)
        return node

    def put_new(self, parent: DirectoryNode, name: str, kind: int) -> Node:
        """The node of an entry that was just made in the upper, where nothing shows through."""
        holder = upper_of(parent)
        if kind == DIRECTORY:
            directory = DirectoryNode(parent, name)
            directory.upper = LayerDirectory(holder.layer, holder, name)
            directory.index = DirectoryIndex()
            self._remember(directory)
            node: Node = directory
        else:
            node = Node(parent, name, kind)
            node.holder = holder
        node.fresh = node.whole = True
        parent.children[name] = node
        return node

    def _file_node(self, parent: DirectoryNode, name: str, position: int, kind: int) -> Node:
        node = Node(parent, name, kind)
        if position == 0:
            node.holder = upper_of(parent)
            return node
        node.holder = parent.lowers[position - 1]
        node.depth = parent.depths[position - 1]
        if self.links is not None:
            self.links.adopt(node)
        return node

    def _directory_node(self, parent: DirectoryNode, name: str) -> DirectoryNode:
        node = DirectoryNode(parent, name)
        levels: list[Level] = []
        for depth, directory in self._namesakes(parent, name):
            levels.append((depth, directory))
            if depth == self.search.deepest:
                break
            if directory.is_opaque():
                break
            target = directory.redirect(".") if self.redirects else None
            if target is not None:
                levels += self.search.directories(self.levels(parent), target, below=depth)
                break
        if levels and levels[0][0] == 0:
            node.upper = as_upper(levels.pop(0)[1])
        node.depths = tuple(depth for depth, _ in levels)
        node.lowers = tuple(directory for _, directory in levels)
        return node

    def _namesakes(self, parent: DirectoryNode, name: str) -> Iterator[Level]:
        for position in self.index(parent).positions(name):
            if position == 0:
                yield 0, upper_of(parent).directory(name)
            else:
                yield parent.depths[position - 1], parent.lowers[position - 1].directory(name)

    def levels(self, directory: DirectoryNode) -> list[Level]:
        """The lowers' directories with their depths."""
        return list(zip(directory.depths, directory.lowers, strict=True))

    def data_of(self, node: Node) -> tuple[int, Directory, str]:
        """Where the data of a regular file is: (depth, directory, name).

        Raises:
            OSError: EIO when a metadata-only copy's data is in no deeper layer, EPERM when records
                are not followed here and the file is one.
        """
        if self.is_known_whole(node) or not self.is_shell(node):
            return node.depth, node.holder, node.entry
        if not self.redirects:
            raise OSError(
                errno.EPERM, "metadata-only copy, and records are not followed", node.path
            )
        if node.data is not None:
            return node.data
        # The copy that an index entry leads to may have a record of another name; this one's is
        # known.
        record = node.holder.redirect(node.entry) if node.entry == node.name else None
        target = record or node.name
        levels = [] if node.parent is None else self.levels(node.parent)
        found = self.search.data(levels, target, below=node.depth)
        if found is None:
            raise OSError(errno.EIO, "the data of this metadata-only copy is missing", node.path)
        return found

    def is_known_whole(self, node: Node) -> bool:
        """Whether a node's file is known to be no metadata-only copy, without looking."""
        return node.whole or node.depth >= self.search.deepest

    def is_shell(self, node: Node) -> bool:
        """Whether a node's file is a metadata-only copy; that it is none is remembered."""
        if not node.whole and node.data is None:
            node.whole = node.kind != REGULAR or not node.holder.is_metacopy(node.entry)
        return not node.whole

    def getattr(self, node: Node) -> os.stat_result:
        """The metadata shown for a node.

        Raises:
            OSError: ENOENT when the node was removed.
        """
        status, inode, nlink, blocks = self.shown(node)
        same_file = inode == status.st_ino and status.st_dev == self.inodes.device
        if same_file and nlink == status.st_nlink and blocks == status.st_blocks:
            return status
        head = list(status)
        head[1:4] = inode, self.inodes.device, nlink
        rest = {name: getattr(status, name) for name in _BEYOND_TUPLE}
        return os.stat_result(head, {**rest, "st_blocks": blocks})

    def shown(self, node: Node) -> Shown:
        """The metadata shown for a node, in parts: cheaper than `getattr` for who packs it.

        Raises:
            OSError: ENOENT when the node was removed.
        """
        if node.removed:
            raise missing(node.name)
        if isinstance(node, DirectoryNode):
            status = node.top.stat(".")
            nlink = 1 if node.is_merged else status.st_nlink
            return status, self.inodes.of(node, status), nlink, status.st_blocks
        status = node.holder.stat(node.entry)
        nlink = status.st_nlink if self.links is None else self.links.count(node, status)
        blocks = status.st_blocks
        if blocks << 9 < status.st_size:
            blocks = self._blocks(node, status)
        inode = node.inode
        return status, self.inodes.of(node, status) if inode is None else inode, nlink, blocks

    def _blocks(self, node: Node, status: os.stat_result) -> int:
        """A metadata-only copy has no blocks of its own; those of its data are shown."""
        if node.kind == REGULAR and self.redirects and node.depth < self.search.deepest:
            data = self.data_of(node)
            _, directory, name = data
            if directory is not node.holder or name != node.entry:
                if self.links is None and status.st_nlink == 1:
                    node.data = data
                return directory.stat(name).st_blocks
        return status.st_blocks


def _root(upper: DirectoryLayer | None, lowers: Sequence[Layer]) -> DirectoryNode:
    root = DirectoryNode(None, "")
    root.upper = None if upper is None else upper.root
    root.lowers = tuple(layer.root for layer in lowers)
    root.depths = tuple(range(1, len(lowers) + 1))
    return root
