"""What an upper changed, found by walking it alone: the cost follows the change, not the base.

An upper is compared with what its lowers show together. Rules: F1 to F6.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from layermount.changes.change import Change, ChangeKind
from layermount.changes.compare import differences, has_same_content
from layermount.config import LayerMountConfig
from layermount.engine.inodes import origin_of
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.errors import ConfigError
from layermount.layer.base import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SOCKET,
    WHITEOUT,
    Directory,
)

_ENTRY_NAMES = {
    DIRECTORY: "directory",
    REGULAR: "file",
    LINK: "link",
    FIFO: "fifo",
    SOCKET: "socket",
    CHARACTER_DEVICE: "device",
    BLOCK_DEVICE: "device",
}

_Likeness = tuple[int, int]


@dataclass(slots=True)
class _Renames:
    """What may turn out to be one file that moved: gone here, new there, by its origin record.

    In a user namespace the kernel records only that a file was copied up, not from where. Such a
    file is known by what a move leaves alone: size, modification time and content.
    """

    gone: dict[bytes, Change] = field(default_factory=dict)
    new: dict[bytes, Change] = field(default_factory=dict)
    gone_like: dict[_Likeness, list[Change]] = field(default_factory=lambda: defaultdict(list))
    new_like: dict[_Likeness, list[Change]] = field(default_factory=lambda: defaultdict(list))


class Difference:
    """An upper beside the lowers it was written over, both open for reading.

    Nothing is locked and nothing is written: an upper that is in use can be looked at, and what is
    seen then may already be old. Close it, or use it in a `with`.

    Attributes:
        merged: Upper and lowers together.
        base: The lowers alone.
    """

    def __init__(self, config: LayerMountConfig) -> None:
        """Open the layers of an overlay's configuration.

        Raises:
            ConfigError: The configuration has no upper or no lower.
            LayerUnavailableError: A layer cannot be opened.
        """
        upper = config.upper_path
        if upper is None or not config.lower_paths:
            raise ConfigError("only an upper over at least one lower can be compared")
        self.merged = Overlay(_reading(config, (upper, *config.lower_paths)))
        try:
            self.base = Overlay(_reading(config, config.lower_paths))
        except BaseException:
            self.merged.close()
            raise
        self._renames = _Renames()

    def __enter__(self) -> Difference:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both."""
        self.base.close()
        self.merged.close()

    def changes(self) -> list[Change]:
        """Every change, sorted by path."""
        self._renames = _Renames()
        root = self.merged.root
        found = list(self._directory(root.lowers[0], root, self.base.root, ""))
        return sorted(self._with_renames(found), key=lambda change: change.path)

    def _directory(
        self, top: Directory, merged: DirectoryNode, base: DirectoryNode | None, path: str
    ) -> Iterator[Change]:
        """The changes below one directory of the upper.

        Args:
            top: The upper's directory.
            merged: The same in the merged view.
            base: What it covers in the lowers, None for nothing.
            path: The merged path.
        """
        shown = set()
        for name, kind in sorted(top.scan()):
            below = f"{path}/{name}" if path else name
            shown.add(name)
            before = None if base is None else self.base.tree.find(base, name)
            if kind != WHITEOUT:
                yield from self._entry(merged, name, base, before, below)
            elif before is not None:
                yield self._deleted(before, below)
        if base is not None and top.is_opaque():
            for name, _ in sorted(self.base.listdir(base)):
                if name not in shown:
                    yield self._deleted(self.base.lookup(base, name), f"{path}/{name}")

    def _entry(
        self,
        parent: DirectoryNode,
        name: str,
        base: DirectoryNode | None,
        before: Node | None,
        path: str,
    ) -> Iterator[Change]:
        node = self.merged.lookup(parent, name)
        if not isinstance(node, DirectoryNode):
            yield from self._file(node, before, path)
            return
        top = node.lowers[0]
        moved_from = self._moved_from(node, base, path)
        if moved_from is not None:
            covered: Node | None = moved_from
            what = differences(self.base, moved_from, self.merged, node)
            old_path = moved_from.path
            yield Change(ChangeKind.RENAMED, path, "directory", what, old_path=old_path)
        else:
            covered = before
            yield from self._file(node, before, path)
        inner = covered if isinstance(covered, DirectoryNode) else None
        yield from self._directory(top, node, inner, path)

    def _moved_from(
        self, node: DirectoryNode, base: DirectoryNode | None, path: str
    ) -> DirectoryNode | None:
        """The lowers' directory that a directory of the upper was before it was renamed."""
        target = node.lowers[0].redirect(".") if self.merged.tree.redirects else None
        if target is None:
            return None
        start = self.base.root if target.startswith("/") else base
        current: Node | None = start
        for part in target.removeprefix("/").split("/"):
            if not isinstance(current, DirectoryNode):
                return None
            current = self.base.tree.find(current, part)
        moved = isinstance(current, DirectoryNode) and current.path != path
        return current if isinstance(current, DirectoryNode) and moved else None

    def _file(self, node: Node, before: Node | None, path: str) -> Iterator[Change]:
        """An entry by itself, compared with what it covers."""
        size = self._size(self.merged, node)
        entry = _ENTRY_NAMES[node.kind]
        if before is None:
            change = Change(ChangeKind.ADDED, path, entry, new_size=size)
            self._note_origin(node, change)
            yield change
            return
        what = differences(self.base, before, self.merged, node)
        if what:
            old_size = self._size(self.base, before)
            yield Change(ChangeKind.MODIFIED, path, entry, what, None, old_size, size)

    def _deleted(self, before: Node, path: str) -> Change:
        size = self._size(self.base, before)
        change = Change(ChangeKind.DELETED, path, _ENTRY_NAMES[before.kind], old_size=size)
        if before.kind == REGULAR:
            origin = origin_of(before.holder, before.entry)
            if origin:
                self._renames.gone[origin] = change
            self._renames.gone_like[self._likeness(self.base, before)].append(change)
        return change

    def _likeness(self, overlay: Overlay, node: Node) -> _Likeness:
        status = overlay.getattr(node)
        return status.st_size, status.st_mtime_ns

    def _size(self, overlay: Overlay, node: Node) -> int | None:
        return overlay.getattr(node).st_size if node.kind == REGULAR else None

    def _note_origin(self, node: Node, change: Change) -> None:
        """A new regular file may be a lower's that was moved; its origin record tells."""
        if node.kind == REGULAR:
            origin = node.holder.origin(node.entry)
            if origin:
                self._renames.new[origin] = change
            elif origin is not None:
                self._renames.new_like[self._likeness(self.merged, node)].append(change)

    def _with_renames(self, found: list[Change]) -> Iterator[Change]:
        """The changes, with a deletion and an addition of one file made one."""
        pairs = self._pairs()
        gone: set[str] = {old.path for old, _ in pairs}
        gone |= {change.old_path for change in found if change.old_path is not None}
        moved = {id(change): old for old, change in pairs}
        for change in found:
            if id(change) in moved:
                yield self._renamed(change, moved[id(change)])
            elif change.kind is not ChangeKind.DELETED or change.path not in gone:
                yield change

    def _pairs(self) -> list[tuple[Change, Change]]:
        """What is gone with what it has become."""
        renames = self._renames
        both = sorted(renames.gone.keys() & renames.new.keys())
        pairs = [(renames.gone[origin], renames.new[origin]) for origin in both]
        used = {id(old) for old, _ in pairs}
        for likeness in sorted(renames.gone_like.keys() & renames.new_like.keys()):
            for new in renames.new_like[likeness]:
                free = (old for old in renames.gone_like[likeness] if id(old) not in used)
                old = next((old for old in free if self._is_same_file(old, new)), None)
                if old is not None:
                    used.add(id(old))
                    pairs.append((old, new))
        return pairs

    def _is_same_file(self, old: Change, new: Change) -> bool:
        before, after = self._node(self.base, old.path), self._node(self.merged, new.path)
        return has_same_content(self.base, before, self.merged, after)

    def _renamed(self, change: Change, old: Change) -> Change:
        before = self._node(self.base, old.path)
        after = self._node(self.merged, change.path)
        what = differences(self.base, before, self.merged, after)
        return replace(
            change, kind=ChangeKind.RENAMED, old_path=old.path, old_size=old.old_size, what=what
        )

    def _node(self, overlay: Overlay, path: str) -> Node:
        node: Node = overlay.root
        for part in path.split("/"):
            assert isinstance(node, DirectoryNode)  # noqa: S101  the path was walked before
            node = overlay.lookup(node, part)
        return node


def _reading(config: LayerMountConfig, layers: tuple[Path, ...]) -> LayerMountConfig:
    dialects = (None,) * (len(layers) - len(config.lower_dialects)) + config.lower_dialects
    return LayerMountConfig(
        None, [os.fspath(p) for p in layers], dialect=config.dialect, lower_dialects=dialects
    )
