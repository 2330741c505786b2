"""What a copy carries besides its data: owner, attributes, ACL, mode, and the record of its origin.

Everything goes onto the work file, before it lands. Rules: C2, C8, I1 to I4.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from layermount.config import Capabilities
from layermount.engine.inodes import origin_of
from layermount.engine.node import DirectoryNode, Node, parent_of, upper_of
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.events import EventKind
from layermount.layer.base import Directory
from layermount.layer.copy import ACL_ACCESS, ACL_DEFAULT, WorkFile, copy_xattrs
from layermount.layer.directory import LayerDirectory


@dataclass(slots=True)
class Source:
    """The entry that is copied.

    Attributes:
        node: What shows it.
        directory: The layer's directory that holds it.
        name: Its name there.
        status: Its metadata.
        fd: The entry itself, where it is open for reading; borrowed.
        mode: The `st_mode` that the copy gets instead, None for the entry's own.
    """

    node: Node
    directory: Directory
    name: str
    status: os.stat_result
    fd: int | None = None
    mode: int | None = None

    def attributes(self) -> list[str]:
        """The names of the attributes that the overlay shows."""
        if self.fd is not None and isinstance(self.directory, LayerDirectory):
            return self.directory.listxattr_of(self.fd)
        return self.directory.listxattr(self.name)


class Fidelity:
    """Makes a work file like the entry it is a copy of."""

    def __init__(self, tree: Tree, upper: Upper, reports: Reports) -> None:
        self._tree = tree
        self._upper = upper
        self._reports = reports
        self._keeps_owners = upper.can(Capabilities.OWNERS)

    def carry(self, source: Source, target: WorkFile, *, shell: bool = False) -> None:
        """Give a work file everything but data and times, in the order in which it can be given.

        The owner comes first, because a new one clears some of the others; ACL and mode come last,
        because they may forbid the caller to set the rest. `shell` records that the copy has
        metadata alone.
        """
        self._owner(source, target)
        keys = self._attributes(source)
        early = [key for key in keys if key != ACL_ACCESS] if keys else keys
        copy_xattrs(source.directory, source.name, target, self._upper.marks, keys=early)
        self._origin(source, target)
        if shell:
            target.set_xattr(self._upper.marks.key("metacopy"), b"")
        if len(early) < len(keys):
            last = [ACL_ACCESS]
            copy_xattrs(source.directory, source.name, target, self._upper.marks, keys=last)
        target.set_mode(source.status.st_mode if source.mode is None else source.mode)

    def _owner(self, source: Source, target: WorkFile) -> None:
        status = source.status
        if self._keeps_owners:
            target.set_owner(status)
        elif (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            self._warn(source.node, "copied up as the caller's own: no right to give files away")

    def _attributes(self, source: Source) -> list[str]:
        """The names of the attributes to copy."""
        present = source.attributes()
        kept = [key for key in present if self._can_keep(key)]
        if len(kept) < len(present):
            self._warn(source.node, "copied up without attributes that the upper cannot hold")
        return kept

    def _can_keep(self, key: str) -> bool:
        if key in (ACL_ACCESS, ACL_DEFAULT):
            return self._upper.can(Capabilities.ACLS)
        return not key.startswith("user.") or self._upper.can(Capabilities.XATTRS)

    def _warn(self, node: Node, message: str) -> None:
        self._reports.note(EventKind.WARNING, node, message=message)

    def _origin(self, source: Source, target: WorkFile) -> None:
        """The inode number stays, unless one of several hard links is broken off."""
        node, directory, name = source.node, source.directory, source.name
        if not isinstance(node, DirectoryNode) and source.status.st_nlink > 1:
            node.inode = None
            return
        self._tree.inodes.of(node, source.status)
        origin = directory.origin(name) if node.in_upper else origin_of(directory, name)
        if origin is not None:
            if self._upper.keeps_origin(node.kind):
                target.set_xattr(self._upper.marks.key("origin"), origin)
            self.mark_impure(parent_of(node))

    def mark_impure(self, directory: DirectoryNode) -> None:
        """Note, as the kernel does, that an upper directory has entries from elsewhere."""
        if not directory.impure:
            self._upper.set_record(upper_of(directory).fd, ".", "impure", b"y")
            directory.impure = True
