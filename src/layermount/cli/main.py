"""The command itself: a table of subcommands, loaded when used, and errors made exit codes."""

from __future__ import annotations

import gc
import importlib
import os
import signal

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
    "umount": ("umount", "Unmount an overlay."),
    "status": ("live", "Tell what the daemon of a mount does."),
    "events": ("live", "Print what happens in a mount, as it happens."),
    "resolve": ("resolve", "Tell which layer answers for a path."),
    "explain": ("resolve", "Tell what each layer has at a path, and what hides what."),
    "doctor": ("doctor", "Tell what this machine can do, and why not."),
}
_INTERRUPTED = 128 + signal.SIGINT
_STDERR = 2


class _Commands(click.Group):
    """Subcommands that are imported only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"layermount.cli.{_COMMANDS[cmd_name][0]}")
        gc.enable()
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

    The lowers are never touched. Exit codes: 1 an error of the system, 2 wrong usage or
    configuration, 10-14 layers, 40-41 hosts, 45-47 views.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    _reserve_standard_descriptors()
    # As every filter: when the reader has gone, nobody is left to tell.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # All is printed (click flushes) and closed by now. To take the interpreter apart would take as
    # long as its start.
    os._exit(_run())


def _run() -> int:
    try:
        status = layermount.main(standalone_mode=False)
    except click.exceptions.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        return _report_usage(error)
    except LayerMountError as error:
        _report(str(error), error.hint)
        return error.exit_code
    except OSError as error:
        _report(_described(error), None)
        return 1
    return status if isinstance(status, int) else 0


def _reserve_standard_descriptors() -> None:
    """Let no file that is opened here become a closed standard input, output or error.

    What is put there is closed on exec: a command that is run finds them closed, as they were.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= _STDERR:
        pass
    os.close(fd)


def _described(error: OSError) -> str:
    text = error.strerror or str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {text}" if names else text


def _report_usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    path = "layermount" if context is None else context.command_path
    message = error.format_message()
    if "\n" in message:
        # Without a subcommand the message is the help.
        error.show()
    else:
        _report(message, f"`{path} --help` has the usage")
    return error.exit_code


def _report(message: str, hint: str | None) -> None:
    from layermount.cli import output  # noqa: PLC0415  only when something went wrong

    output.talk(message)
    if hint:
        click.echo(f"hint: {output.shown(hint)}", err=True)
