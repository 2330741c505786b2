"""`layermount umount`."""

from __future__ import annotations

from pathlib import Path

import click

from layermount.errors import HostError
from layermount.hosts import ending, rundir


@click.command("umount")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--lazy", is_flag=True, help="Take it away at once, end it when its last user is gone."
)
def umount_command(*, target: Path, lazy: bool) -> None:
    """Unmount the overlay at TARGET, whichever host shows it."""
    record = rundir.find(target)
    if record is None:
        raise HostError(
            f"no overlay of layermount is mounted at {str(target)!r}",
            hint="`layermount list` shows what is mounted",
        )
    ending.detach_record(record, lazy=lazy)
