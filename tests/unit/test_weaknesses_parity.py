"""`docs/parity.md` against the tests: what it names is there, and every weakness has its row."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
UNIT = "tests/unit"


@functools.cache
def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 100
    for file, test in named:
        path = ROOT / (file if "/" in file else f"{UNIT}/{file}")
        assert path.is_file(), file
        assert not test or test in functions_in(path), f"{file}::{test}"


def numbers(row: str) -> set[int]:
    first = row.split("|")[1]
    found = {int(number) for number in re.findall(r"W-(\d+)", first)}
    for start, end in re.findall(r"W-(\d+) to W-(\d+)", first):
        found |= set(range(int(start), int(end) + 1))
    return found


def test_every_weakness_has_one_row() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| W-")]
    listed = [number for row in rows for number in sorted(numbers(row))]
    assert sorted(listed) == list(range(1, 69))


def test_every_test_that_cites_a_weakness_is_named() -> None:
    for path in Path(__file__).parent.glob("test_weaknesses*.py"):
        for test in functions_in(path):
            if re.match(r"test_w\d\d", test) and not test.startswith("test_w37"):
                assert f"`{path.name}::{test}`" in PAGE, test
