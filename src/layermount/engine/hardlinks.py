"""The kernel's index of copied-up hard links (`index=on`): read, and kept where it is present.

`WORK/index/` holds one entry for each lower file with several names that was copied up, named by
its origin record in hexadecimal. The entry is a further name of the upper file, so every lower name
finds the one copy. How many names the overlay shows is kept in the record `nlink`, as a difference
to the upper's or the lower's own count: "U-1", "L+0". Rules: K1 to K3. Source: the kernel's
documentation of overlayfs, "index".
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from weakref import WeakSet

from layermount.engine.inodes import InodeNumbers, origin_of
from layermount.engine.node import Node, as_upper, upper_of
from layermount.engine.refusals import refusal
from layermount.engine.upper import Upper
from layermount.layer.directory import LayerDirectory
from layermount.layer.marks import OVERLAY

_INDEX = "index"
_DIFFERENCE = re.compile(rb"([LU])([+-]\d{1,9})")


class LinkIndex:
    """The index directory beside an upper."""

    def __init__(self, upper: Upper, inodes: InodeNumbers, directory: LayerDirectory) -> None:
        self._upper = upper
        self._inodes = inodes
        self._directory = directory
        # Nodes of lower files with several names, by the index entry that a copy would have.
        self._uncopied: dict[str, WeakSet[Node]] = {}

    def entry_for(self, node: Node, status: os.stat_result) -> str | None:
        """The name of a lower file's copy in the index; None for a file with one name."""
        if status.st_nlink < 2 or node.depth == 0:
            return None
        origin = origin_of(node.holder, node.entry)
        return origin.hex() if origin else None

    def adopt(self, node: Node) -> None:
        """Let a lower's node be the copy that another of its names has already led to."""
        entry = self.entry_for(node, node.holder.stat(node.entry))
        if entry is None:
            return
        if self._directory.kind(entry) == node.kind:
            node.holder, node.entry, node.depth = self._directory, entry, 0
        else:
            self._uncopied.setdefault(entry, WeakSet()).add(node)

    def holds(self, node: Node) -> bool:
        """Whether a node's copy is known by its entry in the index only."""
        return node.holder is self._directory

    def link_out(self, node: Node) -> None:
        """Give the copy the node's own name, too; its parent is in the upper."""
        parent = node.parent
        if parent is None:
            raise refusal(errno.ENOENT, node.name)
        target = upper_of(parent)
        # One more name in the upper, none more in the overlay: the count is held by the lower's.
        self._note(node, base=self._lower_count(node), unit="L")
        os.link(
            node.entry,
            node.name,
            src_dir_fd=self._directory.fd,
            dst_dir_fd=target.fd,
            follow_symlinks=False,
        )
        if parent.index is not None:
            parent.index.copied_up(node.name)
        node.holder, node.entry = target, node.name

    def land(self, work_name: str, node: Node, status: os.stat_result) -> list[Node]:
        """Enter a finished copy of a lower file with several names.

        Returns:
            The nodes that are names of it, `node` among them; empty, with nothing done, when the
            file has only one name.
        """
        entry = self.entry_for(node, status)
        if entry is None:
            return []
        fd = self._upper.work.fd
        self._upper.set_record(fd, work_name, "origin", bytes.fromhex(entry))
        self._upper.set_record(fd, work_name, "nlink", b"L+0")
        self._upper.land(work_name, self._directory, entry)
        names = {node, *self._uncopied.pop(entry, ())}
        for name in names:
            name.holder, name.entry, name.depth = self._directory, entry, 0
        return [name for name in names if not name.removed]

    def count(self, node: Node, status: os.stat_result) -> int:
        """How many names the overlay shows for a file."""
        return self._shown(node, status) if node.depth == 0 else status.st_nlink

    def _shown(self, node: Node, status: os.stat_result) -> int:
        """As in the kernel, a record that cannot be used leaves the upper's own count."""
        several = status.st_nlink > 1 or self.holds(node)
        difference = _difference(_record(node, "nlink") if several else None)
        lower = None if difference is None else self._inodes.lower_of(node)
        if difference is None or lower is None or lower.st_nlink < 2:
            return status.st_nlink
        unit, count = difference
        shown = count + (status.st_nlink if unit == b"U" else lower.st_nlink)
        return shown if shown > 0 else status.st_nlink

    def _lower_count(self, node: Node) -> int:
        """The number of names the lower file has."""
        lower = self._inodes.lower_of(node)
        if lower is None:
            raise OSError(errno.EIO, "the lower file of an indexed copy is gone", node.path)
        return lower.st_nlink

    def _note(self, node: Node, *, base: int, unit: str) -> None:
        directory = as_upper(node.holder)
        shown = self._shown(node, directory.stat(node.entry))
        value = f"{unit}{shown - base:+d}".encode()
        self._upper.set_record(directory.fd, node.entry, "nlink", value)

    def before_change(self, node: Node) -> None:
        """Make the count relative to the upper's own, which changes in step with ours."""
        if self._is_indexed(node):
            self._note(node, base=node.holder.stat(node.entry).st_nlink, unit="U")

    def _is_indexed(self, node: Node) -> bool:
        return _record(node, "nlink") is not None

    def after_unlink(self, entry: str | None) -> None:
        """Drop the index entry of a file when its last name in the overlay is gone."""
        if entry is None or self._directory.kind(entry) is None:
            return
        status = self._directory.stat(entry)
        unit, count = _difference(self._directory.record(entry, "nlink")) or (b"U", 0)
        if unit == b"U" and status.st_nlink + count <= 0:
            self._upper.unlink(self._directory, entry)

    def entry_of(self, node: Node) -> str | None:
        """The index entry of a file in the upper, by its origin record; None when it has none."""
        if not self._is_indexed(node):
            return None
        raw = node.holder.origin(node.entry)
        return raw.hex() if raw else None


def _record(node: Node, record: str) -> bytes | None:
    if node.depth == 0 and isinstance(node.holder, LayerDirectory):
        return node.holder.record(node.entry, record)
    return None


def _difference(raw: bytes | None) -> tuple[bytes, int] | None:
    """The unit and the difference in a record "nlink"; None when there is none that can be read."""
    match = _DIFFERENCE.fullmatch(raw or b"")
    return None if match is None else (match[1], int(match[2]))


def open_link_index(
    upper: Upper, inodes: InodeNumbers, stack: contextlib.ExitStack
) -> LinkIndex | None:
    """The index beside an upper, if the kernel has made one there."""
    if upper.marks is not OVERLAY:
        return None
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(_INDEX, flags, dir_fd=upper.work.base_fd)
    except FileNotFoundError:
        return None
    stack.callback(os.close, fd)
    return LinkIndex(upper, inodes, _IndexDirectory(upper, fd))


class _IndexDirectory(LayerDirectory):
    """The index directory in the shape of a layer's directory, outside the layer's tree."""

    __slots__ = ("_index_fd",)

    def __init__(self, upper: Upper, fd: int) -> None:
        super().__init__(upper.layer, None, ".")
        self._index_fd = fd

    @property
    def fd(self) -> int:
        """The index directory's descriptor, open as long as the overlay is."""
        return self._index_fd
