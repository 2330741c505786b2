"""The operations a host may ask for, on nodes. The engine's public face.

Operations are named as the system call is and fail as it does: an `OSError` with the errno the
kernel's overlayfs would give. Rules: `docs/semantics.md`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator

from layermount.config import Durability, LayerMountConfig
from layermount.engine.access import require_access
from layermount.engine.assemble import assemble
from layermount.engine.attributes import Attributes, place
from layermount.engine.copyup import CopyUp
from layermount.engine.counters import Counters
from layermount.engine.create import Create
from layermount.engine.gate import Gate, ask
from layermount.engine.handles import Handle
from layermount.engine.hardlinks import open_link_index
from layermount.engine.marking import Marking
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import missing, refusal
from layermount.engine.remove import Remove
from layermount.engine.rename import Rename
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.errors import ClosedError
from layermount.events import Event, EventBus, Operation
from layermount.layer.base import LINK, REGULAR
from layermount.linux.mounts import syncfs

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class _Writers:
    """What changes an upper; made once, when there is one."""

    def __init__(self, overlay: Overlay, upper: Upper) -> None:
        tree, emit = overlay.tree, overlay._emit
        self.upper = upper
        self.copy_up = CopyUp(tree, upper, emit, overlay.counters)
        self.create = Create(tree, upper, self.copy_up, emit)
        self.remove = Remove(tree, upper, self.copy_up, emit)
        self.rename = Rename(tree, upper, self.copy_up, self.remove, emit)
        self.attributes = Attributes(tree, upper, self.copy_up)
        self.marking = Marking(tree, upper, self.copy_up, emit)


class _Pending(threading.local):
    """What one thread has caused and not yet told."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()


class _Looking:
    """Around a look: the lock held, the overlay open. A class, to be cheap to enter."""

    __slots__ = ("_overlay",)

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def __enter__(self) -> None:
        self._overlay.tree.lock.acquire()
        if self._overlay.is_closed:
            self._overlay.tree.lock.release()
            raise ClosedError("the overlay is closed")

    def __exit__(self, *_error: object) -> None:
        self._overlay.tree.lock.release()


class Overlay:
    """An open overlay: a tree of nodes that can be looked at and, with an upper, changed.

    Thread-safe. Files that are open when it closes are closed with it.

    Attributes:
        tree: The nodes and the layers under them.
        events: Who wants to know what happens subscribes here.
        counters: What has been done so far.
    """

    def __init__(
        self, config: LayerMountConfig, *, gate: Gate | None = None, events: EventBus | None = None
    ) -> None:
        """Open the layers, take the locks, sweep the work directory.

        Raises:
            ConfigError, LayerUnavailableError, LayerBusyError: As `assemble` has them.
        """
        parts = assemble(config)
        self.config = config
        self.tree: Tree = parts.tree
        self.upper: Upper | None = parts.upper
        self.events = EventBus() if events is None else events
        self.counters: Counters = self.tree.counters
        self.gate = gate
        self._pending = _Pending()
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._resources = parts.resources
        self._closed = False
        self._writers = None if self.upper is None else _Writers(self, self.upper)
        if self.upper is not None:
            self.tree.links = open_link_index(self.upper, self.tree.inodes, self._resources)

    @property
    def root(self) -> DirectoryNode:
        """The top directory."""
        return self.tree.root

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close every open file, then the layers; the locks are free afterwards. Idempotent."""
        with self.tree.lock:
            if self._closed:
                return
            self._closed = True
            for handle in tuple(self._handles):
                handle.close()
            self._resources.close()

    # Looking.

    def lookup(self, parent: DirectoryNode, name: str) -> Node:
        """The entry `name` of a directory; "." and ".." are what they are everywhere.

        Raises:
            OSError: ENOENT, ENAMETOOLONG, EACCES, EIO.
        """
        with self._looking():
            if parent.removed:
                raise missing(name)
            if name == ".":
                return parent
            if name == "..":
                return parent.parent or parent
            require_access(parent, os.X_OK)
            return self.tree.get(parent, name)

    def listdir(self, directory: DirectoryNode) -> list[tuple[str, int]]:
        """Every entry as (name, kind), without "." and "..", in no order.

        Raises:
            OSError: ENOENT when the directory was removed, EACCES, EIO.
        """
        self._ask(Operation.READ_DIRECTORY, directory)
        with self._looking():
            if directory.removed:
                raise missing(directory.name)
            require_access(directory, os.R_OK)
            return list(self.tree.index(directory))

    def getattr(self, node: Node) -> os.stat_result:
        """The metadata shown for an entry; links are not followed."""
        self._ask(Operation.GET_INFO, node)
        with self._looking():
            return self.tree.getattr(node)

    def readlink(self, node: Node) -> str:
        """A symbolic link's target.

        Raises:
            OSError: EINVAL when it is no link.
        """
        self._ask(Operation.GET_INFO, node)
        with self._looking():
            directory, name = place(node)
            if node.kind != LINK:
                raise refusal(errno.EINVAL, node.name)
            return directory.readlink(name)

    def access(self, node: Node, mode: int) -> None:
        """Refuse what owner, mode and ACL do not allow the caller: os.R_OK, os.W_OK, os.X_OK.

        Raises:
            OSError: EACCES; EROFS for writing without an upper.
        """
        with self._looking():
            require_access(node, mode)
            if mode & os.W_OK and self.upper is None:
                raise refusal(errno.EROFS, node.name)

    def getxattr(self, node: Node, key: str) -> bytes:
        """One extended attribute.

        Raises:
            OSError: ENODATA when it is absent, EOPNOTSUPP when there can be no such attribute.
        """
        self._ask(Operation.GET_SECURITY, node)
        with self._looking():
            directory, name = place(node)
            return directory.getxattr(name, key)

    def listxattr(self, node: Node) -> list[str]:
        """The names of the extended attributes; the engine's own marks are not among them."""
        self._ask(Operation.GET_SECURITY, node)
        with self._looking():
            directory, name = place(node)
            return directory.listxattr(name)

    def statfs(self) -> os.statvfs_result:
        """Space and limits of the filesystem that takes the changes, else of the nearest lower."""
        with self._looking():
            fd = self.root.top.fd
            if fd is None:
                raise refusal(errno.ENOSYS)
            return os.fstatvfs(fd)

    # Open files.

    def open(self, node: Node, flags: int) -> Handle:
        """An open file. What is opened for writing is in the upper from then on.

        A file opened for reading follows its copy-up: later reads see what others write.

        Args:
            node: No directory; a link is not followed (ELOOP).
            flags: As open(2); O_CREAT belongs to `create`.
        """
        writes = flags & _ACCESS != os.O_RDONLY or bool(flags & os.O_TRUNC)
        self._ask(Operation.WRITE if writes else Operation.OPEN, node)
        if isinstance(node, DirectoryNode):
            number = errno.EISDIR if writes else errno.EINVAL
            raise refusal(number, node.name)
        if node.kind == LINK:
            raise refusal(errno.ELOOP, node.name)
        if node.kind != REGULAR:
            return self._open_special(node, flags)
        with self._looking():
            self._check_access(node, flags, writes=writes)
        if writes:
            with self._changing(locked=False) as writers:
                writers.copy_up.bring_up(node, size=0 if flags & os.O_TRUNC else None)
        with self._looking():
            return self._open_regular(node, flags)

    def _check_access(self, node: Node, flags: int, *, writes: bool) -> None:
        if writes and self.upper is None:
            raise refusal(errno.EROFS, node.name)
        wanted = os.W_OK if writes else 0
        if flags & _ACCESS != os.O_WRONLY:
            wanted |= os.R_OK
        require_access(node, wanted)

    def _open_regular(self, node: Node, flags: int) -> Handle:
        if node.removed:
            raise missing(node.name)
        depth, directory, name = self.tree.data_of(node)
        if depth:
            handle = self._register(node, directory.open(name), flags)
            self.tree.followers.of(node).add(handle)
            return handle
        flags = flags & ~(os.O_CREAT | os.O_EXCL) | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._register(node, os.open(name, flags, dir_fd=directory.fd), flags)

    def _open_special(self, node: Node, flags: int) -> Handle:
        """A fifo waits for its other end: outside the lock, through a descriptor of its own."""
        with self._looking():
            directory, name = place(node)
            path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            kept = flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW)
            fd = os.open(f"/proc/self/fd/{path_fd}", kept | os.O_CLOEXEC)
        finally:
            os.close(path_fd)
        return self._register(node, fd, flags)

    def _register(self, node: Node, fd: int, flags: int) -> Handle:
        sync = self.config.durability is not Durability.VOLATILE
        handle = Handle(node, fd, flags, self.counters, sync=sync)
        self._handles.add(handle)
        return handle

    def create(
        self, parent: DirectoryNode, name: str, flags: int = os.O_RDWR, mode: int = 0o666
    ) -> tuple[Node, Handle]:
        """A new regular file, open.

        Raises:
            OSError: EEXIST whatever layer has the name, ENAMETOOLONG, EACCES, ENOSPC, EROFS.
        """
        self._ask(Operation.CREATE, parent, name)
        with self._changing() as writers:
            node, fd = writers.create.file(parent, name, flags, mode)
            return node, self._register(node, fd, flags)

    # Changing names.

    def mkdir(self, parent: DirectoryNode, name: str, mode: int = 0o777) -> DirectoryNode:
        """A new directory. Raises as mkdir(2)."""
        self._ask(Operation.CREATE, parent, name)
        with self._changing() as writers:
            return writers.create.directory(parent, name, mode)

    def symlink(self, parent: DirectoryNode, name: str, target: str) -> Node:
        """A new symbolic link to `target`. Raises as symlink(2)."""
        self._ask(Operation.CREATE, parent, name)
        with self._changing() as writers:
            return writers.create.symlink(parent, name, target)

    def mknod(self, parent: DirectoryNode, name: str, mode: int, device: int = 0) -> Node:
        """A new fifo, socket, device or regular file. Raises as mknod(2).

        A character device 0:0 is EPERM: it is the form of a whiteout.
        """
        self._ask(Operation.CREATE, parent, name)
        with self._changing() as writers:
            return writers.create.special(parent, name, mode, device)

    def link(self, node: Node, parent: DirectoryNode, name: str) -> Node:
        """Another name for a file. The links hold within the upper: a lower's file comes up first.

        Raises:
            OSError: EPERM for a directory, EEXIST, EMLINK, and the rest of link(2).
        """
        self._ask(Operation.LINK, node)
        self._ask(Operation.CREATE, parent, name)
        with self._changing() as writers:
            writers.create.require_free(parent, name)
            if isinstance(node, DirectoryNode):
                raise refusal(errno.EPERM, node.name)
            writers.create.require_links()
        with self._changing(locked=False) as writers:
            writers.copy_up.bring_up(node, data=False)
        with self._changing() as writers:
            writers.rename.keep_data_findable(node)
            if self.tree.links is not None:
                self.tree.links.before_change(node)
            new = writers.create.link(node, parent, name)
            if node.handles:
                self.tree.followers.of(node)
            return new

    def unlink(self, parent: DirectoryNode, name: str) -> None:
        """Remove what is no directory. Raises as unlink(2)."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing() as writers:
            writers.remove.unlink(parent, name)

    def rmdir(self, parent: DirectoryNode, name: str) -> None:
        """Remove a directory whose merged view is empty. Raises as rmdir(2)."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing() as writers:
            writers.remove.rmdir(parent, name)

    def rename(
        self,
        old_parent: DirectoryNode,
        old: str,
        new_parent: DirectoryNode,
        new: str,
        flags: int = 0,
    ) -> None:
        """Move an entry, atomically replacing what may be replaced.

        `flags` is 0, RENAME_NOREPLACE or RENAME_EXCHANGE.

        Raises:
            OSError: As rename(2); EXDEV for a lower's directory where redirects are not written.
        """
        self._ask(Operation.RENAME, old_parent, old)
        self._ask(Operation.RENAME, new_parent, new)
        with self._changing() as writers:
            move = writers.rename.plan(old_parent, old, new_parent, new, flags)
        if move is None:
            return
        with self._changing(locked=False) as writers:
            writers.copy_up.bring_up(move.node, data=False)
            if move.is_exchange and move.target is not None:
                writers.copy_up.bring_up(move.target, data=False)
        with self._changing() as writers:
            # Another thread may have been here while data was copied.
            move = writers.rename.plan(old_parent, old, new_parent, new, flags)
            if move is not None:
                writers.rename.carry_out(move)

    # Changing metadata.

    def chmod(self, node: Node, mode: int) -> None:
        """Set the mode's twelve low bits. Raises as chmod(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing(locked=False) as writers:
            writers.attributes.chmod(node, mode)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Set owner and group, -1 leaves one; links are not followed. Raises as lchown(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing(locked=False) as writers:
            writers.attributes.chown(node, uid, gid)

    def utimens(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times, None leaves one; links are not followed. Raises as utimensat(2)."""
        self._ask(Operation.SET_INFO, node)
        with self._changing(locked=False) as writers:
            writers.attributes.utimens(node, atime_ns, mtime_ns)

    def truncate(self, node: Node, size: int) -> None:
        """Set a regular file's size. Raises as truncate(2)."""
        self._ask(Operation.SET_SIZE, node)
        with self._changing(locked=False) as writers:
            writers.attributes.truncate(node, size)

    def setxattr(self, node: Node, key: str, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; links are not followed. Raises as lsetxattr(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing(locked=False) as writers:
            writers.attributes.setxattr(node, key, value, flags)

    def removexattr(self, node: Node, key: str) -> None:
        """Remove one extended attribute; links are not followed. Raises as lremovexattr(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing(locked=False) as writers:
            writers.attributes.removexattr(node, key)

    # Beyond the system calls.

    def copy_up(self, node: Node) -> None:
        """Make sure that the upper holds an entry with all its data."""
        self._ask(Operation.WRITE, node)
        with self._changing(locked=False) as writers:
            writers.copy_up.bring_up(node)

    def set_opaque(self, directory: DirectoryNode) -> None:
        """Hide everything that the lowers have in a directory, in one step."""
        self._ask(Operation.DELETE, directory)
        with self._changing() as writers:
            writers.marking.set_opaque(directory)

    def whiteout(self, parent: DirectoryNode, name: str) -> None:
        """Delete a name with everything below it by one mark, whether it exists or not."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing() as writers:
            writers.marking.whiteout(parent, name)

    def sync(self) -> None:
        """Put everything that was changed on disk, unless durability is `volatile`."""
        self._require_open()
        if self.upper is not None and self.config.durability is not Durability.VOLATILE:
            syncfs(self.upper.layer.root_fd)

    # How the above is done.

    def _ask(self, operation: Operation, node: Node, name: str | None = None) -> None:
        if self.gate is not None:
            path = node.path
            if name is not None:
                path = f"{path}/{name}" if path else name
            ask(self.gate, self.events, operation, path)

    def _emit(self, event: Event) -> None:
        if self.events:
            self._pending.events.append(event)

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the overlay is closed")

    def _looking(self) -> _Looking:
        return _Looking(self)

    @contextlib.contextmanager
    def _changing(self, *, locked: bool = True) -> Iterator[_Writers]:
        """Around a change: refused without an upper; what it reports is told at the end.

        With `locked` false the operation takes the lock itself, step by step.
        """
        try:
            with self.tree.lock if locked else contextlib.nullcontext():
                self._require_open()
                if self._writers is None:
                    raise refusal(errno.EROFS)
                yield self._writers
                with self.tree.lock:
                    self._writers.upper.settle()
        finally:
            while self._pending.events:
                self.events.publish(self._pending.events.popleft())
