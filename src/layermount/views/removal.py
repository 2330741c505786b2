"""Removing a tree that was made hard to remove: no right to enter, no right to write, any depth.

Whose tree it is, and whether it may go, is for `shelf.py`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OWNER = 0o700


def remove(path: Path) -> None:
    """Remove a directory with all that is below it; what is gone already is fine.

    Its directories are made accessible on the way; links are not followed. A directory below is
    moved up before it is emptied, so depth costs neither descriptors nor stack. After an error or a
    crash the rest is still below `path`, and another call goes on.

    Raises:
        OSError: EPERM or EACCES for what belongs to somebody else or is immutable, EBUSY for a
            mount point, EIO; with the path.
    """
    try:
        top = _open(None, str(path))
    except FileNotFoundError:
        return
    try:
        while names := _names(top):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    _remove_entry(top, name)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(path / os.fsdecode(error.filename))
        raise
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _names(fd: int) -> list[str]:
    # btrfs lists what was there when the position was last set.
    os.lseek(fd, 0, os.SEEK_SET)
    return os.listdir(fd)


def _remove_entry(top: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=top)
    except IsADirectoryError:
        _empty(top, name)
        os.rmdir(name, dir_fd=top)


def _empty(top: int, name: str) -> None:
    """Remove what is in a directory of the top; directories in it become directories of the top."""
    fd = _open(top, name)
    try:
        for entry in os.listdir(fd):
            with contextlib.suppress(FileNotFoundError):
                _unlink_or_move(top, fd, entry)
    finally:
        os.close(fd)


def _unlink_or_move(top: int, fd: int, entry: str) -> None:
    try:
        os.unlink(entry, dir_fd=fd)
    except IsADirectoryError:
        # A directory without the right to write cannot change its "..".
        os.close(_open(fd, entry))
        os.rename(entry, f".{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top)


def _open(dir_fd: int | None, name: str) -> int:
    """A descriptor to list a directory that is made accessible for its owner."""
    path_fd = os.open(name, _LOOK, dir_fd=dir_fd)
    try:
        itself = f"/proc/self/fd/{path_fd}"
        mode = os.fstat(path_fd).st_mode
        if mode & _OWNER != _OWNER:
            os.chmod(itself, mode & 0o7777 | _OWNER)
        return os.open(itself, _READ)
    finally:
        os.close(path_fd)
