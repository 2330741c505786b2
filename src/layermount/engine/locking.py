"""One owner for an upper and a work directory, and layers that do not contain each other.

The lock is flock(2) on the directories themselves: it ends with the process that holds it, however
that ends, and leaves no file behind. Rules: L1 to L4.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from layermount.errors import ConfigError, LayerBusyError
from layermount.linux import mountinfo

_Place = tuple[str, PurePosixPath]
_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_UNUSABLE = (
    errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG,
)  # fmt: skip


def lock(fd: int, path: Path, role: str) -> None:
    """Become the only owner of a directory until `fd` is closed.

    Raises:
        LayerBusyError: Somebody else is; the message names the process where it can be known.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        owner = _owner(fd)
        raise LayerBusyError(
            f"{role} directory {str(path)!r} is in use by {owner}",
            hint="close the other overlay first, or use another upper and work directory",
        ) from error
    _refuse_mounted(fd, path, role)


def _refuse_mounted(fd: int, path: Path, role: str) -> None:
    """The kernel's overlays hold no lock; those of this mount namespace are in mountinfo."""
    wanted = os.fstat(fd)
    for mount in mountinfo.overlays():
        layers = mountinfo.overlay_layers(mount)
        for used in filter(None, (layers.upper, layers.work)):
            if used.startswith("/proc/"):
                # Named by a descriptor of whoever mounted it; here it would be one of ours.
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                if os.path.samestat(os.stat(used), wanted):
                    raise LayerBusyError(
                        f"{role} directory {str(path)!r} is in use by the overlay mounted at "
                        f"{mount.target!r}",
                        hint="unmount that first",
                    )


def is_locked(fd: int) -> bool:
    """Whether a process that this one can see owns a directory at this moment.

    It looks and does not try: trying would for a moment keep others out.
    """
    return _holder(fd) is not None


def _owner(fd: int) -> str:
    pid = _holder(fd)
    return "another process" if pid is None else _describe(pid)


def _holder(fd: int) -> int | None:
    """The process that holds the lock, as /proc/locks tells it."""
    status = os.fstat(fd)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
            return int(fields[4])
    return None


def _describe(pid: int) -> str:
    if pid == os.getpid():
        return "this process"
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid}"
    return f"process {pid} ({name})"


def refuse_overlap(layers: Sequence[tuple[str, Path]]) -> None:
    """Refuse a layer that is another one, or lies inside another one.

    What is changed through one would show, or vanish, in the other. Compared is where directories
    are in their filesystems, so that bind mounts deceive nobody, and what is merely mounted inside
    a layer is not taken for a part of it.

    Args:
        layers: (what it is called in messages, path) of upper, work directory and lowers. One that
            does not exist yet is compared by where it would be.

    Raises:
        ConfigError: Two of them overlap.
    """
    mounted = {mount.mount_id: mount for mount in mountinfo.mounts()}
    places = [(name, path, _place(path, mounted)) for name, path in layers]
    known: dict[_Place, str] = {}
    for name, path, place in places:
        if place in known:
            raise ConfigError(f"{name} and {known[place]} are the same directory, {str(path)!r}")
        if place is not None:
            known[place] = name
    for name, path, place in places:
        device, inside = place or ("", PurePosixPath())
        outer = next((known[device, p] for p in inside.parents if (device, p) in known), None)
        if outer is not None:
            raise ConfigError(f"{name} {str(path)!r} lies inside {outer}")


def _place(path: Path, mounted: Mapping[int, mountinfo.Mount]) -> _Place | None:
    """Where a directory is, or will be: its filesystem, and the path in that; None if unusable."""
    try:
        fd = os.open(path, _PATH_FLAGS)
    except FileNotFoundError:
        above = _place(path.parent, mounted) if path.name else None
        return None if above is None else (above[0], above[1] / path.name)
    except OSError as error:
        if error.errno in _UNUSABLE:
            return None
        raise
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        mount = mounted.get(mountinfo.mount_id_of(fd))
        if mount is None:
            # Its mount point is outside this process's root.
            return f"device {os.fstat(fd).st_dev}", PurePosixPath(real)
        return mount.device, PurePosixPath(mount.root, os.path.relpath(real, mount.target))
    finally:
        os.close(fd)
