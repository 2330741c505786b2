"""The writable side: what is ever done to the upper on disk, each landing with one rename.

Here are the single steps; which steps an operation takes is in the modules of the operations.
Rules: D1 to D5, W1 to W5.
"""

from __future__ import annotations

import errno
import os
import stat

from layermount.config import Capabilities, Durability
from layermount.engine.work import Work, make_whiteout
from layermount.layer import copy
from layermount.layer.base import DIRECTORY, REGULAR
from layermount.layer.directory import DirectoryLayer, LayerDirectory
from layermount.layer.marks import KernelMarks
from layermount.linux import files, xattrs


class Upper:
    """The upper layer with its work directory.

    Attributes:
        marks: The dialect it is written in.
        capabilities: What is asked for and really there.
    """

    def __init__(
        self,
        layer: DirectoryLayer,
        work: Work,
        marks: KernelMarks,
        capabilities: Capabilities,
        durability: Durability,
    ) -> None:
        self.layer = layer
        self.work = work
        self.marks = marks
        self.capabilities = capabilities
        self.durability = durability
        self._unsynced: set[LayerDirectory] = set()

    def can(self, capability: Capabilities) -> bool:
        """Whether a capability may be used."""
        return capability in self.capabilities

    def note(self, directory: LayerDirectory) -> None:
        """Note that something landed in a directory, for `settle`."""
        if self.durability is Durability.STRICT:
            self._unsynced.add(directory)

    def settle(self) -> None:
        """Put what landed on disk, if the setting asks for it; the memory is right already.

        Raises:
            OSError: EIO or ENOSPC: the change is visible, but may not outlive a crash of the
                machine.
        """
        while self._unsynced:
            directory = self._unsynced.pop()
            try:
                self.work.sync_entry(directory.fd)
            except FileNotFoundError:
                # Removed since: what counts is its parent, which is noted, too.
                continue

    def land(self, work_name: str, directory: LayerDirectory, name: str) -> None:
        """Let a work file appear where nothing is.

        Raises:
            OSError: EEXIST when something is there after all: the upper was changed from outside.
        """
        fd = directory.fd
        try:
            files.renameat2(self.work.fd, work_name, fd, name, files.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.rename(work_name, name, src_dir_fd=self.work.fd, dst_dir_fd=fd)
        self.note(directory)

    def replace(self, work_name: str, directory: LayerDirectory, name: str) -> None:
        """Let a work file that is no directory take the place of what is no directory."""
        os.rename(work_name, name, src_dir_fd=self.work.fd, dst_dir_fd=directory.fd)
        self.note(directory)

    def exchange(self, work_name: str, directory: LayerDirectory, name: str) -> None:
        """Let a work file take the place of anything, which is dropped."""
        files.renameat2(self.work.fd, work_name, directory.fd, name, files.RENAME_EXCHANGE)
        self.note(directory)
        self.work.drop(work_name)

    def take_out(self, directory: LayerDirectory, name: str) -> None:
        """Remove a directory that shows nothing, with the marks that may be left in it."""
        try:
            os.rmdir(name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            self.note(directory)
            return
        work_name = self.work.name()
        os.rename(name, work_name, src_dir_fd=directory.fd, dst_dir_fd=self.work.fd)
        self.note(directory)
        self.work.drop(work_name)

    def unlink(self, directory: LayerDirectory, name: str) -> None:
        """Remove an entry that is no directory."""
        os.unlink(name, dir_fd=directory.fd)
        self.note(directory)

    def put_whiteout(self, directory: LayerDirectory, name: str) -> None:
        """Delete a name that only lowers have: the mark appears where nothing is."""
        make_whiteout(directory.fd, name)
        self.note(directory)

    def set_record(self, dir_fd: int, name: str, record: str, value: bytes) -> None:
        """Store one of the engine's own marks.

        Raises:
            OSError: It cannot be stored; the operation must fail with it.
        """
        xattrs.setxattr(dir_fd, name, self.marks.key(record), value)

    def keeps_origin(self, kind: int) -> bool:
        """Whether a copy of this kind gets a record of where it came from.

        `user.*` attributes exist on files and directories only; on anything else the record is left
        out, as the kernel does, and the inode number is stable until the next start only.
        """
        return kind in (REGULAR, DIRECTORY) or not self.marks.prefix.startswith("user.")

    def inherits(self, directory: LayerDirectory) -> bool:
        """Whether what is made in `directory` takes its group or a default ACL from it."""
        if directory.stat(".").st_mode & stat.S_ISGID:
            return True
        return xattrs.find_xattr(directory.fd, ".", copy.ACL_DEFAULT) is not None

    def mirror(self, directory: LayerDirectory) -> str:
        """A work directory in which new entries inherit what they would inherit in `directory`.

        The filesystem applies set-group-id, default ACL and umask itself; nothing is computed here.
        """
        name = self.work.name()
        os.mkdir(name, 0o700, dir_fd=self.work.fd)
        with self.work.discarding(name):
            status = directory.stat(".")
            if self.can(Capabilities.OWNERS):
                os.chown(name, -1, status.st_gid, dir_fd=self.work.fd)
            acl = xattrs.find_xattr(directory.fd, ".", copy.ACL_DEFAULT)
            if acl is not None:
                xattrs.setxattr(self.work.fd, name, copy.ACL_DEFAULT, acl)
            copy.chmod(self.work.fd, name, 0o700 | status.st_mode & stat.S_ISGID)
        return name
