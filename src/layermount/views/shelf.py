"""The places where views are kept, and the life of a view: made, found, listed, dropped.

::

    STATE/NAME/view.json     what the view is; written last when it is made
    STATE/NAME/upper/        the changes
    STATE/NAME/work/

A view whose directory has no `view.json` is not there: it is being made, or being dropped. STATE is
`$LAYERMOUNT_STATE_DIR`, else `$XDG_STATE_HOME/layermount/views` (`~/.local/state/…`). A directory that
contains STATE cannot be a lower of a view kept there, so such a view is kept under
`/var/tmp/layermount-UID/views`. Both are looked through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from layermount.engine import locking, work
from layermount.errors import ViewError, ViewExistsError, ViewNotFoundError
from layermount.linux import probe_directory
from layermount.views.view import View, read_view

_DESCRIPTION = "view.json"
_DROPPED = ".dropped-"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def state_directories() -> list[Path]:
    """The places, in the order in which they are tried; they need not exist."""
    given = os.environ.get("LAYERMOUNT_STATE_DIR")
    if given:
        return [Path(given).absolute()]
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return [Path(state, "layermount", "views"), Path(f"/var/tmp/layermount-{os.getuid()}/views")]  # noqa: S108  made with mode 0700 and checked


def new_view(
    name: str | None, target: Path, lowers: Sequence[Path], *, dialect: str, upper: Path | None
) -> View:
    """A new view with an empty upper, findable from now on.

    Args:
        name: None for one that is found by its time.
        target: The directory it covers.
        lowers: Its lowers, nearest first.
        dialect: How its marks are kept.
        upper: A directory of the user's to take the changes; None for one of the view's own.

    Raises:
        ViewExistsError: The name is taken.
        ViewError: The name is none, or no place can hold the upper.
    """
    chosen = time.strftime("run-%Y%m%d-%H%M%S-") + f"{os.getpid():x}" if name is None else name
    check_name(chosen)
    if find_view(chosen) is not None:
        raise ViewExistsError(
            f"a view called {chosen!r} is kept already",
            hint=f"drop it with `layermount discard {chosen}`, or choose another name",
        )
    place = _usable_place(lowers) / chosen
    place.mkdir(mode=0o700, exist_ok=True)
    own_upper = place / "upper" if upper is None else upper.absolute()
    if upper is None:
        own_upper.mkdir(exist_ok=True)
        shutil.copystat(target, own_upper)
        _copy_owner(target, own_upper)
        own_work = place / "work"
    else:
        own_work = own_upper.parent / ".layermount-work" / own_upper.name
    own_work.mkdir(parents=True, exist_ok=True)
    view = View(
        name=chosen,
        target=str(target),
        lowers=tuple(map(str, lowers)),
        upper=str(own_upper),
        work=str(own_work),
        dialect=dialect,
        created_ns=time.time_ns(),
    )
    describe(view)
    return view


def _copy_owner(target: Path, upper: Path) -> None:
    """The root of a view belongs to whom its directory belongs, where that can be given."""
    status = target.stat()
    try:
        os.chown(upper, status.st_uid, status.st_gid)
    except PermissionError:
        # Without privilege the view's root is the caller's; what is below is not touched by this.
        return


def check_name(name: str) -> None:
    """Refuse a name that cannot be a directory's, or that would be taken for an option.

    Raises:
        ViewError: It is no such name.
    """
    plain = name and "/" not in name and "\0" not in name and len(os.fsencode(name)) <= 200
    if not plain or name.startswith((".", "-")):
        raise ViewError(f"{name!r} cannot be a view's name", hint="use letters, digits, - and _")


def describe(view: View) -> None:
    """Store what a view is."""
    view.write(directory_of(view.name) / _DESCRIPTION)


def directory_of(name: str) -> Path:
    """The directory that a view has, or is being made in."""
    for state in state_directories():
        if (state / name).is_dir():
            return state / name
    raise ViewNotFoundError(f"no view is kept under {name!r}", hint="`layermount list` has them")


def find_view(name: str) -> View | None:
    """The view kept under `name`, or None."""
    for state in state_directories():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_view(state / name / _DESCRIPTION)
    return None


def get_view(name: str) -> View:
    """The view kept under `name`.

    Raises:
        ViewNotFoundError: There is none.
    """
    view = find_view(name)
    if view is None:
        raise ViewNotFoundError(
            f"no view is kept under {name!r}", hint="`layermount list` shows what there is"
        )
    return view


def views() -> list[View]:
    """Every view, the oldest first."""
    found = []
    for state in state_directories():
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(state):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found.append(read_view(state / name / _DESCRIPTION))
    return sorted(found, key=lambda view: view.created_ns)


def discard(view: View) -> None:
    """Drop a view with its changes. An upper the user gave is left as it is.

    The description goes first, so that a crash leaves no view that is half there.

    Raises:
        LayerBusyError: A command still runs in it.
    """
    with owned(view):
        place = directory_of(view.name)
        (place / _DESCRIPTION).unlink(missing_ok=True)
        dropped = place.with_name(f"{_DROPPED}{place.name}-{os.getpid():x}")
        place.rename(dropped)
    work.remove_path(dropped)


@contextlib.contextmanager
def owned(view: View) -> Iterator[None]:
    """Own a view's upper and work directory, so that nobody else changes them meanwhile.

    Raises:
        LayerBusyError: Somebody else does.
    """
    with ExitStack() as stack:
        for role, path in (("upper", Path(view.upper)), ("work", Path(view.work))):
            fd = os.open(path, _FLAGS)
            stack.callback(os.close, fd)
            locking.lock(fd, path, role)
        yield


def is_in_use(view: View) -> bool:
    """Whether somebody owns the view at this moment."""
    fd = os.open(view.upper, _FLAGS)
    try:
        return locking.is_locked(fd)
    finally:
        os.close(fd)


def sweep() -> None:
    """Remove what a crash left of views that were being dropped."""
    for state in state_directories():
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(state):
                if name.startswith(_DROPPED):
                    work.remove_path(state / name)


def _usable_place(lowers: Sequence[Path]) -> Path:
    """The first place that lies in none of the lowers and can hold an upper."""
    reasons = []
    for state in state_directories():
        inside = next((lower for lower in lowers if _contains(lower, state)), None)
        if inside is not None:
            reasons.append(f"{str(state)!r} lies inside the lower {str(inside)!r}")
            continue
        reason = _why_unusable(state)
        if reason is None:
            return state
        reasons.append(f"{str(state)!r}: {reason}")
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
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = state.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "it belongs to somebody else, or others may write to it"
        fd = os.open(state, _FLAGS)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM, errno.ENOENT):
            return os.strerror(error.errno)
        raise
    try:
        findings = probe_directory.directory(fd)
    finally:
        os.close(fd)
    for finding in (findings.whiteout_device, findings.user_xattrs, findings.rename_whiteout):
        if not finding:
            return f"{finding.name.replace('_', ' ')}: {finding.reason}"
    return None
