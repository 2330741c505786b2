"""The life of a kept view: made, found, listed, dropped.

::

    STATE/NAME/view.json     what the view is
    STATE/NAME/upper/        the changes, unless the user gave a directory for them
    STATE/NAME/work/         where they are prepared, likewise

A view is made under another name and dropped under another name, so STATE/NAME is always whole.
What a crash leaves is called `.new-…` or `.dropped-…` and swept. Where STATE is, is in `places.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from layermount.engine import locking
from layermount.errors import LayerBusyError, ViewError, ViewExistsError, ViewNotFoundError
from layermount.linux import processes
from layermount.linux.processes import ProcessIdentity
from layermount.views import places, removal
from layermount.views.dialect import dialect_of
from layermount.views.occupants import occupants
from layermount.views.view import View, read_view

_DESCRIPTION = "view.json"
_NEW, _DROPPED = ".new-", ".dropped-"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST_NAME = 200
# Marks and records of an overlay that has the directory as a layer are not the directory's own.
_FOREIGN = ("trusted.overlay.", "user.overlay.", "user.layermount.")
_NOT_HERE = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENODATA, errno.EINVAL)


def new_view(
    name: str | None, target: Path, lowers: Sequence[Path], upper: Path | None = None
) -> View:
    """A new view, findable from now on.

    Args:
        name: None for one that is found by its time.
        target: The directory it covers.
        lowers: Its lowers, nearest first.
        upper: An existing directory of the user's to take the changes; None for one of its own.

    Raises:
        ViewExistsError: The name is taken.
        ViewError: The name is none, or no place can hold the upper.
    """
    chosen = time.strftime("run-%Y%m%d-%H%M%S-") + f"{os.getpid():x}" if name is None else name
    check_name(chosen)
    if _find_place(chosen) is not None:
        raise _taken(chosen)
    place = places.usable(lowers).resolve() / chosen
    unfinished = place.with_name(f"{_NEW}{_stamp()}")
    unfinished.mkdir(mode=0o700)
    if upper is None:
        (unfinished / "upper").mkdir()
        _copy_metadata(target, unfinished / "upper")
        (unfinished / "work").mkdir()
        own_upper, own_work = place / "upper", place / "work"
    else:
        own_upper = upper.resolve()
        own_work = own_upper.parent / ".layermount-work" / own_upper.name
        own_work.mkdir(parents=True, exist_ok=True)
    view = View(
        name=chosen,
        target=str(target),
        lowers=tuple(map(str, lowers)),
        upper=str(own_upper),
        work=str(own_work),
        dialect=dialect_of(own_upper),
        created_ns=time.time_ns(),
    )
    view.write(unfinished / _DESCRIPTION)
    try:
        unfinished.rename(place)
    except OSError as error:
        removal.remove(unfinished)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _taken(chosen) from error
        raise
    return view


def _stamp() -> str:
    """What no other process puts into a name: it tells, too, whether its process still lives."""
    me = processes.identity()
    return f"{me.pid}-{me.start_time}-{os.urandom(4).hex()}"


def _taken(name: str) -> ViewExistsError:
    return ViewExistsError(
        f"a view called {name!r} is kept already",
        hint=f"drop it with `layermount discard {name}`, or choose another name",
    )


def _copy_metadata(target: Path, upper: Path) -> None:
    """The root of a view looks like the directory it covers, as far as the caller may give that."""
    status = target.stat()
    try:
        os.chown(upper, status.st_uid, status.st_gid)
    except OSError as error:
        # Without privilege, or for an owner whom this user namespace does not know, the root is
        # the caller's; what is below is not touched by this.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
    for key in os.listxattr(target):
        if not key.startswith(_FOREIGN):
            _copy_xattr(target, upper, key)
    upper.chmod(status.st_mode & 0o7777)
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_xattr(target: Path, upper: Path, key: str) -> None:
    try:
        os.setxattr(upper, key, os.getxattr(target, key))
    except OSError as error:
        # A label or an attribute that is not the caller's to give.
        if error.errno not in _NOT_HERE:
            raise


def check_name(name: str) -> None:
    """Refuse a name that cannot be a directory's, cannot be shown, or would be taken for an option.

    Raises:
        ViewError: It is no such name.
    """
    if not _is_name(name):
        raise ViewError(f"{name!r} cannot be a view's name", hint="use letters, digits, - and _")


def _is_name(name: str) -> bool:
    plain = name.isprintable() and not {"/", " "} & set(name) and bool(name)
    return plain and name[0] not in ".-" and len(os.fsencode(name)) <= _LONGEST_NAME


def describe(view: View) -> None:
    """Store what a view is, in the place of what was stored.

    Raises:
        ViewNotFoundError: It was dropped.
    """
    view.write(_get_place(view.name) / _DESCRIPTION)


def _find_place(name: str) -> Path | None:
    if not _is_name(name):
        return None
    return next((s / name for s in places.existing() if (s / name).is_dir()), None)


def _get_place(name: str) -> Path:
    place = _find_place(name)
    if place is None:
        raise ViewNotFoundError(
            f"no view is kept under {name!r}", hint="`layermount list` shows what there is"
        )
    return place


def require(name: str) -> None:
    """Nothing, if a view is kept under `name`, readable or not.

    Raises:
        ViewNotFoundError: There is none.
    """
    _get_place(name)


def find_view(name: str) -> View | None:
    """The view kept under `name`, or None.

    Raises:
        ViewError: It is there and its description cannot be read.
    """
    place = _find_place(name)
    return None if place is None else _read(place)


def get_view(name: str) -> View:
    """The view kept under `name`.

    Raises:
        ViewNotFoundError: There is none.
        ViewError: It is there and its description cannot be read.
    """
    return _read(_get_place(name))


def _read(place: Path) -> View:
    try:
        return read_view(place / _DESCRIPTION)
    except FileNotFoundError as error:
        raise ViewError(
            f"the view {place.name!r} has no description",
            hint=f"`layermount discard {place.name}` drops it with its changes",
        ) from error


def find_view_of(upper: Path) -> View | None:
    """The view whose changes are in the user's directory `upper`, or None."""
    wanted = str(upper.resolve())
    return next((view for view in views()[0] if view.upper == wanted), None)


def views() -> tuple[list[View], list[ViewError]]:
    """Every view, the oldest first, and what is wrong with those that cannot be read."""
    found, faults = [], []
    for state in places.existing():
        for name in sorted(os.listdir(state)):
            if not _is_name(name) or not (state / name).is_dir():
                continue
            try:
                found.append(_read(state / name))
            except ViewError as error:
                faults.append(error)
    return sorted(found, key=lambda view: view.created_ns), faults


def discard(name: str) -> None:
    """Drop a view with its changes, also one whose description cannot be read.

    An upper that the user gave is left as it is. A crash leaves no view that is half there.

    Raises:
        ViewNotFoundError: There is none.
        LayerBusyError: A command still runs in it.
        OSError: Something in it cannot be removed; the view is gone, and `sweep` tries again.
    """
    place = _get_place(name)
    try:
        view = _read(place)
    except ViewError:
        upper, work = place / "upper", place / "work"
    else:
        upper, work = Path(view.upper), Path(view.work)
    with _owned(upper, work, is_new=False):
        dropped = place.with_name(f"{_DROPPED}{_stamp()}")
        place.rename(dropped)
        if work.parent != place:
            _drop_work(work)
    removal.remove(dropped)


def _drop_work(work: Path) -> None:
    """Remove the work directory beside an upper of the user's, unless the upper still needs it."""
    index = work / "index"
    if index.is_dir() and any(index.iterdir()):
        return
    removal.remove(work)
    try:
        work.parent.rmdir()
    except OSError as error:
        # It may hold the work directories of other uppers, too.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


@contextlib.contextmanager
def owned(view: View) -> Iterator[None]:
    """Own a view's upper and work directory, so that nobody else changes them meanwhile.

    Raises:
        LayerBusyError: Somebody else does, or processes of an earlier command are still in it.
    """
    with _owned(Path(view.upper), Path(view.work), is_new=not view.command):
        yield


@contextlib.contextmanager
def _owned(upper: Path, work: Path, *, is_new: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for role, path in (("upper", upper), ("work", work)):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, _FLAGS)
                stack.callback(os.close, fd)
                locking.lock(fd, path, role)
        inside = [] if is_new else occupants().get(str(upper), [])
        if inside:
            pids = ", ".join(map(str, inside))
            raise LayerBusyError(
                f"processes of an earlier command still use the upper {str(upper)!r}: {pids}",
                hint="end them first",
            )
        yield


def names_in_use(kept: Sequence[View]) -> frozenset[str]:
    """Which of these views somebody owns or is in, at this moment."""
    inside = occupants()
    return frozenset(v.name for v in kept if v.upper in inside or _is_locked(Path(v.upper)))


def _is_locked(upper: Path) -> bool:
    try:
        fd = os.open(upper, _FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return False
        raise
    try:
        return locking.is_locked(fd)
    finally:
        os.close(fd)


def sweep() -> list[OSError]:
    """Remove what a crash left of views being made or dropped; the result is what resisted."""
    failures = []
    for state in places.existing():
        for name in os.listdir(state):
            if name.startswith((_NEW, _DROPPED)) and not _is_at_work(name):
                try:
                    removal.remove(state / name)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY):
                        raise
                    failures.append(error)
    return failures


def _is_at_work(name: str) -> bool:
    """Whether the process that made or drops a view, and has named it so, still lives."""
    try:
        pid, start_time, _ = name.removeprefix(_NEW).removeprefix(_DROPPED).split("-")
        return processes.is_alive(ProcessIdentity(int(pid), int(start_time)))
    except ValueError:
        return False
