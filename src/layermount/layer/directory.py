"""A plain directory as a layer, reached through its descriptor only.

Children are opened by one name from their directory, with `openat2` under RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS, so that no link, no `..` and no swapped parent leads out of the layer. What has
another filesystem mounted on it is refused (EXDEV) rather than shown. Rules: B1 to B4, D1 to D5.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path

from layermount.errors import LayerCorruptError, LayerUnavailableError
from layermount.layer.base import CHARACTER_DEVICE, DIRECTORY, LINK, REGULAR, WHITEOUT
from layermount.layer.descriptors import DescriptorPool
from layermount.layer.marks import (
    OCI_OPAQUE,
    OCI_PREFIX,
    OCI_RESERVED,
    KernelMarks,
    Marks,
    OciMarks,
)
from layermount.linux import files, mounts, xattrs

_BENEATH = (
    files.RESOLVE_BENEATH
    | files.RESOLVE_NO_SYMLINKS
    | files.RESOLVE_NO_MAGICLINKS
    | files.RESOLVE_NO_XDEV
)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class DirectoryLayer:
    """A directory of this machine as one level of an overlay.

    The path is followed once, when the layer is opened; afterwards renaming or replacing it does
    not matter.
    """

    def __init__(self, path: Path, marks: Marks, pool: DescriptorPool, *, read_only: bool) -> None:
        """Open the layer.

        With `read_only` and the right to do so, the layer is reached through a private read-only
        clone of its mount: no descriptor taken from it can be made to write.

        Raises:
            LayerUnavailableError: The path is no directory that can be opened.
        """
        self.name = str(path)
        self.marks = marks
        self.pool = pool
        try:
            fd = os.open(path, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
        except OSError as error:
            reason = f"cannot open layer {str(path)!r}: {error.strerror}"
            raise LayerUnavailableError(reason) from error
        self._root_fd = _read_only_clone(fd) if read_only else fd
        self.root = LayerDirectory(self, None, ".")

    @property
    def root_fd(self) -> int:
        """The layer's own descriptor, open as long as the layer is; borrowed."""
        return self._root_fd

    def close(self) -> None:
        """Give the root's descriptor back; the pool's owner closes the rest."""
        fd, self._root_fd = self._root_fd, -1
        if fd >= 0:
            os.close(fd)

    @functools.cached_property
    def filesystem_uuid(self) -> bytes:
        """The UUID of the layer's filesystem; there is one, for no layer goes beyond its mount."""
        return filesystem_uuid(self._root_fd)

    @functools.cached_property
    def has_attribute_whiteouts(self) -> bool:
        """Whether the layer also deletes by attributes on empty files (its root says so)."""
        match self.marks:
            case KernelMarks() as marks:
                return xattrs.find_xattr(self._root_fd, ".", marks.key("opaque")) == b"x"
            case OciMarks():
                return False


def _read_only_clone(fd: int) -> int:
    """The same directory through a private read-only clone of its mount, or `fd` without the right.

    A second wall, never the first: the engine opens lowers for reading only. The clone also leaves
    out whatever is mounted on top inside the layer, as the kernel's overlayfs does.
    """
    try:
        clone = mounts.open_tree(fd, flags=mounts.OPEN_TREE_CLONE)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EINVAL, errno.ENOSYS):
            return fd
        raise
    try:
        mounts.mount_setattr(clone, attributes_set=mounts.MOUNT_ATTR_RDONLY)
        # The clone is an O_PATH descriptor; reading the directory needs a real one.
        cloned = os.open(".", _DIRECTORY_FLAGS, dir_fd=clone)
    finally:
        os.close(clone)
    os.close(fd)
    return cloned


class LayerDirectory:
    """One directory of a `DirectoryLayer`.

    Its descriptor is opened when needed and may be closed by the pool in between; the parent and
    the name lead back to it.
    """

    __slots__ = ("_fd", "layer", "name", "parent")

    def __init__(self, layer: DirectoryLayer, parent: LayerDirectory | None, name: str) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """A borrowed O_RDONLY descriptor of the directory.

        Opening it adds one descriptor to the pool, however deep it lies, so the one that was got
        before this one is good, too.

        Raises:
            OSError: The directory is gone, is no directory, or is not on the layer's filesystem.
        """
        if self._fd is not None:
            self.layer.pool.touch(self)
            return self._fd
        if self.parent is None:
            return self.layer.root_fd
        names, above = [self.name], self.parent
        while above._fd is None and above.parent is not None:
            names.append(above.name)
            above = above.parent
        self._fd = _descend(above.fd, names)
        self.layer.pool.add(self)
        return self._fd

    @property
    def path(self) -> str:
        """Where this directory is in its layer, "." for the root."""
        names: list[str] = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return "/".join(reversed(names)) or "."

    def move(self, parent: LayerDirectory, name: str) -> None:
        """Note that the directory was renamed; an open descriptor stays the same directory."""
        self.parent, self.name = parent, name

    def forget(self) -> None:
        """Close the descriptor, if it is open; the directory has been removed."""
        self.layer.pool.drop(self)

    def scan(self) -> list[tuple[str, int]]:
        """Every entry as (name, kind); marks come as WHITEOUT under the name they delete."""
        match self.layer.marks:
            case KernelMarks():
                return self._scan_kernel()
            case OciMarks():
                return self._scan_oci()

    def _rewound_fd(self) -> int:
        """The descriptor, for a new scan: btrfs shows later entries only after a seek."""
        fd = self.fd
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _scan_kernel(self) -> list[tuple[str, int]]:
        with os.scandir(self._rewound_fd()) as entries:
            # Most entries are files: they cost no call.
            found = [
                (
                    entry.name,
                    REGULAR if entry.is_file(follow_symlinks=False) else _kind_or_mark(entry),
                )
                for entry in entries
            ]
        if self.layer.has_attribute_whiteouts and self._opaque_value() == b"x":
            return [(name, self._kind_or_mark(name, kind)) for name, kind in found]
        return found

    def _kind_or_mark(self, name: str, kind: int) -> int:
        return WHITEOUT if kind == REGULAR and self._is_marked(name) else kind

    def _scan_oci(self) -> list[tuple[str, int]]:
        found = []
        with os.scandir(self._rewound_fd()) as entries:
            for entry in entries:
                name = entry.name
                if not name.startswith(OCI_PREFIX):
                    found.append((name, _kind_of(entry)))
                elif not name.startswith(OCI_RESERVED) and name != OCI_PREFIX:
                    found.append((name.removeprefix(OCI_PREFIX), WHITEOUT))
        return found

    def kind(self, name: str) -> int | None:
        """The entry's kind, WHITEOUT for a mark, None when there is nothing."""
        match self.layer.marks:
            case KernelMarks():
                return self._kind_kernel(name)
            case OciMarks():
                return self._kind_oci(name)

    def _kind_kernel(self, name: str) -> int | None:
        status = self._stat_or_none(name)
        if status is None:
            return None
        kind = status.st_mode >> 12
        if kind == CHARACTER_DEVICE and status.st_rdev == 0:
            return WHITEOUT
        marked = (
            self.layer.has_attribute_whiteouts and kind == REGULAR and self._opaque_value() == b"x"
        )
        return WHITEOUT if marked and self._is_marked(name) else kind

    def _kind_oci(self, name: str) -> int | None:
        if name.startswith(OCI_PREFIX):
            return None
        status = self._stat_or_none(name)
        if status is not None:
            return status.st_mode >> 12
        return None if self._stat_or_none(OCI_PREFIX + name) is None else WHITEOUT

    def directory(self, name: str) -> LayerDirectory:
        """The child directory `name`; it is opened at once, so that what is wrong shows here."""
        child = LayerDirectory(self.layer, self, name)
        child.fd  # noqa: B018  opening is the check
        return child

    def stat(self, name: str) -> os.stat_result:
        """The entry's own metadata."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def readlink(self, name: str) -> str:
        """The link's target."""
        return os.readlink(name, dir_fd=self.fd)

    def open(self, name: str) -> int:
        """A new O_RDONLY descriptor of the file `name`; it is the caller's."""
        return os.open(name, _FILE_FLAGS, dir_fd=self.fd)

    def getxattr(self, name: str, key: str) -> bytes:
        """One attribute by the name the overlay shows."""
        return xattrs.getxattr(self.fd, name, self.layer.marks.to_disk(key))

    def listxattr(self, name: str) -> list[str]:
        """The names of the attributes that the overlay shows."""
        visible = map(self.layer.marks.from_disk, xattrs.listxattr(self.fd, name))
        return [key for key in visible if key is not None]

    def listxattr_of(self, fd: int) -> list[str]:
        """As `listxattr`, for a file of this layer that is open."""
        visible = map(self.layer.marks.from_disk, _attribute_names(fd))
        return [key for key in visible if key is not None]

    def record(self, name: str, record: str) -> bytes | None:
        """One of the layer's own marks on `name`, raw; None when absent or the dialect has none."""
        match self.layer.marks:
            case KernelMarks() as marks:
                key = marks.key(record)
                # Nearly nothing has one; the list of names says so at half the price of failing.
                fd = self.fd
                present = _attribute_names(fd) if name == "." else xattrs.listxattr(fd, name)
                return xattrs.find_xattr(fd, name, key) if key in present else None
            case OciMarks():
                return None

    def is_opaque(self) -> bool:
        """Whether this directory hides its namesakes in deeper layers."""
        match self.layer.marks:
            case KernelMarks():
                # The kernel looks for the mark on every directory but a layer's root.
                return self.parent is not None and self._opaque_value() == b"y"
            case OciMarks():
                return self._stat_or_none(OCI_OPAQUE) is not None

    def redirect(self, name: str) -> str | None:
        """Where deeper layers have this entry."""
        raw = self.record(name, "redirect")
        if raw is None:
            return None
        target = os.fsdecode(raw)
        if not _is_followable(target):
            message = f"redirect {target!r} of {self.path}/{name} in {self.layer.name!r} is no path"
            raise LayerCorruptError(message)
        return target

    def is_metacopy(self, name: str) -> bool:
        """Whether the file `name` holds metadata only."""
        return self.record(name, "metacopy") is not None

    def origin(self, name: str) -> bytes | None:
        """The raw origin record of `name`."""
        return self.record(name, "origin")

    def _opaque_value(self) -> bytes | None:
        return self.record(".", "opaque")

    def _is_marked(self, name: str) -> bool:
        return self.record(name, "whiteout") is not None

    def _stat_or_none(self, name: str) -> os.stat_result | None:
        try:
            return self.stat(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise


def filesystem_uuid(fd: int) -> bytes:
    """The UUID that origin records name this filesystem by; zeros where it has none."""
    try:
        return files.filesystem_uuid(fd)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return bytes(16)
        raise


def open_directory(dir_fd: int, name: str) -> int:
    """A descriptor of the directory `name` in `dir_fd`, never through a link or a mount point.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP for a link, EXDEV for a mount point.
    """
    if _has_openat2():
        return files.openat2(dir_fd, name, _DIRECTORY_FLAGS, resolve=_BENEATH)
    if "/" in name or name == "..":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    return os.open(name, _DIRECTORY_FLAGS, dir_fd=dir_fd)


def _descend(dir_fd: int, names: list[str]) -> int:
    """A descriptor of the directory below `dir_fd`, by names of which the last is nearest to it."""
    fd = open_directory(dir_fd, names.pop())
    while names:
        above = fd
        try:
            fd = open_directory(above, names.pop())
        finally:
            os.close(above)
    return fd


@functools.cache
def _has_openat2() -> bool:
    """Whether the kernel knows openat2 (5.6); without it one name and O_NOFOLLOW do the same."""
    try:
        os.close(files.openat2(-100, "/", os.O_PATH, resolve=0))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def _attribute_names(fd: int) -> list[str]:
    """The attributes of an open file, none where there can be none."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _kind_or_mark(entry: os.DirEntry[str]) -> int:
    kind = _kind_of(entry)
    if kind == CHARACTER_DEVICE and entry.stat(follow_symlinks=False).st_rdev == 0:
        return WHITEOUT
    return kind


def _kind_of(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return REGULAR
    if entry.is_dir(follow_symlinks=False):
        return DIRECTORY
    if entry.is_symlink():
        return LINK
    return entry.stat(follow_symlinks=False).st_mode >> 12


def _is_followable(target: str) -> bool:
    if "\0" in target:
        return False
    if not target.startswith("/"):
        return target not in ("", ".", "..") and "/" not in target
    return all(part not in ("", ".", "..") for part in target[1:].split("/"))
