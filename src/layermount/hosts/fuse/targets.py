"""What metadata is changed on: an entry of the overlay, or an open file without a name."""

from __future__ import annotations

from typing import Protocol

from layermount.engine.node import Node
from layermount.engine.overlay import Overlay


class Target(Protocol):
    """A file whose metadata can be read and changed. `engine.handles.Handle` is one."""

    def chmod(self, mode: int) -> None:
        """Set the mode's twelve low bits."""

    def chown(self, uid: int, gid: int) -> None:
        """Set owner and group, -1 leaves one."""

    def truncate(self, size: int) -> None:
        """Set the size."""

    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times, None leaves one."""

    def getxattr(self, key: str) -> bytes:
        """One extended attribute."""

    def listxattr(self) -> list[str]:
        """The names of the extended attributes."""

    def setxattr(self, key: str, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute."""

    def removexattr(self, key: str) -> None:
        """Remove one extended attribute."""


class NodeTarget:
    """An entry of the overlay as a target."""

    __slots__ = ("_node", "_overlay")

    def __init__(self, overlay: Overlay, node: Node) -> None:
        self._overlay = overlay
        self._node = node

    def chmod(self, mode: int) -> None:
        """Set the mode's twelve low bits."""
        self._overlay.chmod(self._node, mode)

    def chown(self, uid: int, gid: int) -> None:
        """Set owner and group, -1 leaves one."""
        self._overlay.chown(self._node, uid, gid)

    def truncate(self, size: int) -> None:
        """Set the size."""
        self._overlay.truncate(self._node, size)

    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times, None leaves one."""
        self._overlay.utimens(self._node, atime_ns, mtime_ns)

    def getxattr(self, key: str) -> bytes:
        """One extended attribute."""
        return self._overlay.getxattr(self._node, key)

    def listxattr(self) -> list[str]:
        """The names of the extended attributes."""
        return self._overlay.listxattr(self._node)

    def setxattr(self, key: str, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute."""
        self._overlay.setxattr(self._node, key, value, flags)

    def removexattr(self, key: str) -> None:
        """Remove one extended attribute."""
        self._overlay.removexattr(self._node, key)
