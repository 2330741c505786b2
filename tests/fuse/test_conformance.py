"""The conformance suite on the FUSE host, another process: as root and as an ordinary user."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from concurrent.futures import thread
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path

import pytest

from layermount.config import LayerMountConfig
from layermount.hosts.fuse import daemon, life
from layermount.hosts.fuse.policy import Passthrough
from layermount.layer.marks import OVERLAY, OVERLAY_USER, KernelMarks
from layermount.testing import conformance
from layermount.testing.conformance import Case, Layers, Subject, Trait
from tests.forked import user_directory
from tests.fuse.ordinary import as_user

# A daemon of an ordinary user cannot load what only root may read, as an interpreter of root's.
_LOADED = (life, thread)

_TRAITS = (
    Trait.NUMBERS_STAY,
    Trait.LINKS_ARE_ONE,
    Trait.READER_FOLLOWS,
    Trait.BIRTH_TIMES,
    Trait.FILE_FLAGS,
    Trait.TEMPORARY_FILES,
    Trait.OCI_LOWERS,
)
#: Rule H7: what the kernel reads by itself stays, what is read by requests follows.
_BY = {
    Passthrough.ALL: (Trait.LARGE_READER_STAYS, Trait.HOLES_AT_ONCE),
    Passthrough.AUTO: (Trait.LARGE_READER_FOLLOWS, Trait.MAPPINGS_FOLLOW, Trait.HOLES_AT_ONCE),
    Passthrough.OFF: (Trait.LARGE_READER_FOLLOWS, Trait.MAPPINGS_FOLLOW),
}
_AS_ROOT = (Trait.NUMBERS_MOVE, Trait.OTHER_USERS)


def _mount(
    *, allow_other: bool, passthrough: Passthrough
) -> Callable[[Layers], AbstractContextManager[object]]:
    def mount(layers: Layers) -> AbstractContextManager[object]:
        config = LayerMountConfig(
            layers.upper,
            layers.lowers,
            work_dir_path=layers.work,
            dialect=layers.marks.name,
            lower_dialects=[layers.lower_marks.name] * len(layers.lowers),
        )
        return daemon.start(config, layers.target, allow_other=allow_other, passthrough=passthrough)

    return mount


def _subject(
    base: Path, marks: KernelMarks, traits: Iterable[Trait], *, passthrough: Passthrough
) -> Subject:
    moves = marks is OVERLAY
    every = {
        *_TRAITS,
        *traits,
        Trait.MOVES_LOWER_DIRECTORIES if moves else Trait.REFUSES_TO_MOVE_LOWER_DIRECTORIES,
        *_BY[passthrough],
    }
    mount = _mount(allow_other=Trait.OTHER_USERS in every, passthrough=passthrough)
    return conformance.mounted(base, mount, name="FUSE", traits=every, marks=marks)


def _passthrough(base: Path) -> Subject:
    return _subject(base, OVERLAY, _AS_ROOT, passthrough=Passthrough.AUTO)


def _all(base: Path) -> Subject:
    return _subject(base, OVERLAY, _AS_ROOT, passthrough=Passthrough.ALL)


def _requests(base: Path) -> Subject:
    return _subject(base, OVERLAY, _AS_ROOT, passthrough=Passthrough.OFF)


def _user(base: Path) -> Subject:
    made = _subject(base, OVERLAY_USER, (), passthrough=Passthrough.OFF)
    # Whoever makes it here, an ordinary user runs it.
    return dataclasses.replace(made, traits=made.traits - {Trait.ROOT})


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize("case", conformance.runnable(_passthrough(Path())), ids=attrgetter("name"))
def test_with_passthrough(tmp_path: Path, case: Case) -> None:
    case.run(_passthrough(tmp_path))


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize("case", conformance.runnable(_all(Path())), ids=attrgetter("name"))
def test_with_all_passthrough(tmp_path: Path, case: Case) -> None:
    case.run(_all(tmp_path))


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize("case", conformance.runnable(_requests(Path())), ids=attrgetter("name"))
def test_by_requests(tmp_path: Path, case: Case) -> None:
    case.run(_requests(tmp_path))


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("case", conformance.runnable(_user(Path())), ids=attrgetter("name"))
def test_as_an_ordinary_user(case: Case) -> None:
    def run() -> None:
        os.environ["LAYERMOUNT_RUN_DIR"] = str(place / "run")
        case.run(_user(place))

    with user_directory() as place:
        as_user(run)
