"""A view as data: its layers, and its description on disk."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from layermount.config import LayerMountConfig
from layermount.errors import ViewError

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
    command: tuple[str, ...] = field(default=())
    exit_status: int | None = None

    def config(self) -> LayerMountConfig:
        """The view as an overlay's configuration."""
        return LayerMountConfig(
            self.upper, self.lowers, work_dir_path=self.work, dialect=self.dialect
        )

    def write(self, path: Path) -> None:
        """Store the description, at once or not at all."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=2) + "\n"
        fresh = path.with_name(f".{path.name}.{os.getpid():x}")
        fresh.write_text(text, encoding="utf-8", errors="surrogateescape")
        fresh.replace(path)


def read_view(path: Path) -> View:
    """The description stored at `path`.

    Raises:
        FileNotFoundError: There is none.
        ViewError: It cannot be read as one.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    try:
        fields = json.loads(text)
        version = fields.pop("version")
        if version != _VERSION:
            raise ViewError(f"{str(path)!r} has version {version!r}, only {_VERSION} is known")
        lowers, command = tuple(fields.pop("lowers")), tuple(fields.pop("command"))
        return View(lowers=lowers, command=command, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ViewError(f"{str(path)!r} is no description of a view: {error}") from error
