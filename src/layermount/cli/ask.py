"""The question at the end of a run: keep the changes or drop them?"""

from __future__ import annotations

import click

from layermount.changes.diff import Difference
from layermount.cli.diff import print_changes, print_summary
from layermount.views.view import View


def ask_keep(view: View) -> bool:
    """Whether the person wants to keep the changes; nothing is asked when there are none."""
    with Difference(view.config()) as difference:
        changes = difference.changes()
        if not changes:
            return False
        print_summary(changes, err=True)
        while True:
            answer = click.prompt(
                "keep, drop or show the changes?",
                type=click.Choice(["k", "d", "s", "keep", "drop", "show"]),
                show_choices=False,
                default="keep",
                err=True,
            )
            if answer[0] != "s":
                return bool(answer[0] == "k")
            print_changes(changes, err=True)
