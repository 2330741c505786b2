"""Which ways to show an overlay this process has, found out by doing it in a child of its own.

Versions are never asked. What is found is kept as long as the process, its user and its user
namespace are the same. Features of a filesystem are in `probe_directory.py`; what follows from a
finding is for callers to decide.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import warnings
from collections.abc import Callable

from layermount.linux import files, mounts, namespaces
from layermount.linux.finding import REFUSALS, Finding

Identity = tuple[int, int, int]

_FUSE_DEVICE = "/dev/fuse"
_USERNS_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile",
    ),
)


def overlay() -> Finding:
    """Whether this process may mount an overlay where everybody sees it."""
    return _overlay(_who())


def user_overlay() -> Finding:
    """Whether this process may mount an overlay in a user namespace of its own."""
    return _user_overlay(_who())


def fuse() -> Finding:
    """Whether this process may serve a FUSE filesystem."""
    return _fuse(_who())


@functools.cache
def _overlay(_identity: Identity) -> Finding:
    name = "overlay"
    failure = _in_child(lambda: namespaces.unshare(namespaces.CLONE_NEWNS), user_marks=False)
    if failure is None:
        return Finding(
            name, available=True, reason="an overlay was mounted with this process's privileges"
        )
    step, number = failure
    remedy = _overlay_remedy(step, number)
    if step == "namespace" and number == errno.EPERM:
        remedy = "run it as root, or with CAP_SYS_ADMIN"
    return Finding(name, available=False, reason=_reason(step, number), remedy=remedy)


@functools.cache
def _user_overlay(_identity: Identity) -> Finding:
    name = "user-overlay"
    failure = _in_child(lambda: namespaces.unshare_user(namespaces.CLONE_NEWNS), user_marks=True)
    if failure is None:
        return Finding(
            name, available=True, reason="an overlay was mounted in a new user namespace"
        )
    step, number = failure
    return Finding(
        name, available=False, reason=_reason(step, number), remedy=_user_remedy(step, number)
    )


@functools.cache
def _fuse(_identity: Identity) -> Finding:
    name = "fuse"
    try:
        os.close(os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return Finding(
            name,
            available=False,
            reason=f"{_FUSE_DEVICE}: {error.strerror}",
            remedy=_fuse_remedy(error.errno),
        )
    if overlay():
        return Finding(
            name, available=True, reason=f"{_FUSE_DEVICE} opens, and this process may mount"
        )
    helper = fusermount()
    if helper is None:
        reason = "mounting needs fusermount3, which is not in PATH or not set-user-id root"
        return Finding(name, available=False, reason=reason, remedy="install the package fuse3")
    return Finding(name, available=True, reason=f"{_FUSE_DEVICE} opens, and {helper} mounts")


def fusermount() -> str | None:
    """The path of a fusermount3 that can mount for this user, or None."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, "fusermount3")
        if os.access(path, os.X_OK):
            status = os.stat(path)
            if os.geteuid() == 0 or (status.st_uid == 0 and status.st_mode & stat.S_ISUID):
                return path
    return None


@functools.cache
def beneath() -> Finding:
    """Whether openat2(2) keeps a path beneath a directory."""
    try:
        fd = files.openat2(
            mounts.AT_FDCWD, "/", os.O_PATH | os.O_DIRECTORY, resolve=files.RESOLVE_IN_ROOT
        )
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        remedy = "Linux 5.6 or later has it; a container's seccomp profile may forbid it"
        return Finding("openat2", available=False, reason=str(error.strerror), remedy=remedy)
    os.close(fd)
    return Finding(
        "openat2", available=True, reason="the kernel resolves paths beneath a directory"
    )


def _who() -> Identity:
    # A child, another user or another namespace may get another answer.
    return os.getpid(), os.geteuid(), os.stat("/proc/self/ns/user").st_ino


def _in_child(enter: Callable[[], None], *, user_marks: bool) -> tuple[str, int] | None:
    """Mount an overlay in a child that first calls `enter`; what failed, and its errno, or None."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; this child makes system calls and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _report(enter, writer, user_marks=user_marks)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(pid, 0)
    step, _, number = text.partition(" ")
    return None if step == "done" else (step or "child", int(number or errno.EIO))


def _report(enter: Callable[[], None], writer: int, *, user_marks: bool) -> None:
    """Try all steps, write the outcome to the pipe, and end the process."""
    step = "namespace"
    try:
        enter()
        step = "propagation"
        namespaces.set_propagation()
        step = "tmpfs"
        root = _attached_tmpfs()
        step = "overlay"
        _mount_overlay_in(root, user_marks=user_marks)
        os.write(writer, b"done")
    except OSError as error:
        os.write(writer, f"{step} {error.errno}".encode())
    finally:
        # Nothing of the parent's program may run in the child, whatever was raised.
        os._exit(0)


def _attached_tmpfs() -> int:
    context = mounts.fsopen("tmpfs")
    mounts.fsconfig_create(context)
    root = mounts.fsmount(context)
    # Overlayfs takes only layers that are part of the mount namespace; "/" is surely there.
    mounts.move_mount(root, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return root


def _mount_overlay_in(root: int, *, user_marks: bool) -> None:
    for name in ("lower", "second"):
        os.mkdir(name, dir_fd=root)
    os.fchdir(root)
    context = mounts.fsopen("overlay")
    if user_marks:
        mounts.fsconfig_flag(context, "userxattr")
    mounts.fsconfig_string(context, "lowerdir", "lower:second")
    mounts.fsconfig_create(context)
    mounts.fsmount(context)


def _reason(step: str, number: int) -> str:
    tried = {
        "namespace": "making a namespace",
        "propagation": "making the mount tree private",
        "tmpfs": "mounting a tmpfs",
        "overlay": "mounting an overlay",
        "child": "the child that tries it",
    }
    return f"{tried[step]} failed: {os.strerror(number)}"


def _user_remedy(step: str, number: int) -> str | None:
    if number == errno.ENOSPC:
        return "the limit of user namespaces is reached; sysctl -w user.max_user_namespaces=10000"
    for name, forbids, remedy in _USERNS_SYSCTLS:
        if _sysctl(name) == forbids:
            return remedy
    if step == "namespace":
        return "a container's seccomp profile or a security module forbids user namespaces"
    return _overlay_remedy(step, number)


def _overlay_remedy(step: str, number: int) -> str | None:
    if number == errno.ENODEV and step == "overlay":
        return "the kernel has no overlayfs; modprobe overlay"
    if number == errno.ENOSYS:
        return "Linux 5.2 or later has the calls; a container's seccomp profile may forbid them"
    if step == "overlay":
        return "Linux 5.11 or later mounts an overlay in a user namespace"
    return None


def _fuse_remedy(number: int | None) -> str:
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "modprobe fuse; in a container, pass the device with --device /dev/fuse"
    return f"let this user read and write {_FUSE_DEVICE}"


def _sysctl(name: str) -> str | None:
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            return None
        raise
