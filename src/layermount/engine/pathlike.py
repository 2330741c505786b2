"""A path in an overlay, with the methods of `pathlib.Path`."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layermount.engine.pathops import PathOperations
    from layermount.engine.paths import StrPath


class LayerMountPath:
    """A place in an overlay, whether something is there or not.

    It has no `__fspath__`: it is no path of this machine, and `os` must not take it for one.
    """

    __slots__ = ("_operations", "_pure")

    def __init__(self, operations: PathOperations, path: StrPath) -> None:
        """A place in the overlay behind `operations`."""
        self._operations = operations
        self._pure = PurePosixPath(str(path).lstrip("/"))

    # The path itself.

    def __str__(self) -> str:
        """The merged path without a leading slash; "" is the root."""
        text = str(self._pure)
        return "" if text == "." else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerMountPath):
            return NotImplemented
        return self._operations is other._operations and self._pure == other._pure

    def __hash__(self) -> int:
        return hash((id(self._operations), self._pure))

    def __lt__(self, other: LayerMountPath) -> bool:
        return self._pure < other._pure

    def __truediv__(self, other: str | PurePosixPath) -> LayerMountPath:
        return LayerMountPath(self._operations, str(self._pure / other))

    def joinpath(self, *others: str) -> LayerMountPath:
        """This path with further components; one with a leading slash starts at the root again."""
        path = self
        for other in others:
            path /= other
        return path

    @property
    def name(self) -> str:
        """The last component."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last component's suffix, with its dot."""
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The components."""
        return self._pure.parts

    @property
    def parent(self) -> LayerMountPath:
        """The path without its last component; the root is its own parent."""
        return LayerMountPath(self._operations, str(self._pure.parent))

    def with_name(self, name: str) -> LayerMountPath:
        """The path with another last component."""
        return LayerMountPath(self._operations, str(self._pure.with_name(name)))

    def relative_to(self, other: LayerMountPath | str) -> PurePosixPath:
        """The path as seen from another one above it."""
        return self._pure.relative_to(str(other).lstrip("/"))

    # Looking.

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The metadata of what is here."""
        return self._operations.stat(str(self), follow_symlinks=follow_symlinks)

    def lstat(self) -> os.stat_result:
        """The metadata of what is here, a link itself."""
        return self.stat(follow_symlinks=False)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether something is here."""
        return self._operations.exists(str(self), follow_symlinks=follow_symlinks)

    def is_dir(self) -> bool:
        """Whether a directory is here, or a link that leads to one."""
        return stat.S_ISDIR(self._mode(follow_symlinks=True))

    def is_file(self) -> bool:
        """Whether a regular file is here, or a link that leads to one."""
        return stat.S_ISREG(self._mode(follow_symlinks=True))

    def is_symlink(self) -> bool:
        """Whether a symbolic link is here."""
        return stat.S_ISLNK(self._mode(follow_symlinks=False))

    def _mode(self, *, follow_symlinks: bool) -> int:
        try:
            return self.stat(follow_symlinks=follow_symlinks).st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return 0
            raise

    def readlink(self) -> str:
        """The link's target."""
        return self._operations.readlink(str(self))

    def iterdir(self) -> Iterator[LayerMountPath]:
        """Every entry of the directory, in no order."""
        for name in self._operations.listdir(str(self)):
            yield self / name

    def glob(self, pattern: str) -> Iterator[LayerMountPath]:
        """Every path below that matches; `**` stands for any number of directories.

        Links are followed by plain components and not by `**`, as in `pathlib`.

        Raises:
            ValueError: The pattern is empty.
            NotImplementedError: The pattern is absolute.
        """
        if not pattern:
            raise ValueError("unacceptable pattern: ''")
        if pattern.startswith("/"):
            raise NotImplementedError("non-relative patterns are unsupported")
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        directories_only = pattern.endswith("/")
        seen: set[LayerMountPath] = set()
        for path in self._glob(parts):
            if path not in seen and (not directories_only or path.is_dir()):
                seen.add(path)
                yield path

    def rglob(self, pattern: str) -> Iterator[LayerMountPath]:
        """Every path at any depth below that matches."""
        return self.glob(f"**/{pattern}")

    def _glob(self, parts: list[str]) -> Iterator[LayerMountPath]:
        if not parts:
            yield self
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            if not self.is_dir():
                return
            yield from self._glob(rest)
            for child in self._children():
                if stat.S_ISDIR(child._mode(follow_symlinks=False)):
                    yield from child._glob(parts)
        elif not _is_magic(part):
            child = self / part
            if child.exists(follow_symlinks=bool(rest)):
                yield from child._glob(rest)
        else:
            matches = re.compile(fnmatch.translate(part)).match
            for child in self._children():
                if matches(child.name) and (not rest or child.is_dir()):
                    yield from child._glob(rest)

    def _children(self) -> list[LayerMountPath]:
        return sorted(self.iterdir()) if self.is_dir() else []

    def walk(self) -> Iterator[tuple[LayerMountPath, list[str], list[str]]]:
        """Every directory below, top down: (path, directories' names, other names).

        A link to a directory is among the others.
        """
        for path, directories, others in self._operations.walk(str(self)):
            yield LayerMountPath(self._operations, path), directories, others

    # Reading and writing.

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the file, as the built-in `open` does."""
        return self._operations.open(str(self), mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self._operations.open_file(str(self), os.O_RDONLY) as file:
            return file.readall() or b""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The whole file as text."""
        with self.open("r", encoding=encoding, errors=errors) as file:
            text: str = file.read()
        return text

    def write_bytes(self, data: bytes) -> int:
        """Make the file have exactly this content."""
        with self._operations.open(str(self), "wb") as file:
            count: int = file.write(data)
        return count

    def write_text(self, text: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Make the file have exactly this text."""
        with self._operations.open(str(self), "w", -1, encoding, errors) as file:
            count: int = file.write(text)
        return count

    # Changing.

    def touch(self, mode: int = 0o666, *, exist_ok: bool = True) -> None:
        """Make an empty file, or set the times of what is here to now."""
        now = time.time_ns()
        if exist_ok and self.exists():
            self._operations.utime(str(self), ns=(now, now))
            return
        flags = os.O_WRONLY | os.O_CREAT | (0 if exist_ok else os.O_EXCL)
        self._operations.open_file(str(self), flags, mode).close()

    def mkdir(self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory."""
        if parents:
            self._operations.makedirs(str(self), mode, exist_ok=exist_ok)
            return
        try:
            self._operations.mkdir(str(self), mode)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def rmdir(self) -> None:
        """Remove the empty directory."""
        self._operations.rmdir(str(self))

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove what is no directory."""
        try:
            self._operations.unlink(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: StrPath | LayerMountPath) -> LayerMountPath:
        """Move to another path of the same overlay; the new path."""
        self._operations.rename(str(self), str(target))
        return LayerMountPath(self._operations, str(target))

    replace = rename

    def symlink_to(self, target: str) -> None:
        """Make this a symbolic link that leads to `target`."""
        self._operations.symlink(target, str(self))

    def hardlink_to(self, target: StrPath | LayerMountPath) -> None:
        """Make this another name of the file `target`."""
        self._operations.link(str(target), str(self))

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the mode's twelve low bits."""
        self._operations.chmod(str(self), mode, follow_symlinks=follow_symlinks)


def _is_magic(part: str) -> bool:
    return any(letter in part for letter in "*?[")
