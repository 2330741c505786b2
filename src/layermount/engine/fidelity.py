"""What a copy carries besides its data: owner, attributes, ACL, mode, and the record of its origin.

Everything goes onto the work file, before it lands. Rules: C2, C8, I1 to I4.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from layermount.config import Capabilities
from layermount.engine.inodes import origin_of
from layermount.engine.node import DirectoryNode, Node, parent_of, upper_of
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import Event, EventKind
from layermount.layer import copy
from layermount.layer.base import Directory


class Fidelity:
    """Makes a work file like the entry it is a copy of."""

    def __init__(self, tree: Tree, upper: Upper, emit: Callable[[Event], None]) -> None:
        self._tree = tree
        self._upper = upper
        self._emit = emit

    def owner_and_attributes(
        self, node: Node, source: Directory, entry: str, name: str, status: os.stat_result
    ) -> None:
        """Owner and attributes: the owner first, because changing it clears some of the others."""
        target = self._upper.staging
        owners = self._upper.can(Capabilities.OWNERS)
        if not owners and (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            self._warn(node, "copied up as the caller's own: no right to give files away")
        if owners:
            copy.apply_owner(target.fd, name, status)
        present = source.listxattr(entry)
        kept = [key for key in present if self._can_keep(key)]
        if len(kept) < len(present):
            self._warn(node, "copied up without attributes that the upper cannot hold")
        early = [key for key in kept if key != copy.ACL_ACCESS]
        copy.copy_xattrs(source, entry, target, name, keys=early)

    def permissions(self, source: Directory, entry: str, name: str, status: os.stat_result) -> None:
        """ACL and mode, last but for the times: they may forbid the caller to set the rest."""
        if self._can_keep(copy.ACL_ACCESS) and copy.ACL_ACCESS in source.listxattr(entry):
            target = self._upper.staging
            copy.copy_xattrs(source, entry, target, name, keys=[copy.ACL_ACCESS])
        copy.apply_mode(self._upper.work.fd, name, status)

    def _can_keep(self, key: str) -> bool:
        if key in (copy.ACL_ACCESS, copy.ACL_DEFAULT):
            return self._upper.can(Capabilities.ACLS)
        return not key.startswith("user.") or self._upper.can(Capabilities.XATTRS)

    def _warn(self, node: Node, message: str) -> None:
        self._emit(Event(EventKind.WARNING, node.path, message=message))

    def origin(
        self, node: Node, source: Directory, entry: str, name: str, status: os.stat_result
    ) -> None:
        """The inode number stays, unless one of several hard links is broken off."""
        if not isinstance(node, DirectoryNode) and status.st_nlink > 1:
            node.inode = None
            return
        self._tree.inodes.of(node, status)
        origin = source.origin(entry) if node.in_upper else origin_of(source, entry)
        if origin is not None:
            self._upper.set_origin(self._upper.work.fd, name, origin, kind=node.kind)
            self.mark_impure(parent_of(node))

    def mark_impure(self, directory: DirectoryNode) -> None:
        """Note, as the kernel does, that an upper directory has entries from elsewhere."""
        if not directory.impure:
            self._upper.set_record(upper_of(directory).fd, ".", "impure", b"y")
            directory.impure = True
