"""The operations by path, named and behaving as in `os`, on an overlay instead of the machine.

An `OSError` names the overlay's path. Links are followed where `os` follows them. Rules: T1 to T4.
"""

from __future__ import annotations

import errno
import io
import os
from stat import S_IFIFO, S_IFREG, S_ISDIR
from collections.abc import Iterator
from typing import IO

from layermount.engine.file import LayerMountFile
from layermount.engine.handles import Handle
from layermount.engine.node import Node
from layermount.engine.overlay import Overlay
from layermount.engine.paths import Place, StrPath, get_directory, get_node, locate, naming
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
    ) -> IO[bytes] | IO[str]:
        """Open a file as the built-in `open` does.

        Raises:
            ValueError: `mode` is none that `open` knows.
            OSError: As open(2).
        """
        flags, text = parse_mode(mode)
        raw = self.open_file(path, flags)
        if buffering == 0 and not text:
            return raw  # type: ignore[return-value]  # a RawIOBase serves as IO[bytes]
        size = io.DEFAULT_BUFFER_SIZE if buffering in (-1, 1) else buffering
        buffered: io.BufferedIOBase
        if raw.readable() and raw.writable():
            buffered = io.BufferedRandom(raw, size)
        else:
            buffered = (io.BufferedWriter if raw.writable() else io.BufferedReader)(raw, size)
        if not text:
            return buffered  # type: ignore[return-value]  # as the built-in does
        lines = buffering == 1
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=lines)

    def open_file(self, path: StrPath, flags: int, mode: int = 0o666) -> LayerMountFile:
        """Open a file by open(2) flags, unbuffered; `mode` is for a file that O_CREAT makes."""
        with naming(os.fspath(path)):
            return LayerMountFile(self.overlay, self._open_handle(path, flags, mode))

    def create_file(self, path: StrPath, mode: int = 0o666) -> LayerMountFile:
        """A new file, open for reading and writing; EEXIST whatever layer has the name."""
        return self.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def _open_handle(self, path: StrPath, flags: int, mode: int) -> Handle:
        exclusive = bool(flags & os.O_EXCL)
        follow = not (exclusive or flags & os.O_NOFOLLOW)
        place = locate(self.overlay, path, follow=follow)
        if place.node is None and flags & os.O_CREAT:
            try:
                return self.overlay.create(place.parent, place.name, flags, mode)[1]
            except FileExistsError:
                if exclusive:
                    raise
                # Another thread was faster; then it is there to be opened.
                place = locate(self.overlay, path, follow=follow)
        if place.node is None:
            raise _error(errno.ENOENT)
        if exclusive and flags & os.O_CREAT:
            raise _error(errno.EEXIST)
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

        As with `os.walk`, what is taken out of the first list is not entered.
        """
        top = os.fspath(path)
        directories: list[str] = []
        others: list[str] = []
        with naming(top):
            for name, kind in self.overlay.listdir(get_directory(self.overlay, top)):
                (directories if kind == DIRECTORY else others).append(name)
        directories.sort()
        others.sort()
        yield top, directories, others
        for name in directories:
            yield from self.walk(f"{top}/{name}" if top else name)

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
            place = self._taken_place(path)
            self.overlay.unlink(place.parent, place.name)

    remove = unlink

    def rmdir(self, path: StrPath) -> None:
        """Remove an empty directory."""
        with naming(os.fspath(path)):
            place = self._taken_place(path)
            self.overlay.rmdir(place.parent, place.name)

    def rename(self, old: StrPath, new: StrPath, *, flags: int = 0) -> None:
        """Move, replacing what may be replaced; `flags` as `Overlay.rename` has them."""
        with naming(os.fspath(old), os.fspath(new)):
            source = self._taken_place(old)
            target = locate(self.overlay, new, follow=False)
            if not target.name:
                raise _error(errno.EBUSY)
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
        place = locate(self.overlay, path, follow=False)
        if place.node is not None:
            raise _error(errno.EEXIST)
        return place

    def _taken_place(self, path: StrPath) -> Place:
        place = locate(self.overlay, path, follow=False)
        if place.node is None:
            raise _error(errno.ENOENT)
        if place.node.parent is None:
            raise _error(errno.EBUSY)
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


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
