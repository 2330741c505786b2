"""Rename: one rename on the upper, with the mark and the record that keep the lowers right.

A directory of a lower is moved by a record (redirect), never by copying its tree. The mark at the
old name appears in the same step, by RENAME_WHITEOUT or by exchanging places with a mark that is at
the new name already. Rules: M1 to M8. Source: rename(2), the kernel's documentation of overlayfs,
"renaming directories".
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from layermount.config import Capabilities
from layermount.engine.access import require_access
from layermount.engine.copyup import CopyUp
from layermount.engine.create import check_name
from layermount.engine.node import DirectoryNode, Node, upper_of
from layermount.engine.refusals import missing, refusal
from layermount.engine.remove import Remove, detach
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.engine.work import HARMLESS
from layermount.events import EventKind
from layermount.layer import copy
from layermount.layer.directory import LayerDirectory
from layermount.linux import files


class Move(NamedTuple):
    """A rename that is allowed.

    Attributes:
        node: What moves.
        target: What is at the new name, None for nothing.
        flags: 0, RENAME_NOREPLACE or RENAME_EXCHANGE.
    """

    node: Node
    old_parent: DirectoryNode
    new_parent: DirectoryNode
    new_name: str
    target: Node | None
    flags: int

    @property
    def is_exchange(self) -> bool:
        """Whether both change places."""
        return bool(self.flags & files.RENAME_EXCHANGE)


class Rename:
    """Moves entries."""

    def __init__(
        self,
        tree: Tree,
        upper: Upper,
        copy_up: CopyUp,
        remove: Remove,
        reports: Reports,
    ) -> None:
        self._tree = tree
        self._upper = upper
        self._copy_up = copy_up
        self._remove = remove
        self._reports = reports

    def plan(
        self, old_parent: DirectoryNode, old: str, new_parent: DirectoryNode, new: str, flags: int
    ) -> Move | None:
        """The checked move, or None when there is nothing to do. Nothing is changed.

        Raises:
            OSError: As rename(2): ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, EBUSY, and
                EXDEV for a lower's directory where no record can say that it moved.
        """
        if flags not in (0, files.RENAME_NOREPLACE, files.RENAME_EXCHANGE):
            raise refusal(errno.EINVAL, old)
        if old in (".", ".."):
            raise refusal(errno.EBUSY, old)
        if new in (".", ".."):
            raise refusal(errno.EEXIST if flags & files.RENAME_NOREPLACE else errno.EBUSY, new)
        for parent in (old_parent, new_parent):
            if parent.removed:
                raise missing(parent.name)
        check_name(old)
        node = self._tree.get(old_parent, old)
        check_name(new)
        target = self._tree.find(new_parent, new)
        move = Move(node, old_parent, new_parent, new, target, flags)
        if self._is_idle(move):
            return None
        self._check_target(move)
        self._check_movable(move)
        self._check_empty(move)
        for parent in (old_parent, new_parent):
            require_access(parent, os.W_OK | os.X_OK)
        return move

    def _is_idle(self, move: Move) -> bool:
        """The same entry, or two names of one file: rename(2) does nothing then."""
        node, target = move.node, move.target
        if target is not None and move.flags & files.RENAME_NOREPLACE:
            raise refusal(errno.EEXIST, move.new_name)
        if target is None and move.is_exchange:
            raise refusal(errno.ENOENT, move.new_name)
        if node is target:
            return True
        # Where links are indexed two names in a lower stay one file, too.
        in_upper = target is not None and target.in_upper and node.in_upper
        both_files = target is not None and (in_upper or self._tree.links is not None)
        if not both_files or isinstance(node, DirectoryNode) or isinstance(target, DirectoryNode):
            return False
        assert target is not None  # noqa: S101  both_files says so
        return _identity(node) == _identity(target)

    def _check_target(self, move: Move) -> None:
        node, target = move.node, move.target
        if isinstance(node, DirectoryNode) and _is_within(move.new_parent, node):
            raise refusal(errno.EINVAL, node.name)
        if isinstance(target, DirectoryNode) and _is_within(move.old_parent, target):
            raise refusal(errno.EINVAL if move.is_exchange else errno.ENOTEMPTY, node.name)
        if target is None or move.is_exchange:
            return
        if isinstance(node, DirectoryNode):
            if not isinstance(target, DirectoryNode):
                raise refusal(errno.ENOTDIR, move.new_name)
        elif isinstance(target, DirectoryNode):
            raise refusal(errno.EISDIR, move.new_name)

    def _check_movable(self, move: Move) -> None:
        """What is left behind must be expressible: a record for a directory, a mark for a name."""
        moving = (
            [move.node] if move.target is None or not move.is_exchange else [move.node, move.target]
        )
        records = self._tree.redirects and self._upper.can(Capabilities.REDIRECT_DIR)
        if not records and any(isinstance(n, DirectoryNode) and n.lowers for n in moving):
            raise refusal(errno.EXDEV, move.node.name)
        covers = self._tree.index(move.old_parent).is_in_lower(move.node.name)
        if covers and not move.is_exchange and not self._upper.can(Capabilities.RENAME_WHITEOUT):
            raise refusal(errno.EXDEV, move.node.name)

    def _check_empty(self, move: Move) -> None:
        target = move.target
        if move.is_exchange or not isinstance(target, DirectoryNode):
            return
        if len(self._tree.index(target)):
            raise refusal(errno.ENOTEMPTY, move.new_name)

    def is_ready(self, move: Move) -> bool:
        """Whether what moves is in the upper already."""
        is_up = self._copy_up.is_up
        target = move.target if move.is_exchange else None
        return is_up(move.node, data=False) and (target is None or is_up(target, data=False))

    def carry_out(self, move: Move) -> None:
        """Do a planned move. The nodes that move are in the upper already."""
        self._copy_up.bring_up(move.new_parent)
        self._make_ready(move.node, move.old_parent, move.new_parent)
        old = move.old_parent, move.node.name
        if move.is_exchange:
            self._exchange(move)
        elif move.target is None:
            self._move(move)
        else:
            with self._remove.last_name(move.target):
                self._move(move)
        self._reports.note(EventKind.RENAMED, move.node, old=old)
        if self._tree.index(move.old_parent).is_in_lower(old[1]) and not move.is_exchange:
            self._reports.note(EventKind.WHITEOUT_CREATED, *old)

    def _exchange(self, move: Move) -> None:
        node, target, name = move.node, move.target, move.node.name
        assert target is not None  # noqa: S101  the plan refused anything else
        self._make_ready(target, move.new_parent, move.old_parent)
        self._rename(move, files.RENAME_EXCHANGE)
        self._place(node, move.new_parent, move.new_name)
        self._place(target, move.old_parent, name)

    def _move(self, move: Move) -> None:
        node, name, target = move.node, move.node.name, move.target
        covers = self._tree.index(move.old_parent).is_in_lower(name)
        marked = move.new_name in self._tree.index(move.new_parent).whiteouts
        if isinstance(target, DirectoryNode) and target.upper is not None:
            self._clear(target)
        if marked and (covers or isinstance(node, DirectoryNode)):
            self._rename(move, files.RENAME_EXCHANGE)
            if not covers:
                self._drop_mark(move.old_parent, name)
        else:
            self._rename(move, files.RENAME_WHITEOUT if covers else 0)
        if move.old_parent.index is not None:
            move.old_parent.index.remove(name)
        if target is not None:
            detach(self._tree, target)
        move.old_parent.children.pop(name)
        self._place(node, move.new_parent, move.new_name)

    def _drop_mark(self, parent: DirectoryNode, name: str) -> None:
        """Remove a mark that hides nothing; one that cannot be removed does no harm."""
        try:
            self._upper.unlink(upper_of(parent), name)
        except OSError as error:
            if error.errno not in HARMLESS:
                raise
            self._tree.forget(parent)

    def _rename(self, move: Move, flags: int) -> None:
        old_fd = upper_of(move.old_parent).fd
        new_fd = upper_of(move.new_parent).fd
        if flags:
            files.renameat2(old_fd, move.node.name, new_fd, move.new_name, flags)
        else:
            os.rename(move.node.name, move.new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        self._upper.note(upper_of(move.new_parent))
        self._upper.note(upper_of(move.old_parent))

    def _place(self, node: Node, parent: DirectoryNode, name: str) -> None:
        """The node is at a new place on disk; so it is in memory."""
        node.parent, node.name = parent, name
        parent.children[name] = node
        if parent.index is not None:
            parent.index.put_upper(name, node.kind)
        if isinstance(node, DirectoryNode):
            upper_of(node).move(upper_of(parent), name)
        else:
            node.holder, node.entry = upper_of(parent), name

    def _make_ready(self, node: Node, old_parent: DirectoryNode, new_parent: DirectoryNode) -> None:
        """Set what makes the entry the same at its new place; harmless before."""
        directory = upper_of(old_parent)
        if isinstance(node, DirectoryNode):
            if node.lowers:
                self._set_redirect(node, directory, same=old_parent is new_parent)
            elif new_parent.lowers and not upper_of(node).is_opaque():
                self._upper.set_record(directory.fd, node.name, "opaque", b"y")
        elif self._tree.is_shell(node):
            # Not the name alone: it would mean another file under a hard link in another directory.
            self._set_redirect(node, directory, same=False)
        if node.fresh or old_parent is new_parent or new_parent.impure:
            return
        if directory.origin(node.name) is not None:
            self._copy_up.mark_impure(new_parent)

    def _set_redirect(self, node: Node, directory: LayerDirectory, *, same: bool) -> None:
        """Record where the lowers have the entry; its name alone if it stays in its directory."""
        present = directory.redirect(node.name)
        if present is not None and (same or present.startswith("/")):
            return
        target = node.name if same else lower_path(node)
        self._upper.set_record(directory.fd, node.name, "redirect", os.fsencode(target))

    def keep_data_findable(self, node: Node) -> None:
        """Before a metadata-only copy gets another name: record where its data is."""
        directory = None if node.parent is None else node.parent.upper
        if directory is not None and self._tree.is_shell(node):
            self._set_redirect(node, directory, same=False)

    def _clear(self, target: DirectoryNode) -> None:
        """A directory that shows nothing may hold marks; an empty one like it takes its place."""
        directory = upper_of(target)
        if not list(directory.scan()):
            return
        work, status = self._upper.work, directory.stat(".")
        name = work.name()
        os.mkdir(name, 0o700, dir_fd=work.fd)
        with work.discarding(name):
            made = copy.WorkFile(work.fd, name)
            made.set_owner(status)
            keys = directory.listxattr(".")
            copy.copy_xattrs(directory, ".", made, self._upper.marks, keys=keys)
            self._upper.set_record(work.fd, name, "opaque", b"y")
            made.set_mode(status.st_mode)
            made.set_times(status)
            parent = target.parent
            assert parent is not None  # noqa: S101  the root is never a target
            directory.forget()
            self._upper.exchange(name, upper_of(parent), target.name)
        target.lowers, target.depths, target.inode = (), (), None
        self._tree.forget(target)


def lower_path(node: Node) -> str:
    """The path under which the lowers have an entry: names, replaced by the records above it."""
    parts: list[str] = []
    current: Node = node
    while current.parent is not None:
        directory = current.parent.upper
        record = None if directory is None else directory.redirect(current.name)
        part = record or current.name
        parts.insert(0, part.removeprefix("/"))
        if part.startswith("/"):
            break
        current = current.parent
    return "/" + "/".join(parts)


def _is_within(directory: DirectoryNode, ancestor: DirectoryNode) -> bool:
    """Whether `directory` is `ancestor` or lies below it."""
    current: DirectoryNode | None = directory
    while current is not None:
        if current is ancestor:
            return True
        current = current.parent
    return False


def _identity(node: Node) -> tuple[int, int]:
    status = node.holder.stat(node.entry)
    return status.st_dev, status.st_ino
