"""Trees as data: written to disk, read back with everything that can be seen, compared, digested.

What a tree goes through in between does not belong here.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from layermount.layer.base import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SOCKET,
    WHITEOUT,
)
from layermount.layer.marks import OCI_OPAQUE, OCI_PREFIX, OVERLAY, KernelMarks, Marks, OciMarks

#: Modification time of what says nothing else: long ago, so that every later change shows.
LONG_AGO_NS = 1_000_000_000 * 10**9


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry to build; made by the functions below.

    Attributes:
        kind: `st_mode >> 12`, or WHITEOUT for a mark.
        data: Bytes of a file, the target of a symbolic link.
        mode: The twelve low bits; None leaves what the umask gives.
        owner: (uid, gid), None leaves the caller's.
        xattrs: Attributes by the name that an overlay over the layer shows.
        mtime_ns: Modification time.
        device: Number of a device node.
        opaque: The directory hides its namesakes in deeper layers.
        same_as: Path of the file that this is another name of.
    """

    kind: int
    data: bytes = b""
    mode: int | None = None
    owner: tuple[int, int] | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    mtime_ns: int = LONG_AGO_NS
    device: int = 0
    opaque: bool = False
    same_as: str | None = None


#: Path without a leading slash to entry; directories on the way need no entry of their own.
Tree = Mapping[str, Entry]


def file(
    data: bytes = b"",
    *,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
    xattrs: Mapping[str, bytes] | None = None,
    mtime_ns: int = LONG_AGO_NS,
) -> Entry:
    """A regular file."""
    return Entry(REGULAR, data, mode, owner, xattrs or {}, mtime_ns)


def directory(
    *,
    mode: int = 0o755,
    owner: tuple[int, int] | None = None,
    xattrs: Mapping[str, bytes] | None = None,
    mtime_ns: int = LONG_AGO_NS,
    opaque: bool = False,
) -> Entry:
    """A directory."""
    return Entry(DIRECTORY, b"", mode, owner, xattrs or {}, mtime_ns, opaque=opaque)


def symlink(target: str) -> Entry:
    """A symbolic link."""
    return Entry(LINK, os.fsencode(target))


def hardlink(path: str) -> Entry:
    """Another name for the file at `path` in the same tree."""
    return Entry(REGULAR, same_as=path)


def fifo(*, mode: int = 0o644) -> Entry:
    """A named pipe."""
    return Entry(FIFO, mode=mode)


def device(major: int, minor: int, *, mode: int = 0o600) -> Entry:
    """A character device node; making one needs CAP_MKNOD."""
    return Entry(CHARACTER_DEVICE, mode=mode, device=os.makedev(major, minor))


def whiteout() -> Entry:
    """A mark: the name is deleted in deeper layers."""
    return Entry(WHITEOUT)


def build(root: Path, tree: Tree, *, marks: Marks = OVERLAY) -> Path:
    """Make `tree` in the directory `root`, made when missing; returns `root`.

    Every directory on the way gets mode 0o755 and the same time as the rest. Marks are written in
    the dialect `marks`; a directory that holds a whiteout says that it was copied up, as overlayfs
    does, which otherwise lists the mark.
    """
    root.mkdir(parents=True, exist_ok=True)
    whole = _with_parents(tree)
    for path, entry in sorted(whole.items(), key=lambda item: (bool(item[1].same_as), item[0])):
        _make(root, path, entry, marks)
    # Children first: making an entry changes its directory's time, and a mode may forbid it.
    for path, entry in sorted(whole.items(), reverse=True):
        if entry.kind != WHITEOUT and entry.same_as is None:
            _finish(root / path, entry, marks)
    os.utime(root, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return root


def _with_parents(tree: Tree) -> dict[str, Entry]:
    whole = dict(tree)
    for path in tree:
        for above in Path(path).parents:
            if above != Path():
                whole.setdefault(str(above), directory())
    return whole


def _make(root: Path, path: str, entry: Entry, marks: Marks) -> None:
    target = root / path
    if entry.same_as is not None:
        target.hardlink_to(root / entry.same_as)
        return
    match entry.kind:
        case _ if entry.kind == DIRECTORY:
            target.mkdir(exist_ok=True)
        case _ if entry.kind == REGULAR:
            target.write_bytes(entry.data)
        case _ if entry.kind == LINK:
            target.symlink_to(os.fsdecode(entry.data))
        case _ if entry.kind == WHITEOUT:
            _make_whiteout(root, target, marks)
        case _:
            os.mknod(target, entry.kind << 12 | 0o600, entry.device)


def _make_whiteout(root: Path, target: Path, marks: Marks) -> None:
    match marks:
        case OciMarks():
            target.with_name(OCI_PREFIX + target.name).write_bytes(b"")
        case KernelMarks():
            os.mknod(target, stat.S_IFCHR, 0)
            if target.parent != root:
                os.setxattr(target.parent, marks.key("origin"), b"")


def _finish(target: Path, entry: Entry, marks: Marks) -> None:
    if entry.owner is not None:
        os.chown(target, *entry.owner, follow_symlinks=False)
    # `user.*` before ACL and mode, which may forbid it.
    for key, value in sorted(entry.xattrs.items(), reverse=True):
        os.setxattr(target, marks.to_disk(key), value, follow_symlinks=False)
    if entry.opaque:
        _make_opaque(target, marks)
    if entry.mode is not None and entry.kind != LINK:
        target.chmod(entry.mode)
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _make_opaque(target: Path, marks: Marks) -> None:
    match marks:
        case OciMarks():
            (target / OCI_OPAQUE).write_bytes(b"")
        case KernelMarks():
            os.setxattr(target, marks.key("opaque"), b"y")


def merged(layers: Sequence[Tree]) -> Tree:
    """What an overlay of these layers shows, nearest first, as a tree of its own.

    Hard links become files of their own, as copy-up makes them.
    """
    shown: dict[str, Entry] = {}
    for tree in reversed(layers):
        for path, entry in sorted(_with_parents(tree).items()):
            below = shown.get(path)
            merges = below is not None and below.kind == entry.kind == DIRECTORY
            if not merges or entry.opaque:
                _drop(shown, path)
            if entry.kind != WHITEOUT:
                own = tree[entry.same_as] if entry.same_as is not None else entry
                shown[path] = dataclasses.replace(own, opaque=False)
    return shown


def _drop(shown: dict[str, Entry], path: str) -> None:
    for name in [name for name in shown if name == path or name.startswith(f"{path}/")]:
        del shown[name]


class View(Protocol):
    """Whatever shows a tree: paths have no leading slash, "." is the root, links are not followed.

    Each method raises `OSError` as the system call does.
    """

    def listdir(self, path: str) -> list[tuple[str, int]]:
        """Every entry as (name, `st_mode >> 12`), in no order."""

    def stat(self, path: str) -> os.stat_result:
        """The entry's metadata."""

    def readlink(self, path: str) -> str:
        """A symbolic link's target."""

    def read(self, path: str) -> bytes:
        """A regular file's bytes."""

    def listxattr(self, path: str) -> list[str]:
        """The names of the extended attributes."""

    def getxattr(self, path: str, key: str) -> bytes:
        """One extended attribute."""


class PathView:
    """A directory of this machine, or a mount, as a view."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, path: str) -> str:
        """The path of an entry for the system."""
        return f"{self.root}/{path}"

    def listdir(self, path: str) -> list[tuple[str, int]]:
        """Every entry as (name, `st_mode >> 12`); the kind is what readdir(3) says it is."""
        with os.scandir(self.at(path)) as entries:
            return [(entry.name, _kind(entry)) for entry in entries]

    def stat(self, path: str) -> os.stat_result:
        """The entry's metadata."""
        return os.lstat(self.at(path))

    def readlink(self, path: str) -> str:
        """A symbolic link's target."""
        return os.readlink(self.at(path))

    def read(self, path: str) -> bytes:
        """A regular file's bytes."""
        fd = os.open(self.at(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as opened:
            return opened.read()

    def listxattr(self, path: str) -> list[str]:
        """The names of the extended attributes."""
        return os.listxattr(self.at(path), follow_symlinks=False)

    def getxattr(self, path: str, key: str) -> bytes:
        """One extended attribute."""
        return os.getxattr(self.at(path), key, follow_symlinks=False)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return DIRECTORY
    if entry.is_file(follow_symlinks=False):
        return REGULAR
    # Nothing tells the rest apart without a system call that may fail.
    kind = entry.stat(follow_symlinks=False).st_mode >> 12
    assert kind in (FIFO, SOCKET, CHARACTER_DEVICE, BLOCK_DEVICE)
    return kind


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything that can be seen of one entry; None for what is not compared.

    Attributes:
        content: A file's bytes, a link's target; an errno where it cannot be read.
        mtime_ns: Modification time; None when it is not older than the snapshot was told.
        inode: The inode number.
        links: All paths of the tree that are names of this file, when there are several.
    """

    kind: int
    mode: int
    owner: tuple[int, int]
    device: int
    size: int | None
    content: bytes | int | None
    mtime_ns: int | None
    nlink: int | None
    inode: int | None
    links: tuple[str, ...] | None
    xattrs: tuple[tuple[str, bytes], ...]


Snapshot = dict[str, Shown]


def snapshot(view: View | Path, *, since_ns: int | None = None) -> Snapshot:
    """Everything that a view shows, by path; "." is the root.

    Args:
        view: What shows the tree; a path stands for a directory of this machine.
        since_ns: Modification times at or after this become None: they depend on the clock.
    """
    seen = PathView(view) if isinstance(view, Path) else view
    shown = {path: _look(seen, path, since_ns) for path in _walk(seen, ".")}
    return _with_links(shown)


def _walk(view: View, path: str) -> Iterator[str]:
    yield path
    try:
        entries = view.listdir(path)
    except PermissionError:
        return
    for name, kind in sorted(entries):
        below = name if path == "." else f"{path}/{name}"
        if kind == DIRECTORY:
            yield from _walk(view, below)
        else:
            yield below


def _look(view: View, path: str, since_ns: int | None) -> Shown:
    status = view.stat(path)
    kind = status.st_mode >> 12
    recent = since_ns is not None and status.st_mtime_ns >= since_ns
    return Shown(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        device=status.st_rdev,
        # How large a directory is says how its filesystem stores it.
        size=None if kind == DIRECTORY else status.st_size,
        content=_content(view, path, kind),
        mtime_ns=None if recent else status.st_mtime_ns,
        nlink=status.st_nlink,
        inode=status.st_ino,
        links=(),
        xattrs=tuple((key, view.getxattr(path, key)) for key in sorted(view.listxattr(path))),
    )


def _content(view: View, path: str, kind: int) -> bytes | int | None:
    if kind == LINK:
        return os.fsencode(view.readlink(path))
    if kind != REGULAR:
        return None
    try:
        return view.read(path)
    except PermissionError:
        return errno.EACCES


def _with_links(shown: Snapshot) -> Snapshot:
    groups: dict[int | None, list[str]] = {}
    for path, entry in shown.items():
        if entry.kind != DIRECTORY:
            groups.setdefault(entry.inode, []).append(path)
    several = {path: tuple(group) for group in groups.values() if len(group) > 1 for path in group}
    return {
        path: dataclasses.replace(entry, links=several.get(path, ()))
        for path, entry in shown.items()
    }


def without(shown: Snapshot, *fields: str) -> Snapshot:
    """The same snapshot with some fields of `Shown` set to None, so that they are not compared."""
    blank = dict.fromkeys(fields)
    return {path: dataclasses.replace(entry, **blank) for path, entry in shown.items()}  # type: ignore[arg-type]  # only fields that may be None are ever blanked


def differences(left: Snapshot, right: Snapshot) -> list[str]:
    """What differs, one line each, sorted by path; empty when both are equal."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        here, there = left.get(path), right.get(path)
        if here is None or there is None:
            lines.append(f"{path}: only {'right' if here is None else 'left'}: {here or there}")
        else:
            lines += (f"{path}: {line}" for line in _field_differences(here, there))
    return lines


def _field_differences(left: Shown, right: Shown) -> Iterator[str]:
    for name in (item.name for item in dataclasses.fields(Shown)):
        here, there = getattr(left, name), getattr(right, name)
        if here != there:
            form = oct if name == "mode" else repr
            yield f"{name}: {form(here)} / {form(there)}"


def assert_same(left: Snapshot, right: Snapshot, names: Iterable[str] = ("left", "right")) -> None:
    """Raise with every difference in the message.

    Raises:
        AssertionError: The snapshots differ.
    """
    found = differences(left, right)
    title = " / ".join(names)
    assert not found, "\n".join([title, *found])


def digest(root: Path) -> str:
    """A SHA-256 over all of a directory: names, metadata, attributes, data.

    Inode numbers and change times are in it: equal digests mean that nothing was changed, not even
    changed and put back. Access times are left out.
    """
    view = PathView(root)
    found = hashlib.sha256()
    for path, entry in snapshot(view).items():
        found.update(repr((path, entry, view.stat(path).st_ctime_ns)).encode())
    return found.hexdigest()
