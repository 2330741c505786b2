"""The merged index of a directory, as a table: layers in, names out. Rules: V1 to V4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from layermount.engine.index import DirectoryIndex, build_index
from layermount.layer.base import DIRECTORY, LINK, REGULAR, WHITEOUT

_KINDS = {"f": REGULAR, "d": DIRECTORY, "l": LINK, "w": WHITEOUT}


@dataclass(frozen=True, slots=True)
class Row:
    """Layers nearest first, each "name:kind …"; the first is the upper, "-" when it has none.

    Attributes:
        shown: "name:kind@position,position …".
        covered: Names that a lower would show without the upper, as far as the upper has them.
        whiteouts: Names with a mark in the upper.
    """

    layers: tuple[str, ...]
    shown: str
    covered: str = ""
    whiteouts: str = ""


ROWS = (
    Row(("a:f", ""), "a:f@0"),
    Row(("", "a:f"), "a:f@1"),
    Row(("-", "a:f b:d", "b:d c:l"), "a:f@1 b:d@1,2 c:l@2"),
    Row(("a:f", "a:f"), "a:f@0", "a"),
    Row(("a:d", "a:d"), "a:d@0,1", "a"),
    Row(("a:d", "a:f"), "a:d@0", "a"),
    Row(("a:f", "a:d"), "a:f@0", "a"),
    Row(("a:w", "a:f"), "", "a", "a"),
    Row(("a:w", ""), "", "", "a"),
    Row(("a:w", "a:w", "a:f"), "", "", "a"),
    Row(("a:w", "a:d", "a:d"), "", "a", "a"),
    Row(("a:f", "a:w", "a:f"), "a:f@0"),
    Row(("a:d", "a:w", "a:d"), "a:d@0"),
    Row(("a:d", "a:d", "a:w", "a:d"), "a:d@0,1", "a"),
    Row(("a:d", "a:f", "a:d"), "a:d@0", "a"),
    Row(("a:d", "a:d", "a:f", "a:d"), "a:d@0,1", "a"),
    Row(("", "a:w", "a:f"), ""),
    Row(("-", "a:w", "a:f", "a:f"), ""),
    Row(("-", "a:d", "", "a:d"), "a:d@1,3"),
    Row(("", "a:f", "a:d"), "a:f@1"),
    Row(("", "a:w b:f", "a:f b:f", "a:f c:f"), "b:f@1 c:f@3"),
    # A mark beside an entry, as OCI layers may have it, hides deeper layers and not the entry.
    Row(("-", "a:f a:w", "a:f"), "a:f@1"),
    Row(("-", "a:w a:d", "a:d"), "a:d@1"),
    Row(("-", "b:f", "a:w a:d", "a:d"), "b:f@1 a:d@2"),
    Row(("-", "a:d", "a:d a:w", "a:d"), "a:d@1,2"),
    Row(("a:d", "a:w a:d", "a:d"), "a:d@0,1", "a"),
    Row(("a:d", "a:d a:w", "a:d"), "a:d@0,1", "a"),
    Row(("a:w", "a:f a:w", "a:f"), "", "a", "a"),
    Row(("a:w", "a:w a:f", "a:f"), "", "a", "a"),
)


def scan(text: str) -> list[tuple[str, int]]:
    return [
        (name, _KINDS[kind]) for name, _, kind in (word.partition(":") for word in text.split())
    ]


def build(*layers: str) -> DirectoryIndex:
    return build_index((at, scan(text)) for at, text in enumerate(layers) if text != "-")


def shown(index: DirectoryIndex) -> str:
    letters = {kind: letter for letter, kind in _KINDS.items()}
    words = []
    for name, kind in index:
        positions = index.positions(name)
        assert index.get(name) == (positions[0], kind)
        assert name in index
        words.append(f"{name}:{letters[kind]}@{','.join(map(str, positions))}")
    assert len(index) == len(words)
    return " ".join(words)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " | ".join(row.layers))
def test_what_layers_show(row: Row) -> None:
    index = build(*row.layers)
    assert sorted(shown(index).split()) == sorted(row.shown.split())
    assert index.whiteouts == set(row.whiteouts.split())
    assert {name for name in "abc" if index.is_in_lower(name)} - _of_lowers(index) == set(
        row.covered.split()
    )


def _of_lowers(index: DirectoryIndex) -> set[str]:
    return {name for name, _ in index if index.positions(name)[0] > 0}


def test_a_name_that_nobody_has() -> None:
    index = build("a:f", "b:w")
    assert index.get("b") is None
    assert "b" not in index
    assert not index.is_in_lower("b")


#: What is done → (layers before, the change, layers after).
CHANGES: dict[str, tuple[tuple[str, ...], Callable[[DirectoryIndex], None], tuple[str, ...]]] = {
    "create": (("", ""), lambda i: i.put_upper("a", REGULAR), ("a:f", "")),
    "create over mark": (("a:w", "a:f"), lambda i: i.put_upper("a", REGULAR), ("a:f", "a:f")),
    "copy up file": (("", "a:f"), lambda i: i.copied_up("a"), ("a:f", "a:f")),
    "copy up directory": (("", "a:d", "a:d"), lambda i: i.copied_up("a"), ("a:d", "a:d", "a:d")),
    "remove own": (("a:f", ""), lambda i: i.remove("a"), ("", "")),
    "remove own directory": (("a:d", ""), lambda i: i.remove("a"), ("", "")),
    "remove lower": (("", "a:f"), lambda i: i.remove("a"), ("a:w", "a:f")),
    "remove copy": (("a:f", "a:f"), lambda i: i.remove("a"), ("a:w", "a:f")),
    "remove merged": (("a:d", "a:d"), lambda i: i.remove("a"), ("a:w", "a:d")),
    "remove over mark of lower": (
        ("a:f", "a:w", "a:f"),
        lambda i: i.remove("a"),
        ("", "a:w", "a:f"),
    ),
    "mark absent": (("", ""), lambda i: i.mark("a"), ("a:w", "")),
    "mark own": (("a:f", ""), lambda i: i.mark("a"), ("a:w", "")),
    "mark lower": (("", "a:d"), lambda i: i.mark("a"), ("a:w", "a:d")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_gives_what_a_new_scan_would(change: str) -> None:
    before, do, after = CHANGES[change]
    changed, fresh = build(*before), build(*after)
    do(changed)
    assert shown(changed) == shown(fresh)
    assert changed.whiteouts == fresh.whiteouts
    assert changed.is_in_lower("a") == fresh.is_in_lower("a")
