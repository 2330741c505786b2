"""The read side of a layer: the protocol every source of layers ends in.

A layer is a tree of directories. A child is only ever reached by one name from its directory, so a
link in a layer cannot lead out of it. Who implements this need not know the engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

#: Kinds of entry, as `d_type` of readdir(3) has them: `st_mode >> 12`.
FIFO = 1
CHARACTER_DEVICE = 2
DIRECTORY = 4
BLOCK_DEVICE = 6
REGULAR = 8
LINK = 10
SOCKET = 12
#: Not an entry but a mark: the name is deleted here and in every deeper layer.
WHITEOUT = 14


class Directory(Protocol):
    """One directory of one layer. A name is a single component; "." is the directory itself."""

    @property
    def fd(self) -> int | None:
        """A borrowed O_RDONLY descriptor, good until the next use; None if virtual."""

    @property
    def path(self) -> str:
        """For messages: where this directory is, from the layer's own root, "." for the root."""

    def scan(self) -> Iterable[tuple[str, int]]:
        """Every entry as (name, kind), in no order; marks come as kind WHITEOUT."""

    def kind(self, name: str) -> int | None:
        """The entry's kind, WHITEOUT for a mark, None when there is nothing."""

    def directory(self, name: str) -> Directory:
        """The child directory `name`.

        Raises:
            OSError: ENOENT, ENOTDIR, ELOOP for a link; EXDEV where another filesystem is mounted.
        """

    def stat(self, name: str) -> os.stat_result:
        """The entry's own metadata, links not followed."""

    def readlink(self, name: str) -> str:
        """The link's target."""

    def open(self, name: str) -> int:
        """A new O_RDONLY descriptor of the regular file `name`; it is the caller's."""

    def getxattr(self, name: str, key: str) -> bytes:
        """One extended attribute by the name that the overlay shows (escapes removed).

        Raises:
            OSError: ENODATA when it is absent, EOPNOTSUPP when there can be no such attribute.
        """

    def listxattr(self, name: str) -> list[str]:
        """The names of the attributes that the overlay shows; the layer's marks are left out."""

    def is_opaque(self) -> bool:
        """Whether this directory hides its namesakes in deeper layers."""

    def redirect(self, name: str) -> str | None:
        """Where deeper layers have this entry: "/a/b" from their roots, or another single name.

        Raises:
            LayerCorruptError: The record is not a path that can be followed.
        """

    def is_metacopy(self, name: str) -> bool:
        """Whether the regular file `name` holds metadata only, its data lying in a deeper layer."""

    def origin(self, name: str) -> bytes | None:
        """The raw record of what this entry was copied up from; None when there is none."""


class Layer(Protocol):
    """One level of an overlay."""

    @property
    def root(self) -> Directory:
        """The layer's top directory."""

    @property
    def name(self) -> str:
        """For messages: the path the layer was opened from."""

    def close(self) -> None:
        """Give every descriptor back. The layer cannot be used afterwards."""
