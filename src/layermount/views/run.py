"""Running a command in a view: same paths inside as outside, its changes in the view's upper.

The command runs in a mount namespace of its own (with a user namespace where privilege is missing),
in the caller's process group: the terminal's signals reach it directly, others are passed on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from layermount import errors
from layermount.errors import HostError, LayerMountError
from layermount.hosts import kernel_private
from layermount.linux import processes
from layermount.views import shelf
from layermount.views.occupants import occupants
from layermount.views.view import View

#: As shells and env(1) have them.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

#: The terminal sends these to the command itself.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: What Python ignores for itself.
_IGNORED_HERE = (signal.SIGPIPE, signal.SIGXFSZ)
#: How long what is about to end anyway may take, seconds.
_GRACE_S = 0.2

_Mask = set[int | signal.Signals]
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: The command's exit status, or minus the signal that ended it.
        left_running: Processes that the command started and that are still in the view.
    """

    status: int
    left_running: tuple[int, ...]


def run(view: View, command: Sequence[str]) -> Outcome:
    """Run a command in a view and wait for its end.

    The process must have one thread. Nobody else can use the view's upper meanwhile. What the
    command started and left behind goes on. Should this process be killed, so is the command.

    Args:
        view: The view; its description gets the command and how it ended.
        command: Program and arguments; the program is looked for as execvp(3) does, inside.

    Raises:
        LayerBusyError: Another command, or what it left behind, runs in the view.
        HostUnavailableError: This user can have no such namespace.
        HostError: The kernel refuses the layers.
        LayerUnavailableError: A layer cannot be opened.
    """
    with shelf.owned(view):
        shelf.describe(replace(view, command=tuple(command), exit_status=None))
        try:
            status = _supervise(view, command)
        except (LayerMountError, OSError):
            shelf.describe(view)
            raise
        shelf.describe(replace(view, command=tuple(command), exit_status=status))
        return Outcome(status, _left_running(view))


def _supervise(view: View, command: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    processes.set_child_subreaper(on=True)
    reader, writer = os.pipe()
    # A caller that ignores the end of its children would leave us without the status.
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # No signal is lost between the fork and the moment from which it is passed on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FROM_TERMINAL, *_PASSED_ON))
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _restore_signals(child_handler, mask)
            _become(view, command, writer, supervisor)
        finally:
            _end_in_error()
    os.close(writer)
    try:
        with _signals_routed(child, mask):
            problem = _read_all(reader)
            status = _wait(child)
    finally:
        os.close(reader)
        signal.signal(signal.SIGCHLD, child_handler)
    if problem:
        _raise_sent(problem)
    return status


def _restore_signals(child_handler: _Handler, mask: _Mask) -> None:
    """In the child: what the command is to have as it would have it outside."""
    for number in _IGNORED_HERE:
        signal.signal(number, signal.SIG_DFL)
    for number in (*_FROM_TERMINAL, *_PASSED_ON):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, child_handler or signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(view: View, command: Sequence[str], writer: int, supervisor: int) -> NoReturn:
    """In the child: enter the view and become the command."""
    try:
        kernel_private.enter(
            Path(view.target),
            lowers=[Path(lower) for lower in view.lowers],
            upper=Path(view.upper),
            work=Path(view.work),
            user_marks=view.dialect == "overlay-user",
            options=kernel_private.Options(**_options(view)),
        )
        # Entering a user namespace forgets it, so it comes after.
        processes.set_parent_death_signal(signal.SIGKILL)
    except (LayerMountError, OSError) as error:
        os.write(writer, _to_send(error))
        os._exit(1)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        _execute(command)
    except OSError as error:
        os.write(2, f"layermount: {command[0]!r}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _execute(command: Sequence[str]) -> NoReturn:
    """As execvp(3), which Python's lacks one thing of: scripts without an interpreter line."""
    problem = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for path in _candidates(command[0]):
        try:
            os.execv(path, list(command))
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execv("/bin/sh", ["sh", path, *command[1:]])
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
            if error.errno == errno.EACCES:
                problem = error
    raise problem


def _candidates(program: str) -> list[str]:
    if "/" in program or not program:
        return [program]
    return [os.path.join(folder, program) for folder in os.get_exec_path()]


def _options(view: View) -> dict[str, bool]:
    """With the kernel's own marks, directories move by a record and metadata comes up alone."""
    return {} if view.dialect == "overlay-user" else {"redirect_dir": True, "metacopy": True}


def _end_in_error() -> NoReturn:
    """In the child, after what nobody expected: nothing of the parent's may run a second time."""
    import traceback  # noqa: PLC0415  start-up is to be fast

    traceback.print_exc()
    os._exit(1)


@contextmanager
def _signals_routed(child: int, mask: _Mask) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    previous: dict[signal.Signals, _Handler] = {}
    for number in _FROM_TERMINAL:
        previous[number] = signal.signal(number, signal.SIG_IGN)
    for number in _PASSED_ON:
        previous[number] = signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(child: int) -> int:
    """The child's status; what it orphaned is reaped on the way."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _left_running(view: View) -> tuple[int, ...]:
    """What the command left behind. All of it is ours by now: without children there is nothing."""
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ()
        if pid == 0:
            # A caller that became us by exec may have left us children of its own.
            inside = occupants().get(view.upper, [])
            if not inside or time.monotonic() > deadline:
                return tuple(inside)
            time.sleep(_GRACE_S / 10)


def _read_all(reader: int) -> bytes:
    """What went wrong before the command; the pipe closes by itself when the command starts."""
    pieces = []
    while piece := os.read(reader, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def _to_send(error: LayerMountError | OSError) -> bytes:
    if isinstance(error, LayerMountError):
        return json.dumps([type(error).__name__, str(error), error.hint]).encode()
    name = None if error.filename is None else os.fsdecode(error.filename)
    return json.dumps([None, error.errno, error.strerror, name]).encode()


def _raise_sent(raw: bytes) -> NoReturn:
    kind, *fields = json.loads(raw)
    if kind is None:
        raise OSError(*fields)
    message, hint = fields
    error: type[LayerMountError] = getattr(errors, kind, HostError)
    raise error(message, hint=hint)
