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
        fresh: Whether it was made new here, so that no record can say where it comes from.
        whole: Whether its file is known to be no metadata-only copy.
        data: Where the data of a metadata-only copy is, once known: depth, directory and name. Of
            what the upper holds by one name only; by another one the data might come up unnoticed.
        removed: No longer visible anywhere; open files of it go on.
        host: What a host keeps about it; the engine never looks.
    """

    __slots__ = (
        "__weakref__", "data", "depth", "entry", "fresh", "handles", "holder", "host", "inode",
        "kind", "name", "parent", "removed", "whole",
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
        self.fresh = False
        self.whole = False
        self.data: tuple[int, Directory, str] | None = None
        self.removed = False
        self.host: object = None

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


class _Reference(weakref.ref["Node"]):
    """A weak reference that knows its name."""

    __slots__ = ("name",)

    name: str


class Children:
    """The live nodes below a directory, by name. It keeps none of them alive.

    As a `weakref.WeakValueDictionary` of strings, at half the cost of a look and of an entry.
    """

    __slots__ = ("_drop", "_references")

    def __init__(self) -> None:
        references: dict[str, _Reference] = {}

        def drop(reference: _Reference) -> None:
            if references.get(reference.name) is reference:
                del references[reference.name]

        self._references = references
        self._drop = drop

    def get(self, name: str) -> Node | None:
        """The node of that name, if it is alive."""
        reference = self._references.get(name)
        return None if reference is None else reference()

    def __setitem__(self, name: str, node: Node) -> None:
        reference = _Reference(node, self._drop)
        reference.name = name
        self._references[name] = reference

    def pop(self, name: str) -> None:
        """Leave a name out, if it is there."""
        self._references.pop(name, None)

    def values(self) -> list[Node]:
        """The live nodes."""
        nodes = [reference() for reference in tuple(self._references.values())]
        return [node for node in nodes if node is not None]


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
        self.children = Children()

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


def place(node: Node) -> tuple[Directory, str]:
    """Where an entry's own metadata is: the layer's directory and the name in it.

    Raises:
        OSError: ENOENT when the entry was removed.
    """
    if node.removed:
        raise missing(node.name)
    if isinstance(node, DirectoryNode):
        return node.top, "."
    return node.holder, node.entry


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
