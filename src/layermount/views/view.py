"""A view as data: its layers, and its description on disk."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layermount.errors import ViewError

if TYPE_CHECKING:
    from layermount.config import LayerMountConfig

_VERSION = 1


@dataclass(frozen=True, slots=True)
class View:
    """A copy-on-write view of a directory.

    Attributes:
        name: What it is kept under.
        target: The directory that the view covers; inside, its paths are the same as outside.
        lowers: The read-only layers, nearest first; often just `target`.
        upper: Where changes are.
        work: Where changes are prepared.
        dialect: How the marks are kept, `overlay` or `overlay-user`.
        created_ns: When it was made, nanoseconds since 1970-01-01 UTC.
        command: The last command that ran in it; empty when none did.
        exit_status: How that ended: its exit status, or minus the signal; None while it runs.
    """

    name: str
    target: str
    lowers: tuple[str, ...]
    upper: str
    work: str
    dialect: str
    created_ns: int
    command: tuple[str, ...] = ()
    exit_status: int | None = None

    def config(self) -> LayerMountConfig:
        """The view as an overlay's configuration."""
        from layermount.config import LayerMountConfig  # noqa: PLC0415  a run does not need it

        return LayerMountConfig(
            self.upper, self.lowers, work_dir_path=self.work, dialect=self.dialect
        )

    def write(self, path: Path) -> None:
        """Store the description, at once or not at all."""
        # Names that are no UTF-8 have lone surrogates, which JSON keeps as escapes.
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=2) + "\n"
        fresh = path.with_name(f".{path.name}.{os.getpid():x}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


def read_view(path: Path) -> View:
    """The description stored at `path`.

    Raises:
        FileNotFoundError: There is none.
        ViewError: It cannot be read as one.
    """
    raw = path.read_bytes()
    try:
        fields = json.loads(raw)
        version = fields.pop("version")
        if version != _VERSION:
            raise ViewError(
                f"{str(path)!r} has version {version!r}, only {_VERSION} is known",
                hint="use the layermount that made it",
            )
        view = View(**{**fields, **{key: tuple(fields[key]) for key in ("lowers", "command")}})
        _check(view)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ViewError(
            f"{str(path)!r} is no description of a view: {error}",
            hint=f"`layermount discard {path.parent.name}` drops the view with its changes",
        ) from error
    return view


def _check(view: View) -> None:
    """Refuse what has the right fields and could not be used.

    Raises:
        TypeError: A field is of another kind.
    """
    texts = (view.name, view.target, *view.lowers, view.upper, view.work, view.dialect)
    numbers = (view.created_ns, 0 if view.exit_status is None else view.exit_status)
    if not all(isinstance(text, str) for text in (*texts, *view.command)):
        raise TypeError("a text is missing")
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError("a number is missing")
