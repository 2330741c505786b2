"""Requests about directories: listings, with the metadata of what is listed.

A listing is what the directory showed when it was opened, or rewound: a name that stays is seen
exactly once, whatever comes and goes meanwhile (readdir(3p)).
"""

from __future__ import annotations

import os

from layermount.engine.node import DirectoryNode, Node
from layermount.errors import LayerMountError
from layermount.hosts.fuse import protocol, replies
from layermount.hosts.fuse.protocol import Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Serving
from layermount.layer.base import DIRECTORY

_UNKNOWN_INODE = 0xFFFFFFFF
_PADDING = tuple(bytes(-length % 8) for length in range(8))
_NO_ENTRY = (0,) * 22
_OPEN_FLAGS = protocol.FOPEN_KEEP_CACHE | protocol.FOPEN_CACHE_DIR

#: Each listing begins with "." and "..".
_DOTS = 2

Listing = list[tuple[str, int]]


class Directories:
    """Handlers of requests about directories."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._overlay = serving.overlay
        self._tree = serving.tree
        self._table = serving.table
        self._listings: dict[int, Listing] = {}
        self._next = 1

    def handlers(self) -> dict[Opcode, Handler]:
        """What is handled here."""
        return {
            Opcode.OPENDIR: self.opendir,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.RELEASEDIR: self.releasedir,
            Opcode.FSYNCDIR: self.fsyncdir,
        }

    def opendir(self, request: Request) -> bytes:
        """An open directory; it is read when its first entries are asked for."""
        self._table.directory(request.nodeid)
        fh = self._next
        self._next += 1
        return replies.opened(fh=fh, flags=_OPEN_FLAGS)

    def releasedir(self, request: Request) -> bytes:
        """The end of an open directory."""
        fh, *_ = protocol.RELEASE_IN.unpack_from(request.body)
        self._listings.pop(fh, None)
        return b""

    def fsyncdir(self, request: Request) -> None:
        """A directory on disk."""
        directory = self._table.directory(request.nodeid)

        def work(_request: Request) -> bytes:
            self._overlay.fsync_directory(directory)
            return b""

        self._serving.wire.later(request, work)

    def readdir(self, request: Request) -> bytes:
        """Entries by name, kind and inode number."""
        directory, listing, offset, size = self._read_in(request)
        parts: list[bytes] = []
        for position in range(offset, len(listing)):
            name, kind = listing[position]
            raw = os.fsencode(name)
            length = len(raw)
            size -= protocol.DIRENT.size + length + -length % 8
            if size < 0:
                break
            try:
                inode = self._inode(directory, name)
            except (OSError, LayerMountError):
                # What is wrong with one entry shows when that is looked up.
                inode = _UNKNOWN_INODE
            parts += (
                protocol.DIRENT.pack(inode, position + 1, length, kind),
                raw,
                _PADDING[length % 8],
            )
        return b"".join(parts)

    def _inode(self, directory: DirectoryNode, name: str) -> int:
        """The number that stat(2) gives, too; what is gone since keeps its place in the listing."""
        with self._tree.lock:
            if name == ".":
                return self._tree.shown(directory)[1] if not directory.removed else _UNKNOWN_INODE
            node = directory.parent or directory if name == ".." else self._find(directory, name)
            return _UNKNOWN_INODE if node is None or node.removed else self._tree.shown(node)[1]

    def readdirplus(self, request: Request) -> bytes:
        """Entries with their metadata: each counts as looked up."""
        directory, listing, offset, size = self._read_in(request)
        parts: list[bytes] = []
        pack, overhead = protocol.DIRENTPLUS.pack, protocol.DIRENTPLUS.size
        learn, fields, tree = self._table.learn, replies.fields, self._tree
        find, keeps = tree.find, self._serving.keeps_attributes
        with tree.lock:
            for position in range(offset, len(listing)):
                name, kind = listing[position]
                raw = os.fsencode(name)
                length = len(raw)
                size -= overhead + length + -length % 8
                if size < 0:
                    break
                is_entry = position >= _DOTS and not directory.removed
                try:
                    node = find(directory, name) if is_entry else None
                    shown = None if node is None else tree.shown(node)
                except (OSError, LayerMountError):
                    # What is wrong with one entry shows when that is looked up.
                    node = shown = None
                if node is None or shown is None:
                    number = _UNKNOWN_INODE if is_entry else self._inode(directory, name)
                    head = pack(*_NO_ENTRY, number, position + 1, length, kind)
                else:
                    known = learn(node, shown)
                    valid = replies.FOREVER if known.state is None or keeps(known) else 0
                    head = pack(
                        known.nodeid, 0, replies.FOREVER, valid, 0, 0, *fields(shown),
                        shown[1], position + 1, length, kind,
                    )  # fmt: skip
                parts += (head, raw, _PADDING[length % 8])
        return b"".join(parts)

    def _find(self, directory: DirectoryNode, name: str) -> Node | None:
        return None if directory.removed else self._tree.find(directory, name)

    def _read_in(self, request: Request) -> tuple[DirectoryNode, Listing, int, int]:
        fh, offset, size, *_ = protocol.READ_IN.unpack_from(request.body)
        directory = self._table.directory(request.nodeid)
        if offset == 0 or fh not in self._listings:
            self._listings[fh] = self._listing(directory)
        return directory, self._listings[fh], offset, size

    def _listing(self, directory: DirectoryNode) -> Listing:
        if directory.removed:
            return []
        return [(".", DIRECTORY), ("..", DIRECTORY), *self._overlay.listdir(directory)]
