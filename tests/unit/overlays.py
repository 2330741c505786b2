"""Overlays for tests: layers as data in, an open `LayerMount` out; root is not needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layermount import Event, EventKind, LayerMount, LayerMountConfig
from layermount.layer.marks import OVERLAY, OVERLAY_USER
from layermount.testing.trees import Tree, build

#: The dialect that this process keeps marks in, and so the one that layers are built in.
MARKS = OVERLAY if os.geteuid() == 0 else OVERLAY_USER
#: More than fits into one page or one buffer.
BIG = bytes(range(256)) * 8192


def make_layers(base: Path, *lowers: Tree, upper: Tree | None = None) -> None:
    """Build `base/upper` and `base/lower0`, `base/lower1`, …; index 0 wins."""
    build(base / "upper", upper or {}, marks=MARKS)
    for number, tree in enumerate(lowers):
        build(base / f"lower{number}", tree, marks=MARKS)


def config_of(base: Path, **options: Any) -> LayerMountConfig:
    """The configuration for what `make_layers` built, with records that need no privilege."""
    options = {"own_redirects": True} | options
    lowers = sorted(path for path in base.iterdir() if path.name.startswith("lower"))
    return LayerMountConfig(base / "upper", lowers, **options)


def open_layers(base: Path, **options: Any) -> LayerMount:
    """Open what `make_layers` built."""
    return LayerMount.create(config_of(base, **options))


def open_overlay(
    base: Path, *lowers: Tree, upper: Tree | None = None, **options: Any
) -> LayerMount:
    """Build the layers and open them."""
    make_layers(base, *lowers, upper=upper)
    return open_layers(base, **options)


def in_turn(*acts: Callable[[LayerMount], object]) -> Callable[[LayerMount], object]:
    """One act that is several."""

    def act(mount: LayerMount) -> None:
        for each in acts:
            each(mount)

    return act


def nothing(mount: LayerMount) -> None:
    """The act that does nothing: the layers alone make the case."""


def is_shell(base: Path, path: str) -> bool:
    """Whether the upper has a metadata-only copy."""
    return MARKS.key("metacopy") in os.listxattr(base / "upper" / path)


def heard(mount: LayerMount) -> list[tuple[EventKind, str]]:
    """A list that fills with the (kind, path) of every later event."""
    found: list[tuple[EventKind, str]] = []

    def note(event: Event) -> None:
        found.append((event.kind, event.path))

    mount.on_event(note)
    return found


def names_below(mount: LayerMount, path: str = "") -> list[str]:
    """Every path that the listing shows, sorted."""

    def walk() -> Iterator[str]:
        for top, directories, others in mount.walk(path):
            for name in directories + others:
                yield os.path.join(top, name)

    return sorted(walk())


def files_below(directory: Path) -> list[str]:
    """Every path on disk below a directory, sorted."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
