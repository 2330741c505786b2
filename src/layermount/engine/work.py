"""The work directory: where a change is made ready, so that it lands with one rename.

The layout is the kernel's: `WORK/work/` holds what is being prepared, `WORK/index/` the kernel's
link index if it ever kept one, `WORK/work/incompat/volatile/` stands while an upper is used without
syncing. Whatever is left in `WORK/work/` is a left-over of a crash: swept at open, under the lock.
Rules: W1 to W5.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from layermount.config import Durability
from layermount.errors import ConfigError, LayerUnavailableError
from layermount.layer import copy
from layermount.layer.base import DIRECTORY
from layermount.linux import mountinfo, xattrs

#: Errors that a removal may end in without harm, where nothing depends on it.
HARMLESS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EACCES, errno.EPERM)

_STAGING = "work"
_INCOMPAT = "incompat"
_VOLATILE = f"{_INCOMPAT}/volatile"
#: Of every work file's name, the kernel's and ours.
_PREFIX = "#"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Work:
    """An open, locked work directory.

    Attributes:
        fd: The staging directory; work files are made here.
        base_fd: The work directory itself, which also holds the kernel's link index; borrowed.
    """

    def __init__(self, base_fd: int, *, durability: Durability) -> None:
        """Sweep what a crash left, and make the staging directory ready.

        Args:
            base_fd: The work directory, locked by the caller, whose descriptor it stays.
            durability: With `volatile` a mark is set that `close` takes away.

        Raises:
            LayerUnavailableError: The upper was used without syncing and not closed cleanly.
            OSError: The staging directory cannot be made or emptied.
        """
        self._durability = durability
        self._numbers = itertools.count()
        self._prefix = f"{_PREFIX}{os.getpid():x}.{int.from_bytes(os.urandom(6)):x}."
        self.base_fd = base_fd
        _refuse_unclean(base_fd)
        sweep(base_fd)
        self.fd = os.open(_STAGING, _FLAGS | os.O_NOFOLLOW, dir_fd=base_fd)
        if durability is Durability.VOLATILE:
            os.makedirs(self.path(_VOLATILE), mode=0o700)

    def name(self) -> str:
        """A name that nothing in the staging directory has."""
        return f"{self._prefix}{next(self._numbers):x}"

    def path(self, name: str) -> str:
        """A path to a work file for calls that take no directory descriptor."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def file(self) -> tuple[str, int]:
        """A new empty work file: its name and a read-write descriptor, the caller's."""
        name = self.name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return name, os.open(name, flags, 0o600, dir_fd=self.fd)

    @contextlib.contextmanager
    def directory(self) -> Iterator[copy.WorkFile]:
        """A new empty work directory, open; discarded if the block fails."""
        name = self.name()
        os.mkdir(name, 0o700, dir_fd=self.fd)
        with self.discarding(name):
            fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.fd)
            try:
                yield copy.WorkFile(self.fd, name, fd)
            finally:
                os.close(fd)

    def whiteout(self) -> str:
        """A new whiteout mark, not yet in its place: its name."""
        name = self.name()
        make_whiteout(self.fd, name)
        return name

    def sync_data(self, fd: int) -> None:
        """Put a work file's bytes on disk before it lands, unless the setting says never."""
        if self._durability is not Durability.VOLATILE:
            os.fsync(fd)

    def sync_entry(self, fd: int) -> None:
        """Put metadata or a directory's entries on disk, if the setting asks for it."""
        if self._durability is Durability.STRICT:
            os.fsync(fd)

    def discard(self, name: str) -> None:
        """Remove a work file or a whole tree of them; what is already gone is fine."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
        else:
            return
        try:
            os.rmdir(name, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove_tree(self.fd, name)

    def drop(self, name: str) -> None:
        """Remove what an operation has replaced. What cannot be removed stays for the next sweep.

        The operation has landed; a left-over must not make it look failed.
        """
        try:
            self.discard(name)
        except OSError as error:
            if error.errno not in HARMLESS:
                raise

    @contextlib.contextmanager
    def discarding(self, name: str) -> Iterator[None]:
        """Discard the work file `name` if the block fails."""
        try:
            yield
        except BaseException:
            self.discard(name)
            raise

    def close(self) -> None:
        """Take the volatile mark away and give the descriptor back."""
        if self._durability is Durability.VOLATILE:
            os.fsync(self.fd)
            remove_tree(self.fd, _INCOMPAT)
        os.close(self.fd)


def prepare(path: Path) -> int:
    """Open the work directory, made when missing; the descriptor is the caller's.

    Raises:
        ConfigError: It cannot be made, or is no directory.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return os.open(path, _FLAGS)
    except OSError as error:
        reason = f"cannot use work directory {str(path)!r}: {error.strerror}"
        raise ConfigError(reason) from error


def make_whiteout(dir_fd: int, name: str) -> None:
    """Make the mark that deletes `name` in deeper layers: a character device 0:0."""
    os.mknod(name, 0o020000, 0, dir_fd=dir_fd)


def sweep(base_fd: int) -> None:
    """Leave an empty staging directory.

    Raises:
        ConfigError: Something is there that is no left-over of an overlay; nothing is removed then.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(_STAGING, 0o700, dir_fd=base_fd)
    # The kernel leaves its own with mode 0, which its owner could not even list. What is made here
    # must inherit nothing: neither a group from a set-group-id bit nor a default ACL.
    copy.chmod(base_fd, _STAGING, 0o700)
    if xattrs.find_xattr(base_fd, _STAGING, copy.ACL_DEFAULT) is not None:
        xattrs.removexattr(base_fd, _STAGING, copy.ACL_DEFAULT)
    fd = os.open(_STAGING, _FLAGS | os.O_NOFOLLOW, dir_fd=base_fd)
    try:
        names = os.listdir(fd)
        for name in names:
            if not name.startswith(_PREFIX) and name != _INCOMPAT:
                raise ConfigError(
                    f"the work directory holds {name!r} in {_STAGING!r}; no overlay has left that",
                    hint="name another work directory, or move that away",
                )
        for name in names:
            remove_any(fd, name)
    finally:
        os.close(fd)


def remove_any(dir_fd: int, name: str) -> None:
    """Remove an entry of any kind with all that is below it."""
    if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode >> 12 == DIRECTORY:
        remove_tree(dir_fd, name)
    else:
        os.unlink(name, dir_fd=dir_fd)


def remove_tree(dir_fd: int, name: str) -> None:
    """Remove a directory with all that is below it, links not followed."""
    _make_accessible(dir_fd, name)
    fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        for below in os.listdir(fd):
            remove_any(fd, below)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _make_accessible(dir_fd: int, name: str) -> None:
    mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if mode & 0o700 != 0o700:
        copy.chmod(dir_fd, name, 0o700)


def _refuse_unclean(base_fd: int) -> None:
    """Look for the volatile mark; the kernel makes each part of it with mode 0."""
    path = _STAGING
    try:
        for name in _VOLATILE.split("/"):
            copy.chmod(base_fd, path, 0o700)
            path += f"/{name}"
        os.stat(path, dir_fd=base_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise LayerUnavailableError(
        "the upper was used with durability 'volatile' and was not closed cleanly",
        hint="it may be incomplete; drop it, or remove work/incompat in the work directory",
    )


def is_beside(upper_fd: int, work_fd: int) -> bool:
    """Whether what is in one directory can be renamed into the other: same mount, same device.

    The device alone does not tell: two mounts of one filesystem do not rename into each other. The
    mount alone does not either: subvolumes of btrfs are devices of their own.
    """
    same_mount = mountinfo.mount_id_of(upper_fd) == mountinfo.mount_id_of(work_fd)
    return same_mount and os.fstat(upper_fd).st_dev == os.fstat(work_fd).st_dev
