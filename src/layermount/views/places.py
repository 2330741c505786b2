"""The directories in which views are kept, and whether one can be trusted and can hold an upper.

STATE is `$LAYERMOUNT_STATE_DIR`, else `$XDG_STATE_HOME/layermount/views` (`~/.local/state/…`). A
directory that contains STATE cannot be a lower of a view kept there, so such a view is kept under
`/var/tmp/layermount-UID/views`. Both are looked through. What is in them is for `shelf.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from layermount.errors import ViewError
from layermount.linux import probe_directory

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SHARED = "/var/tmp"  # noqa: S108  what is below it is checked
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP),
)
_HINT = "set LAYERMOUNT_STATE_DIR to a directory of your own"


def state_directories() -> list[Path]:
    """The places, in the order in which they are tried; they need not exist."""
    given = os.environ.get("LAYERMOUNT_STATE_DIR")
    if given:
        return [Path(given).absolute()]
    found = [Path(_SHARED, f"layermount-{os.getuid()}", "views")]
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    # The specification has a relative path ignored; without a home there is a "~" left.
    if os.path.isabs(state):
        found.insert(0, Path(state, "layermount", "views"))
    return found


def existing() -> list[Path]:
    """The places that are there and that nobody else could have put anything into.

    Raises:
        ViewError: There is just one to look in, and it is not to be trusted.
    """
    states = state_directories()
    faults = [_distrust(state) for state in states]
    if len(states) == 1 and faults[0] is not None:
        raise ViewError(f"{str(states[0])!r} {faults[0]}", hint=_HINT)
    found = zip(states, faults, strict=True)
    return [state for state, fault in found if fault is None and state.is_dir()]


def usable(lowers: Sequence[Path]) -> Path:
    """The first place that lies in none of the lowers and can hold an upper; made when missing.

    Raises:
        ViewError: There is none; the message says why for each.
    """
    reasons = []
    for state in state_directories():
        inside = next((lower for lower in lowers if _contains(lower, state)), None)
        if inside is None:
            reason = _why_unusable(state)
            if reason is None:
                return state
        else:
            reason = f"lies inside the lower {str(inside)!r}"
        reasons.append(f"{str(state)!r} {reason}")
    raise ViewError(
        "no place to keep the changes: " + "; ".join(reasons),
        hint="set LAYERMOUNT_STATE_DIR to a directory outside the lowers, or give --upper",
    )


def _contains(lower: Path, state: Path) -> bool:
    """Whether the lower shows `state`: above it, and on the same filesystem."""
    real = state.resolve()
    above = next(path for path in (real, *real.parents) if path.exists())
    return real.is_relative_to(lower.resolve()) and above.stat().st_dev == lower.stat().st_dev


def _why_unusable(state: Path) -> str | None:
    try:
        if not state.parent.is_dir():
            state.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        fault = _distrust(state)
        if fault is not None:
            return fault
        fd = os.open(state, _FLAGS)
    except OSError as error:
        if error.errno in _UNUSABLE:
            return f"cannot be used: {error.strerror}"
        raise
    try:
        findings = probe_directory.directory(fd)
    except OSError as error:
        if error.errno in _UNUSABLE:
            return f"cannot be written to: {error.strerror}"
        raise
    finally:
        os.close(fd)
    for finding in (findings.whiteout_device, findings.user_xattrs, findings.rename_whiteout):
        if not finding:
            return f"cannot hold an upper: {finding.name.replace('_', ' ')}: {finding.reason}"
    return None


def _distrust(state: Path) -> str | None:
    """Why what is in a place may be somebody else's, or None; what is not there is nobody's."""
    checked = [state]
    if state.parent.parent == Path(_SHARED):
        # Whoever owns the directory above can exchange the one below.
        checked.insert(0, state.parent)
    for path in checked:
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(status.st_mode) and path is state:
            status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return "is no directory"
        if status.st_uid != os.getuid():
            return f"belongs to user {status.st_uid}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"may be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
