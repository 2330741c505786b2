"""Nodes: one visible entry each. Data; what is done with them is in the modules beside this.

A node is reached from its parent and knows which layers answer for it. The parent holds its
children weakly: a node lives as long as somebody (a host, an open file, a child, the tree's memory
of recent directories) holds it, and there is never more than one for an entry.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Protocol

from layermount.engine.index import DirectoryIndex
from layermount.engine.refusals import missing
from layermount.layer.base import DIRECTORY, Directory
from layermount.layer.directory import LayerDirectory


class Follower(Protocol):
    """What reads a file's data and can be told that the file lies elsewhere now."""

    def follow(self, fd: int) -> None:
        """Go on with the file open as `fd`, which is taken over."""


class Node:
    """One visible entry that is no directory.

    Attributes:
        parent: The directory it is in; None for the root and for what has been removed.
        name: Its name there.
        kind: `st_mode >> 12`.
        holder: The directory of a layer that holds it.
        entry: Its name in `holder`; another than `name` only for what the kernel's index holds.
        depth: Which layer `holder` is of: 0 is the upper, 1 the nearest lower.
        inode: The inode number shown, once it has been needed.
        handles: Open files that still read a lower's data and must follow a copy-up.
        removed: No longer visible anywhere; open files of it go on.
    """

    __slots__ = (
        "__weakref__", "depth", "entry", "handles", "holder", "inode", "kind", "name", "parent",
        "removed",
    )  # fmt: skip

    def __init__(self, parent: DirectoryNode | None, name: str, kind: int) -> None:
        self.parent = parent
        self.name = name
        self.kind = kind
        self.holder: Directory
        self.entry = name
        self.depth = 0
        self.inode: int | None = None
        self.handles: weakref.WeakSet[Follower] | None = None
        self.removed = False

    @property
    def in_upper(self) -> bool:
        """Whether the upper holds it."""
        return self.depth == 0

    @property
    def path(self) -> str:
        """The merged path without a leading slash; "" is the root."""
        names = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return "/".join(reversed(names))


class DirectoryNode(Node):
    """One visible directory: the layers' directories that are merged, and the index of its names.

    Attributes:
        upper: The upper's directory, None as long as it has not been copied up.
        lowers: The lowers' directories, nearest first.
        depths: For each of `lowers`, which layer it is of: 1 is the nearest lower.
        impure: Whether the upper is known to be marked as holding entries from elsewhere.
        index: The merged index, None until it has been needed.
        children: The live nodes below, by name.
    """

    __slots__ = ("children", "depths", "impure", "index", "lowers", "upper")

    def __init__(self, parent: DirectoryNode | None, name: str) -> None:
        super().__init__(parent, name, DIRECTORY)
        self.upper: LayerDirectory | None = None
        self.lowers: tuple[Directory, ...] = ()
        self.depths: tuple[int, ...] = ()
        self.impure = False
        self.index: DirectoryIndex | None = None
        self.children: weakref.WeakValueDictionary[str, Node] = weakref.WeakValueDictionary()

    @property
    def in_upper(self) -> bool:
        """Whether the upper holds it."""
        return self.upper is not None

    @property
    def is_merged(self) -> bool:
        """Whether more than one layer's directory shows through."""
        return len(self.lowers) + (self.upper is not None) > 1

    @property
    def top(self) -> Directory:
        """The directory whose own metadata is shown."""
        return self.upper if self.upper is not None else self.lowers[0]

    def stack(self) -> Iterator[tuple[int, Directory]]:
        """(position, directory) nearest first; position 0 is the upper."""
        if self.upper is not None:
            yield 0, self.upper
        yield from enumerate(self.lowers, 1)


def parent_of(node: Node) -> DirectoryNode:
    """The directory a node is in.

    Raises:
        OSError: ENOENT for what is in none.
    """
    if node.parent is None:
        raise missing(node.name)
    return node.parent


def upper_of(directory: DirectoryNode) -> LayerDirectory:
    """The upper's directory of a node that has been copied up."""
    if directory.upper is None:
        raise AssertionError(f"{directory.path!r} is not in the upper")
    return directory.upper


def as_upper(directory: Directory) -> LayerDirectory:
    """The same directory, known to be of a plain directory layer, as every upper is."""
    if not isinstance(directory, LayerDirectory):
        raise TypeError(f"the upper is not a plain directory at {directory.path!r}")
    return directory
