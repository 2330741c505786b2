"""Ways to show layers: anything that mounts them, and the engine in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from layermount.config import LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.engine.pathops import PathOperations
from layermount.layer.marks import OVERLAY, OVERLAY_USER, KernelMarks
from layermount.testing.conformance.case import Layers, Subject, Trait
from layermount.testing.conformance.faces import Face, InProcessFace, MountedFace


def mounted(
    base: Path,
    mount: Callable[[Layers], AbstractContextManager[object]],
    *,
    name: str,
    traits: Iterable[Trait],
    marks: KernelMarks | None = None,
) -> Subject:
    """A subject that is a mount.

    Args:
        base: An existing directory for the layers.
        mount: Shows the layers at `Layers.target` as long as its context lasts. Whatever serves the
            mount must be another process, or the kernel.
        name: For messages.
        traits: What it promises beside PATHS and ONE_FILESYSTEM, and ROOT where the caller is
            that.
        marks: The dialect of its uppers; None is what this process may write.
    """

    @contextmanager
    def show(layers: Layers) -> Iterator[Face]:
        with mount(layers), contextlib.closing(MountedFace(layers.target)) as face:
            yield face

    every = {Trait.PATHS, Trait.ONE_FILESYSTEM, *caller_traits(), *traits}
    return Subject(name, base, marks or caller_marks(), frozenset(every), show)


def in_process(
    base: Path, *, marks: KernelMarks | None = None, own_redirects: bool = False
) -> Subject:
    """The engine, as `LayerMount` has it, in this process.

    Args:
        base: An existing directory for the layers.
        marks: The dialect of its uppers; None is what this process may write.
        own_redirects: As in the configuration: only with user marks it makes a difference.
    """
    dialect = marks or caller_marks()

    @contextmanager
    def show(layers: Layers) -> Iterator[Face]:
        config = LayerMountConfig(
            layers.upper,
            layers.lowers,
            work_dir_path=layers.work,
            dialect=layers.marks.name,
            lower_dialects=[layers.lower_marks.name] * len(layers.lowers),
            own_redirects=own_redirects,
        )
        with contextlib.closing(InProcessFace(PathOperations(Overlay(config)))) as face:
            yield face

    moves = dialect is OVERLAY or own_redirects
    traits = {
        Trait.OWN_ROOT,
        Trait.ONE_FILESYSTEM,
        Trait.OCI_LOWERS,
        Trait.NUMBERS_STAY,
        Trait.LINKS_ARE_ONE,
        Trait.READER_FOLLOWS,
        Trait.LARGE_READER_FOLLOWS,
        Trait.HOLES_AT_ONCE,
        Trait.MOVES_LOWER_DIRECTORIES if moves else Trait.REFUSES_TO_MOVE_LOWER_DIRECTORIES,
        # X12: without privilege nothing is found by its record.
        *({Trait.NUMBERS_MOVE} if os.geteuid() == 0 else ()),
        *caller_traits(),
    }
    return Subject("in process", base, dialect, frozenset(traits), show)


def caller_marks() -> KernelMarks:
    """The dialect that this process may write."""
    return OVERLAY if os.geteuid() == 0 else OVERLAY_USER


def caller_traits() -> frozenset[Trait]:
    """ROOT where this process is that."""
    with open("/proc/self/uid_map", encoding="ascii") as text:
        whole = text.read().split() == ["0", "0", "4294967295"]
    return frozenset({Trait.ROOT} if whole and os.geteuid() == 0 else ())
