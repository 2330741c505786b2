"""The kernel's overlayfs seen by one process and what it starts, and by nobody else.

For this the process leaves its mount namespace, without privilege its user namespace too, and sees
the overlay over a directory, often the lower itself: inside every path is what it is outside. It
all ends with the last process in the namespace, however it ends, so there is nothing to sweep.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from layermount.errors import (
    HostError,
    HostUnavailableError,
    LayerChangedError,
    LayerUnavailableError,
)
from layermount.hosts.base import Verdict
from layermount.hosts.kernel_layers import Layer, Options, Settings, detached, open_layers
from layermount.hosts.run_directory import source_of
from layermount.linux import mounts, namespaces

__all__ = ["Layer", "Options", "enter", "verdict"]

_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def enter(
    target: Path,
    *,
    lowers: Sequence[Layer],
    upper: Layer | None = None,
    work: Layer | None = None,
    user_marks: bool,
    options: Options = Options(),  # noqa: B008  # frozen
    read_only: bool = False,
) -> None:
    """Put the calling process into a mount namespace with an overlay over `target`.

    The process must have one thread: a freshly forked child. Its working directory is entered anew,
    so it is the overlay's where it lies in `target`. After an error it is in neither the old nor a
    useful state and must end. Mounts made outside later are seen inside, not the other way round.

    Nothing is locked: who starts the process holds the locks of the upper and the work directory.
    After a volatile run, `kernel.finish_volatile` is the caller's, too.

    Args:
        target: An existing directory, often one of the lowers.
        lowers: At least one; index 0 wins.
        upper: Gets all changes; None makes a read-only overlay.
        work: On the upper's filesystem and mount, empty or used as such before.
        user_marks: Whether marks and records are `user.overlay.*`. True works with and without
            privilege; False needs CAP_SYS_ADMIN.
        options: How the overlay behaves.
        read_only: Refuse changes although there is an upper.

    Raises:
        HostUnavailableError: This user can have no such namespace; the message says why.
        HostError: The kernel refuses the overlay; the message says why.
        LayerUnavailableError: A layer cannot be opened.
        LayerChangedError: A directory was exchanged meanwhile.
        OSError: ENOENT, ENOTDIR or EACCES for the target or the working directory.
    """
    settings = Settings(
        source=source_of("private"),
        user_marks=user_marks,
        read_only=read_only or upper is None,
        options=options,
    )
    working_directory = os.getcwd()
    # The kernel takes no directory that was opened before, in the namespace left behind.
    places = [_place(layer) for layer in (*lowers, upper, work) if layer is not None]
    mount_point = _Place(*_identity(target), os.path.realpath(target))
    _leave(user_marks=user_marks)
    with ExitStack() as stack:
        fds = [_open_again(stack, place) for place in places]
        lower_fds, sides = fds[: len(lowers)], iter(fds[len(lowers) :])
        upper_fd = None if upper is None else next(sides)
        work_fd = None if work is None else next(sides)
        layers = open_layers(stack, lower_fds, upper_fd, work_fd)
        mount_fd = detached(layers, settings)
        stack.callback(os.close, mount_fd)
        mounts.move_mount(mount_fd, _open_again(stack, mount_point), mount_point.path)
    os.chdir(working_directory)


def verdict() -> Verdict:
    """Whether this process may have an overlay of its own, with user marks."""
    from layermount.linux import probe_hosts  # noqa: PLC0415  a run that works needs no probe

    found = probe_hosts.overlay() or probe_hosts.user_overlay()
    return Verdict("kernel", found.available, found.reason, found.remedy)


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory that can be found again: its identity and its path."""

    device: int
    inode: int
    path: str


def _place(layer: Layer) -> _Place:
    link = Path(f"/proc/self/fd/{layer}") if isinstance(layer, int) else layer
    try:
        return _Place(*_identity(layer), os.path.realpath(link))
    except OSError as error:
        reason = f"cannot open layer {str(layer)!r}: {error.strerror}"
        raise LayerUnavailableError(reason) from error


def _identity(directory: Layer) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_dev, status.st_ino


def _open_again(stack: ExitStack, place: _Place) -> int:
    fd = os.open(place.path, _PATH_FLAGS)
    stack.callback(os.close, fd)
    if _identity(fd) != (place.device, place.inode):
        raise LayerChangedError(f"{place.path!r} became another directory meanwhile")
    return fd


def _leave(*, user_marks: bool) -> None:
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        if not user_marks:
            raise _unavailable(as_user=False) from error
        _leave_as_user()
    namespaces.set_propagation()


def _leave_as_user() -> None:
    try:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise HostError(
                "no user namespace can be had: the process has several threads",
                hint="enter it in a freshly forked child",
            ) from error
        raise _unavailable(as_user=True) from error


def _unavailable(*, as_user: bool) -> HostUnavailableError:
    from layermount.linux import probe_hosts  # noqa: PLC0415  a run that works needs no probe

    found = probe_hosts.user_overlay() if as_user else probe_hosts.overlay()
    return HostUnavailableError(f"no mount namespace can be had: {found.reason}", hint=found.remedy)
