"""What the handlers of requests share: the overlay, the inodes that the kernel knows, the caller.

It holds the state that belongs to more than one kind of request. Used under `lock`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import Protocol

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.engine.refusals import refusal
from layermount.engine.tree import Shown
from layermount.hosts.fuse.caller import Caller
from layermount.hosts.fuse.known import Known, Table
from layermount.hosts.fuse.open_state import PASSTHROUGH, OpenState
from layermount.hosts.fuse.passthrough import BackingFiles
from layermount.hosts.fuse.policy import Passthrough
from layermount.hosts.fuse.protocol import Init
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.targets import NodeTarget, Target
from layermount.layer.base import DIRECTORY, REGULAR
from layermount.linux import mountinfo

#: Files up to this size are copied up at once; larger ones elsewhere, while others are served.
_QUICK = 1 << 20


Payload = bytes | memoryview
#: Answers a request, or sees to it that it is answered later: None.
Handler = Callable[[Request], Payload | None]


class Wire(Protocol):
    """What handlers need of the connection."""

    def later(self, request: Request, work: Handler) -> None:
        """Answer with what `work` returns, in another thread, without the lock."""

    def forget_attributes(self, nodeid: int) -> None:
        """Let the kernel ask for an inode's metadata anew."""


class Serving:
    """The state of one served overlay.

    Attributes:
        lock: Held while a request is handled.
        overlay: What is shown.
        table: The inodes that the kernel knows.
        caller: Who new entries belong to.
        backings: Files that the kernel reads and writes by itself.
        stack_depth: How many filesystems lie on each other below, for the negotiation.
        extended_setxattr: Whether SETXATTR comes in its longer form.
        registers_lowers: Whether the kernel may read files of lowers by itself.
        makes_shells: Whether a change of metadata copies up metadata alone.
    """

    def __init__(self, overlay: Overlay, wire: Wire, passthrough: Passthrough) -> None:
        self.lock = threading.RLock()
        self.overlay = overlay
        self.tree = overlay.tree
        self.table = Table(overlay.root, has_link_index=overlay.tree.links is not None)
        self.caller = Caller()
        self.wire = wire
        self.registers_lowers = passthrough is Passthrough.ALL or overlay.upper is None
        self.stack_depth = 2 if _is_on_overlay(overlay.root) else 1
        self.backings = BackingFiles(-1, reason="not negotiated yet")
        self.extended_setxattr = False
        self.makes_shells = overlay.copies_metadata_alone

    def negotiated(self, flags: Init, device_fd: int) -> None:
        """Take note of what the kernel and this side agreed on."""
        reason = None if flags & Init.PASSTHROUGH else "it is off, or the kernel has none"
        self.backings = BackingFiles(device_fd, reason=reason)
        self.extended_setxattr = bool(flags & Init.SETXATTR_EXT)

    def close(self) -> None:
        """Close what the kernel left open."""
        with self.lock:
            for known in self.table:
                if known.state is not None:
                    known.state.close_handles()

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel forgets an inode."""
        known = self.table.forget(nodeid, count)
        if known is not None and known.state is not None:
            self.backings.release(known.state)
            known.state.close_handles()

    def shown(self, known: Known) -> Shown:
        """The metadata of an inode, also of one that has no name any more."""
        node = known.node
        retired = known.state is not None and known.state.retired
        if not node.removed and not retired:
            with self.tree.lock:
                return self.tree.shown(node)
        handle = None if known.state is None or retired else known.state.handle
        if handle is not None and handle.in_upper:
            status = handle.fstat()
            inode = node.inode or self.tree.inodes.number(status)
            return status, inode, status.st_nlink, status.st_blocks
        if known.epitaph is not None:
            return known.epitaph
        raise refusal(errno.ESTALE, node.name)

    def keeps_attributes(self, known: Known) -> bool:
        """Whether the kernel may keep metadata: a map of the layer's own file changes it unseen."""
        state = known.state
        return state is None or not (state.writers and state.mode is PASSTHROUGH)

    def source(self, known: Known) -> Target:
        """What an inode's metadata is read from: an open file of the upper is nearest."""
        handle = None if known.state is None else known.state.handle
        return handle if handle is not None and handle.in_upper else self.target(known)

    def target(self, known: Known) -> Target:
        """What a change of an inode's metadata is done on: the entry, or an open file without name.

        Raises:
            OSError: ESTALE when there is neither.
        """
        if not known.node.removed:
            return NodeTarget(self.overlay, known.node)
        handle = None if known.state is None else known.state.handle
        if handle is None:
            raise refusal(errno.ESTALE, known.node.name)
        return handle

    def drop_setid(self, known: Known) -> None:
        """Take set-user-id and set-group-id away: the file was changed by who may not keep them."""
        mode = stat.S_IMODE(self.shown(known)[0].st_mode)
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            self.target(known).chmod(kept)
            self.wire.forget_attributes(known.nodeid)
        known.is_setid = False

    # Removal.

    def before_removal(self, parent: DirectoryNode, name: str) -> Known | None:
        """Make ready for the end of a name: what is open gets a descriptor, what not an epitaph."""
        node = parent.children.get(name)
        if node is None or (known := self.table.of(node)) is None:
            return None
        state = known.state
        if state is not None and state.opens:
            self.materialise(known, state)
        if isinstance(node, DirectoryNode) or (state is not None and state.opens):
            status, inode, nlink, blocks = self.shown(known)
            names = nlink - 1 if node.in_upper and node.kind != DIRECTORY else 0
            known.epitaph = status, inode, names, blocks
        return known

    def after_removal(self, known: Known | None) -> None:
        """Let another name of the file lead to it, if there is one."""
        if known is not None and known.node.removed:
            self.table.lose_name(known)

    def materialise(self, known: Known, state: OpenState) -> None:
        """Open what the kernel has open and this side has not."""
        if state.retired:
            return
        if state.writers and state.writer is None:
            state.writer = self.overlay.open(known.node, os.O_RDWR)
        elif state.handle is None:
            state.reader = self.overlay.open(known.node, os.O_RDONLY)

    # Copy-up.

    def is_slow(self, node: Node, *, data: bool = True) -> bool:
        """Whether changing a file first copies up more than may be waited for."""
        if node.kind != REGULAR or node.removed or self.overlay.upper is None:
            return False
        if self.overlay.is_being_copied(node):
            return True
        known = self.table.of(node)
        if not data or (known is not None and not known.is_big):
            return False
        return not self.overlay.is_in_upper(node) and self._size(node) > _QUICK

    def after_copy_up(
        self, request: Request, node: Node, again: Handler, *, data: bool = True
    ) -> None:
        """Copy a file up while others are served, then handle the request once more."""

        def work(kept: Request) -> Payload | None:
            before = self.tree.counters.copy_ups
            self.overlay.copy_up(node, data=data)
            with self.lock:
                self.copied_up_since(before, node)
                return again(kept)

        self.wire.later(request, work)

    def must_retire(self, known: Known) -> bool:
        """Whether a change of data would miss who has the file open: the kernel reads a lower."""
        state = known.state
        return (
            state is not None
            and state.opens > 0
            and state.mode is PASSTHROUGH
            and not state.backs_upper
        )

    def retire(self, known: Known) -> None:
        """Leave a file that the kernel reads from a lower to who has it open (rule H7).

        The caller answers ESTALE; the kernel then looks the name up anew and finds another inode.
        """
        self.table.retire(known, self.shown(known))

    def _size(self, node: Node) -> int:
        with self.tree.lock:
            return node.holder.stat(node.entry).st_size

    def copied_up_since(self, before: int, node: Node) -> None:
        """Let the kernel look again at what has been copied up: numbers of links change."""
        count = self.tree.counters.copy_ups - before
        above: Node | None = node
        while count > 0 and above is not None:
            known = self.table.of(above)
            if known is not None:
                self.wire.forget_attributes(known.nodeid)
            above = above.parent
            count -= 1

    def status(self) -> dict[str, object]:
        """What is open and known, for JSON."""
        with self.lock:
            states = [known.state for known in self.table if known.state is not None]
            return {
                "known_inodes": len(self.table),
                "open_files": sum(state.opens for state in states),
                "registered_files": sum(bool(state.backing) for state in states),
                "passthrough": self.backings.is_on,
                "passthrough_reason": self.backings.reason,
            }


def _is_on_overlay(root: DirectoryNode) -> bool:
    """Whether a layer lies on an overlay of the kernel, as in a container."""
    overlays = {mount.device for mount in mountinfo.overlays()}
    devices = {directory.stat(".").st_dev for _, directory in root.stack()}
    return any(f"{os.major(device)}:{os.minor(device)}" in overlays for device in devices)
