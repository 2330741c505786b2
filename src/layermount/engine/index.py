"""The merged index of one directory: every visible name and which layer answers for it.

Built once from one scan of each layer, then kept true by the engine's own changes, so that a
look-up and a missing name cost no system call, with 500 layers too. The visibility rule of resolve
and of listing is this one place. Rules: V1 to V4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layermount.layer.base import DIRECTORY, WHITEOUT

_KIND_BITS = 4
_KIND_MASK = (1 << _KIND_BITS) - 1


class DirectoryIndex:
    """Names of one merged directory.

    A position is 0 for the upper and 1, 2, … for the lowers of this directory, nearest first.

    Attributes:
        whiteouts: Names with a mark in the upper. None of them is visible.
        covered: Names that a lower would show if the upper had neither entry nor mark there.
    """

    __slots__ = ("_entries", "_merged", "covered", "whiteouts")

    def __init__(self) -> None:
        # name → position << 4 | kind: small integers are shared, so an entry costs its name only.
        self._entries: dict[str, int] = {}
        # Directories that more than one position has, in order.
        self._merged: dict[str, tuple[int, ...]] = {}
        self.whiteouts: set[str] = set()
        self.covered: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Every visible (name, kind), as of now."""
        return iter([(name, code & _KIND_MASK) for name, code in self._entries.items()])

    def get(self, name: str) -> tuple[int, int] | None:
        """(position, kind) of a visible name, or None."""
        code = self._entries.get(name)
        return None if code is None else (code >> _KIND_BITS, code & _KIND_MASK)

    def positions(self, name: str) -> tuple[int, ...]:
        """The positions whose directories called `name` are merged, nearest first."""
        return self._merged.get(name) or (self._entries[name] >> _KIND_BITS,)

    def put_upper(self, name: str, kind: int) -> None:
        """Note that the upper now has this entry and nothing of the lowers shows through it."""
        if self._entries.get(name, 0) >> _KIND_BITS:
            self.covered.add(name)
        self._entries[name] = kind
        self._merged.pop(name, None)
        self.whiteouts.discard(name)

    def copied_up(self, name: str) -> None:
        """Note that the upper has a copy of what a lower shows; a directory merges with it."""
        position, kind = self._entries[name] >> _KIND_BITS, self._entries[name] & _KIND_MASK
        if kind == DIRECTORY:
            self._merged[name] = (0, *self._merged.get(name, (position,)))
        self._entries[name] = kind
        self.covered.add(name)

    def remove(self, name: str) -> None:
        """Note that the name is gone: deleted by a mark in the upper when a lower has it."""
        if self.is_in_lower(name):
            self.mark(name)
        else:
            self._entries.pop(name, None)
            self._merged.pop(name, None)

    def mark(self, name: str) -> None:
        """Note that the upper now has a mark for this name."""
        if self._entries.get(name, 0) >> _KIND_BITS:
            self.covered.add(name)
        self._entries.pop(name, None)
        self._merged.pop(name, None)
        self.whiteouts.add(name)

    def is_in_lower(self, name: str) -> bool:
        """Whether a lower would show this name without the upper."""
        return self._entries.get(name, 0) >> _KIND_BITS > 0 or name in self.covered


def build_index(scans: Iterable[tuple[int, Iterable[tuple[str, int]]]]) -> DirectoryIndex:
    """The index of a directory from the scans of its layers, (position, entries) nearest first."""
    index = DirectoryIndex()
    closed: set[str] = set()
    lower_closed: set[str] = set()
    for position, entries in scans:
        if not index._entries and not closed:
            _fill(index, closed, position, entries)
        else:
            _merge(index, closed, lower_closed, position, entries)
        if position == 0:
            index.whiteouts = set(closed)
            index.covered = set()
    return index


def _fill(
    index: DirectoryIndex, closed: set[str], position: int, entries: Iterable[tuple[str, int]]
) -> None:
    """The first layer that shows anything: nothing can be above it."""
    base = position << _KIND_BITS
    names = index._entries
    for name, kind in entries:
        if kind == WHITEOUT:
            closed.add(name)
        else:
            names[name] = base | kind


def _merge(
    index: DirectoryIndex,
    closed: set[str],
    lower_closed: set[str],
    position: int,
    entries: Iterable[tuple[str, int]],
) -> None:
    """A deeper layer: names not seen yet appear, directories seen as directories merge.

    A name is closed by a whiteout and by anything that is not a directory: nothing deeper shows.
    `lower_closed` is the same question asked without the upper.
    """
    names = index._entries
    base = position << _KIND_BITS
    # A mark hides deeper layers only: an entry beside it in its own layer stays visible.
    deleted = []
    for name, kind in entries:
        if kind == WHITEOUT:
            deleted.append(name)
            continue
        if name not in names:
            if name in closed:
                _see_lower(index, lower_closed, name, kind)
            else:
                names[name] = base | kind
            continue
        code = names[name]
        if not code >> _KIND_BITS:
            _see_lower(index, lower_closed, name, kind)
        if code & _KIND_MASK != DIRECTORY or name in closed:
            continue
        if kind == DIRECTORY:
            merged = index._merged.get(name) or (code >> _KIND_BITS,)
            index._merged[name] = (*merged, position)
        else:
            closed.add(name)
    for name in deleted:
        _see_lower(index, lower_closed, name, WHITEOUT)
    closed.update(deleted)


def _see_lower(index: DirectoryIndex, lower_closed: set[str], name: str, kind: int) -> None:
    """Decide `covered` for a name that the upper has or deletes, by the nearest lower."""
    if name in lower_closed:
        return
    if name in index._entries or name in index.whiteouts:
        lower_closed.add(name)
        if kind != WHITEOUT:
            index.covered.add(name)
