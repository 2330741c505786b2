"""`layermount status` and `layermount events`: a mount that a daemon serves, while it is served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from layermount.cli import output
from layermount.cli.mounted import mount_at
from layermount.hosts.fuse import asking

_MOUNT = click.argument("mount", type=click.Path(path_type=Path))


@click.command("status")
@_MOUNT
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def status_command(*, mount: Path, as_json: bool) -> None:
    """Tell what the daemon of MOUNT was asked, what it has open and how it works."""
    answer = asking.status(mount_at(mount))
    if as_json:
        output.emit_json(answer)
        return
    output.table(("WHAT", "VALUE"), _rows(answer))


def _rows(answer: asking.Answer) -> Iterator[tuple[str, str]]:
    record, config, daemon = answer["mount"], answer["config"], answer["daemon"]
    yield "mount", output.shown(record["target"])
    yield "upper", output.shown(record["upper"] or "read-only")
    yield from ((f"lower[{n}]", output.shown(path)) for n, path in enumerate(record["lowers"]))
    yield "durability", config["durability"]
    yield "daemon", f"process {daemon['pid']}, {output.size(daemon['memory'])}"
    yield from _counts(answer["session"].items())
    yield from _counts(answer["overlay"].items())


def _counts(items: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    """Each counter; a group of them is one line after its name, the largest first."""
    for name, value in items:
        words = name.replace("_", " ")
        if isinstance(value, dict):
            parts = sorted(value.items(), key=lambda part: -part[1])
            yield words, ", ".join(f"{key} {count}" for key, count in parts) or "none"
        elif isinstance(value, bool):
            yield words, "yes" if value else "no"
        elif value is not None:
            yield words, output.shown(str(value))


@click.command("events")
@_MOUNT
@click.option("--json", "as_json", is_flag=True, help="One JSON object in a line for each event.")
def events_command(*, mount: Path, as_json: bool) -> None:
    """Print what happens in MOUNT, as it happens, until it is unmounted or you press Ctrl-C.

    What is read too slowly is left out; how much is told.
    """
    for event in asking.events(mount_at(mount)):
        if event["kind"] == "subscribed":
            output.talk(f"listening to {mount}")
        elif as_json:
            click.echo(json.dumps(event))
        else:
            click.echo(_line(event))


def _line(event: asking.Answer) -> str:
    if event["kind"] == "dropped":
        return f"dropped {output.counted(event['count'], 'event')}"
    path = output.shown(event["path"]) or "/"
    if event["old_path"] is not None:
        path = f"{output.shown(event['old_path'])} -> {path}"
    message = f": {output.shown(event['message'])}" if event["message"] else ""
    return f"{event['kind']} {path}{message}"
