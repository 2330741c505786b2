"""`layermount diff`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import click

from layermount.changes.change import Change, ChangeKind
from layermount.changes.diff import Difference
from layermount.changes.patch import patch
from layermount.cli import output
from layermount.cli.layers import configuration, layer_options
from layermount.config import LayerMountConfig
from layermount.views.reach import as_owner

_LETTERS = {
    ChangeKind.DELETED: "D",
    ChangeKind.RENAMED: "R",
    ChangeKind.MODIFIED: "M",
    ChangeKind.ADDED: "A",
}
_COLOURS = {"D": "red", "R": "cyan", "M": "yellow", "A": "green"}
_ORDER = list(_LETTERS)


@click.command("diff")
@click.argument("view", required=False)
@click.argument("paths", nargs=-1)
@layer_options
@click.option("--stat", is_flag=True, help="Sizes before and after, and a sum.")
@click.option("-p", "--patch", "content", is_flag=True, help="The content of changed text files.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: exit 1 when there are changes.")
def diff_command(
    *,
    view: str | None,
    paths: tuple[str, ...],
    lowers: tuple[Path, ...],
    upper: Path | None,
    dialect: str | None,
    stat: bool,
    content: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what VIEW changed: a kept view's name, or the directory of a mounted overlay.

    PATHS limit it to what is at or below them; they may be patterns. Deletions come first, and
    nothing is left out. With --upper and --lower, which name the layers, all arguments are PATHS.
    """
    name = view
    if view is not None and (lowers or upper is not None):
        name, paths = None, (view, *paths)
    config = configuration(name, lowers, upper, dialect)
    changes = [change for change in changes_of(config) if _is_wanted(change, paths)]
    if quiet:
        raise SystemExit(1 if changes else 0)
    if as_json:
        output.emit_json([_as_json(change) for change in changes])
    elif content:
        with Difference(config) as difference:
            _print_patches(difference, changes)
    elif stat:
        _print_stat(changes)
    else:
        print_changes(changes)


def changes_of(config: LayerMountConfig) -> list[Change]:
    """Every change, also in what the caller has closed to itself."""

    def find() -> list[Change]:
        with Difference(config) as difference:
            return difference.changes()

    return as_owner(find)


def _is_wanted(change: Change, paths: Sequence[str]) -> bool:
    places = [change.path] if change.old_path is None else [change.path, change.old_path]
    return not paths or any(_is_at(place, wanted) for place in places for wanted in paths)


def _is_at(path: str, wanted: str) -> bool:
    """Whether a path is or lies below what is wanted, or fits it as a pattern."""
    plain = os.path.normpath(wanted).strip("/")
    below = plain in ("", ".") or f"{path}/".startswith(f"{plain}/")
    return below or fnmatchcase(path, plain)


def _as_json(change: Change) -> dict[str, object]:
    return {name: getattr(change, name) for name in Change.__dataclass_fields__}


def in_order(changes: Iterable[Change]) -> list[Change]:
    """The changes as they are shown: deletions first."""
    return sorted(changes, key=lambda change: (_ORDER.index(change.kind), change.path))


def print_changes(changes: Iterable[Change], *, err: bool = False) -> None:
    """One line a change, deletions first."""
    for change in in_order(changes):
        letter = _LETTERS[change.kind]
        click.echo(f"{click.style(letter, fg=_COLOURS[letter])} {_line(change)}", err=err)


def _line(change: Change) -> str:
    slash = "/" if change.entry == "directory" else ""
    name = output.shown(change.path) + slash
    if change.old_path is not None:
        name = f"{output.shown(change.old_path)}{slash} -> {name}"
    # New content has new times, too, and is what a person thinks of first.
    what = [part for part in change.what if part != "times"] or list(change.what)
    return name if what in ([], ["content"]) else f"{name}  ({', '.join(what)})"


def _print_stat(changes: Sequence[Change]) -> None:
    for change in in_order(changes):
        click.echo(f"{_LETTERS[change.kind]} {_line(change)}  {_sizes(change)}".rstrip())
    click.echo(summary(changes))


def _sizes(change: Change) -> str:
    old, new = change.old_size, change.new_size
    if old is None and new is None:
        return ""
    if old is None or new is None:
        return f"{'-' if new is None else '+'}{output.size((new if old is None else old) or 0)}"
    return "" if old == new else f"{output.size(old)} -> {output.size(new)}"


def summary(changes: Sequence[Change]) -> str:
    """How many changes of each kind, and how many bytes more or less."""
    counts = Counter(change.kind for change in changes)
    parts = [f"{counts[kind]} {kind}" for kind in _ORDER if counts[kind]]
    grown = sum((c.new_size or 0) - (c.old_size or 0) for c in changes)
    sign = "-" if grown < 0 else "+"
    return f"{', '.join(parts)}; {sign}{output.size(abs(grown))}" if parts else "no changes"


def _print_patches(difference: Difference, changes: Sequence[Change]) -> None:
    # What is not shown to a person is for patch(1): byte for byte.
    colours = sys.stdout is not None and sys.stdout.isatty()
    for change in in_order(changes):
        click.secho(f"{_LETTERS[change.kind]} {_line(change)}", bold=True)
        for line in patch(difference, change):
            if colours:
                colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
                click.secho(output.shown(line.replace("\t", "    ")), fg=colour)
            else:
                click.echo(os.fsencode(line))
