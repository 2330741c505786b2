"""The mounts of ours that a command finds by their directory, once the dead ones are swept."""

from __future__ import annotations

from pathlib import Path

from layermount.cli import output
from layermount.errors import ViewNotFoundError
from layermount.hosts import ending, rundir
from layermount.hosts.rundir import Outcome, Record


def swept() -> None:
    """Clean up after mounts that lost their owner, and tell about them."""
    for one in ending.sweep():
        target = one.record.target
        if one.error is not None:
            output.talk(f"the dead mount at {target!r} stays: {one.error.strerror}")
        elif one.outcome is Outcome.UNMOUNTED:
            output.talk(f"the mount at {target!r} had lost its daemon and is taken away")


def mount_at(target: Path) -> Record:
    """The mount of ours at a directory.

    Raises:
        ViewNotFoundError: There is none.
    """
    swept()
    record = rundir.find(target)
    if record is None:
        raise ViewNotFoundError(
            f"no overlay is mounted at {str(target)!r}",
            hint="`layermount list` shows what there is",
        )
    return record
