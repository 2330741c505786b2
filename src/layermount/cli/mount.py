"""`layermount mount` and `layermount umount`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layermount.cli import output
from layermount.cli.layers import configuration, layer_options
from layermount.errors import HostError, HostUnavailableError
from layermount.hosts import kernel, rundir
from layermount.views import shelf


@click.command("mount")
@click.argument("target", type=click.Path(exists=True, file_okay=False, path_type=Path))
@layer_options
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Where changes are prepared; beside the upper by default.",
)
@click.option("--view", help="Mount this kept view instead of --lower and --upper.")
@click.option("--read-only", is_flag=True, help="Refuse changes although there is an upper.")
@click.option(
    "--volatile", is_flag=True, help="Never sync; a crash leaves an upper that is refused."
)
@click.option("--host", type=click.Choice(["auto", "kernel"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the mount as one JSON document.")
def mount_command(
    *,
    target: Path,
    lowers: tuple[Path, ...],
    upper: Path | None,
    dialect: str | None,
    work: Path | None,
    view: str | None,
    read_only: bool,
    volatile: bool,
    host: str,  # noqa: ARG001  both choices are the kernel; another host will be a third
    as_json: bool,
) -> None:
    """Mount an overlay at TARGET, where every program sees it, until `layermount umount`."""
    config = configuration(view, lowers, upper, dialect)
    _require_right()
    rundir.sweep()
    if view is not None:
        # The locks are the mount's to take; who is in the view without one is seen here.
        with shelf.owned(shelf.get_view(view)):
            pass
    user_marks = config.dialect == "overlay-user"
    work_dir = work or config.work_dir_path
    if config.upper_path is not None and work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
    mounted = kernel.mount(
        target,
        lowers=config.lower_paths,
        upper=config.upper_path,
        work=work_dir,
        user_marks=user_marks,
        options=_options(user_marks=user_marks, volatile=volatile),
        read_only=read_only,
    )
    if as_json:
        output.emit_json(mounted.record)


def _options(*, user_marks: bool, volatile: bool) -> kernel.Options:
    moves = None if user_marks else True
    return kernel.Options(redirect_dir=moves, metacopy=moves, volatile=volatile)


def _require_right() -> None:
    verdict = kernel.verdict()
    if not verdict and os.geteuid() != 0:
        raise HostUnavailableError(
            f"an ordinary user cannot mount where every program sees it: {verdict.reason}",
            hint="`layermount run -- COMMAND` shows the overlay to a command and what it starts",
        )
    if not verdict:
        raise HostUnavailableError(
            f"no overlay can be mounted here: {verdict.reason}", hint=verdict.remedy
        )


@click.command("umount")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--lazy", is_flag=True, help="Take it away at once, end it when its last user is gone."
)
def umount_command(*, target: Path, lazy: bool) -> None:
    """Unmount the overlay at TARGET."""
    record = rundir.find(target)
    if record is None:
        raise HostError(
            f"no overlay of layermount is mounted at {str(target)!r}",
            hint="`layermount list` shows what is mounted",
        )
    kernel.detach_record(record, lazy=lazy)
