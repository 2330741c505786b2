"""From path to node: the walk the kernel does, with the overlay's root as the root of everything.

`.` and doubled slashes collapse, `..` goes up and never above the root, links are followed inside
the overlay, absolute targets from its root. There is no string that means something outside. Rules:
T1 to T4.
"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.engine.refusals import refusal
from layermount.layer.base import LINK

StrPath = str | os.PathLike[str]

#: As the kernel's MAXSYMLINKS.
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads.

    Attributes:
        parent: The directory of the last component.
        name: The last component; "" for the root.
        node: What is there, None for nothing.
    """

    parent: DirectoryNode
    name: str
    node: Node | None


def locate(overlay: Overlay, path: StrPath, *, follow: bool) -> Place:
    """Where `path` leads; only its last component may be missing.

    Args:
        overlay: The overlay to walk in.
        path: With or without a leading slash.
        follow: Whether a link as the last component is followed, to where it leads or would lead.

    Raises:
        ValueError: The path has a NUL byte.
        OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EACCES.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ValueError("embedded null byte")
    with naming(text):
        return _walk(overlay, text, follow=follow)


def canonical_parts(overlay: Overlay, path: StrPath) -> list[str]:
    """The components of `path` with links on the way followed, the last one as it is.

    From where nothing is any more the components stay as they are written.

    Raises:
        OSError: ELOOP, EACCES; ENOENT for a ".." below something that does not exist.
    """
    parts = [part for part in os.fspath(path).split("/") if part not in ("", ".")]
    for count in range(len(parts), 0, -1):
        try:
            place = locate(overlay, "/".join(parts[:count]), follow=count < len(parts))
        except (FileNotFoundError, NotADirectoryError):
            if parts[count - 1] == "..":
                raise
            continue
        above = [*place.parent.path.split("/"), place.name]
        return [part for part in above if part] + parts[count:]
    return parts


def get_node(overlay: Overlay, path: StrPath, *, follow: bool = True) -> Node:
    """What is at `path`.

    Raises:
        OSError: As `locate`, and ENOENT when nothing is there.
    """
    place = locate(overlay, path, follow=follow)
    if place.node is None:
        raise refusal(errno.ENOENT, os.fspath(path))
    return place.node


def get_directory(overlay: Overlay, path: StrPath) -> DirectoryNode:
    """The directory at `path`.

    Raises:
        OSError: As `get_node`, and ENOTDIR when it is something else.
    """
    node = get_node(overlay, path)
    if not isinstance(node, DirectoryNode):
        raise refusal(errno.ENOTDIR, os.fspath(path))
    return node


def _walk(overlay: Overlay, text: str, *, follow: bool) -> Place:
    root = overlay.root
    pending = text.split("/")[::-1]
    parent, name = root, ""
    node: Node | None = root
    links = 0
    while pending:
        part = pending.pop()
        directory = node if isinstance(node, DirectoryNode) else _refuse(node, name)
        if part in ("", "."):
            continue
        if part == "..":
            node = directory.parent or root
            parent, name = node.parent or root, node.name
            continue
        parent, name, node = directory, part, _step(overlay, directory, part)
        if node is not None and node.kind == LINK and (pending or follow):
            links += 1
            if links > MAX_LINKS:
                raise refusal(errno.ELOOP, text)
            target = overlay.readlink(node)
            node = parent = root if target.startswith("/") else directory
            name = ""
            pending.extend(target.split("/")[::-1])
    return Place(parent, name, node)


def _step(overlay: Overlay, directory: DirectoryNode, name: str) -> Node | None:
    try:
        return overlay.lookup(directory, name)
    except FileNotFoundError:
        return None


def _refuse(node: Node | None, name: str) -> NoReturn:
    number = errno.ENOENT if node is None else errno.ENOTDIR
    raise refusal(number, name)


def naming(path: str, path2: str | None = None) -> AbstractContextManager[None]:
    """Let an OSError name the overlay's path instead of the layer's."""
    return _Naming(path, path2)


class _Naming:
    """A class, because it is around every operation: a third of the time of a generator."""

    __slots__ = ("_path", "_path2")

    def __init__(self, path: str, path2: str | None) -> None:
        self._path = path
        self._path2 = path2

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, OSError):
            return
        error.filename = self._path
        if self._path2 is None:
            # None would be shown as a second path.
            del error.filename2
        else:
            error.filename2 = self._path2
