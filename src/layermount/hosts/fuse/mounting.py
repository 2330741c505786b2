"""A FUSE filesystem at a directory: how it is attached there and taken away again.

With the right to mount the mount is made whole while nobody can see it and attached last. Anybody
else has fusermount3(1) do it, which hands the device over a socket. Serving the device is in
`session.py`; the life around it is in `life.py`.

Sources: mount(8) and Documentation/filesystems/fuse.rst for the options, fusermount3(1), and
lib/mount.c of libfuse for `_FUSE_COMMFD`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from layermount.errors import HostError, HostUnavailableError
from layermount.hosts import detach
from layermount.hosts.base import Verdict
from layermount.linux import mountinfo, mounts

FSTYPE = "fuse.layermount"
#: The number of a mount that somebody else is about to make.
UNKNOWN = 0

_SUBTYPE = "layermount"
_DEVICE = "/dev/fuse"
_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_US = (errno.EPERM, errno.EACCES)
_MESSAGE_SIZE = 8192


class Settings(NamedTuple):
    """How the filesystem is mounted.

    Attributes:
        source: Its source in mountinfo.
        allow_other: Let every user in; without it only the one who mounts it, not even root.
        read_only: Refuse every change.
        restricted: Ignore set-user-id bits and device nodes; fusermount3 lets only root refuse it.
    """

    source: str
    allow_other: bool = False
    read_only: bool = False
    restricted: bool = False

    def flags(self) -> list[str]:
        """The filesystem's options without a value."""
        wanted = {"default_permissions": True, "allow_other": self.allow_other}
        return [key for key, on in wanted.items() if on]

    def attributes(self) -> list[tuple[str, int, int]]:
        """What the mount is, as (name, flag of fsmount(2), flag of mount(2))."""
        wanted = [
            (self.read_only, ("ro", mounts.MOUNT_ATTR_RDONLY, mounts.MS_RDONLY)),
            (self.restricted, ("nosuid", mounts.MOUNT_ATTR_NOSUID, mounts.MS_NOSUID)),
            (self.restricted, ("nodev", mounts.MOUNT_ATTR_NODEV, mounts.MS_NODEV)),
        ]
        return [attribute for on, attribute in wanted if on]


class Attached(NamedTuple):
    """A mounted filesystem that nobody serves yet.

    Attributes:
        device_fd: What its requests come from; the caller's to close.
        target: The mount point, an absolute real path.
        mount_id: The kernel's number of the mount.
    """

    device_fd: int
    target: str
    mount_id: int


def attach(target: Path, settings: Settings, announce: Callable[[str, int], object]) -> Attached:
    """Mount a FUSE filesystem at the directory `target`, links followed.

    Whoever looks into it waits until its device is served.

    Args:
        target: An existing directory.
        settings: How.
        announce: Called just before it is attached, with the mount point and the number the mount
            will have, or UNKNOWN.

    Raises:
        HostUnavailableError: This user cannot have a FUSE filesystem; the message says why.
        HostError: The kernel or fusermount3 refuses; the message says why.
        OSError: ENOENT, ENOTDIR, EACCES or ENOTCONN for the target.
    """
    with ExitStack() as stack, ExitStack() as device:
        target_fd = os.open(target, _PATH_FLAGS)
        stack.callback(os.close, target_fd)
        shown_at = os.readlink(f"/proc/self/fd/{target_fd}")
        context, is_old = _context(stack)
        if context is not None:
            device_fd, mount_fd = _detached(stack, device, context, settings)
            number = mountinfo.mount_id_of(mount_fd)
            announce(shown_at, number)
            _attach_detached(mount_fd, target_fd, shown_at)
        else:
            announce(shown_at, UNKNOWN)
            by_call = _by_call(device, target_fd, settings) if is_old else None
            device_fd = _by_helper(device, shown_at, settings) if by_call is None else by_call
            number = _number(shown_at, settings.source)
        device.pop_all()
        return Attached(device_fd, shown_at, number)


def unmount(target: str, mount_id: int, source: str, *, lazy: bool) -> None:
    """Unmount that very mount, also one that nobody serves; it is fine when it is gone already.

    Raises:
        OSError: EBUSY while it is in use or something else is mounted over it, EPERM without the
            right.
    """
    number = mount_id
    if number == UNKNOWN:
        found = _find(target, source)
        if found is None:
            return
        number = found.mount_id
    try:
        detach.unmount(target, number, source, lazy=lazy)
    except PermissionError:
        helper = _helper()
        if helper is None:
            raise
        _unmount_by_helper(helper, target, lazy=lazy)


def verdict() -> Verdict:
    """Whether this process may serve a FUSE filesystem."""
    from layermount.linux import probe_hosts  # noqa: PLC0415  a mount that works needs no probe

    found = probe_hosts.fuse()
    return Verdict("fuse", found.available, found.reason, found.remedy)


def _context(stack: ExitStack) -> tuple[int | None, bool]:
    """A context to configure, None without the right; and whether the kernel is too old for one."""
    try:
        context = mounts.fsopen("fuse")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise _unavailable("the kernel has no FUSE", "modprobe fuse") from error
        if error.errno in (*_NOT_US, errno.ENOSYS):
            return None, error.errno == errno.ENOSYS
        raise
    stack.callback(os.close, context)
    return context, False


def _detached(
    stack: ExitStack, device: ExitStack, context: int, settings: Settings
) -> tuple[int, int]:
    device_fd = _open_device(device)
    try:
        for key, value in (("source", settings.source), ("subtype", _SUBTYPE)):
            mounts.fsconfig_string(context, key, value)
        for key, value in _identity(device_fd):
            mounts.fsconfig_string(context, key, value)
        for key in [*settings.flags(), *(["ro"] if settings.read_only else [])]:
            mounts.fsconfig_flag(context, key)
        mounts.fsconfig_create(context)
        attributes = sum(flag for _, flag, _ in settings.attributes())
        mount_fd = mounts.fsmount(context, attributes=attributes)
    except OSError as error:
        raise HostError(f"the kernel refuses a FUSE filesystem: {error.strerror}") from error
    stack.callback(os.close, mount_fd)
    return device_fd, mount_fd


def _attach_detached(mount_fd: int, target_fd: int, shown_at: str) -> None:
    try:
        mounts.move_mount(mount_fd, target_fd, shown_at)
    except OSError as error:
        raise HostError(f"cannot mount at {shown_at!r}: {error.strerror}") from error


def _by_call(device: ExitStack, target_fd: int, settings: Settings) -> int | None:
    """With mount(2), for kernels before 5.2; None without the right."""
    device_fd = _open_device(device)
    values = [f"{key}={value}" for key, value in _identity(device_fd)]
    data = ",".join([*values, *settings.flags()])
    flags = sum(flag for _, _, flag in settings.attributes())
    try:
        mounts.mount(settings.source, f"/proc/self/fd/{target_fd}", FSTYPE, flags, data)
    except OSError as error:
        if error.errno in _NOT_US:
            return None
        raise HostError(f"the kernel refuses a FUSE filesystem: {error.strerror}") from error
    return device_fd


def _identity(device_fd: int) -> list[tuple[str, str]]:
    """Device, kind of the root, and who may see it: the user and group that mount it."""
    return [
        ("fd", str(device_fd)),
        ("rootmode", f"{stat.S_IFDIR:o}"),
        ("user_id", str(os.geteuid())),
        ("group_id", str(os.getegid())),
    ]


def _by_helper(device: ExitStack, target: str, settings: Settings) -> int:
    helper = _helper()
    if helper is None:
        found = verdict()
        raise _unavailable(found.reason, found.remedy)
    names = [name for name, _, _ in settings.attributes()]
    if not settings.restricted:
        # Its own default is the other way round.
        names += ["suid", "dev"]
    named = [f"fsname={settings.source}", f"subtype={_SUBTYPE}"]
    options = ",".join([*named, *settings.flags(), *names])
    import socket  # noqa: PLC0415  an end of a mount is to be fast, and needs none

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            number = theirs.fileno()
            arguments = ("-o", options, "--", target)
            answer = _started(helper, arguments, {"_FUSE_COMMFD": str(number)}, (number,))
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    for fd in fds:
        device.callback(os.close, fd)
    text = answer()
    if not fds:
        raise _helper_refused(target, text or "it gave no reason")
    # recv_fds() takes it without; it is for no other program.
    fcntl.fcntl(fds[0], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return fds[0]


def _helper_refused(target: str, text: str) -> HostError:
    if _DEVICE in text:
        found = verdict()
        return _unavailable(text, found.remedy)
    return HostError(f"cannot mount at {target!r}: {text}")


def _unmount_by_helper(helper: str, target: str, *, lazy: bool) -> None:
    flags = ("-u", "-z") if lazy else ("-u",)
    text = _started(helper, (*flags, "--", target), {}, ())()
    if text:
        busy = text.endswith(os.strerror(errno.EBUSY))
        number = errno.EBUSY if busy else errno.EPERM
        raise OSError(number, os.strerror(number) if busy else text, target)


def _started(
    helper: str, arguments: Sequence[str], extra: dict[str, str], kept: Sequence[int]
) -> Callable[[], str]:
    """Start fusermount3; the result waits for its end and says what went wrong, "" for nothing."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            helper,
            ["fusermount3", *arguments],
            # Its messages are read here, so they are to be in one language.
            {**os.environ, "LC_ALL": "C", **extra},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept]
            + [(os.POSIX_SPAWN_DUP2, writer, 2)],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGCHLD),
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)

    def answer() -> str:
        with os.fdopen(reader, "rb") as pipe:
            lines = os.fsdecode(pipe.read()).splitlines()
        text = "; ".join(line.removeprefix("fusermount3: ") for line in lines)
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            # This process ignores the ends of its children; what fails says so.
            return text
        return "" if status == 0 else text or f"fusermount3 ended with status {status}"

    return answer


def _helper() -> str | None:
    from layermount.linux import probe_hosts  # noqa: PLC0415  root needs no helper

    return probe_hosts.fusermount()


def _open_device(device: ExitStack) -> int:
    try:
        device_fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        found = verdict()
        raise _unavailable(f"{_DEVICE}: {error.strerror}", found.remedy) from error
    device.callback(os.close, device_fd)
    return device_fd


def _find(target: str, source: str) -> mountinfo.Mount | None:
    wanted = (target, FSTYPE, source)
    found = (m for m in mountinfo.mounts() if (m.target, m.fstype, m.source) == wanted)
    return next(found, None)


def _number(target: str, source: str) -> int:
    found = _find(target, source)
    if found is None:
        raise HostError(f"what was mounted at {target!r} was unmounted at once")
    return found.mount_id


def _unavailable(reason: str, remedy: str | None) -> HostUnavailableError:
    return HostUnavailableError(f"no FUSE filesystem can be had: {reason}", hint=remedy)
