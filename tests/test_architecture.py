"""The code against docs/architecture.md: who imports whom, what is used where, how long things are.

The tables are read from the page, so that page and code cannot part.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "layermount"
MODULE_LINES = 500
FUNCTION_LINES = 60
BAD_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "manager"})

Table = dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the page demands.

    Attributes:
        parts: Each part of the package, to the parts that it may import besides itself.
        outside: A module from elsewhere, to the only parts that may import it.
    """

    parts: Table
    outside: Table


def read_rules(page: str) -> Rules:
    """The two tables: a row's first cell is the key, the last one the value, names in backticks."""
    tables: list[Table] = []
    in_table = False
    for line in page.splitlines():
        if not line.startswith("|"):
            in_table = False
            continue
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
        if not in_table:
            tables.append({})
            in_table = True
        for name in cells[0]:
            tables[-1][name.rstrip("/").removesuffix(".py")] = frozenset(cells[-1])
    parts, outside = (table for table in tables if table)
    return Rules(parts, outside)


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed module, named as it is imported."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def part(self) -> str:
        return part_of(self.name)


def part_of(name: str) -> str:
    """The part that a module of the package belongs to; the package's own `__init__` is one."""
    return name.split(".")[1] if "." in name else name


def read_modules(source: Path) -> dict[str, Module]:
    """Every module below `source`, by name."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        modules[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return modules


def imports(module: Module, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Every (line, module name) that is imported anywhere in a module, in functions too.

    A string that is exactly the name of a module counts as well: that is how lazy imports name it.
    """
    for node in ast.walk(module.tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(level=0):
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    yield node.lineno, submodule if submodule in names else str(node.module)
            case ast.Constant(value=str(name)) if name in names and name != PACKAGE:
                yield node.lineno, name


def violations(source: Path, rules: Rules) -> list[str]:
    """Everything in the tree that breaks a rule, one line each."""
    modules = read_modules(source)
    found = []
    for module in modules.values():
        place = module.path.relative_to(source)
        for line, text in (
            *_import_violations(module, frozenset(modules), rules),
            *_shape_violations(module),
        ):
            found.append(f"{place}:{line}: {text}")
    # `from x import a, b` breaks a rule once, not twice.
    return [*dict.fromkeys(found), *_cycles(modules)]


def _import_violations(
    module: Module, names: frozenset[str], rules: Rules
) -> Iterator[tuple[int, str]]:
    allowed = rules.parts.get(module.part)
    if allowed is None:
        yield 1, f"part {module.part} is not in the table"
        return
    for line, name in imports(module, names):
        top = name.split(".")[0]
        if top == PACKAGE:
            if part_of(name) not in allowed | {module.part}:
                yield line, f"{module.part} may not import {name}"
        elif top in rules.outside:
            if module.part not in rules.outside[top]:
                yield line, f"{module.part} may not import {top}"
        elif top not in sys.stdlib_module_names:
            yield line, f"{top} is no module of Python's and not in the table"


def _shape_violations(module: Module) -> Iterator[tuple[int, str]]:
    if module.path.stem in BAD_NAMES or module.path.parent.name in BAD_NAMES:
        yield 1, "the name says nothing about what is in it"
    if module.lines > MODULE_LINES:
        yield 1, f"{module.lines} lines, more than {MODULE_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name}: {lines} lines, more than {FUNCTION_LINES}"


def _cycles(modules: dict[str, Module]) -> list[str]:
    names = frozenset(modules)
    graph = {
        name: {target for _, target in imports(module, names) if target in names and target != name}
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return ["cycle: " + " <- ".join(error.args[1])]
    return []


RULES = read_rules((ROOT / "docs/architecture.md").read_text())


def test_the_code_keeps_the_rules() -> None:
    found = violations(ROOT / "src", RULES)
    assert not found, "\n" + "\n".join(found)


def test_the_table_lists_only_parts_that_exist() -> None:
    existing = {module.part for module in read_modules(ROOT / "src").values()}
    assert set(RULES.parts) - existing == set()


def test_the_table_itself_has_no_cycle() -> None:
    list(graphlib.TopologicalSorter(RULES.parts).static_order())


# The checker itself, on small trees.

PAGE = """
| part | what | may import |
|---|---|---|
| `errors` | exceptions | |
| `low/` | below | `errors` |
| `high/` | above | `low`, `errors` |
| `top.py` | wiring | `high` |

| module | why | only in |
|---|---|---|
| `ctypes` | system calls | `low` |
| `click` | command line | `top` |
"""
LONG_FUNCTION = "def long():\n" + "    x = 1\n" * 60
FAULTS = {
    "upward": ("low/a.py", "from layermount.high import b", "low may not import layermount.high"),
    "upward, plain import": (
        "low/a.py", "import layermount.high.b as b", "low may not import layermount.high.b",
    ),
    "upward, in a function": (
        "low/a.py", "def f():\n    import layermount.high", "low/a.py:2: low may not import",
    ),
    "upward, lazy by name": (
        "low/a.py", "LAZY = {'b': 'layermount.high.b'}", "low may not import layermount.high.b",
    ),
    "over a floor": ("top.py", "from layermount.low import a", "top may not import layermount.low"),
    "module from the package": ("errors.py", "from layermount import low", "may not import"),
    "name from the package": ("low/a.py", "from layermount import Name", "may not import"),
    "relative": ("low/a.py", "from . import b", "relative import"),
    "part not listed": ("other/a.py", "", "part other is not in the table"),
    "ctypes": ("high/b.py", "import ctypes.util", "high may not import ctypes"),
    "package not listed": ("top.py", "import requests", "requests is no module of Python's"),
    "cycle": ("low/a.py", "import layermount.low.c", "cycle: layermount.low."),
    "long module": ("low/a.py", "x = 1\n" * 501, "501 lines, more than 500"),
    "long function": ("low/a.py", LONG_FUNCTION, "long: 61 lines, more than 60"),
    "bad module name": ("low/utils.py", "", "says nothing"),
    "bad folder name": ("low/helpers/a.py", "", "says nothing"),
}  # fmt: skip


def make_tree(base: Path, **changed: str) -> Path:
    """A tree that keeps every rule, with some files put in or replaced."""
    files = {
        "__init__.py": "",
        "errors.py": "import os",
        "low/__init__.py": "",
        "low/a.py": "import ctypes\nfrom layermount.errors import Problem",
        "low/c.py": "from layermount.low import a",
        "high/__init__.py": "",
        "high/b.py": "import layermount.low.a\nfrom layermount import errors",
        "top.py": "import click\n\ndef f():\n    from layermount.high.b import g",
    }
    for name, text in (files | changed).items():
        path = base / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return base


def toy_rules() -> Rules:
    rules = read_rules(PAGE)
    return Rules(rules.parts | {PACKAGE: frozenset()}, rules.outside)


def test_rules_are_read_from_the_page() -> None:
    assert read_rules(PAGE) == Rules(
        {
            "errors": frozenset(),
            "low": frozenset({"errors"}),
            "high": frozenset({"low", "errors"}),
            "top": frozenset({"high"}),
        },
        {"ctypes": frozenset({"low"}), "click": frozenset({"top"})},
    )


def test_a_good_tree_has_no_violation(tmp_path: Path) -> None:
    assert violations(make_tree(tmp_path), toy_rules()) == []


@pytest.mark.parametrize(("name", "text", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    found = violations(make_tree(tmp_path, **{name: text}), toy_rules())
    assert any(expected in line for line in found), found
