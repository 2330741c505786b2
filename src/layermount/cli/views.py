"""`layermount list` and `layermount discard`."""

from __future__ import annotations

import shlex
import signal
import time

import click

from layermount.cli import output
from layermount.cli.mounted import swept
from layermount.hosts import rundir
from layermount.views import shelf
from layermount.views.view import View

_NANOSECONDS = 1_000_000_000


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def list_command(*, as_json: bool) -> None:
    """List kept views and mounted overlays."""
    swept()
    for failure in shelf.sweep():
        output.talk(f"what is left of a dropped view stays: {failure}")
    (views, faults), mounts = shelf.views(), rundir.records()
    for fault in faults:
        output.talk(str(fault))
    in_use = shelf.names_in_use(views)
    if as_json:
        output.emit_json(
            {
                "views": [{**_fields(view), "in_use": view.name in in_use} for view in views],
                "mounts": mounts,
            }
        )
        return
    if not views and not mounts and not faults:
        output.talk("no views are kept and no overlay is mounted")
    if views:
        rows = [
            (v.name, output.shown(v.target), _when(v.created_ns), _state(v, v.name in in_use))
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


def _state(view: View, in_use: bool) -> str:
    command = output.shown(shlex.join(view.command)) or "-"
    if in_use:
        return f"{command} (running)"
    if view.exit_status is None:
        return f"{command} (did not finish)" if view.command else command
    if view.exit_status < 0:
        return f"{command} (ended by {_signal(-view.exit_status)})"
    return f"{command} (exit {view.exit_status})" if view.exit_status else command


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@click.command("discard")
@click.argument("names", nargs=-1, required=True, metavar="VIEW...")
def discard_command(*, names: tuple[str, ...]) -> None:
    """Drop kept views with their changes. An upper that you gave with --upper stays."""
    for name in names:
        shelf.require(name)
    for name in names:
        shelf.discard(name)
