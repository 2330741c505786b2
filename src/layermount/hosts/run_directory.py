"""Where the run directory is, and who may use it. What is kept in it is in `rundir.py`."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from layermount.errors import HostError

_EMPTY = "empty"


def directory() -> Path:
    """The run directory, made when missing.

    $LAYERMOUNT_RUN_DIR, else /run/layermount for root, else $XDG_RUNTIME_DIR/layermount, else
    /tmp/layermount-UID.

    Raises:
        HostError: It is a link, belongs to somebody else, or others may write to it.
        OSError: It cannot be made.
    """
    path = _location()
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        fault = "is not a directory"
    elif status.st_uid != os.geteuid():
        fault = f"belongs to user {status.st_uid}"
    elif status.st_mode & 0o022:
        fault = f"may be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return path
    raise HostError(f"the run directory {str(path)!r} {fault}", hint="set LAYERMOUNT_RUN_DIR")


def empty_directory() -> Path:
    """A directory that stays empty, for an overlay that needs one lower more."""
    path = directory() / _EMPTY
    path.mkdir(mode=0o500, exist_ok=True)
    return path


@contextlib.contextmanager
def socket_path(token: str) -> Iterator[str]:
    """Where the control socket of a mount is, short enough for an address; valid inside the `with`.

    It is `TOKEN.sock` in the run directory; the path leads there whatever the directory is called.
    """
    fd = os.open(directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{token}.sock"
    finally:
        os.close(fd)


def source_of(token: str) -> str:
    """What a mount with that token has as its source."""
    return f"layermount:{token}"


def _location() -> Path:
    given = os.environ.get("LAYERMOUNT_RUN_DIR")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/layermount")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "layermount"
    return Path(f"/tmp/layermount-{os.geteuid()}")  # noqa: S108  # owner and mode are checked
