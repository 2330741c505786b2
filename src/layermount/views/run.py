"""Running a command in a view: same paths inside as outside, its changes in the view's upper.

The command runs in a mount namespace of its own (with a user namespace where privilege is missing), in
the caller's process group: the terminal's signals reach it directly, others are passed on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from layermount.errors import HostError, LayerMountError
from layermount.hosts import kernel_private
from layermount.linux import processes
from layermount.views import shelf
from layermount.views.view import View

#: As shells and env(1) have them.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

#: The terminal sends these to the command itself.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: The command's exit status, or minus the signal that ended it.
        left_running: Processes that the command started and that still use the view.
    """

    status: int
    left_running: tuple[int, ...]


def run(view: View, command: Sequence[str]) -> Outcome:
    """Run a command in a view and wait for its end.

    The process must have one thread. Nobody else can use the view's upper meanwhile. What the command
    started and left behind is inherited by this process and goes on.

    Args:
        view: The view; its description gets the command and how it ended.
        command: Program and arguments; the program is looked for as execvp(3) does, inside.

    Raises:
        LayerBusyError: Another command runs in the view.
        HostUnavailableError: This user can have no such namespace.
        HostError: The kernel refuses the layers.
        LayerUnavailableError: A layer cannot be opened.
    """
    with shelf.owned(view):
        shelf.describe(replace(view, command=tuple(command), exit_status=None))
        processes.set_child_subreaper(on=True)
        status = _supervise(view, command)
        shelf.describe(replace(view, command=tuple(command), exit_status=status))
        return Outcome(status, tuple(processes.children(os.getpid())))


def _supervise(view: View, command: Sequence[str]) -> int:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(view, command, writer)
    os.close(writer)
    previous = _route_signals(child)
    try:
        problem = _read_all(reader)
        status = _wait(child)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
    if problem:
        raise _rebuilt(problem)
    return status


def _become(view: View, command: Sequence[str], writer: int) -> None:
    """In the child: enter the view and become the command. Never returns."""
    try:
        upper, work = Path(view.upper), Path(view.work)
        kernel_private.enter(
            Path(view.target),
            lowers=[Path(lower) for lower in view.lowers],
            upper=upper,
            work=work,
            user_marks=view.dialect == "overlay-user",
            options=kernel_private.Options(**_options(view)),
        )
        # Entering a user namespace forgets it, so it comes after.
        processes.set_parent_death_signal(signal.SIGKILL)
        # Python ignores it for itself; the command is to have what it would have outside.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    except (LayerMountError, OSError) as error:
        os.write(writer, _described(error))
        os._exit(1)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        os.write(2, f"layermount: {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if missing else NOT_EXECUTABLE)


def _options(view: View) -> dict[str, bool]:
    """With the kernel's own marks, directories move by a record and metadata comes up alone."""
    return {} if view.dialect == "overlay-user" else {"redirect_dir": True, "metacopy": True}


def _route_signals(child: int) -> dict[signal.Signals, object]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    previous: dict[signal.Signals, object] = {}
    for number in _FROM_TERMINAL:
        previous[number] = signal.signal(number, signal.SIG_IGN)
    for number in _PASSED_ON:
        previous[number] = signal.signal(number, pass_on)
    return previous


def _wait(child: int) -> int:
    """The child's status; what it orphaned is reaped on the way."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _read_all(reader: int) -> bytes:
    """What went wrong before the command; the pipe closes by itself when the command starts."""
    pieces = []
    while piece := os.read(reader, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def _described(error: LayerMountError | OSError) -> bytes:
    import pickle  # noqa: PLC0415  only when something went wrong: start-up is to be fast

    return pickle.dumps(error)


def _rebuilt(raw: bytes) -> BaseException:
    import pickle  # noqa: PLC0415

    error = pickle.loads(raw)  # noqa: S301  written by our own child a moment ago
    if isinstance(error, LayerMountError | OSError):
        return error
    return HostError("the view could not be entered")
