"""One change, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ChangeKind(enum.StrEnum):
    """What happened to a path."""

    DELETED = "deleted"
    RENAMED = "renamed"
    MODIFIED = "modified"
    ADDED = "added"


@dataclass(frozen=True, slots=True)
class Change:
    """What an upper changed at one path.

    Attributes:
        kind: What happened. A deleted directory is one change, whatever was in it.
        path: The merged path; of what was deleted, where it was.
        entry: "file", "directory", "link", "fifo", "socket" or "device"; of what is there now.
        what: For `modified` and `renamed`, what differs: "type", "content", "target", "device",
            "mode", "owner", "xattrs", "times"; sorted. A directory's times are not compared.
        old_path: For `renamed`, where it was.
        old_size: Bytes of a regular file before, None where there was none.
        new_size: Bytes of a regular file now, None where there is none.
    """

    kind: ChangeKind
    path: str
    entry: str
    what: tuple[str, ...] = ()
    old_path: str | None = None
    old_size: int | None = None
    new_size: int | None = None
