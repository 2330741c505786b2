"""The conformance suite on the kernel's overlayfs: that proves the cases."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from pathlib import Path

import pytest

from layermount.hosts import kernel, kernel_private
from layermount.hosts.kernel import Options
from layermount.layer.marks import OVERLAY, OVERLAY_USER, KernelMarks
from layermount.linux import mounts
from layermount.testing import conformance
from layermount.testing.conformance import Case, Layers, Subject, Trait
from tests.forked import USER, in_child, user_directory

_TRAITS = (
    Trait.READER_FOLLOWS,
    Trait.LARGE_READER_FOLLOWS,
    Trait.HOLES_AT_ONCE,
    Trait.BIRTH_TIMES,
    Trait.TEMPORARY_FILES,
    Trait.FILE_FLAGS,
)
#: Without privilege the kernel cannot look for files by the records of their origin.
_BY_RECORDS = (Trait.NUMBERS_STAY, Trait.NUMBERS_MOVE, Trait.LINKS_ARE_ONE)
_MOVES = {OVERLAY: Trait.MOVES_LOWER_DIRECTORIES}


def _mount(layers: Layers) -> AbstractContextManager[object]:
    user_marks = layers.marks is OVERLAY_USER
    options = Options() if user_marks else Options(redirect_dir=True, metacopy=True)
    return kernel.mount(
        layers.target,
        lowers=layers.lowers,
        upper=layers.upper,
        work=layers.work,
        user_marks=user_marks,
        options=options,
    )


def _for_everybody(base: Path, marks: KernelMarks) -> Subject:
    moves = _MOVES.get(marks, Trait.REFUSES_TO_MOVE_LOWER_DIRECTORIES)
    traits = (*_TRAITS, *_BY_RECORDS, Trait.OTHER_USERS, moves)
    return conformance.mounted(base, _mount, name="kernel", traits=traits, marks=marks)


@contextmanager
def _enter(layers: Layers) -> Iterator[None]:
    """For a child that ends afterwards: it stays in the namespaces."""
    kernel_private.enter(
        layers.target,
        lowers=layers.lowers,
        upper=layers.upper,
        work=layers.work,
        user_marks=True,
    )
    try:
        yield
    finally:
        mounts.umount2(str(layers.target))


def _private(base: Path) -> Subject:
    traits = (*_TRAITS, Trait.REFUSES_TO_MOVE_LOWER_DIRECTORIES)
    name = "kernel, in a user namespace"
    made = conformance.mounted(base, _enter, name=name, traits=traits, marks=OVERLAY_USER)
    # Whoever makes it here, an ordinary user runs it.
    return dataclasses.replace(made, traits=made.traits - {Trait.ROOT})


@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize(
    "case", conformance.runnable(_for_everybody(Path(), OVERLAY)), ids=attrgetter("name")
)
def test_as_root(tmp_path: Path, case: Case) -> None:
    case.run(_for_everybody(tmp_path, OVERLAY))


@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize(
    "case", conformance.runnable(_for_everybody(Path(), OVERLAY_USER)), ids=attrgetter("name")
)
def test_with_user_marks(tmp_path: Path, case: Case) -> None:
    case.run(_for_everybody(tmp_path, OVERLAY_USER))


@pytest.mark.needs("userns")
@pytest.mark.parametrize("case", conformance.runnable(_private(Path())), ids=attrgetter("name"))
def test_as_an_ordinary_user(case: Case) -> None:
    def run() -> None:
        os.environ["LAYERMOUNT_RUN_DIR"] = str(place)
        case.run(_private(place))

    with user_directory() as place:
        in_child(run, user=USER)
