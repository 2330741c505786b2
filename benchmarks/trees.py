"""Layers to measure on, each beside a plain directory that shows the same."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: How many of ten files the upper and each lower, nearest first, answer for.
_SHARES = (1, 2, 3, 4)
_FILES = 100
#: Every so many directories are in the upper and in each lower of a tree as images are.
_EVERY = (10, 4, 2, 1)
#: Every so many directories some of the lowers' files are deleted.
_WHITEOUT_EVERY, _WHITEOUTS = 5, 5


@dataclass(frozen=True, slots=True)
class Tree:
    """Layers, and what they show together.

    Attributes:
        lowers: Nearest first.
        plain: An ordinary directory with the same tree.
        files: The paths of all files, relative.
        missing: As many paths of which there is nothing, in the same directories.
    """

    upper: Path
    lowers: list[Path]
    plain: Path
    files: list[str]
    missing: list[str]


def wide_tree(base: Path, directories: int, *, everywhere: bool) -> Tree:
    """100 files in each of `directories` two-level directories, over an upper and three lowers.

    Args:
        base: An empty directory.
        directories: How many.
        everywhere: Every layer has every directory, which is the most there is to merge; else, as
            in images, the last lower has all, the others a half and a quarter, the upper a tenth.
    """
    layers = [base / f"layer{number}" for number in range(len(_SHARES))]
    plain = base / "plain"
    files = []
    for place, name in enumerate(_directory_names(directories)):
        having = [
            layer
            for layer, every in zip(layers, _EVERY, strict=True)
            if everywhere or place % every == 0
        ]
        answers = [
            layer
            for layer, share in zip(layers, _SHARES, strict=True)
            if layer in having
            for _ in range(share)
        ]
        for root in (*having, plain):
            (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(_FILES):
            file = f"{name}/file{number:03}"
            _touch([answers[number % len(answers)] / file, plain / file])
            files.append(file)
        if place % _WHITEOUT_EVERY == 0 and layers[0] in having:
            _delete(layers, name)
    missing = [f"{file}.none" for file in files]
    return Tree(layers[0], layers[1:], plain, files, missing)


def deep_stack(base: Path, layers: int) -> Tree:
    """`layers` lowers with 20 files each, half of them in one directory that all layers have."""
    roots = [base / f"layer{number}" for number in range(layers)]
    plain, upper = base / "plain", base / "upper"
    files = []
    for root in (plain, upper):
        (root / "shared").mkdir(parents=True)
    for number, root in enumerate(roots):
        names = ("shared", f"own{number}")
        for name in names:
            (root / name).mkdir(parents=True)
        (plain / names[1]).mkdir()
        for name in names:
            for index in range(10):
                file = f"{name}/file{number}.{index}"
                _touch([root / file, plain / file])
                files.append(file)
    return Tree(upper, roots, plain, files, [f"{file}.none" for file in files])


def wide_directory(base: Path, entries: int) -> Tree:
    """One directory with `entries` files, spread over an upper and three lowers."""
    layers = [base / f"layer{number}" for number in range(len(_SHARES))]
    plain = base / "plain"
    answers = [layers[number] for number, share in enumerate(_SHARES) for _ in range(share)]
    for root in (*layers, plain):
        (root / "wide").mkdir(parents=True)
    files = [f"wide/file{number:05}" for number in range(entries)]
    for number, file in enumerate(files):
        _touch([answers[number % len(answers)] / file, plain / file])
    missing = [f"{file}.none" for file in files]
    return Tree(layers[0], layers[1:], plain, files, missing)


def big_file(path: Path, size: int) -> None:
    """A file without holes whose bytes are on disk and in the page cache."""
    block = os.urandom(1024 * 1024)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _directory_names(count: int) -> Iterable[str]:
    for number in range(count):
        above, below = divmod(number, 25)
        yield f"directory{above:02}/sub{below:02}" if below else f"directory{above:02}"


def _touch(paths: Iterable[Path]) -> None:
    for path in paths:
        path.write_bytes(b"")


def _delete(layers: list[Path], name: str) -> None:
    for number in range(_WHITEOUTS):
        _touch([layers[-1] / name / f"deleted{number}"])
        os.mknod(layers[0] / name / f"deleted{number}", 0o020000, 0)
