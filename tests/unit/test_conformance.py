"""The conformance suite on the engine in this process, and the suite itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from layermount.layer.marks import OVERLAY_USER
from layermount.testing import conformance
from layermount.testing.conformance import Case, Showing, Trait
from layermount.testing.conformance.case import Collection, fails, same
from layermount.testing.trees import file
from tests.forked import USER, in_child, user_directory

SEMANTICS = Path(__file__).parents[2] / "docs/semantics.md"
NAMES = [case.name for case in conformance.CASES]
#: One that promises everything but to be root, in no place: which cases there are for it.
IN_PROCESS = conformance.in_process(Path())
_USERS = conformance.in_process(Path(), marks=OVERLAY_USER)
USERS = dataclasses.replace(_USERS, traits=_USERS.traits - {Trait.ROOT, Trait.NUMBERS_MOVE})


@pytest.mark.parametrize("case", conformance.runnable(IN_PROCESS), ids=attrgetter("name"))
def test_in_process(tmp_path: Path, case: Case) -> None:
    case.run(conformance.in_process(tmp_path))


@pytest.mark.parametrize("case", conformance.runnable(USERS), ids=attrgetter("name"))
def test_in_process_as_an_ordinary_user(case: Case) -> None:
    def run() -> str | None:
        subject = conformance.in_process(place)
        reason = case.missing(subject)
        if reason is None:
            case.run(subject)
        return reason

    with user_directory() as place:
        reason = in_child(run, user=USER)
    if reason is not None:
        pytest.skip(reason)


# The suite itself.


def test_names_are_different() -> None:
    assert sorted(set(NAMES)) == sorted(NAMES)


def test_every_case_says_which_rules_it_is_about() -> None:
    known = set(re.findall(r"\*\*([A-Z]\d+)\*\*", SEMANTICS.read_text()))
    assert {case.name for case in conformance.CASES if not case.rules} == set()
    assert {rule for case in conformance.CASES for rule in case.rules} - known == set()


@pytest.mark.parametrize("section", "VTCNRMAIH")
def test_rules_that_a_mount_shows_have_cases(section: str) -> None:
    known = set(re.findall(rf"\*\*({section}\d+)\*\*", SEMANTICS.read_text()))
    # What is left is about the inside: its text says so.
    inside = {"V6", "V7", "C6", "C8", "R2", "R5", "R6", "I5", "H4"}
    tested = {rule for case in conformance.CASES for rule in case.rules}
    assert known - tested - inside == set()


def _case(body: Callable[[Showing], None], **options: object) -> Case:
    collection = Collection("made")
    collection.case({"f": file(b"f"), "d/g": file()}, **options)(body)  # type: ignore[arg-type]  # given by name
    return collection.cases[0]


def test_a_promise_that_is_not_kept_is_told(tmp_path: Path) -> None:
    def body(shown: Showing) -> None:
        """V1: nothing."""
        same(shown.face.read("f"), b"g")

    with pytest.raises(AssertionError, match="b'f', expected b'g'"):
        _case(body).run(conformance.in_process(tmp_path))


def test_a_lower_that_was_changed_is_told(tmp_path: Path) -> None:
    def body(shown: Showing) -> None:
        """V1: nothing."""
        (shown.layers.lowers[0] / "f").chmod(0o600)

    with pytest.raises(AssertionError, match="lower0 was changed"):
        _case(body).run(conformance.in_process(tmp_path))


@pytest.mark.needs("root", "overlay")
def test_an_upper_that_the_kernel_shows_otherwise_is_told(tmp_path: Path) -> None:
    def body(shown: Showing) -> None:
        """V1: nothing."""
        assert shown.layers.upper is not None
        # Behind the back of what shows it, which has its own memory of the directory.
        shown.face.listdir(".")
        (shown.layers.upper / "new").write_bytes(b"x")

    with pytest.raises(AssertionError, match="new: only right"):
        _case(body).run(conformance.in_process(tmp_path))


def test_what_a_subject_does_not_promise_is_left_out(tmp_path: Path) -> None:
    def body(shown: Showing) -> None:
        """V1: nothing."""

    case = _case(body, needs=[Trait.PATHS])
    subject = conformance.in_process(tmp_path)
    assert case.missing(subject) == f"not promised by in process: {Trait.PATHS.value}"
    with pytest.raises(ValueError, match="not promised"):
        case.run(subject)


def test_an_operation_that_succeeds_where_it_must_not_is_told() -> None:
    with pytest.raises(AssertionError, match=r"getcwd\(\): .*expected ENOENT"):
        fails(2, __import__("os").getcwd)
