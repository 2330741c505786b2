"""The operations a host may ask for, on nodes. The engine's public face.

Operations are named as the system call is and fail as it does: an `OSError` with the errno the
kernel's overlayfs would give. Rules: `docs/semantics.md`.
"""

from __future__ import annotations

import errno
import os

from layermount.config import Durability
from layermount.engine.access import require_access
from layermount.engine.attributes import opened_for_flags
from layermount.engine.handles import Handle
from layermount.engine.node import DirectoryNode, Node, place
from layermount.engine.open_files import OpenFiles
from layermount.engine.refusals import missing, refusal
from layermount.events import Operation
from layermount.layer.base import LINK
from layermount.linux import file_flags
from layermount.linux.file_flags import ExtendedFlags
from layermount.linux.mounts import syncfs
from layermount.linux.statx import STATX_ATTR_MOUNT_ROOT, Statx, statx

#: What statvfs(3) tells where nothing can be written: block sizes and the longest name.
_NO_SPACE = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, os.ST_RDONLY, 255))


class Overlay(OpenFiles):
    """An open overlay: a tree of nodes that can be looked at and, with an upper, changed.

    Thread-safe. Files that are open when it closes are closed with it.
    """

    # Looking.

    def lookup(self, parent: DirectoryNode, name: str) -> Node:
        """The entry `name` of a directory; "." and ".." are what they are everywhere.

        Raises:
            OSError: ENOENT, ENAMETOOLONG, EACCES, EIO.
        """
        with self._looking:
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
        with self._looking:
            if directory.removed:
                raise missing(directory.name)
            require_access(directory, os.R_OK)
            return list(self.tree.index(directory))

    def getattr(self, node: Node) -> os.stat_result:
        """The metadata shown for an entry; links are not followed."""
        self._ask(Operation.GET_INFO, node)
        with self._looking:
            return self.tree.getattr(node)

    def readlink(self, node: Node) -> str:
        """A symbolic link's target.

        Raises:
            OSError: EINVAL when it is no link.
        """
        self._ask(Operation.GET_INFO, node)
        with self._looking:
            directory, name = place(node)
            if node.kind != LINK:
                raise refusal(errno.EINVAL, node.name)
            return directory.readlink(name)

    def access(self, node: Node, mode: int) -> None:
        """Refuse what owner, mode and ACL do not allow the caller: os.R_OK, os.W_OK, os.X_OK.

        Raises:
            OSError: EACCES; EROFS for writing without an upper.
        """
        with self._looking:
            require_access(node, mode)
            if mode & os.W_OK and self.upper is None:
                raise refusal(errno.EROFS, node.name)

    def statx(self, node: Node) -> Statx:
        """What statx(2) tells beside `getattr`: inode and device as shown, the rest as stored.

        The time of birth is that of the layer's file, so a copy-up changes it. The mount's number
        is a host's business: None.
        """
        self._ask(Operation.GET_INFO, node)
        with self._looking:
            shown = self.tree.getattr(node)
            directory, name = place(node)
            if directory.fd is None:
                return Statx(shown.st_ino, shown.st_dev, None, None, 0)
            stored = statx(directory.fd, name)
        attributes = stored.attributes & ~STATX_ATTR_MOUNT_ROOT
        return Statx(shown.st_ino, shown.st_dev, stored.birth_ns, None, attributes)

    def get_flags(self, node: Node) -> int:
        """The FS_*_FL flags of a file or a directory, as lsattr(1) shows them.

        Raises:
            OSError: ENOTTY for other kinds and where the layer's filesystem has none.
        """
        self._ask(Operation.GET_INFO, node)
        with self._looking, opened_for_flags(node) as fd:
            return file_flags.get_flags(fd)

    def get_extended_flags(self, node: Node) -> ExtendedFlags:
        """The FS_XFLAG_* flags and the project of a file or a directory, as lsattr -p shows them.

        Raises:
            OSError: As `get_flags`.
        """
        self._ask(Operation.GET_INFO, node)
        with self._looking, opened_for_flags(node) as fd:
            return file_flags.get_extended_flags(fd)

    def getxattr(self, node: Node, key: str) -> bytes:
        """One extended attribute.

        Raises:
            OSError: ENODATA when it is absent, EOPNOTSUPP when there can be no such attribute.
        """
        self._ask(Operation.GET_SECURITY, node)
        with self._looking:
            directory, name = place(node)
            return directory.getxattr(name, key)

    def listxattr(self, node: Node) -> list[str]:
        """The names of the extended attributes; the engine's own marks are not among them."""
        self._ask(Operation.GET_SECURITY, node)
        with self._looking:
            directory, name = place(node)
            return directory.listxattr(name)

    def statfs(self) -> os.statvfs_result:
        """Space and limits of the filesystem that takes the changes, else of the nearest lower.

        Virtual layers have neither; where there is nothing else, no space is free of none.
        """
        with self._looking:
            for _, directory in self.root.stack():
                fd = directory.fd
                if fd is not None:
                    return os.fstatvfs(fd)
            return _NO_SPACE

    # Changing names.

    def mkdir(self, parent: DirectoryNode, name: str, mode: int = 0o777) -> DirectoryNode:
        """A new directory. Raises as mkdir(2)."""
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            return writers.create.directory(parent, name, mode)

    def symlink(self, parent: DirectoryNode, name: str, target: str) -> Node:
        """A new symbolic link to `target`. Raises as symlink(2)."""
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            return writers.create.symlink(parent, name, target)

    def mknod(self, parent: DirectoryNode, name: str, mode: int, device: int = 0) -> Node:
        """A new fifo, socket, device or regular file. Raises as mknod(2).

        A character device 0:0 is EPERM: it is the form of a whiteout.
        """
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            return writers.create.special(parent, name, mode, device)

    def link(self, node: Node, parent: DirectoryNode, name: str) -> Node:
        """Another name for a file. The links hold within the upper: a lower's file comes up first.

        Raises:
            OSError: EPERM for a directory, EEXIST, EMLINK, and the rest of link(2).
        """
        self._ask(Operation.LINK, node)
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            writers.create.require_free(parent, name)
            if isinstance(node, DirectoryNode):
                raise refusal(errno.EPERM, node.name)
            writers.create.require_links()
        with self._changing_in_steps as writers:
            writers.copy_up.bring_up(node, data=False)
        with self._changing as writers:
            writers.rename.keep_data_findable(node)
            if self.tree.links is not None:
                self.tree.links.before_change(node)
            new = writers.create.link(node, parent, name)
            if node.handles:
                self.tree.followers.of(node)
            return new

    def link_handle(self, handle: Handle, parent: DirectoryNode, name: str) -> Node:
        """Give an open file a name: the first one to what `tmpfile` made, else another one.

        Returns:
            The node of that name; for a first name the handle's own.

        Raises:
            OSError: ENOENT for a file that lost its last name (where the kernel's link index is
                kept: that one) or was made with O_EXCL; EEXIST, EPERM where there are no hard
                links, and the rest of link(2).
        """
        node = handle.node
        self._ask(Operation.CREATE, parent, name)
        with self._changing as writers:
            if node.removed:
                writers.create.require_free(parent, name)
                writers.create.require_links()
                several = self.tree.links is not None and handle.fstat().st_nlink > 0
                if several or not handle.in_upper:
                    # Gone in the view alone: a lower's file must not get into the upper.
                    raise missing(node.name)
                writers.create.first_name(node, handle.fileno(), parent, name)
                return node
        return self.link(node, parent, name)

    def unlink(self, parent: DirectoryNode, name: str) -> None:
        """Remove what is no directory. Raises as unlink(2)."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing as writers:
            writers.remove.unlink(parent, name)

    def rmdir(self, parent: DirectoryNode, name: str) -> None:
        """Remove a directory whose merged view is empty. Raises as rmdir(2)."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing as writers:
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
        with self._changing as writers:
            move = writers.rename.plan(old_parent, old, new_parent, new, flags)
            if move is None:
                return
            if writers.rename.is_ready(move):
                writers.rename.carry_out(move)
                return
        with self._changing_in_steps as writers:
            writers.copy_up.bring_up(move.node, data=False)
            if move.is_exchange and move.target is not None:
                writers.copy_up.bring_up(move.target, data=False)
        with self._changing as writers:
            # Another thread may have been here while data was copied.
            move = writers.rename.plan(old_parent, old, new_parent, new, flags)
            if move is not None:
                writers.rename.carry_out(move)

    # Changing metadata.

    def chmod(self, node: Node, mode: int) -> None:
        """Set the mode's twelve low bits. Raises as chmod(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing_in_steps as writers:
            writers.attributes.chmod(node, mode)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Set owner and group, -1 leaves one; links are not followed. Raises as lchown(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing_in_steps as writers:
            writers.attributes.chown(node, uid, gid)

    def utimens(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times, None leaves one; links are not followed. Raises as utimensat(2)."""
        self._ask(Operation.SET_INFO, node)
        with self._changing_in_steps as writers:
            writers.attributes.utimens(node, atime_ns, mtime_ns)

    def truncate(self, node: Node, size: int) -> None:
        """Set a regular file's size. Raises as truncate(2)."""
        self._ask(Operation.SET_SIZE, node)
        with self._changing_in_steps as writers:
            writers.attributes.truncate(node, size)

    def setxattr(self, node: Node, key: str, value: bytes, flags: int = 0) -> None:
        """Set one extended attribute; links are not followed. Raises as lsetxattr(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing_in_steps as writers:
            writers.attributes.setxattr(node, key, value, flags)

    def removexattr(self, node: Node, key: str) -> None:
        """Remove one extended attribute; links are not followed. Raises as lremovexattr(2)."""
        self._ask(Operation.SET_SECURITY, node)
        with self._changing_in_steps as writers:
            writers.attributes.removexattr(node, key)

    def set_flags(self, node: Node, flags: int) -> None:
        """Set the FS_*_FL flags of a file or a directory, which comes up with its data.

        Raises:
            OSError: EOPNOTSUPP for FS_IMMUTABLE_FL and FS_APPEND_FL (rule X13) and for what the
                upper's filesystem does not know; ENOTTY for other kinds; EPERM, EACCES.
        """
        self._ask(Operation.SET_INFO, node)
        with self._changing_in_steps as writers:
            writers.attributes.set_flags(node, flags)

    # Beyond the system calls.

    def copy_up(self, node: Node, *, data: bool = True) -> None:
        """Make sure that the upper holds an entry; with `data` false its metadata is enough."""
        self._ask(Operation.WRITE if data else Operation.SET_INFO, node)
        with self._changing_in_steps as writers:
            writers.copy_up.bring_up(node, data=data)

    def is_in_upper(self, node: Node) -> bool:
        """Whether the upper holds an entry with all its data: writing to it copies nothing up."""
        with self._looking:
            return node.in_upper and self.tree.data_of(node)[0] == 0

    def is_being_copied(self, node: Node) -> bool:
        """Whether another thread is copying an entry up: a change of it would wait."""
        return self._writers is not None and self._writers.copy_up.is_busy(node)

    @property
    def copies_metadata_alone(self) -> bool:
        """Whether a change of metadata copies up metadata alone (rule C5)."""
        return self._writers is not None and self._writers.copy_up.makes_shells

    def set_opaque(self, directory: DirectoryNode) -> None:
        """Hide everything that the lowers have in a directory, in one step."""
        self._ask(Operation.DELETE, directory)
        with self._changing as writers:
            writers.marking.set_opaque(directory)

    def whiteout(self, parent: DirectoryNode, name: str) -> None:
        """Delete a name with everything below it by one mark, whether it exists or not."""
        self._ask(Operation.DELETE, parent, name)
        with self._changing as writers:
            writers.marking.whiteout(parent, name)

    def fsync_directory(self, directory: DirectoryNode) -> None:
        """Put the names in a directory on disk, unless durability is `volatile`."""
        with self._looking:
            upper = directory.upper
            if upper is None or self.config.durability is Durability.VOLATILE:
                return
            fd = os.dup(upper.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Put everything that was changed on disk, unless durability is `volatile`."""
        self._require_open()
        if self.upper is not None and self.config.durability is not Durability.VOLATILE:
            syncfs(self.upper.layer.root_fd)
