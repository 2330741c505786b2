"""`layermount list` and `layermount discard`."""

from __future__ import annotations

import time

import click

from layermount.cli import output
from layermount.hosts import rundir
from layermount.views import shelf
from layermount.views.view import View

_NANOSECONDS = 1_000_000_000


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def list_command(*, as_json: bool) -> None:
    """List kept views and mounted overlays."""
    rundir.sweep()
    shelf.sweep()
    views, mounts = shelf.views(), rundir.records()
    if as_json:
        output.emit_json(
            {
                "views": [{**_fields(view), "in_use": shelf.is_in_use(view)} for view in views],
                "mounts": mounts,
            }
        )
        return
    if not views and not mounts:
        output.talk("no views are kept and no overlay is mounted")
    if views:
        rows = [
            (output.shown(v.name), output.shown(v.target), _when(v.created_ns), _state(v))
            for v in views
        ]
        output.table(("VIEW", "OVER", "MADE", "LAST COMMAND"), rows)
    if mounts:
        rows = [
            (
                output.shown(m.target),
                m.host,
                output.counted(len(m.lowers), "lower"),
                output.shown(m.upper or "read-only"),
            )
            for m in mounts
        ]
        output.table(("MOUNT", "HOST", "LAYERS", "UPPER"), rows)


def _fields(view: View) -> dict[str, object]:
    return {name: getattr(view, name) for name in View.__dataclass_fields__}


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ns / _NANOSECONDS))


def _state(view: View) -> str:
    command = output.shown(" ".join(view.command)) or "-"
    if shelf.is_in_use(view):
        return f"{command} (running)"
    if view.exit_status is None:
        return f"{command} (did not finish)" if view.command else command
    return f"{command} (exit {view.exit_status})" if view.exit_status else command


@click.command("discard")
@click.argument("names", nargs=-1, required=True, metavar="VIEW...")
def discard_command(*, names: tuple[str, ...]) -> None:
    """Drop kept views with their changes. An upper that you gave with --upper stays."""
    for view in [shelf.get_view(name) for name in names]:
        shelf.discard(view)
