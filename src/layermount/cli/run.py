"""`layermount run`."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import TextIO

import click

from layermount.cli import output
from layermount.errors import ConfigError, ViewExistsError
from layermount.views import run as running
from layermount.views import shelf
from layermount.views.view import View

_DIRECTORY = click.Path(exists=True, file_okay=False, readable=False, path_type=Path)


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Keep the changes under this name; go on in the view when it exists.")
@click.option(
    "--keep/--drop",
    default=None,
    help="What to do with the changes at the end; with --name and --upper they are kept.",
)
@click.option(
    "--lower",
    "lowers",
    type=_DIRECTORY,
    multiple=True,
    help="A read-only layer, the first given is nearest; the directory itself by default.",
)
@click.option(
    "--upper",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
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
    """
    if upper is not None and keep is False:
        raise ConfigError("--drop would not drop what is in --upper", hint="leave one of them out")
    covered = (target or Path.cwd()).resolve()
    view = _open_view(name, covered, tuple(lower.resolve() for lower in lowers), upper)
    try:
        outcome = running.run(view, command)
    except BaseException:
        # What is stored tells, whatever went wrong, whether a command ever ran in it.
        stored = shelf.find_view(view.name)
        if stored is not None and not stored.command:
            shelf.discard(view.name)
        raise
    if keep is None and (name is not None or upper is not None):
        keep = True
    _finish(view, outcome, keep=keep, quiet=quiet)
    if outcome.status < 0:
        _die_as(-outcome.status)
    sys.exit(outcome.status)


def _open_view(
    name: str | None, target: Path, lowers: tuple[Path, ...], upper: Path | None
) -> View:
    """The view of that name or with that upper, or a new one."""
    known = None if name is None else shelf.find_view(name)
    if known is None and upper is not None:
        upper.mkdir(parents=True, exist_ok=True)
        known = shelf.find_view_of(upper)
    if known is None:
        return shelf.new_view(name, target, lowers or (target,), upper)
    wanted = tuple(map(str, lowers)) or known.lowers
    same = known.target == str(target) and known.lowers == wanted and name in (None, known.name)
    if not same or (upper is not None and str(upper.resolve()) != known.upper):
        raise ViewExistsError(
            f"the view {known.name!r} is kept already: {known.upper!r} over {known.target!r}",
            hint=f"go on in it as it was made, or drop it with `layermount discard {known.name}`",
        )
    return known


def _finish(view: View, outcome: running.Outcome, *, keep: bool | None, quiet: bool) -> None:
    if outcome.left_running:
        pids = ", ".join(map(str, outcome.left_running))
        output.talk(f"still running in the view, which is kept as {view.name}: {pids}")
        return
    if keep is None:
        keep = False
        if _is_terminal(sys.stdin) and _is_terminal(sys.stderr):
            from layermount.cli.ask import ask_keep  # noqa: PLC0415  start-up is to be fast

            keep = ask_keep(view)
    if not keep:
        shelf.discard(view.name)
    elif not quiet:
        output.talk(f"kept as {view.name}; `layermount diff {view.name}` shows what changed")


def _is_terminal(stream: TextIO | None) -> bool:
    # A standard stream that is closed is None.
    return stream is not None and stream.isatty()


def _die_as(number: int) -> None:
    """End by the signal that ended the command, so that the caller sees the same."""
    # The command has left its core; ours would take its place.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
    os.kill(os.getpid(), number)
    sys.exit(128 + number)
