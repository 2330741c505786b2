"""`layermount resolve` and `layermount explain`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layermount import Explanation, LayerVerdict, Role
from layermount.cli import output
from layermount.cli.layers import configuration, layer_options, live_mount, reading
from layermount.errors import ConfigError
from layermount.hosts.fuse import asking
from layermount.hosts.rundir import Record
from layermount.mount import LayerMount

_JSON = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")


@click.command("resolve")
@click.argument("where", nargs=-1, required=True, metavar="[VIEW] PATH")
@layer_options
@_JSON
def resolve_command(
    *,
    where: tuple[str, ...],
    lowers: tuple[Path, ...],
    upper: Path | None,
    dialect: str | None,
    as_json: bool,
) -> None:
    """Print the path on this machine that answers for PATH in a view; exit 1 when nothing does."""
    explanation = _explain(where, lowers, upper, dialect)
    answer = explanation.answer
    full_path = None if answer is None else str(Path(answer.source, answer.path))
    if as_json:
        layer = None if answer is None else answer.layer
        output.emit_json(
            {
                "path": explanation.path,
                "kind": explanation.kind,
                "layer": layer,
                "full_path": full_path,
                "is_whiteout": explanation.is_deleted,
            }
        )
    elif full_path is not None:
        # For a program: byte for byte.
        click.echo(os.fsencode(full_path))
    else:
        output.talk(f"{explanation.path or '/'}: {_absence(explanation)}")
    raise SystemExit(0 if answer is not None else 1)


@click.command("explain")
@click.argument("where", nargs=-1, required=True, metavar="[VIEW] PATH")
@layer_options
@_JSON
def explain_command(
    *,
    where: tuple[str, ...],
    lowers: tuple[Path, ...],
    upper: Path | None,
    dialect: str | None,
    as_json: bool,
) -> None:
    """Print what each layer has at PATH, which one answers, and what hides the others."""
    explanation = _explain(where, lowers, upper, dialect)
    if as_json:
        output.emit_json(explanation)
        return
    shown = explanation.kind or _absence(explanation)
    click.echo(f"{output.shown(explanation.path) or '/'}: {shown}")
    rows = [
        (
            verdict.layer,
            str(verdict.role),
            output.shown(verdict.reason),
            output.shown(_place(verdict)),
        )
        for verdict in explanation.verdicts
    ]
    output.table(("LAYER", "ROLE", "WHY", "WHERE"), rows)


def _place(verdict: LayerVerdict) -> str:
    return str(Path(verdict.source, verdict.path)) if verdict.path else verdict.source


def _absence(explanation: Explanation) -> str:
    return "deleted" if explanation.is_deleted else "nothing is there"


def _explain(
    where: tuple[str, ...], lowers: tuple[Path, ...], upper: Path | None, dialect: str | None
) -> Explanation:
    if len(where) > 2:
        raise ConfigError("more than a view and a path is given")
    name = where[0] if len(where) > 1 else None
    live = live_mount(name) if name is not None and not lowers and upper is None else None
    if live is not None:
        return _asked(live, where[-1])
    config = configuration(name, lowers, upper, dialect)
    with LayerMount.create(reading(config)) as mount:
        return mount.explain(where[-1], first_is_upper=config.upper_path is not None)


def _asked(mount: Record, path: str) -> Explanation:
    """What the daemon of a live mount says: its layers may be reached no other way."""
    answer = asking.explain(mount, path)
    verdicts = (
        LayerVerdict(**{**verdict, "role": Role(verdict["role"])}) for verdict in answer["verdicts"]
    )
    return Explanation(answer["path"], answer["kind"], tuple(verdicts))
