"""Open files that read a lower's data and go on with the copy's when there is one. Rule: H2.

The names of one copy are nodes of their own. What is open by one of them follows when the data
arrives by another one, also after its own name was removed.
"""

from __future__ import annotations

import os
import weakref

from layermount.engine.node import Follower, Node

Waiting = weakref.WeakSet[Follower]
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Followers:
    """Who waits for the data of what; used under the tree's lock."""

    def __init__(self) -> None:
        # By device and inode number of copies with several names; alive as long as a node has it.
        self._shared: weakref.WeakValueDictionary[tuple[int, int], Waiting] = (
            weakref.WeakValueDictionary()
        )

    def of(self, node: Node) -> Waiting:
        """The open files that wait for a node's data; the names of one copy share one set."""
        waiting: Waiting = weakref.WeakSet() if node.handles is None else node.handles
        node.handles = waiting
        if not node.in_upper:
            return waiting
        status = node.holder.stat(node.entry)
        shared = self._shared.get((status.st_dev, status.st_ino))
        if shared is not None:
            shared.update(waiting)
            node.handles = shared
        elif status.st_nlink > 1:
            self._share(node, waiting)
        return node.handles

    def _share(self, node: Node, waiting: Waiting) -> None:
        fd = os.open(node.entry, _FLAGS, dir_fd=node.holder.fd)
        # Open, the file keeps its number to itself even when its last name goes.
        weakref.finalize(waiting, os.close, fd)
        status = os.fstat(fd)
        self._shared[status.st_dev, status.st_ino] = waiting

    @property
    def share(self) -> bool:
        """Whether files wait for a copy with several names: then a node alone does not tell all."""
        return bool(self._shared)

    def are_shared(self, node: Node) -> bool:
        """Whether files that are open by other names wait for this copy's data."""
        if not self._shared or not node.in_upper:
            return False
        status = node.holder.stat(node.entry)
        return (status.st_dev, status.st_ino) in self._shared
