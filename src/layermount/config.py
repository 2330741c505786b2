"""Checked configuration: what an overlay is made of and how it behaves. No input or output here."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from layermount.errors import ConfigError

_DIALECTS = ("overlay", "overlay-user", "oci")
StrPath = str | os.PathLike[str]


class Capabilities(enum.Flag):
    """What the engine may use of the upper's filesystem.

    What is asked for and truly there is used. What is not there, or was left out on purpose, takes
    the fallback named here. A fallback that loses something is reported by a `warning` event, one
    that refuses by its errno; the rest cost room or time and are silent.
    """

    NONE = 0
    #: Extended attributes of files. Off: copy-up leaves `user.*` attributes behind, and warns.
    XATTRS = enum.auto()
    #: POSIX access control lists. Off: copy-up keeps the mode bits only, and warns.
    ACLS = enum.auto()
    #: Giving files to other owners. Off: what is copied up belongs to the caller, with a warning.
    OWNERS = enum.auto()
    #: Holes in files. Off: holes are written out as zeros.
    SPARSE_FILES = enum.auto()
    #: Sharing blocks between files (FICLONE). Off: data is copied by the kernel (copy_file_range),
    #: which on some filesystems shares blocks on its own account.
    REFLINK = enum.auto()
    #: Metadata-only copy-up. Off: the first change of any kind copies the data too.
    METACOPY = enum.auto()
    #: Renaming directories of lowers by a record. Off: EXDEV, as the kernel answers.
    REDIRECT_DIR = enum.auto()
    #: Device nodes other than marks. Off: creating or copying one up fails with EPERM.
    DEVICE_NODES = enum.auto()
    #: Hard links. Off: linking fails with EPERM.
    HARD_LINKS = enum.auto()
    #: Whiteout and move in one step (RENAME_WHITEOUT). Off: renaming what a lower holds is EXDEV.
    RENAME_WHITEOUT = enum.auto()

    @classmethod
    def all(cls) -> Capabilities:
        """Every capability."""
        return ~cls.NONE


class Durability(enum.StrEnum):
    """When changes reach the disk; the names are the kernel overlayfs's `fsync=` option."""

    AUTO = "auto"
    """Data is synced before a copy-up lands."""
    STRICT = "strict"
    """Also metadata, and the directory in which something landed."""
    VOLATILE = "volatile"
    """Nothing is synced; an upper that was not closed cleanly is refused afterwards."""


@dataclass(frozen=True, slots=True, init=False)
class LayerMountConfig:
    """What `LayerMount.create` needs to know.

    Attributes:
        upper_path: The writable layer, an existing directory; None makes a read-only union.
        lower_paths: Read-only layers, existing directories; index 0 wins.
        work_dir_path: Where changes are prepared, on the upper's filesystem. None means a directory
            `.layermount-work/NAME` beside the upper NAME, made when missing.
        capabilities: What may be used; what is used is this and what the filesystem really has.
        durability: When changes reach the disk.
        dialect: `overlay` or `overlay-user`, how the marks are kept; None takes the one the upper
            is in, and for a new one `overlay` where the right is there.
        lower_dialects: For each lower `overlay`, `overlay-user`, `oci`, or None for the upper's
            own.
        own_redirects: With user marks (no privilege) the kernel follows no redirects, so renaming a
            lower's directory is EXDEV. True writes them all the same, and marks the upper so that
            the kernel host refuses it instead of showing a wrong tree.
        path_cache_capacity: Merged directories whose index stays in memory; at least 1.

    Raises:
        ConfigError: A field contradicts another, or is out of range.
    """

    upper_path: Path | None = None
    lower_paths: tuple[Path, ...] = ()
    work_dir_path: Path | None = None
    capabilities: Capabilities = field(default_factory=Capabilities.all)
    durability: Durability = Durability.AUTO
    dialect: str | None = None
    lower_dialects: tuple[str | None, ...] = ()
    own_redirects: bool = False
    path_cache_capacity: int = 10_000

    def __init__(
        self,
        upper_path: StrPath | None = None,
        lower_paths: Iterable[StrPath] = (),
        *,
        work_dir_path: StrPath | None = None,
        capabilities: Capabilities | None = None,
        durability: Durability | str = Durability.AUTO,
        dialect: str | None = None,
        lower_dialects: Iterable[str | None] | None = None,
        own_redirects: bool = False,
        path_cache_capacity: int = 10_000,
    ) -> None:
        if isinstance(lower_paths, str | bytes | os.PathLike):
            message = f"lower_paths is one path, {os.fspath(lower_paths)!r}, not a list of paths"
            raise ConfigError(message, hint="write lower_paths=[...]")
        put = object.__setattr__
        put(self, "upper_path", None if upper_path is None else _path(upper_path, "upper_path"))
        put(self, "lower_paths", tuple(_path(p, "lower_paths") for p in lower_paths))
        put(self, "work_dir_path", self._work_dir(work_dir_path))
        put(self, "capabilities", Capabilities.all() if capabilities is None else capabilities)
        put(self, "durability", _durability(durability))
        put(self, "dialect", dialect)
        same = (None,) * len(self.lower_paths)
        put(self, "lower_dialects", same if lower_dialects is None else tuple(lower_dialects))
        put(self, "own_redirects", own_redirects)
        put(self, "path_cache_capacity", path_cache_capacity)
        self._check()

    def _work_dir(self, given: StrPath | None) -> Path | None:
        if given is not None:
            return _path(given, "work_dir_path")
        if self.upper_path is None:
            return None
        # An upper "." or ".." has no name of its own to put beside it.
        upper = Path(os.path.abspath(self.upper_path))
        return upper.parent / ".layermount-work" / upper.name

    def _check(self) -> None:
        if self.upper_path is None and not self.lower_paths:
            raise ConfigError("no layers: neither upper_path nor lower_paths is given")
        if self.upper_path is None and self.work_dir_path is not None:
            raise ConfigError("work_dir_path is given without upper_path")
        if len(self.lower_dialects) != len(self.lower_paths):
            raise ConfigError("lower_dialects must have one item for each of lower_paths")
        for dialect in (self.dialect, *self.lower_dialects):
            if dialect not in (None, *_DIALECTS):
                choices = ", ".join(_DIALECTS)
                raise ConfigError(f"dialect is {dialect!r}, must be one of {choices}")
        if self.path_cache_capacity < 1:
            raise ConfigError(
                f"path_cache_capacity is {self.path_cache_capacity}, must be at least 1"
            )


def _path(given: StrPath, name: str) -> Path:
    text = os.fspath(given)
    if not text:
        raise ConfigError(f"{name} is an empty path")
    if "\0" in text:
        raise ConfigError(f"{name} has a NUL byte in {text!r}")
    return Path(text)


def _durability(given: Durability | str) -> Durability:
    try:
        return Durability(given)
    except ValueError:
        choices = ", ".join(Durability)
        raise ConfigError(f"durability is {given!r}, must be one of {choices}") from None
