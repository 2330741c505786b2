"""One entry from one layer into another: data with its holes, then metadata, times last.

Nothing here lands anywhere: the target is a work file, and what makes it visible is its owner's
business. Rules: C1 to C6.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from layermount.layer.base import Directory
from layermount.layer.directory import LayerDirectory
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
        os.ftruncate(target_fd, size)
        return False
    segments = files.data_segments(source_fd, size) if sparse else [(0, size)]
    for start, end in segments:
        _copy_segment(source_fd, target_fd, start, end)
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


def copy_xattrs(
    source: Directory,
    source_name: str,
    target: LayerDirectory,
    name: str,
    *,
    keys: Iterable[str],
) -> None:
    """Give the work file these attributes of the source, by the names that the overlay shows.

    Raises:
        OSError: ENOTSUP, EPERM or ENOSPC when one cannot be stored.
    """
    marks = target.layer.marks
    for key in keys:
        value = source.getxattr(source_name, key)
        xattrs.setxattr(target.fd, name, marks.to_disk(key), value)


def apply_owner(dir_fd: int, name: str, status: os.stat_result) -> None:
    """Give a work file the owner in `status`; before anything else, because it clears mode bits."""
    os.chown(name, status.st_uid, status.st_gid, dir_fd=dir_fd, follow_symlinks=False)


def apply_mode(dir_fd: int, name: str, status: os.stat_result) -> None:
    """Give a work file the mode in `status`; after the attributes, which it may forbid to set."""
    if not stat.S_ISLNK(status.st_mode):
        chmod(dir_fd, name, stat.S_IMODE(status.st_mode))


def apply_times(dir_fd: int, name: str, status: os.stat_result) -> None:
    """Give a work file the access and modification times in `status`."""
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def chmod(dir_fd: int, name: str, mode: int) -> None:
    """Change the mode of an entry that is no link, even if it was swapped for one meanwhile.

    fchmodat(2) follows links; a path descriptor does not.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)
