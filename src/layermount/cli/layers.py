"""The options by which a command is told its layers: a kept view, a mounted overlay, or paths."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from layermount.cli.mounted import swept
from layermount.config import LayerMountConfig
from layermount.errors import ConfigError, LayerUnavailableError, ViewNotFoundError
from layermount.hosts import rundir
from layermount.hosts.rundir import Record
from layermount.views.dialect import dialect_of

_F = TypeVar("_F", bound=Callable[..., object])
_DIRECTORY = click.Path(readable=False, path_type=Path)


def layer_options(function: _F) -> _F:
    """Add `--lower`, `--upper` and `--dialect`."""
    for option in (
        click.option("--dialect", type=click.Choice(["overlay", "overlay-user"]),
                     help="How the upper keeps its marks; found out by itself when left out."),
        click.option("--upper", type=_DIRECTORY, help="The layer that has the changes."),
        click.option("--lower", "lowers", type=_DIRECTORY, multiple=True,
                     help="A read-only layer; the first given is nearest. May be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


def configuration(
    name: str | None, lowers: tuple[Path, ...], upper: Path | None, dialect: str | None
) -> LayerMountConfig:
    """The layers that were named: by a view's name, by the directory of a mount, or one by one.

    Raises:
        ConfigError: Both ways are mixed, or neither is used.
        ViewNotFoundError: There is no such view, and no overlay is mounted there.
    """
    _allow_many_layers()
    if name is None:
        if not lowers and upper is None:
            raise ConfigError(
                "no layers are named", hint="name a view, or give --lower and --upper"
            )
        if upper is not None:
            dialect = dialect or dialect_of(upper)
        return LayerMountConfig(upper, lowers, dialect=dialect)
    if lowers or upper is not None:
        raise ConfigError(f"both {name!r} and --lower or --upper are given")
    from layermount.views import shelf  # noqa: PLC0415  only for a kept view

    view = shelf.find_view(name)
    return _mounted(Path(name), dialect) if view is None else view.config()


def _allow_many_layers() -> None:
    """As many descriptors as this process may have: each layer takes one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def live_mount(name: str) -> Record | None:
    """The mount at a directory, if a daemon serves it and no kept view has that name."""
    from layermount.views import shelf  # noqa: PLC0415  only for a kept view

    if shelf.find_view(name) is not None:
        return None
    swept()
    record = rundir.find(Path(name))
    return record if record is not None and record.host == "fuse" else None


def _mounted(target: Path, dialect: str | None) -> LayerMountConfig:
    swept()
    record = rundir.find(target) if target.is_dir() else None
    if record is None:
        raise ViewNotFoundError(
            f"no view is kept under {str(target)!r}, and no overlay is mounted there",
            hint="`layermount list` shows what there is",
        )
    if record.upper is not None:
        dialect = dialect or dialect_of(Path(record.upper))
    return LayerMountConfig(record.upper, record.lowers, work_dir_path=record.work, dialect=dialect)


def reading(config: LayerMountConfig) -> LayerMountConfig:
    """The same layers, the upper too, for reading: nothing is locked and nothing is written."""
    if config.upper_path is None:
        return config
    if not config.upper_path.is_dir():
        raise LayerUnavailableError(f"the upper {str(config.upper_path)!r} is no directory")
    return LayerMountConfig(
        None,
        [config.upper_path, *config.lower_paths],
        dialect=config.dialect,
        lower_dialects=(None, *config.lower_dialects),
    )
