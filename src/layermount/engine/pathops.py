"""The operations by path, named and behaving as in `os`, on an overlay instead of the machine.

An `OSError` names the overlay's path. Links are followed where `os` follows them. Rules: T1 to T4.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from stat import S_IFIFO, S_IFREG, S_ISDIR
from typing import IO, Any

from layermount.engine.file import LayerMountFile, wrapped
from layermount.engine.handles import Handle
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.engine.paths import Place, StrPath, get_directory, get_node, locate, naming
from layermount.engine.refusals import refusal
from layermount.layer.base import DIRECTORY
from layermount.linux.files import RENAME_EXCHANGE, RENAME_NOREPLACE

_FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


class PathOperations:
    """What `os` offers, over the merged view of an overlay.

    Attributes:
        overlay: The engine underneath.
    """

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay

    # Files.

    def open(
        self,
        path: StrPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file as the built-in `open` does.

        Raises:
            ValueError: The arguments do not go together, as with `open`; the file is untouched.
            OSError: As open(2), and EISDIR for any directory.
        """
        flags, is_text = parse_mode(mode)
        if is_text and buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        for name, given in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if given is not None and not is_text:
                raise ValueError(f"binary mode doesn't take the argument {name}")
        raw = self.open_file(path, flags)
        try:
            return wrapped(raw, mode, buffering, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise

    def open_file(self, path: StrPath, flags: int, mode: int = 0o666) -> LayerMountFile:
        """Open a file by open(2) flags, unbuffered; `mode` is for a file that O_CREAT makes."""
        with naming(os.fspath(path)):
            return LayerMountFile(self.overlay, self._open_handle(path, flags, mode))

    def create_file(self, path: StrPath, mode: int = 0o666) -> LayerMountFile:
        """A new file, open for reading and writing; EEXIST whatever layer has the name."""
        return self.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def _open_handle(self, path: StrPath, flags: int, mode: int) -> Handle:
        exclusive = flags & os.O_EXCL and flags & os.O_CREAT
        follow = not (exclusive or flags & os.O_NOFOLLOW)
        text = os.fspath(path)
        while True:
            if flags & os.O_CREAT and text.rstrip("/") != text:
                locate(self.overlay, text.rstrip("/"), follow=follow)
                raise refusal(errno.EISDIR)
            place = locate(self.overlay, text, follow=follow)
            try:
                return self._open_place(place, flags, mode)
            except FileExistsError:
                # Another thread was faster; then it is there to be opened.
                if exclusive or place.node is not None:
                    raise
            except FileNotFoundError:
                # Another thread removed it; then its name is free.
                if not flags & os.O_CREAT or place.node is None or not place.node.removed:
                    raise

    def _open_place(self, place: Place, flags: int, mode: int) -> Handle:
        if place.node is None:
            if not flags & os.O_CREAT:
                raise refusal(errno.ENOENT)
            return self.overlay.create(place.parent, place.name, flags, mode)[1]
        if flags & os.O_EXCL and flags & os.O_CREAT:
            raise refusal(errno.EEXIST)
        if isinstance(place.node, DirectoryNode):
            # open(2) gives a descriptor of a directory, Python's files do not.
            raise refusal(errno.EISDIR)
        return self.overlay.open(place.node, flags)

    def truncate(self, path: StrPath, length: int) -> None:
        """Set a file's size."""
        with naming(os.fspath(path)):
            self.overlay.truncate(self._node(path), length)

    # Looking.

    def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """The metadata of what is at `path`."""
        with naming(os.fspath(path)):
            return self.overlay.getattr(self._node(path, follow=follow_symlinks))

    def lstat(self, path: StrPath) -> os.stat_result:
        """The metadata of what is at `path`, a link itself."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: StrPath, *, follow_symlinks: bool = True) -> bool:
        """Whether something is at `path`; a link that leads nowhere is not, unless not followed."""
        try:
            self.stat(path, follow_symlinks=follow_symlinks)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def listdir(self, path: StrPath = "") -> list[str]:
        """The names in a directory, in no order."""
        with naming(os.fspath(path)):
            entries = self.overlay.listdir(get_directory(self.overlay, path))
        return [name for name, _ in entries]

    def walk(self, path: StrPath = "") -> Iterator[tuple[str, list[str], list[str]]]:
        """Every directory below, top down: (path, directories' names, other names), sorted.

        What is taken out of the first list is not entered, as with `os.walk`. A link to a directory
        is among the others, as with `Path.walk`.
        """
        pending = [os.fspath(path)]
        while pending:
            top = pending.pop()
            with naming(top):
                entries = self.overlay.listdir(get_directory(self.overlay, top))
            directories = sorted([name for name, kind in entries if kind == DIRECTORY])
            others = sorted([name for name, kind in entries if kind != DIRECTORY])
            yield top, directories, others
            pending += [os.path.join(top, name) for name in reversed(directories)]

    def readlink(self, path: StrPath) -> str:
        """A link's target."""
        with naming(os.fspath(path)):
            return self.overlay.readlink(self._node(path, follow=False))

    def access(self, path: StrPath, mode: int) -> bool:
        """Whether the caller may read, write or search: os.R_OK, os.W_OK, os.X_OK, os.F_OK."""
        try:
            self.overlay.access(self._node(path), mode)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    # Changing names.

    def mkdir(self, path: StrPath, mode: int = 0o777) -> None:
        """Make a directory."""
        with naming(os.fspath(path)):
            place = self._free_place(os.fspath(path).rstrip("/"))
            self.overlay.mkdir(place.parent, place.name, mode)

    def makedirs(self, path: StrPath, mode: int = 0o777, *, exist_ok: bool = False) -> None:
        """Make a directory with all that is missing above it."""
        parts = [part for part in os.fspath(path).split("/") if part]
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            if not self.exists(above):
                # Another thread may have made it since.
                with contextlib.suppress(FileExistsError):
                    self.mkdir(above)
        try:
            self.mkdir(path, mode)
        except FileExistsError:
            if not exist_ok or not S_ISDIR(self.stat(path).st_mode):
                raise

    def symlink(self, target: str, path: StrPath) -> None:
        """Make a symbolic link at `path` that leads to `target`."""
        with naming(target, os.fspath(path)):
            place = self._free_place(path)
            self.overlay.symlink(place.parent, place.name, target)

    def link(self, path: StrPath, new_path: StrPath) -> None:
        """Make another name for a file; a link is not followed."""
        with naming(os.fspath(path), os.fspath(new_path)):
            node = self._node(path, follow=False)
            place = self._free_place(new_path)
            self.overlay.link(node, place.parent, place.name)

    def mknod(self, path: StrPath, mode: int = 0o600 | S_IFREG, device: int = 0) -> None:
        """Make a fifo, a socket, a device or a regular file."""
        with naming(os.fspath(path)):
            place = self._free_place(path)
            self.overlay.mknod(place.parent, place.name, mode, device)

    def mkfifo(self, path: StrPath, mode: int = 0o666) -> None:
        """Make a fifo."""
        self.mknod(path, mode | S_IFIFO)

    def unlink(self, path: StrPath) -> None:
        """Remove what is no directory."""
        with naming(os.fspath(path)):
            place = self._taken_place(path, dot=errno.EISDIR, dotdot=errno.EISDIR)
            self.overlay.unlink(place.parent, place.name)

    remove = unlink

    def rmdir(self, path: StrPath) -> None:
        """Remove an empty directory."""
        with naming(os.fspath(path)):
            place = self._taken_place(path, dot=errno.EINVAL, dotdot=errno.ENOTEMPTY)
            self.overlay.rmdir(place.parent, place.name)

    def rename(self, old: StrPath, new: StrPath, *, flags: int = 0) -> None:
        """Move, replacing what may be replaced; `flags` as `Overlay.rename` has them."""
        with naming(os.fspath(old), os.fspath(new)):
            source = self._taken_place(old)
            target = self._new_place(os.fspath(new), source)
            names = source.parent, source.name, target.parent, target.name
            self.overlay.rename(*names, flags)

    replace = rename

    def exchange(self, path: StrPath, path2: StrPath) -> None:
        """Let two entries change places in one step."""
        self.rename(path, path2, flags=RENAME_EXCHANGE)

    def rename_noreplace(self, old: StrPath, new: StrPath) -> None:
        """Move, only onto a free name."""
        self.rename(old, new, flags=RENAME_NOREPLACE)

    # Changing metadata.

    def chmod(self, path: StrPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the mode's twelve low bits."""
        with naming(os.fspath(path)):
            self.overlay.chmod(self._node(path, follow=follow_symlinks), mode)

    def chown(self, path: StrPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Set owner and group; -1 leaves one as it is."""
        with naming(os.fspath(path)):
            self.overlay.chown(self._node(path, follow=follow_symlinks), uid, gid)

    def utime(
        self, path: StrPath, *, ns: tuple[int | None, int | None], follow_symlinks: bool = True
    ) -> None:
        """Set (access, modification) time in nanoseconds; None leaves one as it is."""
        with naming(os.fspath(path)):
            self.overlay.utimens(self._node(path, follow=follow_symlinks), *ns)

    def getxattr(self, path: StrPath, key: str, *, follow_symlinks: bool = True) -> bytes:
        """One extended attribute."""
        with naming(os.fspath(path)):
            return self.overlay.getxattr(self._node(path, follow=follow_symlinks), key)

    def listxattr(self, path: StrPath, *, follow_symlinks: bool = True) -> list[str]:
        """The names of the extended attributes."""
        with naming(os.fspath(path)):
            return self.overlay.listxattr(self._node(path, follow=follow_symlinks))

    def setxattr(
        self,
        path: StrPath,
        key: str,
        value: bytes,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """Set one extended attribute."""
        with naming(os.fspath(path)):
            self.overlay.setxattr(self._node(path, follow=follow_symlinks), key, value, flags)

    def removexattr(self, path: StrPath, key: str, *, follow_symlinks: bool = True) -> None:
        """Remove one extended attribute."""
        with naming(os.fspath(path)):
            self.overlay.removexattr(self._node(path, follow=follow_symlinks), key)

    # From path to node.

    def _node(self, path: StrPath, *, follow: bool = True) -> Node:
        return get_node(self.overlay, path, follow=follow)

    def _free_place(self, path: StrPath) -> Place:
        """Where something is to be made; a slash after a name that is free means a directory."""
        text = os.fspath(path)
        stripped = text.rstrip("/")
        place = locate(self.overlay, stripped, follow=False)
        if place.node is not None:
            raise refusal(errno.EEXIST)
        if stripped != text:
            raise refusal(errno.ENOENT)
        return place

    def _taken_place(
        self, path: StrPath, *, dot: int = errno.EBUSY, dotdot: int = errno.EBUSY
    ) -> Place:
        """What is to be moved or removed; a slash after its name means that it is a directory."""
        text = os.fspath(path)
        stripped = text.rstrip("/")
        place = locate(self.overlay, stripped, follow=False)
        if place.node is None:
            raise refusal(errno.ENOENT)
        last = _last(stripped)
        if last in (".", ".."):
            raise refusal(dot if last == "." else dotdot)
        if place.node.parent is None:
            raise refusal(errno.EBUSY)
        if stripped != text and place.node.kind != DIRECTORY:
            raise refusal(errno.ENOTDIR)
        return place

    def _new_place(self, text: str, source: Place) -> Place:
        """Where something moves to; only a directory takes a name with a slash after it."""
        stripped = text.rstrip("/")
        place = locate(self.overlay, stripped, follow=False)
        if not place.name or _last(stripped) in (".", ".."):
            raise refusal(errno.EBUSY)
        if stripped != text and source.node is not None and source.node.kind != DIRECTORY:
            raise refusal(errno.ENOTDIR)
        return place


def parse_mode(mode: str) -> tuple[int, bool]:
    """The open(2) flags for a mode of the built-in `open`, and whether it means text.

    Raises:
        ValueError: It is no such mode.
    """
    kinds = [letter for letter in mode if letter in _FLAGS]
    rest = sorted(letter for letter in mode if letter not in _FLAGS)
    if len(kinds) != 1 or "".join(rest) not in ("", "+", "b", "t", "+b", "+t"):
        raise ValueError(f"invalid mode: {mode!r}")
    flags = _FLAGS[kinds[0]]
    if "+" in rest:
        flags = flags & ~os.O_WRONLY | os.O_RDWR
    return flags, "b" not in rest


def _last(stripped: str) -> str:
    """The last component, as it is written."""
    return stripped.rpartition("/")[2]
