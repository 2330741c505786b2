"""Finding an entry in deeper layers: the kernel's walk through redirects and marks.

The merged index answers for names that stayed where they were. What was moved while it was in an
upper says so in a record, and deeper layers are then searched under the old path. Rules: V5 to V7.
Source: Documentation/filesystems/overlayfs.rst, "redirect_dir" and "metacopy".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layermount.layer.base import DIRECTORY, REGULAR, Directory, Layer

#: (depth, directory): a directory of the layer at that depth; 1 is the nearest lower.
Level = tuple[int, Directory]


@dataclass(slots=True)
class _Walk:
    """Where deeper layers are searched, and whether they are still searched at all."""

    parts: list[str]
    from_root: bool
    stopped: bool = False

    def redirect(self, rest: int, target: str) -> None:
        """Follow a record found on a component with `rest` more after it: those stay."""
        at = len(self.parts) - rest
        if target.startswith("/"):
            self.parts = [*target[1:].split("/"), *self.parts[at:]]
            self.from_root = True
            # What hides the way to the record does not hide what it names.
            self.stopped = False
        else:
            self.parts = [*self.parts[: at - 1], target, *self.parts[at:]]


class Search:
    """Searches the lowers of an overlay, nearest first."""

    def __init__(self, lowers: Sequence[Layer], *, redirects: bool) -> None:
        self._lowers = lowers
        self._redirects = redirects

    @property
    def deepest(self) -> int:
        """The depth of the last layer; what is there hides nothing."""
        return len(self._lowers)

    def directories(self, levels: Sequence[Level], target: str, *, below: int) -> Iterator[Level]:
        """The directories that merge under a redirect `target`, in layers deeper than `below`.

        Args:
            levels: The parent's own lowers; a relative target is a name in them.
            target: "/a/b" from the layers' roots, or a single name.
            below: Depth of the layer that holds the record.
        """
        walk = self._start(target)
        for depth, base in self._bases(walk, levels, below):
            directory = self._descend(walk, depth, base, rest=0)
            if directory is not None:
                yield depth, directory
            if walk.stopped:
                return

    def data(
        self, levels: Sequence[Level], target: str, *, below: int
    ) -> tuple[int, Directory, str] | None:
        """The file that has the data of a metadata-only copy: (depth, its directory, its name)."""
        walk = self._start(target)
        for depth, base in self._bases(walk, levels, below):
            directory = self._descend(walk, depth, base, rest=1)
            name = walk.parts[-1]
            kind = None if directory is None else directory.kind(name)
            if directory is not None and kind == REGULAR:
                if not directory.is_metacopy(name):
                    return depth, directory, name
                self._note_redirect(walk, 0, directory, name)
            elif kind is not None:
                return None
            if walk.stopped:
                return None
        return None

    def _start(self, target: str) -> _Walk:
        if target.startswith("/"):
            return _Walk(target[1:].split("/"), from_root=True)
        return _Walk([target], from_root=False)

    def _bases(self, walk: _Walk, levels: Sequence[Level], below: int) -> Iterator[Level]:
        """Where to start in each deeper layer; a redirect on the way may change it to the roots."""
        by_depth = dict(levels)
        for depth in range(below + 1, self.deepest + 1):
            if walk.from_root:
                yield depth, self._lowers[depth - 1].root
            elif depth in by_depth:
                yield depth, by_depth[depth]

    def _descend(self, walk: _Walk, depth: int, base: Directory, *, rest: int) -> Directory | None:
        """The directory that the walk's path leads to in one layer, but for its last `rest` parts.

        A record met on the way is followed in deeper layers; in this one the names go on.
        """
        directory = base
        names = walk.parts[: len(walk.parts) - rest]
        for after, name in zip(range(len(names) - 1 + rest, -1, -1), names, strict=False):
            kind = directory.kind(name)
            if kind != DIRECTORY:
                walk.stopped = walk.stopped or kind is not None
                return None
            directory = directory.directory(name)
            if depth == self.deepest:
                continue
            if directory.is_opaque():
                walk.stopped = True
            else:
                self._note_redirect(walk, after, directory, ".")
        return directory

    def _note_redirect(self, walk: _Walk, rest: int, directory: Directory, name: str) -> None:
        target = directory.redirect(name) if self._redirects else None
        if target is not None:
            walk.redirect(rest, target)
