"""What is printed: stdout is data, stderr is talk; names are made safe to show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


def emit_json(value: object) -> None:
    """Print one JSON document; dataclasses become objects, bytes that are no UTF-8 stay escaped."""
    import json  # noqa: PLC0415  `layermount run` prints none, and its start-up is to be fast

    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def shown(text: str) -> str:
    """A name as it may be printed: control characters and undecodable bytes escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    raw = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in _UNITS:
        if amount < _STEP or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _STEP
    raise AssertionError("the last unit takes everything")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 file", "3 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns under a head."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def talk(message: str) -> None:
    """Say something to the person, beside the data, in one line."""
    click.echo(f"layermount: {shown(message)}", err=True)
