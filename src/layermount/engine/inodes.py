"""Inode numbers: the same for an entry before and after its copy-up, and after a new start.

A number is that of the lower file an entry comes from. Numbers of different filesystems are kept
apart in the high bits, as the kernel's `xino` does. Rules: I1 to I4.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from layermount.engine.node import DirectoryNode, Node
from layermount.layer.base import Directory
from layermount.layer.directory import LayerDirectory, filesystem_uuid
from layermount.layer.origin import Origin, parse_origin
from layermount.linux import files

_FILESYSTEM_SHIFT = 48
_FIRST_INVENTED = 1 << 63
_NOT_FOUND = (errno.ESTALE, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


class InodeNumbers:
    """Gives each visible entry its number."""

    def __init__(self, directories: Sequence[Directory]) -> None:
        """Number the filesystems of the layers' root directories, in the layers' order."""
        devices = [directory.stat(".").st_dev for directory in directories]
        self.device = devices[0]
        self._filesystems = {device: n for n, device in enumerate(dict.fromkeys(devices))}
        self._invented: dict[tuple[int, int], int] = {}
        self._by_uuid = _roots_by_uuid(directories)

    def number(self, status: os.stat_result) -> int:
        """The number shown for a file with this metadata in its own layer."""
        if status.st_dev == self.device:
            return status.st_ino
        filesystem = self._filesystems.setdefault(status.st_dev, len(self._filesystems))
        if status.st_ino >> _FILESYSTEM_SHIFT:
            key = (status.st_dev, status.st_ino)
            return self._invented.setdefault(key, _FIRST_INVENTED + len(self._invented))
        return status.st_ino | filesystem << _FILESYSTEM_SHIFT

    def of(self, node: Node, status: os.stat_result) -> int:
        """The number of a node whose own metadata is `status`; remembered on the node."""
        if node.inode is None:
            node.inode = self._find(node, status)
        return node.inode

    def _find(self, node: Node, status: os.stat_result) -> int:
        if node.depth:
            return self.number(status)
        if isinstance(node, DirectoryNode):
            # As in the kernel, the root goes by the upper: nothing says what it was copied from.
            by_lower = node.lowers and not (node.parent is None and node.in_upper)
            return self.number(node.lowers[0].stat(".") if by_lower else status)
        lower = self.lower_of(node) if node.in_upper and not node.fresh else None
        return self.number(status if lower is None else lower)

    def lower_of(self, node: Node) -> os.stat_result | None:
        """The metadata of the lower file an upper file comes from, if it can be found."""
        try:
            raw = node.holder.origin(node.entry)
        except PermissionError:
            # Without privilege the record of what may not be read may not be read either.
            return None
        origin = None if raw is None else parse_origin(raw)
        return None if origin is None else self._open_origin(origin, node)

    def _open_origin(self, origin: Origin, node: Node) -> os.stat_result | None:
        """The lower file of an origin record: by its handle, or where it still has its old name."""
        for root_fd in self._by_uuid.get(origin.uuid, ()):
            try:
                fd = files.open_by_handle(root_fd, origin.handle_type, origin.handle)
            except OSError as error:
                if error.errno in _NOT_FOUND:
                    continue
                raise
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
        return _namesake(origin, node)


def _namesake(origin: Origin, node: Node) -> os.stat_result | None:
    """Without the right to open by handle: a lower file of the same name with the same handle.

    Not for a file with several names: only one of them would find it.
    """
    if node.parent is None or node.holder.stat(node.entry).st_nlink > 1:
        return None
    for directory in node.parent.lowers:
        fd = directory.fd
        if fd is None or directory.kind(node.name) is None:
            continue
        try:
            if files.name_to_handle(fd, node.name) == (origin.handle_type, origin.handle):
                return directory.stat(node.name)
        except OSError as error:
            if error.errno not in _NOT_FOUND:
                raise
        return None
    return None


def _roots_by_uuid(directories: Sequence[Directory]) -> dict[bytes, list[int]]:
    roots: dict[bytes, list[int]] = {}
    for directory in directories:
        fd = directory.fd
        if fd is not None:
            roots.setdefault(filesystem_uuid(fd), []).append(fd)
    return roots


def origin_of(directory: Directory, name: str) -> bytes | None:
    """The origin record to write for a copy of `name`; None where `directory` is virtual."""
    fd = directory.fd
    if fd is None:
        return None
    try:
        handle_type, handle = files.name_to_handle(fd, name)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            return b""
        raise
    if isinstance(directory, LayerDirectory):
        uuid = directory.layer.filesystem_uuid
    else:
        uuid = filesystem_uuid(fd)
    return Origin(uuid, handle_type, handle).pack()
