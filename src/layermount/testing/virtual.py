"""A layer that exists in memory alone: no descriptor of a directory, no path on this machine.

It is what a layer from an image or a disk looks like to an engine and to a host, made from a tree
as data. How it gets into an overlay is the overlay's business: `Overlay(open_lower=...)`.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from layermount.layer.base import DIRECTORY, LINK, REGULAR
from layermount.testing.trees import Entry, Tree, directory

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_BLOCK = 512
_PAGE = 4096
#: What no filesystem of the machine has: the kernel counts its own from 0:1 on.
_MAJOR = 4095
_devices = itertools.count()
_DEFAULT_MODES = {DIRECTORY: 0o755, LINK: 0o777}


class _Node:
    """One entry: what it is, and for a directory what is in it."""

    __slots__ = ("children", "entry", "inode", "names")

    def __init__(self, entry: Entry, inode: int) -> None:
        self.entry = entry
        self.inode = inode
        self.names = 1
        self.children: dict[str, _Node] = {}


class MemoryLayer:
    """A tree as a layer. It never changes; two overlays may have it at the same time.

    Attributes:
        name: For messages.
        device: The device number of all its entries, its own.
        root: The top directory.
    """

    def __init__(self, tree: Tree, *, name: str = "memory") -> None:
        """Make the layer.

        Args:
            tree: As for `trees.build`; directories on the way need no entry. Owners that are not
                said are the caller's.
            name: For messages.

        Raises:
            ValueError: A path leads through what is no directory, or a hard link nowhere.
        """
        self.name = name
        self.device = os.makedev(_MAJOR, next(_devices))
        self._owner = os.geteuid(), os.getegid()
        self._inodes = itertools.count(1)
        top = _Node(tree.get(".", directory()), next(self._inodes))
        for path, entry in sorted(tree.items(), key=lambda item: (bool(item[1].same_as), item[0])):
            if path != ".":
                self._add(top, PurePosixPath(path), entry)
        self.root = MemoryDirectory(self, top, ".")

    def close(self) -> None:
        """Nothing is open."""

    def _add(self, top: _Node, path: PurePosixPath, entry: Entry) -> None:
        above = top
        for name in path.parts[:-1]:
            above = above.children.setdefault(name, _Node(directory(), next(self._inodes)))
            if above.entry.kind != DIRECTORY:
                raise ValueError(f"{str(path)!r} leads through what is no directory")
        if entry.same_as is not None:
            node = _at(top, entry.same_as)
            node.names += 1
        else:
            node = _Node(entry, next(self._inodes))
        above.children[path.name] = node

    def status(self, node: _Node) -> os.stat_result:
        """The metadata of an entry as a directory of this machine would have it."""
        entry = node.entry
        mode = entry.mode if entry.mode is not None else _DEFAULT_MODES.get(entry.kind, 0o644)
        size = len(entry.data) if entry.kind in (REGULAR, LINK) else 0
        names = node.names
        if entry.kind == DIRECTORY:
            size, inside = _PAGE, node.children.values()
            names = 2 + sum(child.entry.kind == DIRECTORY for child in inside)
        head = (entry.kind << 12 | mode, node.inode, self.device, names)
        seconds = entry.mtime_ns // 10**9
        times = {f"st_{kind}time_ns": entry.mtime_ns for kind in "amc"}
        exact = {f"st_{kind}time": entry.mtime_ns / 10**9 for kind in "amc"}
        rest = {
            "st_blksize": _PAGE,
            "st_blocks": -(-size // _PAGE) * (_PAGE // _BLOCK) if entry.kind == REGULAR else 0,
            "st_rdev": entry.device,
        }
        owner = entry.owner or self._owner
        return os.stat_result(
            (*head, *owner, size, seconds, seconds, seconds), {**times, **exact, **rest}
        )


class MemoryDirectory:
    """One directory of a `MemoryLayer`; what its methods promise is in `layer/base.py`."""

    #: There is none.
    fd: int | None = None

    def __init__(self, layer: MemoryLayer, node: _Node, path: str) -> None:
        self.path = path
        self._layer = layer
        self._node = node

    def scan(self) -> Iterable[tuple[str, int]]:
        """Every entry as (name, kind); marks come as WHITEOUT."""
        return [(name, node.entry.kind) for name, node in self._node.children.items()]

    def kind(self, name: str) -> int | None:
        """The entry's kind, WHITEOUT for a mark, None when there is nothing."""
        node = self._node.children.get(name)
        return None if node is None else node.entry.kind

    def directory(self, name: str) -> MemoryDirectory:
        """The child directory `name`."""
        node = self._get(name)
        if node.entry.kind != DIRECTORY:
            raise _error(errno.ELOOP if node.entry.kind == LINK else errno.ENOTDIR, name)
        return MemoryDirectory(
            self._layer, node, name if self.path == "." else f"{self.path}/{name}"
        )

    def stat(self, name: str) -> os.stat_result:
        """The entry's own metadata."""
        return self._layer.status(self._get(name))

    def readlink(self, name: str) -> str:
        """The link's target."""
        node = self._get(name)
        if node.entry.kind != LINK:
            raise _error(errno.EINVAL, name)
        return os.fsdecode(node.entry.data)

    def open(self, name: str) -> int:
        """A new O_RDONLY descriptor of a sealed copy of the file; it is the caller's."""
        node = self._get(name)
        if node.entry.kind != REGULAR:
            raise _error(errno.EISDIR if node.entry.kind == DIRECTORY else errno.ENXIO, name)
        fd = os.memfd_create("layermount", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _fill(fd, node.entry.data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)

    def getxattr(self, name: str, key: str) -> bytes:
        """One extended attribute."""
        value = self._get(name).entry.xattrs.get(key)
        if value is None:
            raise _error(errno.ENODATA, name)
        return value

    def listxattr(self, name: str) -> list[str]:
        """The names of the attributes."""
        return list(self._get(name).entry.xattrs)

    def is_opaque(self) -> bool:
        """Whether this directory hides its namesakes in deeper layers; the root never."""
        return self._node.entry.opaque and self.path != "."

    def redirect(self, name: str) -> None:
        """Nothing was moved here."""
        self._get(name)

    def is_metacopy(self, name: str) -> bool:
        """Every file has its data."""
        self._get(name)
        return False

    def origin(self, name: str) -> None:
        """Nothing was copied up here."""
        self._get(name)

    def _get(self, name: str) -> _Node:
        if name == ".":
            return self._node
        node = self._node.children.get(name)
        if node is None:
            raise _error(errno.ENOENT, name)
        return node


def _fill(fd: int, data: bytes) -> None:
    """Give an empty file this data, pages of zeros as holes."""
    os.ftruncate(fd, len(data))
    for start in range(0, len(data), _PAGE):
        piece = data[start : start + _PAGE]
        if any(piece):
            os.pwrite(fd, piece, start)


def _at(top: _Node, path: str) -> _Node:
    node = top
    for name in PurePosixPath(path).parts:
        child = node.children.get(name)
        if child is None:
            raise ValueError(f"a hard link to {path!r}, which is not there")
        node = child
    return node


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
