"""The kernel's overlayfs as a host: mounted where every program sees it, at the kernel's own speed.

Needs CAP_SYS_ADMIN. A view for one process and its children, without privilege, is in
`kernel_private.py`. The overlay is made whole while nobody can see it and attached last, so a crash
before that leaves nothing; what a crash leaves after it, `rundir.sweep` unmounts.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from layermount.engine import locking
from layermount.hosts import detach, rundir
from layermount.hosts.base import Verdict
from layermount.hosts.kernel_layers import (
    Layer,
    Options,
    Settings,
    detached,
    open_layers,
)
from layermount.hosts.kernel_refusal import OpenLayer
from layermount.hosts.run_directory import source_of
from layermount.hosts.rundir import Record
from layermount.linux import mountinfo, mounts, probe_hosts, processes
from layermount.linux.processes import ProcessIdentity

__all__ = [
    "KernelMount",
    "Layer",
    "Options",
    "detach_record",
    "finish_volatile",
    "mount",
    "verdict",
]

_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOCK_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_VOLATILE = ("work", "incompat", "volatile")


class KernelMount:
    """An overlay the kernel shows. A context manager; leaving it unmounts.

    It is not tied to this object's life: an object that is forgotten leaves the mount.

    Attributes:
        name: "kernel".
        record: What the run directory says about it.
    """

    name = "kernel"

    def __init__(self, record: Record, locks: ExitStack) -> None:
        self.record = record
        self._locks = locks
        self._is_mounted = True

    @property
    def target(self) -> Path:
        """The mount point, an absolute real path."""
        return Path(self.record.target)

    @property
    def mount_id(self) -> int:
        """The kernel's number of the mount, the first field of its line in mountinfo."""
        return self.record.mount_id

    def unmount(self, *, lazy: bool = False) -> None:
        """Stop showing it; nothing happens the second time.

        A volatile upper is synced and its mark taken away; not after a lazy one, whose last user
        may still write.

        Raises:
            HostError: It is in use or covered, or this process may not; the overlay stays shown.
        """
        if not self._is_mounted:
            return
        detach_record(self.record, lazy=lazy)
        self._is_mounted = False
        self._locks.close()

    def __enter__(self) -> KernelMount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unmount()


def mount(
    target: Path,
    *,
    lowers: Sequence[Layer],
    upper: Layer | None = None,
    work: Layer | None = None,
    user_marks: bool = False,
    options: Options = Options(),  # noqa: B008  # frozen
    read_only: bool = False,
    owner: ProcessIdentity | None = None,
) -> KernelMount:
    """Show an overlay at the directory `target`, for everybody in this mount namespace.

    Layers are existing directories, as paths or as open descriptors, which stay the caller's. The
    upper and the work directory are locked as long as the result is neither unmounted nor dropped.

    Args:
        target: An existing directory; links are followed. It may be one of the layers.
        lowers: At least one; index 0 wins. The kernel takes 500.
        upper: Gets all changes; None makes a read-only overlay.
        work: On the upper's filesystem and mount, empty or used as such before.
        user_marks: Whether marks and records are `user.overlay.*` instead of `trusted.overlay.*`.
            The two kinds do not see each other: with the wrong one deleted names can come back.
        options: How the overlay behaves.
        read_only: Refuse changes although there is an upper.
        owner: The process with whose end the mount becomes stale; None for one that stays.

    Raises:
        HostError: The kernel refuses; the message says why and, where known, which layer.
        LayerBusyError: The upper or the work directory belongs to another overlay.
        LayerUnavailableError: A layer cannot be opened, or was left by a crash while volatile.
        OSError: ENOENT, ENOTDIR or EACCES for the target.
    """
    token = rundir.new_token()
    settings = Settings(
        source=source_of(token),
        user_marks=user_marks,
        read_only=read_only or upper is None,
        options=options,
    )
    with ExitStack() as stack, ExitStack() as locks:
        target_fd = os.open(target, _PATH_FLAGS)
        stack.callback(os.close, target_fd)
        layers = open_layers(stack, lowers, upper, work)
        _lock(locks, layers)
        mount_fd = detached(layers, settings)
        stack.callback(os.close, mount_fd)
        shown_at = os.readlink(f"/proc/self/fd/{target_fd}")
        record = _record(token, shown_at, mountinfo.mount_id_of(mount_fd), layers, settings, owner)
        rundir.write(record)
        locks.callback(rundir.forget, record)
        mounts.move_mount(mount_fd, target_fd, shown_at)
        return KernelMount(record, locks.pop_all())


def detach_record(record: Record, *, lazy: bool = False) -> None:
    """Unmount a mount that this or another process made, and forget it.

    Raises:
        HostError: It is in use or covered, or this process may not; the overlay stays shown.
    """
    try:
        detach.unmount(record.target, record.mount_id, record.source, lazy=lazy)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EPERM):
            raise
        raise detach.stays(record.target, record.mount_id, error) from error
    if record.volatile and not lazy and record.upper is not None and record.work is not None:
        finish_volatile(Path(record.upper), Path(record.work))
    rundir.forget(record)


def finish_volatile(upper: Path, work: Path) -> None:
    """Sync an upper that was mounted volatile, and take its mark away; nothing if there is none.

    Only after the overlay was unmounted and nothing went wrong. A crash in between leaves the mark.

    Raises:
        OSError: EIO, ENOSPC or EDQUOT when something could not be written; the mark stays.
    """
    mark = work
    try:
        for name in _VOLATILE:
            # The kernel makes each with mode 0, which its owner could not enter.
            mark /= name
            mark.chmod(0o700)
    except FileNotFoundError:
        return
    fd = os.open(upper, _LOCK_FLAGS)
    try:
        mounts.syncfs(fd)
    finally:
        os.close(fd)
    (mark / "dirty").unlink(missing_ok=True)
    mark.rmdir()
    mark.parent.rmdir()


def verdict() -> Verdict:
    """Whether this process may mount an overlay where everybody sees it."""
    found = probe_hosts.overlay()
    return Verdict("kernel", found.available, found.reason, found.remedy)


def _lock(locks: ExitStack, layers: Sequence[OpenLayer]) -> None:
    """Keep other overlays of ours, in whatever host, from the upper and the work directory."""
    for layer in layers:
        if layer.key in ("upperdir", "workdir"):
            fd = os.open(f"/proc/self/fd/{layer.fd}", _LOCK_FLAGS)
            locks.callback(os.close, fd)
            locking.lock(fd, Path(layer.path), layer.role.split(" ")[0])


def _record(
    token: str,
    target: str,
    mount_id: int,
    layers: Sequence[OpenLayer],
    settings: Settings,
    owner: ProcessIdentity | None,
) -> Record:
    mount_namespace, pid_namespace, boot = rundir.place()
    paths = {layer.key: layer.path for layer in layers}
    return Record(
        token=token,
        host=KernelMount.name,
        target=target,
        mount_id=mount_id,
        fstype="overlay",
        source=settings.source,
        lowers=tuple(layer.path for layer in layers if layer.key == "lowerdir+"),
        upper=paths.get("upperdir"),
        work=paths.get("workdir"),
        volatile="volatile" in settings.flags(),
        owner=owner,
        writer=processes.identity(),
        mount_namespace=mount_namespace,
        pid_namespace=pid_namespace,
        boot=boot,
        created_ns=time.time_ns(),
    )
