"""`layermount doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layermount.cli import output
from layermount.errors import ConfigError
from layermount.linux import probe
from layermount.linux.finding import Finding


@click.command("doctor")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def doctor_command(*, directory: Path | None, as_json: bool) -> None:
    """Tell what this machine can do, what DIRECTORY's filesystem can hold, and why not.

    Everything is tried, nothing is guessed from versions. DIRECTORY is the working directory by
    default; a temporary directory is made in it and removed.
    """
    hosts = probe.hosts()
    place = (directory or Path.cwd()).absolute()
    found: list[Finding] = []
    problem: ConfigError | None = None
    try:
        found = _directory_findings(place)
    except ConfigError as error:
        if directory is not None:
            raise
        problem = error
    if as_json:
        reason = None if problem is None else str(problem)
        output.emit_json(
            {
                "hosts": [one._asdict() for one in hosts],
                "directory": str(place),
                "findings": [one._asdict() for one in found],
                "problem": reason,
            }
        )
        return
    click.echo("Ways to show an overlay")
    _print(hosts)
    click.echo(f"\nWhat an upper in {output.shown(str(place))} can hold")
    _print(found)
    if problem is not None:
        click.echo(f"  {output.shown(str(problem))}\n      remedy: {problem.hint}")


def _directory_findings(place: Path) -> list[Finding]:
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reason = f"cannot look at {str(place)!r}: {error.strerror}"
        raise ConfigError(reason, hint="name a directory you may write to") from error
    try:
        found = probe.directory(fd)
    except OSError as error:
        reason = f"cannot try anything in {str(place)!r}: {error.strerror}"
        raise ConfigError(reason, hint="name a directory you may write to") from error
    finally:
        os.close(fd)
    return list(found)


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        mark = click.style("yes", fg="green") if finding else click.style("no ", fg="red")
        click.echo(f"  {mark} {finding.name.replace('_', ' ')}: {finding.reason}")
        if finding.remedy and not finding:
            click.echo(f"      remedy: {finding.remedy}")
