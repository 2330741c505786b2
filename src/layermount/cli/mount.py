"""`layermount mount`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from layermount.cli import output
from layermount.cli.layers import configuration, layer_options
from layermount.cli.mounted import swept
from layermount.config import Durability, LayerMountConfig
from layermount.errors import ConfigError, HostUnavailableError
from layermount.hosts import choice
from layermount.hosts.fuse.policy import Options, Passthrough
from layermount.hosts.rundir import Record

_FOR_A_COMMAND = "`layermount run -- COMMAND` shows the overlay to a command and what it starts"


@click.command("mount")
@click.argument("target", type=click.Path(path_type=Path))
@layer_options
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Where changes are prepared; beside the upper by default.",
)
@click.option("--view", help="Mount this kept view instead of --lower and --upper.")
@click.option("--read-only", is_flag=True, help="Refuse changes although there is an upper.")
@click.option(
    "--volatile", is_flag=True, help="Never sync; a crash leaves an upper that is refused."
)
@click.option(
    "--host",
    type=click.Choice(["auto", "kernel", "fuse"]),
    default="auto",
    show_default=True,
    help="What shows it: the kernel's overlayfs (root), or a daemon through FUSE (anybody).",
)
@click.option("--foreground", is_flag=True, help="FUSE: serve in this process until unmounted.")
@click.option(
    "--allow-other", is_flag=True, help="FUSE: let other users in, too; else not even root."
)
@click.option(
    "--passthrough",
    type=click.Choice([which.value for which in Passthrough]),
    help="FUSE: which files the kernel reads and writes by itself; auto by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the mount as one JSON document.")
def mount_command(
    *,
    target: Path,
    lowers: tuple[Path, ...],
    upper: Path | None,
    dialect: str | None,
    work: Path | None,
    view: str | None,
    read_only: bool,
    volatile: bool,
    host: str,
    foreground: bool,
    allow_other: bool,
    passthrough: str | None,
    as_json: bool,
) -> None:
    """Mount an overlay at TARGET until `layermount umount`.

    By default the kernel shows it, to every program; where it may not or cannot, a FUSE daemon
    does, to the programs of the user who mounts it, and to others with --allow-other.
    """
    config = configuration(view, lowers, upper, dialect)
    swept()
    _require_directory(target)
    if view is not None:
        _require_free(view)
    durability = Durability.VOLATILE if volatile else config.durability
    config = replace(config, work_dir_path=work or config.work_dir_path, durability=durability)
    wanted = _for_fuse_alone(foreground=foreground, passthrough=passthrough)
    if host == "kernel" and wanted is not None:
        raise ConfigError(f"{wanted} is for the FUSE host", hint="leave it out, or use --host fuse")
    reason = None
    if host == "auto":
        reason = choice.why_not_kernel(config) if wanted is None else f"{wanted} is given"
    options = Options(
        allow_other=allow_other,
        read_only=read_only,
        passthrough=Passthrough(passthrough or Passthrough.AUTO),
    )
    if host == "kernel" or (host == "auto" and reason is None):
        _tell(_by_kernel(config, target, read_only=read_only), None, as_json=as_json)
    else:
        _by_fuse(config, target, options, reason, foreground=foreground, as_json=as_json)


def _for_fuse_alone(*, foreground: bool, passthrough: str | None) -> str | None:
    """The first given option that only the FUSE host has."""
    given = {"--foreground": foreground, "--passthrough": passthrough is not None}
    return next((name for name, on in given.items() if on), None)


def _require_directory(target: Path) -> None:
    # Not the argument's own check: what a dead daemon left there is swept first.
    if not target.is_dir():
        what = "is a file" if target.exists() else "does not exist"
        raise click.BadParameter(f"Directory {str(target)!r} {what}.", param_hint="'TARGET'")


def _require_free(view: str) -> None:
    """The locks are the mount's to take; who is in the view without one is seen here."""
    from layermount.views import shelf  # noqa: PLC0415  only for a kept view

    with shelf.owned(shelf.get_view(view)):
        pass


def _tell(record: Record, reason: str | None, *, as_json: bool) -> None:
    if reason is not None:
        output.talk(f"mounted through FUSE: {reason}")
    if as_json:
        output.emit_json(record)


def _by_kernel(config: LayerMountConfig, target: Path, *, read_only: bool) -> Record:
    from layermount.hosts import kernel  # noqa: PLC0415  one of the two is needed

    verdict = kernel.verdict()
    if not verdict:
        raise HostUnavailableError(
            f"the kernel cannot show an overlay here: {verdict.reason}",
            hint=verdict.remedy or _FOR_A_COMMAND,
        )
    user_marks = config.dialect == "overlay-user"
    moves = None if user_marks else True
    work = config.work_dir_path
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    mounted = kernel.mount(
        target,
        lowers=config.lower_paths,
        upper=config.upper_path,
        work=work,
        user_marks=user_marks,
        options=kernel.Options(
            redirect_dir=moves,
            metacopy=moves,
            volatile=config.durability is Durability.VOLATILE,
        ),
        read_only=read_only,
    )
    return mounted.record


def _by_fuse(
    config: LayerMountConfig,
    target: Path,
    options: Options,
    reason: str | None,
    *,
    foreground: bool,
    as_json: bool,
) -> None:
    def ready(record: Record) -> None:
        _tell(record, reason, as_json=as_json)

    try:
        if foreground:
            from layermount.hosts.fuse import life  # noqa: PLC0415  one of the two is needed

            life.serve(config, target, options, ready)
        else:
            from layermount.hosts.fuse import daemon  # noqa: PLC0415  one of the two is needed

            mounted = daemon.start(
                config,
                target,
                allow_other=options.allow_other,
                read_only=options.read_only,
                passthrough=options.passthrough,
            )
            ready(mounted.record)
    except HostUnavailableError as error:
        if reason is None:
            raise
        raise HostUnavailableError(
            f"neither host can be had: {reason}; {error}",
            hint=_FOR_A_COMMAND,
        ) from error
