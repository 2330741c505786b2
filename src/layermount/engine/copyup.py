"""Copy-up: an entry of a lower becomes an entry of the upper, before it is changed.

Everything (data, owner, attributes, mode, times, records) is finished on a work file and lands with
one rename, so a crash leaves the lower's entry or the whole copy, nothing between. Data is copied
without the tree's lock. Rules: C1 to C9. Source: the kernel's documentation of overlayfs,
"Non-directories" and "Metadata only copy up".
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

from layermount.config import Capabilities
from layermount.engine.fidelity import Fidelity, Source
from layermount.engine.hardlinks import LinkIndex
from layermount.engine.node import DirectoryNode, Node, parent_of, upper_of
from layermount.engine.refusals import missing, refusal
from layermount.engine.reports import Reports
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.engine.work import HARMLESS
from layermount.events import EventKind
from layermount.layer import copy
from layermount.layer.base import BLOCK_DEVICE, CHARACTER_DEVICE, LINK, REGULAR
from layermount.layer.directory import LayerDirectory
from layermount.linux import xattrs

CAPABILITY_XATTR = "security.capability"


@dataclass(slots=True)
class _Copy:
    """A copy-up of something that is no directory, on its way.

    Attributes:
        status: The source's metadata when the copy began.
        size: How much data the copy gets; None for all of it.
        target: The work file; open for writing if it is a regular file.
        source_fd: Open source of data to copy, None when there is none to copy.
        is_own: Whether that source is the entry itself, not what a metadata-only copy stands for.
        shell: The copy gets metadata only.
        mode: The mode that the copy gets instead of the source's.
    """

    status: os.stat_result
    size: int | None
    target: copy.WorkFile
    source_fd: int | None = None
    is_own: bool = False
    shell: bool = False
    mode: int | None = None

    def close(self) -> None:
        for fd in (self.source_fd, self.target.fd):
            if fd is not None:
                os.close(fd)


class CopyUp:
    """Brings nodes into the upper. One thread works on a node; others wait for it."""

    def __init__(self, tree: Tree, upper: Upper, reports: Reports) -> None:
        self._tree = tree
        self._upper = upper
        self._fidelity = Fidelity(tree, upper, reports)
        self._reports = reports
        self._counters = tree.counters
        self._reflink = upper.can(Capabilities.REFLINK)
        self._sparse = upper.can(Capabilities.SPARSE_FILES)
        self._busy: set[Node] = set()
        self._idle = threading.Condition(tree.lock)

    def bring_up(
        self,
        node: Node,
        *,
        data: bool = True,
        size: int | None = None,
        mode: int | None = None,
    ) -> bool:
        """Make sure that the upper holds a node. Parents come up first, with their metadata.

        Call it without the tree's lock: data is copied outside it. Once up, a node stays up.

        Args:
            node: Any node; the root is always up.
            data: False when metadata is about to be changed: a regular file may come up without
                data.
            size: The file is about to be truncated to this size; no more data is copied.
            mode: The mode is about to be changed to these twelve bits.

        Returns:
            Whether it was copied up now with all that was asked for: it has `size` and `mode`.

        Raises:
            OSError: ENOENT when the node was removed, ENOSPC, EDQUOT, EIO and EPERM as they come;
                the upper is as it was.
        """
        if isinstance(node, DirectoryNode) and node.upper is not None and not node.removed:
            return False
        with self._tree.lock:
            while node in self._busy:
                self._idle.wait()
            if node.removed:
                raise missing(node.name)
            if isinstance(node, DirectoryNode):
                self._directory(node)
                return False
            if self._is_done(node, data=data):
                return False
            linked = self._must_stay(node)
            self._busy.add(node)
        try:
            if linked:
                self._complete(node)
                return False
            if self._file(node, data=data, size=size, mode=mode):
                return True
        finally:
            with self._tree.lock:
                self._busy.discard(node)
                self._idle.notify_all()
        # It has become a name of a file with several; that one is brought up.
        return self.bring_up(node, data=data, size=size, mode=mode)

    def is_up(self, node: Node, *, data: bool = True) -> bool:
        """Whether `bring_up` would do nothing, not even wait; under the lock."""
        if not node.in_upper or node in self._busy:
            return False
        if isinstance(node, DirectoryNode):
            return True
        links = self._tree.links
        indexed = links is not None and links.holds(node)
        return not indexed and not (data and self._tree.is_shell(node))

    def is_busy(self, node: Node) -> bool:
        """Whether a thread is copying a node up."""
        return node in self._busy

    def _is_indexed(self, node: Node) -> bool:
        return self._tree.links is not None and self._tree.links.holds(node)

    def _must_stay(self, node: Node) -> bool:
        """Whether the upper has a copy that is known by more than this name: it stays one file.

        Its own inode number is such a thing, shown where no record leads to another file's.
        """
        if not node.in_upper:
            return False
        if node.holder.stat(node.entry).st_nlink > 1 or self._tree.followers.are_shared(node):
            return True
        return self._tree.inodes.lower_of(node) is None

    def _is_done(self, node: Node, *, data: bool) -> bool:
        if not node.in_upper:
            return False
        if self._tree.links is not None and self._tree.links.holds(node):
            self._directory(parent_of(node))
            self._link_out(node, self._tree.links)
        return not (data and self._tree.is_shell(node))

    def _directory(self, node: DirectoryNode) -> None:
        """The directory and what is missing above it; under the lock: directories are small."""
        lacking = []
        while node.upper is None:
            lacking.append(node)
            node = parent_of(node)
        for directory in reversed(lacking):
            self._one_directory(directory)

    def _one_directory(self, node: DirectoryNode) -> None:
        parent = parent_of(node)
        source, work = node.top, self._upper.work
        status = source.stat(".")
        with work.directory() as target:
            self._fidelity.carry(Source(node, source, ".", status, source.fd), target)
            target.set_times(status)
            before = os.fstat(upper_of(parent).fd)
            self._land(parent, node, target.name)
            node.upper = LayerDirectory(self._upper.layer, upper_of(parent), node.name)
            self._done(node)
            self._keep_times(parent, before)

    def _file(self, node: Node, *, data: bool, size: int | None, mode: int | None) -> bool:
        """False, with nothing done, if it has meanwhile become a name of a copy with several."""
        with self._tree.lock:
            self._directory(parent_of(node))
            task = self._begin(node, data=data, size=size)
            task.mode = mode
        try:
            self._copy_data(task)
            with self._tree.lock:
                if self._must_stay(node) or self._is_indexed(node):
                    self._upper.work.discard(task.target.name)
                    return False
                self._finish(node, task)
            return True
        except BaseException:
            with self._tree.lock:
                self._upper.work.discard(task.target.name)
            raise
        finally:
            task.close()

    def _begin(self, node: Node, *, data: bool, size: int | None) -> _Copy:
        status = node.holder.stat(node.entry)
        work = self._upper.work
        if node.kind != REGULAR:
            target = copy.WorkFile(work.fd, work.name())
            self._make_special(node, status, target.name)
            return _Copy(status, size, target)
        task = _Copy(status, size, copy.WorkFile(work.fd, *work.file()))
        task.shell = not data and status.st_size > 0 and self.makes_shells
        if not task.shell and (size is None or size > 0) and status.st_size > 0:
            try:
                _, directory, name = self._tree.data_of(node)
                task.source_fd = directory.open(name)
                task.is_own = directory is node.holder and name == node.entry
            except BaseException:
                task.close()
                work.discard(task.target.name)
                raise
        return task

    @property
    def makes_shells(self) -> bool:
        """Whether a change of metadata copies up metadata alone."""
        return self._tree.redirects and self._upper.can(Capabilities.METACOPY)

    def _make_special(self, node: Node, status: os.stat_result, name: str) -> None:
        dir_fd = self._upper.work.fd
        is_device = node.kind in (BLOCK_DEVICE, CHARACTER_DEVICE)
        if is_device and not self._upper.can(Capabilities.DEVICE_NODES):
            raise refusal(errno.EPERM, node.name)
        if node.kind == LINK:
            os.symlink(node.holder.readlink(node.entry), name, dir_fd=dir_fd)
        else:
            os.mknod(name, status.st_mode & 0o170000 | 0o600, status.st_rdev, dir_fd=dir_fd)

    def _copy_data(self, task: _Copy) -> None:
        """Without the lock: nothing of the tree is touched."""
        target_fd = task.target.fd
        if target_fd is None:
            return
        if task.source_fd is not None:
            wanted = task.status.st_size if task.size is None else task.size
            self._transfer(task.source_fd, target_fd, min(wanted, task.status.st_size))
        if task.shell:
            os.ftruncate(target_fd, task.status.st_size)
        elif task.size is not None:
            os.ftruncate(target_fd, task.size)

    def _transfer(self, source_fd: int, target_fd: int, size: int) -> None:
        """Copy data, and put it on disk as the durability setting says."""
        written = copy.copy_data(
            source_fd, target_fd, size, reflink=self._reflink, sparse=self._sparse
        )
        if written:
            self._upper.work.sync_data(target_fd)

    def _finish(self, node: Node, task: _Copy) -> None:
        if node.removed:
            raise missing(node.name)
        work, target = self._upper.work, task.target
        if node.in_upper:
            # It may have been changed while its data was copied; a lower's entry was not.
            task.status = node.holder.stat(node.entry)
        fd = task.source_fd if task.is_own else None
        source = Source(node, node.holder, node.entry, task.status, fd, task.mode)
        self._fidelity.carry(source, target, shell=task.shell)
        if task.size in (None, task.status.st_size):
            target.set_times(task.status)
        if target.fd is not None:
            if task.size is not None:
                # It has the size. Truncating also takes set-user-id away, and decides about the
                # time; by its path, as ftruncate(2) always changes that.
                os.truncate(f"/proc/self/fd/{target.fd}", task.size)
            work.sync_entry(target.fd)
        parent = parent_of(node)
        before = os.fstat(upper_of(parent).fd)
        if node.in_upper:
            self._upper.replace(target.name, upper_of(parent), node.name)
            node.whole, node.data = True, None
            self._reports.note(EventKind.COPY_UP_DATA, node)
        else:
            self._land_file(parent, node, task)
        if not task.shell:
            self._lead_handles(node)
        self._keep_times(parent, before)

    def _land_file(self, parent: DirectoryNode, node: Node, task: _Copy) -> None:
        links = self._tree.links
        data = node.data
        if task.shell and links is None and self._tree.is_known_whole(node):
            data = node.depth, node.holder, node.entry
        names = [] if links is None else links.land(task.target.name, node, task.status)
        if links is not None and names:
            for name in () if task.shell else names:
                self._lead_handles(name)
            self._link_out(node, links)
        else:
            self._land(parent, node, task.target.name)
            node.holder, node.entry, node.depth = upper_of(parent), node.name, 0
        for name in (node, *names):
            name.whole = not task.shell
            name.data = data if task.shell else None
        self._done(node)

    def mark_impure(self, directory: DirectoryNode) -> None:
        """Note that an upper directory, which is about to get it, has an entry from elsewhere."""
        self._fidelity.mark_impure(directory)

    def _link_out(self, node: Node, links: LinkIndex) -> None:
        parent = parent_of(node)
        self._fidelity.mark_impure(parent)
        before = os.fstat(upper_of(parent).fd)
        links.link_out(node)
        self._keep_times(parent, before)

    def _keep_times(self, parent: DirectoryNode, before: os.stat_result) -> None:
        """To the parent of a copy nothing has happened, so its times stay.

        They come last, when the copy has landed; as in the kernel, failing then is no failure.
        """
        try:
            os.utime(upper_of(parent).fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        except OSError as error:
            if error.errno not in HARMLESS:
                raise
            message = "a copy-up changed the directory's times"
            self._reports.note(EventKind.WARNING, parent, message=message)

    def _land(self, parent: DirectoryNode, node: Node, work_name: str) -> None:
        self._upper.land(work_name, upper_of(parent), node.name)
        if parent.index is not None:
            parent.index.copied_up(node.name)

    def _complete(self, node: Node) -> None:
        """A metadata-only copy with several names gets its data in place, so that they stay links.

        Until the record is removed as the last step, everybody reads the data where it was. A crash
        before leaves the new modification time, and no `security.capability`, as in the kernel.
        """
        with self._tree.lock:
            status = node.holder.stat(node.entry)
            _, directory, name = self._tree.data_of(node)
            source_fd = directory.open(name)
            dir_fd = upper_of(parent_of(node)).fd
            capability = xattrs.find_xattr(dir_fd, node.entry, CAPABILITY_XATTR)
            target_fd = os.open(node.entry, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            try:
                self._transfer(source_fd, target_fd, status.st_size)
            finally:
                if capability is not None:
                    # Writing took it away.
                    os.setxattr(target_fd, CAPABILITY_XATTR, capability)
                os.utime(target_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            with self._tree.lock:
                for record in ("metacopy", "redirect"):
                    self._drop_record(target_fd, record)
                node.data = None
                self._reports.note(EventKind.COPY_UP_DATA, node)
                self._lead_handles(node)
        finally:
            os.close(source_fd)
            os.close(target_fd)

    def _drop_record(self, fd: int, record: str) -> None:
        key = self._upper.marks.key(record)
        if key in os.listxattr(fd):
            os.removexattr(fd, key)

    def _done(self, node: Node) -> None:
        self._counters.copy_ups += 1
        self._reports.note(EventKind.COPY_UP, node)

    def _lead_handles(self, node: Node) -> None:
        """Files open on the lower's data go on with the upper's, so that they see later writes."""
        if node.handles is None and not self._tree.followers.share:
            return
        waiting = self._tree.followers.of(node)
        for handle in tuple(waiting):
            handle.follow(node.holder.open(node.entry))
        waiting.clear()
        node.handles = None
