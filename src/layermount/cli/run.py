"""`layermount run`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from layermount.cli import output
from layermount.errors import ViewExistsError
from layermount.views import run as running
from layermount.views import shelf
from layermount.views.view import View

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Keep the changes under this name; go on in the view when it exists.")
@click.option("--keep/--drop", default=None, help="What to do with the changes at the end.")
@click.option(
    "--lower",
    "lowers",
    type=_DIRECTORY,
    multiple=True,
    help="A read-only layer, the first given is nearest; the directory itself by default.",
)
@click.option(
    "--upper",
    type=click.Path(path_type=Path),
    help="A directory to take the changes; made when missing.",
)
@click.option(
    "--at",
    "target",
    type=_DIRECTORY,
    help="The directory that the view covers; the working directory by default.",
)
@click.option(
    "--host",
    type=click.Choice(["auto", "kernel"]),
    default="auto",
    show_default=True,
    help="How the view is shown.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing about the changes.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    *,
    name: str | None,
    keep: bool | None,
    lowers: tuple[Path, ...],
    upper: Path | None,
    target: Path | None,
    host: str,  # noqa: ARG001  both choices are the kernel; another host will be a third
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND over a copy-on-write view of the working directory.

    Inside, every path is what it is outside, and nothing that COMMAND writes below the directory
    reaches it. At the end the changes are kept under a name or dropped: as --keep, --drop or --name
    say, else as you answer, else (no terminal) dropped. The exit status is COMMAND's.
    """  # noqa: D301
    covered = (target or Path.cwd()).resolve()
    view = _open_view(name, covered, tuple(lower.resolve() for lower in lowers), upper)
    try:
        outcome = running.run(view, command)
    except BaseException:
        if name is None and not os.listdir(view.upper):
            shelf.discard(view)
        raise
    _finish(view, outcome, keep=True if name or upper else keep, quiet=quiet)
    if outcome.status < 0:
        _die_as(-outcome.status)
    sys.exit(outcome.status)


def _open_view(
    name: str | None, target: Path, lowers: tuple[Path, ...], upper: Path | None
) -> View:
    """The view of that name, or a new one."""
    known = None if name is None else shelf.find_view(name)
    if known is None:
        if upper is not None:
            upper.mkdir(parents=True, exist_ok=True)
        dialect = "overlay" if os.geteuid() == 0 else "overlay-user"
        return shelf.new_view(name, target, lowers or (target,), dialect=dialect, upper=upper)
    wanted = tuple(map(str, lowers)) or known.lowers
    if known.target != str(target) or known.lowers != wanted or upper is not None:
        raise ViewExistsError(
            f"the view {name!r} is kept already, over {known.target!r}",
            hint=f"run from there to go on in it, or drop it with `layermount discard {name}`",
        )
    return known


def _finish(view: View, outcome: running.Outcome, *, keep: bool | None, quiet: bool) -> None:
    if outcome.left_running:
        pids = ", ".join(map(str, outcome.left_running))
        output.talk(f"still running in the view, which is kept as {view.name}: {pids}")
        return
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    if keep is None and interactive:
        from layermount.cli.ask import ask_keep  # noqa: PLC0415  start-up is to be fast

        keep = ask_keep(view)
    if keep:
        if not quiet:
            output.talk(f"kept as {view.name}; `layermount diff {view.name}` shows what changed")
        return
    shelf.discard(view)
    if interactive and not quiet:
        output.talk("the changes are dropped")


def _die_as(number: int) -> None:
    """End by the signal that ended the command, so that the caller sees the same."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.exit(128 + number)
