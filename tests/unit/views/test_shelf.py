from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from layermount.errors import ViewError, ViewExistsError, ViewNotFoundError
from layermount.views import shelf
from layermount.views.dialect import dialect_of
from layermount.views.view import read_view


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    path = tmp_path / "lower"
    path.mkdir()
    return path


def test_the_life_of_a_view(lower: Path) -> None:
    view = shelf.new_view("x", lower, [lower])
    assert shelf.get_view("x") == view
    assert shelf.views() == ([view], [])
    assert shelf.names_in_use([view]) == frozenset()
    with pytest.raises(ViewExistsError):
        shelf.new_view("x", lower, [lower])
    changed = dataclasses.replace(view, command=("a", "\udcff\n"), exit_status=-9)
    shelf.describe(changed)
    assert shelf.get_view("x") == changed
    shelf.discard("x")
    assert shelf.find_view("x") is None
    with pytest.raises(ViewNotFoundError):
        shelf.discard("x")


def test_a_description_survives_odd_names(lower: Path) -> None:
    odd = lower / os.fsdecode(b"\xff \n \xc3\xa9")
    odd.mkdir()
    view = shelf.new_view(None, odd, [odd])
    assert read_view(Path(view.upper).parent / "view.json") == view
    assert shelf.views()[0] == [view]


NAMES = ["", ".", "..", ".x", "-x", "a/b", "a b", "a\nb", "a\0b", "a\udcff", "x" * 201]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name(lower: Path, name: str) -> None:
    with pytest.raises(ViewError, match="cannot be a view's name"):
        shelf.new_view(name, lower, [lower])
    assert shelf.find_view(name) is None
    assert shelf.views() == ([], [])


def test_a_view_that_is_owned(lower: Path) -> None:
    view = shelf.new_view("x", lower, [lower])
    with shelf.owned(view):
        assert shelf.names_in_use([view]) == {"x"}
    assert shelf.names_in_use([view]) == frozenset()


def test_an_upper_that_is_gone(lower: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    view = shelf.new_view("x", lower, [lower], upper)
    assert shelf.find_view_of(upper) == view
    upper.rmdir()
    assert shelf.names_in_use([view]) == frozenset()
    shelf.discard("x")
    assert not (tmp_path / ".layermount-work").exists()


def test_the_work_directory_that_an_upper_still_needs_stays(lower: Path, tmp_path: Path) -> None:
    """The kernel's index of hard links is there, where it keeps one."""
    upper = tmp_path / "upper"
    upper.mkdir()
    view = shelf.new_view("x", lower, [lower], upper)
    index = Path(view.work) / "index/00fb"
    index.mkdir(parents=True)
    shelf.discard("x")
    assert index.is_dir()


def test_what_is_being_made_or_dropped_is_not_swept(lower: Path) -> None:
    state = Path(shelf.new_view("x", lower, [lower]).upper).parent.parent
    stamp = shelf._stamp()
    for name in (f".new-{stamp}", ".new-1-0-x", ".dropped-999999999-0-x", ".dropped-odd"):
        (state / name / "upper").mkdir(parents=True)
    assert shelf.sweep() == []
    assert sorted(os.listdir(state)) == [f".new-{stamp}", "x"]


DIALECTS = {"new": (None, None), "user": ("user.overlay.impure", "overlay-user")}


@pytest.mark.parametrize(("mark", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_the_dialect_of_an_upper(tmp_path: Path, mark: str | None, expected: str | None) -> None:
    if mark is not None:
        os.setxattr(tmp_path, mark, b"y")
    by_privilege = "overlay" if os.geteuid() == 0 else "overlay-user"
    assert dialect_of(tmp_path) == (expected or by_privilege)
    assert dialect_of(tmp_path / "nosuch") == by_privilege
