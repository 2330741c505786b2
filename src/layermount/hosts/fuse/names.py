"""Requests about names: look-up, making, removing, moving.

Who made the entry owns it; whether the caller may was checked by the kernel (default_permissions).
"""

from __future__ import annotations

import errno
import os

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import is_too_long, refusal
from layermount.hosts.fuse import protocol, replies
from layermount.hosts.fuse.known import Known
from layermount.hosts.fuse.protocol import Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Serving


class Names:
    """Handlers of requests about names."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._overlay = serving.overlay
        self._tree = serving.tree
        self._table = serving.table

    def handlers(self) -> dict[Opcode, Handler]:
        """What is handled here."""
        return {
            Opcode.LOOKUP: self.lookup,
            Opcode.READLINK: self.readlink,
            Opcode.SYMLINK: self.symlink,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.LINK: self.link,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
        }

    def lookup(self, request: Request) -> bytes:
        """A name in a directory; that there is none is an answer, which the kernel keeps."""
        parent = self._table.directory(request.nodeid)
        name = replies.decoded(request.body[:-1])
        with self._tree.lock:
            if parent.removed:
                raise refusal(errno.ENOENT, name)
            node = self._found(parent, name)
            if node is None:
                if is_too_long(name):
                    raise refusal(errno.ENAMETOOLONG, name)
                return replies.NEGATIVE_ENTRY
            shown = self._tree.shown(node)
        known = self._table.learn(node, shown)
        keep = known.state is None or self._serving.keeps_attributes(known)
        return replies.entry(known.nodeid, shown, keep=keep)

    def _found(self, parent: DirectoryNode, name: str) -> Node | None:
        if name in (".", ".."):
            return self._overlay.lookup(parent, name)
        return self._tree.find(parent, name)

    def _entry(self, node: Node) -> bytes:
        with self._tree.lock:
            shown = self._tree.shown(node)
        return replies.entry(self._table.learn(node, shown).nodeid, shown)

    def readlink(self, request: Request) -> bytes:
        """A link's target."""
        return os.fsencode(self._overlay.readlink(self._table[request.nodeid].node))

    def symlink(self, request: Request) -> bytes:
        """A new link; the request has its name, then its target."""
        name, target = replies.names(request.body)
        parent = self._table.directory(request.nodeid)
        before = self._tree.counters.copy_ups
        with self._serving.caller.acting(request.uid, request.gid):
            node = self._overlay.symlink(parent, name, target)
        self._serving.copied_up_since(before, parent)
        return self._entry(node)

    def mknod(self, request: Request) -> bytes:
        """A new file, fifo, socket or device."""
        mode, device, umask, _ = protocol.MKNOD_IN.unpack_from(request.body)
        (name,) = replies.names(request.body[protocol.MKNOD_IN.size :])
        parent = self._table.directory(request.nodeid)
        before = self._tree.counters.copy_ups
        with self._serving.caller.acting(request.uid, request.gid, umask):
            node = self._overlay.mknod(parent, name, mode, device)
        self._serving.copied_up_since(before, parent)
        return self._entry(node)

    def mkdir(self, request: Request) -> bytes:
        """A new directory."""
        mode, umask = protocol.MKDIR_IN.unpack_from(request.body)
        (name,) = replies.names(request.body[protocol.MKDIR_IN.size :])
        parent = self._table.directory(request.nodeid)
        before = self._tree.counters.copy_ups
        with self._serving.caller.acting(request.uid, request.gid, umask):
            node = self._overlay.mkdir(parent, name, mode)
        self._serving.copied_up_since(before, parent)
        return self._entry(node)

    def link(self, request: Request) -> bytes | None:
        """Another name for a file; the first one for a file that was made without."""
        (old,) = protocol.LINK_IN.unpack_from(request.body)
        (name,) = replies.names(request.body[protocol.LINK_IN.size :])
        parent, known = self._table.directory(request.nodeid), self._table[old]
        slow = not self._serving.makes_shells
        if self._serving.is_slow(known.node, data=slow):
            self._serving.after_copy_up(request, known.node, self.link, data=slow)
            return None
        before = self._tree.counters.copy_ups
        node = self._linked(known, parent, name)
        with self._tree.lock:
            shown = self._tree.shown(node)
        self._table.add_name(known, node, shown)
        known.lookups += 1
        self._serving.copied_up_since(before, parent)
        self._serving.copied_up_since(before, known.node)
        return replies.entry(known.nodeid, shown, keep=self._serving.keeps_attributes(known))

    def _linked(self, known: Known, parent: DirectoryNode, name: str) -> Node:
        handle = None if known.state is None else known.state.handle
        if known.node.removed and handle is not None:
            return self._overlay.link_handle(handle, parent, name)
        return self._overlay.link(known.node, parent, name)

    def unlink(self, request: Request) -> bytes:
        """Remove what is no directory."""
        parent = self._table.directory(request.nodeid)
        name = replies.decoded(request.body[:-1])
        before = self._tree.counters.copy_ups
        known = self._serving.before_removal(parent, name)
        self._overlay.unlink(parent, name)
        self._serving.after_removal(known)
        self._serving.copied_up_since(before, parent)
        return b""

    def rmdir(self, request: Request) -> bytes:
        """Remove a directory that shows nothing."""
        parent = self._table.directory(request.nodeid)
        name = replies.decoded(request.body[:-1])
        before = self._tree.counters.copy_ups
        self._serving.before_removal(parent, name)
        self._overlay.rmdir(parent, name)
        self._serving.copied_up_since(before, parent)
        return b""

    def rename(self, request: Request) -> bytes | None:
        """Move an entry: the form without flags."""
        (new_parent,) = protocol.RENAME_IN.unpack_from(request.body)
        names = replies.names(request.body[protocol.RENAME_IN.size :])
        return self._rename(request, self.rename, new_parent, names, 0)

    def rename2(self, request: Request) -> bytes | None:
        """Move an entry, with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
        new_parent, flags, _ = protocol.RENAME2_IN.unpack_from(request.body)
        names = replies.names(request.body[protocol.RENAME2_IN.size :])
        return self._rename(request, self.rename2, new_parent, names, flags)

    def _rename(
        self, request: Request, again: Handler, nodeid: int, names: list[str], flags: int
    ) -> bytes | None:
        old_parent = self._table.directory(request.nodeid)
        new_parent = self._table.directory(nodeid)
        old, new = names
        node = old_parent.children.get(old)
        slow = not self._serving.makes_shells
        if node is not None and self._serving.is_slow(node, data=slow):
            self._serving.after_copy_up(request, node, again, data=slow)
            return None
        before = self._tree.counters.copy_ups
        replaced = self._serving.before_removal(new_parent, new)
        try:
            self._overlay.rename(old_parent, old, new_parent, new, flags)
        finally:
            # Also what is refused may have copied up directories.
            self._serving.copied_up_since(before, old_parent)
            self._serving.copied_up_since(before, new_parent)
        self._serving.after_removal(replaced)
        return b""
