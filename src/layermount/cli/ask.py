"""The question at the end of a run: keep the changes or drop them?"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click

from layermount.changes.change import Change
from layermount.cli import output
from layermount.cli.diff import changes_of, in_order, print_changes, summary
from layermount.errors import LayerMountError
from layermount.views.view import View

#: Changes that are shown without being asked for.
_SHORT = 10
_KEEP, _DROP, _SHOW = ("", "k", "keep"), ("d", "drop"), ("s", "show")


def ask_keep(view: View) -> bool:
    """Whether the person wants to keep the changes; nothing is asked when there are none.

    No answer (Ctrl-C, the end of the input, a terminal that is gone) keeps them.
    """
    try:
        return _ask(view)
    except KeyboardInterrupt:
        click.echo(err=True)
        return True


def _ask(view: View) -> bool:
    changes = _told(view)
    if changes is None:
        return True
    if not changes:
        output.talk("nothing was changed")
        return False
    output.talk(summary(changes))
    print_changes(in_order(changes)[:_SHORT], err=True)
    if len(changes) > _SHORT:
        click.echo(f"… and {len(changes) - _SHORT} more: `show` has all", err=True)
    while True:
        answer = _answer()
        if answer in _SHOW:
            print_changes(changes, err=True)
        elif answer in (*_KEEP, None):
            return True
        elif answer in _DROP:
            output.talk("the changes are dropped")
            return False


def _told(view: View) -> Sequence[Change] | None:
    """What was changed, or None, with the reason said, when it cannot be told."""
    try:
        return changes_of(view.config())
    except (LayerMountError, OSError) as error:
        output.talk(f"what was changed cannot be told: {error}")
        return None


def _answer() -> str | None:
    """What is typed, None for nothing any more. Standard output is left to the command."""
    click.echo("keep, drop or show the changes? [keep] ", nl=False, err=True)
    try:
        line = sys.stdin.readline()
    except OSError as error:
        # The terminal is another process group's.
        if error.errno != errno.EIO:
            raise
        line = ""
    if line:
        return line.strip().lower()
    click.echo(err=True)
    return None
