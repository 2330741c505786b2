"""The mount calls, old and new, one system call a function.

A filesystem is configured on a context (`fsopen`, `fsconfig_*`), becomes a detached mount
(`fsmount`) and is attached last (`move_mount`). What the kernel writes into the context's log when
a step fails is the `strerror` of the error, because the errno alone is nearly always EINVAL.

Reading what is mounted is in `mountinfo.py`; which options an overlay takes is not known here.
Sources: mount(2), umount2(2), and fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2),
mount_setattr(2) with include/uapi/linux/mount.h.
"""

from __future__ import annotations

import ctypes
import errno
import os

from layermount.linux._libc import bind, bind_syscall, check

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
_AT_SYMLINK_NOFOLLOW = 0x100

# mount(2): include/uapi/linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

OPEN_TREE_CLONE = 1

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6

_MESSAGE_SIZE = 8192


class MountAttr(ctypes.Structure):
    """`struct mount_attr` of include/uapi/linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_fsopen = bind_syscall(430, ctypes.c_char_p, ctypes.c_uint)
_fsconfig = bind_syscall(
    431, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int
)
_fsmount = bind_syscall(432, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
_move_mount = bind_syscall(
    429, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_open_tree = bind_syscall(428, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_mount_setattr = bind_syscall(
    442,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.POINTER(MountAttr),
    ctypes.c_size_t,
)
_mount = bind(
    "mount",
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_umount2 = bind("umount2", ctypes.c_char_p, ctypes.c_int)
_syncfs = bind("syncfs", ctypes.c_int)


def fsopen(fstype: str) -> int:
    """A context in which a filesystem is configured; the descriptor is the caller's.

    Raises:
        OSError: ENODEV when the kernel does not know the type, EPERM without CAP_SYS_ADMIN in the
            user namespace of the mount namespace, ENOSYS before Linux 5.2.
    """
    return check(_fsopen(fstype.encode(), _FSOPEN_CLOEXEC), fstype)


def fsconfig_flag(context_fd: int, key: str) -> None:
    """Set an option that has no value.

    Raises:
        OSError: EINVAL for an option the filesystem does not know.
    """
    _configured(context_fd, key, _fsconfig(context_fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0))


def fsconfig_string(context_fd: int, key: str, value: str) -> None:
    """Set an option to a text of at most 255 bytes.

    Raises:
        OSError: EINVAL for an option or a value the filesystem does not know, or for a longer
            text; what looking up a path gives when the option is one.
    """
    result = _fsconfig(context_fd, _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
    _configured(context_fd, key, result)


def fsconfig_fd(context_fd: int, key: str, value_fd: int) -> None:
    """Set an option to an open file; overlayfs takes its layers so from Linux 6.13 on.

    Raises:
        OSError: EINVAL when the option takes no descriptor, or the file is of no use for it.
    """
    result = _fsconfig(context_fd, _FSCONFIG_SET_FD, key.encode(), None, value_fd)
    _configured(context_fd, key, result)


def fsconfig_create(context_fd: int) -> None:
    """Make the filesystem from what was configured.

    Raises:
        OSError: What the filesystem answers.
    """
    result = _fsconfig(context_fd, _FSCONFIG_CMD_CREATE, None, None, 0)
    _configured(context_fd, None, result)


def fsmount(context_fd: int, *, attributes: int = 0) -> int:
    """A detached mount of the created filesystem; the descriptor is the caller's.

    Closing the descriptor before `move_mount` unmounts it.

    Args:
        context_fd: What `fsopen` gave, after `fsconfig_create`.
        attributes: MOUNT_ATTR_* or zero.

    Raises:
        OSError: EPERM for attributes the user namespace may not leave out, EINVAL before
            `fsconfig_create`.
    """
    return _configured(context_fd, None, _fsmount(context_fd, _FSMOUNT_CLOEXEC, attributes))


def messages(context_fd: int) -> list[str]:
    """What the kernel has to say about a context, oldest first, and forget it.

    Each line is without its `e `, `w ` or `i ` for error, warning and information.
    """
    lines: list[str] = []
    while True:
        try:
            line = os.read(context_fd, _MESSAGE_SIZE)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return lines
            raise
        lines.append(os.fsdecode(line).rstrip("\n")[2:])


def _configured(context_fd: int, key: str | None, result: int) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    text = "; ".join(messages(context_fd))
    raise OSError(number, text or os.strerror(number), key)


def move_mount(mount_fd: int, target_fd: int, target: str | None = None) -> None:
    """Attach a detached mount, or move an attached one, onto the directory `target_fd`.

    Args:
        mount_fd: The mount's root.
        target_fd: The mount point.
        target: Its path, for the error's sake.

    Raises:
        OSError: EINVAL when the directory is in another mount namespace, EPERM without the right.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check(_move_mount(mount_fd, b"", target_fd, b"", flags), target)


def open_tree(dir_fd: int, name: str = "", *, flags: int = 0) -> int:
    """A descriptor of the mount at `name` in `dir_fd`, links not followed; it is the caller's.

    Args:
        dir_fd: A directory, or AT_FDCWD.
        name: A path; "" means `dir_fd` itself.
        flags: OPEN_TREE_CLONE for a detached copy (a bind mount), with AT_RECURSIVE of all below.

    Raises:
        OSError: EINVAL for a clone of a mount in another namespace or one that may not be shown
            in part, EPERM without CAP_SYS_ADMIN.
    """
    at_flags = _OPEN_TREE_CLOEXEC | (0 if name else AT_EMPTY_PATH) | _AT_SYMLINK_NOFOLLOW
    return check(_open_tree(dir_fd, os.fsencode(name), flags | at_flags), name)


def mount_setattr(
    mount_fd: int,
    *,
    attributes_set: int = 0,
    attributes_clear: int = 0,
    propagation: int = 0,
    userns_fd: int | None = None,
    recursive: bool = False,
) -> None:
    """Change a mount's attributes in one step; nothing changes when any part is refused.

    Args:
        mount_fd: The mount's root.
        attributes_set: MOUNT_ATTR_* to set. MOUNT_ATTR_IDMAP goes with `userns_fd`.
        attributes_clear: MOUNT_ATTR_* to clear.
        propagation: MS_PRIVATE, MS_SLAVE, MS_SHARED, or 0 to leave it.
        userns_fd: The user namespace whose maps an idmapped mount takes.
        recursive: Whether all mounts below are meant, too.

    Raises:
        OSError: EINVAL for what the filesystem or an attached mount cannot have, EPERM without
            the right, ENOSYS before Linux 5.12.
    """
    attr = MountAttr(attributes_set, attributes_clear, propagation, 0)
    if userns_fd is not None:
        attr.userns_fd = userns_fd
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    check(_mount_setattr(mount_fd, b"", flags, attr, ctypes.sizeof(attr)))


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str | None = None) -> None:
    """Call mount(2) itself.

    Raises:
        OSError: What mount(2) gives, with `target`.
    """
    raw = None if data is None else os.fsencode(data)
    arguments = (os.fsencode(source), os.fsencode(target), fstype.encode(), flags, raw)
    check(_mount(*arguments), target)


def umount2(target: str, flags: int = 0) -> None:
    """Unmount the topmost mount at `target`.

    Args:
        target: Its mount point.
        flags: MNT_DETACH to unmount it when its last user is gone, UMOUNT_NOFOLLOW, MNT_FORCE.

    Raises:
        OSError: EBUSY while in use, EINVAL when it is no mount point, EPERM without the right.
    """
    check(_umount2(os.fsencode(target), flags), target)


def syncfs(fd: int) -> None:
    """Write everything of the filesystem that holds `fd` to its disk.

    Raises:
        OSError: EIO, ENOSPC or EDQUOT when something could not be written.
    """
    check(_syncfs(fd))
