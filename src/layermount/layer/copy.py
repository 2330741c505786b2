"""One entry from one layer into another: data with its holes, then metadata, times last.

Nothing here lands anywhere: the target is a work file, and what makes it visible is its owner's
business. Rules: C1 to C6.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from layermount.layer.base import Directory
from layermount.layer.marks import Marks
from layermount.linux import files, xattrs

#: Bytes handed to one system call: large enough to be free, small enough to stay interruptible.
_PIECE = 64 * 1024 * 1024
_BUFFER = 1024 * 1024
_CANNOT_CLONE = (
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM,
)  # fmt: skip
_CANNOT_OFFLOAD = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"


def copy_data(
    source_fd: int, target_fd: int, size: int, *, reflink: bool = True, sparse: bool = True
) -> bool:
    """Give an empty file the first `size` bytes of another, holes kept as holes.

    Shares the blocks when both lie on one filesystem that can (FICLONE), else copies inside the
    kernel, else reads and writes. The target is not synced. File positions move.

    Returns:
        Whether bytes were written that are not on disk yet; not so when blocks are shared, which
        the filesystem puts in order with a later rename by itself.

    Raises:
        OSError: ENOSPC, EDQUOT or EIO, with the target partly written.

    Source: ioctl_ficlone(2), copy_file_range(2), lseek(2).
    """
    if size == 0:
        return False
    if reflink and _clone(source_fd, target_fd):
        # Setting a size costs more than looking at it, even the one that a file has.
        if os.fstat(target_fd).st_size != size:
            os.ftruncate(target_fd, size)
        return False
    end = 0
    for start, end in files.data_segments(source_fd, size) if sparse else [(0, size)]:
        _copy_segment(source_fd, target_fd, start, end)
    if end < size:
        os.ftruncate(target_fd, size)
    return True


def _clone(source_fd: int, target_fd: int) -> bool:
    try:
        files.ficlone(source_fd, target_fd)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def _copy_segment(source_fd: int, target_fd: int, start: int, end: int) -> None:
    position = start
    while position < end:
        try:
            done = os.copy_file_range(
                source_fd, target_fd, min(end - position, _PIECE), position, position
            )
        except OSError as error:
            if error.errno not in _CANNOT_OFFLOAD:
                raise
            _read_and_write(source_fd, target_fd, position, end)
            return
        if done == 0:
            # Some filesystems (procfs among them) offload nothing and report success.
            _read_and_write(source_fd, target_fd, position, end)
            return
        position += done


def _read_and_write(source_fd: int, target_fd: int, start: int, end: int) -> None:
    position = start
    while position < end:
        piece = os.pread(source_fd, min(end - position, _BUFFER), position)
        if not piece:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        written = 0
        while written < len(piece):
            written += os.pwrite(target_fd, piece[written:], position + written)
        position += len(piece)


@dataclass(frozen=True, slots=True)
class WorkFile:
    """A work file that is made like another entry, in the order of the methods.

    Attributes:
        dir_fd: The directory that it is in.
        name: Its name there.
        fd: The file itself, where it is open: what is known by descriptor need not be found again.
    """

    dir_fd: int
    name: str
    fd: int | None = None

    def set_owner(self, status: os.stat_result) -> None:
        """Give it the owner in `status`; before anything else, because it clears mode bits."""
        uid, gid = status.st_uid, status.st_gid
        if self.fd is not None:
            os.fchown(self.fd, uid, gid)
        else:
            os.chown(self.name, uid, gid, dir_fd=self.dir_fd, follow_symlinks=False)

    def set_xattr(self, key: str, value: bytes) -> None:
        """Give it an attribute, by its name on disk.

        Raises:
            OSError: ENOTSUP, EPERM or ENOSPC when it cannot be stored.
        """
        if self.fd is not None:
            os.setxattr(self.fd, key, value)
        else:
            xattrs.setxattr(self.dir_fd, self.name, key, value)

    def set_mode(self, mode: int) -> None:
        """Give it the bits of an `st_mode`; after the attributes, which they may forbid to set."""
        if self.fd is not None:
            os.fchmod(self.fd, stat.S_IMODE(mode))
        elif not stat.S_ISLNK(mode):
            chmod(self.dir_fd, self.name, stat.S_IMODE(mode))

    def set_times(self, status: os.stat_result) -> None:
        """Give it the access and modification times in `status`."""
        times = (status.st_atime_ns, status.st_mtime_ns)
        if self.fd is not None:
            os.utime(self.fd, ns=times)
        else:
            os.utime(self.name, ns=times, dir_fd=self.dir_fd, follow_symlinks=False)


def copy_xattrs(
    source: Directory, entry: str, target: WorkFile, marks: Marks, *, keys: Iterable[str]
) -> None:
    """Give a work file these attributes of an entry, by the names that the overlay shows.

    `marks` is the dialect of the layer that the work file will be in.

    Raises:
        OSError: ENOTSUP, EPERM or ENOSPC when one cannot be stored.
    """
    for key in keys:
        target.set_xattr(marks.to_disk(key), source.getxattr(entry, key))


def chmod(dir_fd: int, name: str, mode: int) -> None:
    """Change the mode of an entry that is no link, even if it was swapped for one meanwhile.

    fchmodat(2) follows links; a path descriptor does not.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)
