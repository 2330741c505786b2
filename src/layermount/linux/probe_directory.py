"""What the filesystem of a directory can do, found out by doing it in a subdirectory.

Ways to mount are in `probe.py`. Which fallback a missing feature means is for the engine to decide.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from layermount.linux import files
from layermount.linux.finding import REFUSALS, Finding

_PREFIX = ".layermount-probe-"
_FILE = "file"
_HOLE_SIZE = 1 << 20
_OTHER_OWNER = 1
_WHITEOUT = os.makedev(0, 0)
_NULL_DEVICE = os.makedev(1, 3)

_NOBODY = 0xFFFFFFFF


class DirectoryFindings(NamedTuple):
    """What was found in one directory, a `Finding` for each feature.

    Attributes:
        user_xattrs: Attributes of any process, `user.*`.
        trusted_xattrs: Attributes of privileged processes, `trusted.*`.
        acls: POSIX access control lists.
        chown: Giving a file to another owner and group.
        whiteout_device: The mark of a deleted name, a character device 0:0.
        device_nodes: Other device nodes.
        hard_links: A second name for a file.
        holes: Unwritten parts of a file that take no space and can be found.
        reflink: Files that share blocks (FICLONE).
        tmpfile: Files without a name (O_TMPFILE).
        rename_noreplace: Renaming only onto a free name.
        rename_exchange: Exchanging two names in one step.
        rename_whiteout: Renaming and leaving a whiteout in one step.
        file_handles: Handles that find a file again whatever it is called.
        case_sensitive: Names that differ in case only are different names.
    """

    user_xattrs: Finding
    trusted_xattrs: Finding
    acls: Finding
    chown: Finding
    whiteout_device: Finding
    device_nodes: Finding
    hard_links: Finding
    holes: Finding
    reflink: Finding
    tmpfile: Finding
    rename_noreplace: Finding
    rename_exchange: Finding
    rename_whiteout: Finding
    file_handles: Finding
    case_sensitive: Finding


def directory(dir_fd: int) -> DirectoryFindings:
    """What the filesystem that holds `dir_fd` can do for this process.

    Everything happens in one temporary subdirectory, which is removed; a crash leaves it, named
    `.layermount-probe-*`. Nothing is synced.

    Args:
        dir_fd: A directory this process may write to.

    Raises:
        OSError: EROFS, EACCES, ENOSPC, EDQUOT or EIO when nothing can be tried at all.
    """
    with _temporary(dir_fd) as place:
        return DirectoryFindings(**{name: _try(name, place) for name in _PROBES})


class _Place(NamedTuple):
    """Where to try: a directory of our own and a file in it, both open."""

    dir_fd: int
    file_fd: int


class _AbsentError(Exception):
    """No call failed, and still the feature is not there."""


@contextlib.contextmanager
def _temporary(dir_fd: int) -> Iterator[_Place]:
    name = f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    with contextlib.ExitStack() as stack:
        stack.callback(os.rmdir, name, dir_fd=dir_fd)
        own_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        stack.callback(os.close, own_fd)
        stack.callback(_empty, own_fd)
        file_fd = os.open(
            _FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=own_fd
        )
        stack.callback(os.close, file_fd)
        yield _Place(own_fd, file_fd)


def _empty(dir_fd: int) -> None:
    # btrfs lists what was there at the open; going back to the start looks anew.
    os.lseek(dir_fd, 0, os.SEEK_SET)
    for name in os.listdir(dir_fd):
        os.unlink(name, dir_fd=dir_fd)


def _try(name: str, place: _Place) -> Finding:
    probe, remedy = _PROBES[name]
    try:
        probe(place)
    except _AbsentError as absent:
        return Finding(name, available=False, reason=str(absent), remedy=remedy)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return Finding(name, available=False, reason=os.strerror(error.errno), remedy=remedy)
    return Finding(name, available=True, reason="it was tried and works")


def _set_xattr(name: str, value: bytes) -> Callable[[_Place], None]:
    return lambda place: os.setxattr(place.file_fd, name, value)


def _set_acl(place: _Place) -> None:
    """An ACL with an entry for one user, which makes it more than mode bits.

    The user is the caller: a user namespace may know no other. Layout: version 2 and then (tag,
    permissions, id). Source: include/uapi/linux/posix_acl_xattr.h.
    """
    entries = (
        (0x01, 6, _NOBODY),
        (0x02, 4, os.geteuid()),
        (0x04, 4, _NOBODY),
        (0x10, 4, _NOBODY),
        (0x20, 0, _NOBODY),
    )
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(place.file_fd, "system.posix_acl_access", acl)


def _chown(place: _Place) -> None:
    before = os.fstat(place.file_fd)
    os.fchown(place.file_fd, _OTHER_OWNER, _OTHER_OWNER)
    after = os.fstat(place.file_fd)
    os.fchown(place.file_fd, before.st_uid, before.st_gid)
    if (after.st_uid, after.st_gid) != (_OTHER_OWNER, _OTHER_OWNER):
        raise _AbsentError("a change of owner is accepted and forgotten")


def _make_device(name: str, device: int) -> Callable[[_Place], None]:
    def make(place: _Place) -> None:
        os.mknod(name, stat.S_IFCHR | 0o600, device, dir_fd=place.dir_fd)
        made = os.stat(name, dir_fd=place.dir_fd, follow_symlinks=False)
        if not stat.S_ISCHR(made.st_mode) or made.st_rdev != device:
            raise _AbsentError("a device node is accepted and becomes something else")

    return make


def _hard_link(place: _Place) -> None:
    os.link(_FILE, "link", src_dir_fd=place.dir_fd, dst_dir_fd=place.dir_fd)


def _hole(place: _Place) -> None:
    os.pwrite(place.file_fd, b"x", _HOLE_SIZE)
    try:
        start = os.lseek(place.file_fd, 0, os.SEEK_DATA)
    finally:
        os.ftruncate(place.file_fd, 0)
    if start == 0:
        raise _AbsentError("holes cannot be told from data")


def _reflink(place: _Place) -> None:
    # The source is one hole: sharing real data would first write it to the disk.
    os.ftruncate(place.file_fd, 4096)
    target = os.open(
        "clone", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place.dir_fd
    )
    try:
        files.ficlone(place.file_fd, target)
    finally:
        os.close(target)


def _tmpfile(place: _Place) -> None:
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    os.close(os.open(".", flags, 0o600, dir_fd=place.dir_fd))


def _rename(flags: int, *, onto: bool) -> Callable[[_Place], None]:
    def rename(place: _Place) -> None:
        old, new = f"old-{flags}", f"new-{flags}"
        for name in (old, new) if onto else (old,):
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=place.dir_fd)
        files.renameat2(place.dir_fd, old, place.dir_fd, new, flags)

    return rename


def _file_handle(place: _Place) -> None:
    files.name_to_handle(place.dir_fd, _FILE)


def _case(place: _Place) -> None:
    try:
        os.stat(_FILE.upper(), dir_fd=place.dir_fd)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    raise _AbsentError("names that differ in case only are the same name")


_OTHER_FILESYSTEM = "keep the directory on ext4, xfs, btrfs or tmpfs"
_Probe = tuple[Callable[[_Place], None], str | None]
_PROBES: dict[str, _Probe] = {
    "user_xattrs": (
        _set_xattr("user.layermount.probe", b"1"),
        f"{_OTHER_FILESYSTEM} (tmpfs has them from Linux 6.6 on)",
    ),
    "trusted_xattrs": (
        _set_xattr("trusted.layermount.probe", b"1"),
        "run it as root, or with CAP_SYS_ADMIN",
    ),
    "acls": (_set_acl, _OTHER_FILESYSTEM),
    "chown": (_chown, "run it as root, or with CAP_CHOWN"),
    "whiteout_device": (_make_device("whiteout", _WHITEOUT), _OTHER_FILESYSTEM),
    "device_nodes": (_make_device("device", _NULL_DEVICE), "run it as root, or with CAP_MKNOD"),
    "hard_links": (_hard_link, _OTHER_FILESYSTEM),
    "holes": (_hole, _OTHER_FILESYSTEM),
    "reflink": (_reflink, "keep the directory on btrfs, or on xfs made with reflink=1"),
    "tmpfile": (_tmpfile, _OTHER_FILESYSTEM),
    "rename_noreplace": (_rename(files.RENAME_NOREPLACE, onto=False), _OTHER_FILESYSTEM),
    "rename_exchange": (_rename(files.RENAME_EXCHANGE, onto=True), _OTHER_FILESYSTEM),
    "rename_whiteout": (_rename(files.RENAME_WHITEOUT, onto=False), _OTHER_FILESYSTEM),
    "file_handles": (_file_handle, _OTHER_FILESYSTEM),
    "case_sensitive": (_case, "turn case folding off for the directory (chattr -F)"),
}
