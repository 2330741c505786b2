"""Why a path shows what it shows: which layer answers, and what hides what in the others.

The answer is the tree's own; here each layer is asked again, so that the reason comes from what is
on disk and not from what is remembered. Rules: V1 to V7.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from layermount.engine.gate import ask
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.errors import ClosedError
from layermount.events import Operation
from layermount.layer.base import DIRECTORY, LINK, REGULAR, WHITEOUT, Directory

_KIND_NAMES = {DIRECTORY: "directory", REGULAR: "file", LINK: "link"}


class Role(enum.StrEnum):
    """What a layer contributes at a path."""

    ANSWERS = "answers"
    """Its entry is the one that is shown."""
    MERGED = "merged"
    """Its directory shows through below the one that answers."""
    DATA = "data"
    """It has the data of a metadata-only copy above it."""
    DELETES = "deletes"
    """It has a mark that deletes the name in deeper layers."""
    HIDDEN = "hidden"
    """It has an entry, and something above hides it."""
    ABSENT = "absent"
    """It has nothing there."""


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """One layer's part in a path.

    Attributes:
        layer: `upper`, or `lower[0]` for the nearest lower.
        source: The path the layer was opened from.
        path: Where the layer has the entry, from its root; "" when it has none.
        role: What it contributes.
        reason: Why, one sentence without a full stop.
    """

    layer: str
    source: str
    path: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a path shows what it shows.

    Attributes:
        path: The merged path that was asked about.
        kind: "file", "directory", "link", "other", or None when nothing is shown.
        verdicts: One for each layer, the nearest first.
    """

    path: str
    kind: str | None
    verdicts: tuple[LayerVerdict, ...]

    @property
    def answer(self) -> LayerVerdict | None:
        """The layer that answers, or None."""
        return next((v for v in self.verdicts if v.role is Role.ANSWERS), None)

    @property
    def is_deleted(self) -> bool:
        """Whether nothing is shown because of a mark."""
        return self.kind is None and any(v.role is Role.DELETES for v in self.verdicts)


def layer_name(depth: int) -> str:
    """What a layer at this depth is called, such as `upper` or `lower[0]`."""
    return "upper" if depth == 0 else f"lower[{depth - 1}]"


def explain(overlay: Overlay, parts: list[str], *, first_is_upper: bool = False) -> Explanation:
    """Explain a path; links are not followed.

    Args:
        overlay: Where.
        parts: The path's components, no "." and "..".
        first_is_upper: The overlay is a read-only look at an upper, opened as the nearest lower;
            the layers are called what they are called when it is the upper.

    Raises:
        ClosedError: The overlay is closed.
    """
    ask(overlay.gate, overlay.events, Operation.GET_INFO, "/".join(parts))
    with overlay.tree.lock:
        if overlay.is_closed:
            raise ClosedError("the overlay is closed")
        return _Explainer(overlay, parts, int(first_is_upper)).explain()


class _Explainer:
    """Descends along the merged directories and keeps, for each layer, why it fell out."""

    def __init__(self, overlay: Overlay, parts: list[str], shift: int) -> None:
        self._shift = shift
        self._tree = overlay.tree
        self._parts = parts
        self._upper = overlay.upper
        self._verdicts: dict[int, LayerVerdict] = {}

    def explain(self) -> Explanation:
        node: Node | None = self._tree.root
        for depth_of_path, name in enumerate(self._parts):
            if not isinstance(node, DirectoryNode):
                break
            node = self._step(node, name, "/".join(self._parts[: depth_of_path + 1]))
        else:
            if node is not None:
                self._answers(node)
                return Explanation(
                    "/".join(self._parts), _kind_name(node), self._all("absent here")
                )
        return Explanation("/".join(self._parts), None, self._all("it has no such entry"))

    def _step(self, parent: DirectoryNode, name: str, path: str) -> Node | None:
        """Go down one name; layers that have something there and do not show it are settled."""
        found = self._tree.find(parent, name)
        shown = {} if found is None else self._shown(found)
        cause: str | None = None
        for depth, directory in self._levels(parent):
            kind = directory.kind(name)
            where = self._where(directory, name)
            if kind == WHITEOUT:
                self._settle(
                    depth, where, Role.DELETES, f"a mark deletes {path!r} in deeper layers"
                )
                cause = cause or f"the mark in {self._name(depth)} on {path!r}"
            elif kind is None:
                continue
            elif depth not in shown:
                reason = f"hidden by {cause}" if cause else "it was moved, and another is here"
                self._settle(depth, where, Role.HIDDEN, reason)
            if kind not in (None, WHITEOUT):
                cause = cause or self._closes(depth, directory, name, kind, path)
        return found

    def _closes(
        self, depth: int, directory: Directory, name: str, kind: int, path: str
    ) -> str | None:
        """What this entry does to deeper layers' namesakes, or None when they merge with it."""
        if kind != DIRECTORY:
            return f"the {_KIND_NAMES.get(kind, 'entry')} {path!r} in {self._name(depth)}"
        if directory.directory(name).is_opaque():
            return f"the opaque directory {path!r} in {self._name(depth)}"
        return None

    def _levels(self, node: DirectoryNode) -> list[tuple[int, Directory]]:
        upper: list[tuple[int, Directory]] = [] if node.upper is None else [(0, node.upper)]
        return [*upper, *self._tree.levels(node)]

    def _shown(self, node: Node) -> dict[int, Directory]:
        if isinstance(node, DirectoryNode):
            return dict(self._levels(node))
        shown = {node.depth: node.holder}
        depth, directory, _ = self._tree.data_of(node)
        shown.setdefault(depth, directory)
        return shown

    def _answers(self, node: Node) -> None:
        """The layers that show the entry itself."""
        if not isinstance(node, DirectoryNode):
            where = self._where(node.holder, node.entry)
            self._put(node.depth, where, Role.ANSWERS, "it is the nearest layer that has it")
            depth, directory, name = self._tree.data_of(node)
            if depth != node.depth:
                reason = f"{self._name(node.depth)} has the metadata only"
                self._put(depth, self._where(directory, name), Role.DATA, reason)
            return
        for place, (depth, directory) in enumerate(self._levels(node)):
            role = Role.MERGED if place else Role.ANSWERS
            reason = "its directory shows through" if place else "it is the nearest that has it"
            self._put(depth, directory.path, role, reason)

    def _name(self, depth: int) -> str:
        return layer_name(depth - self._shift)

    def _where(self, directory: Directory, name: str) -> str:
        return name if directory.path == "." else f"{directory.path}/{name}"

    def _settle(self, depth: int, path: str, role: Role, reason: str) -> None:
        if depth not in self._verdicts:
            self._put(depth, path, role, reason)

    def _put(self, depth: int, path: str, role: Role, reason: str) -> None:
        self._verdicts[depth] = LayerVerdict(
            self._name(depth), self._source(depth), path, role, reason
        )

    def _source(self, depth: int) -> str:
        if depth:
            return self._tree.lowers[depth - 1].name
        return "" if self._upper is None else self._upper.layer.name

    def _all(self, absent: str) -> tuple[LayerVerdict, ...]:
        first = 0 if self._upper is not None else 1
        for depth in range(first, len(self._tree.lowers) + 1):
            self._settle(depth, "", Role.ABSENT, absent)
        return tuple(self._verdicts[depth] for depth in sorted(self._verdicts))


def _kind_name(node: Node) -> str:
    return _KIND_NAMES.get(node.kind, "other")
