"""The command itself: one table of subcommands, loaded when used, and errors turned into exit codes."""

from __future__ import annotations

import importlib
import os
import sys

import click

from layermount.errors import LayerMountError

#: Subcommand → (module, what it does). The module is imported when the subcommand is used; the text
#: stands here so that `--help` imports none of them.
_COMMANDS = {
    "run": ("run", "Run a command over a copy-on-write view of a directory."),
    "list": ("views", "List kept views and mounted overlays."),
    "diff": ("diff", "Show what a view changed."),
    "discard": ("views", "Drop a kept view with its changes."),
    "mount": ("mount", "Mount an overlay."),
    "umount": ("mount", "Unmount an overlay."),
    "resolve": ("resolve", "Tell which layer answers for a path."),
    "explain": ("resolve", "Tell what each layer has at a path, and what hides what."),
    "doctor": ("doctor", "Tell what this machine can do, and why not."),
}


class _Commands(click.Group):
    """Subcommands that are imported only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"layermount.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: object) -> None:
    if value and not ctx.resilient_parsing:
        from layermount import __version__  # noqa: PLC0415  the library is not needed otherwise

        click.echo(f"layermount {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def layermount() -> None:
    """Overlay filesystems: a writable upper layer over read-only lowers.

    The lowers are never touched. Exit codes: 1 an error of the system, 2 wrong usage or configuration,
    10-14 layers, 40-41 hosts, 45-47 views.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        status = layermount.main(standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BrokenPipeError:
        # The reader has gone; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    except LayerMountError as error:
        _report(str(error), error.hint)
        status = error.exit_code
    except OSError as error:
        _report(_described(error), None)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _described(error: OSError) -> str:
    text = error.strerror or str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {text}" if names else text


def _report(message: str, hint: str | None) -> None:
    click.echo(f"layermount: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
