"""The public names: listed in order, there, and documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import layermount


def members(owner: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(owner).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and isinstance(function, types.FunctionType | property):
            yield f"{owner.__name__}.{name}", function


def documented() -> Iterator[tuple[str, object]]:
    """Every public class and function, and the public members of the classes of this package."""
    for name in layermount.__all__:
        value = getattr(layermount, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value) and value.__module__.startswith("layermount."):
            yield from members(value)


DOCUMENTED = dict(documented())


def test_all_is_sorted_and_has_no_duplicates() -> None:
    assert list(layermount.__all__) == sorted(set(layermount.__all__))


@pytest.mark.parametrize("name", layermount.__all__)
def test_a_public_name_is_there_and_listed_by_dir(name: str) -> None:
    assert getattr(layermount, name) is not None
    assert name in dir(layermount)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_is_documented(name: str) -> None:
    # A class without a docstring of its own has none here: __doc__ is not inherited.
    text = DOCUMENTED[name].__doc__
    assert text, f"{name} has no docstring"
    # What a dataclass makes up by itself is its signature.
    assert not text.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_the_version_is_the_one_that_is_built() -> None:
    project = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())
    assert layermount.__version__ == project["project"]["version"]


def test_a_star_import_gives_the_public_names() -> None:
    script = "from layermount import *; print(*sorted(n for n in dir() if not n.startswith('__')))"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    expected = sorted(name for name in layermount.__all__ if not name.startswith("__"))
    assert done.stdout.decode().split() == expected


def test_importing_the_library_needs_nothing_but_the_standard_library() -> None:
    """Only the command line may need more: a program that uses the library pays for no parser."""
    script = (
        "import sys; before = set(sys.modules); import layermount;"
        "[getattr(layermount, name) for name in layermount.__all__];"
        "tops = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(*sorted(tops - sys.stdlib_module_names - {'layermount'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().split() == []
