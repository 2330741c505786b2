"""A process of its own that serves a mount, and its start, which succeeds or says why not.

What the process does is in `life.py`; seen from outside it is in `mounted.py`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn

from layermount.config import LayerMountConfig
from layermount.errors import HostError, LayerMountError
from layermount.hosts import rundir, told
from layermount.hosts.fuse.mounted import FuseMount
from layermount.hosts.fuse.policy import Options, Passthrough
from layermount.hosts.run_directory import directory
from layermount.hosts.rundir import Record

if TYPE_CHECKING:  # only the daemon needs the engine
    from layermount.engine.assemble import LowerOpener

_LAST_STANDARD = 2
_HIGHEST = 2**31 - 1
# What a mount gives that is not served any more.
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)
_READY = b"mounted\n"


class _Order(NamedTuple):
    """What the daemon is to do."""

    token: str
    config: LayerMountConfig
    target: Path
    options: Options
    open_lower: LowerOpener | None


def start(
    config: LayerMountConfig,
    target: Path,
    *,
    allow_other: bool = False,
    read_only: bool = False,
    passthrough: Passthrough = Passthrough.AUTO,
    open_lower: LowerOpener | None = None,
) -> FuseMount:
    """Show an overlay at the directory `target` by a daemon, which outlives this process.

    It returns when the first request was answered. On failure nothing of it is left. The process
    forks, so it should have one thread; the daemon keeps none of its files, and is not its child.

    The daemon ends when the mount does: by `unmount`, umount(8), fusermount3(1), or a signal to it
    (SIGTERM, SIGINT, SIGHUP). What is wrong with it while it runs is in `TOKEN.log` in the run
    directory. Its score for the out-of-memory killer is its starter's: killed, it loses nothing
    that was written, and the next start cleans up.

    Args:
        config: The overlay.
        target: An existing directory; links are followed. It may be one of the layers.
        allow_other: Let every user in; without it only the one who mounts it, not even root. As an
            ordinary user it needs `user_allow_other` in /etc/fuse.conf.
        read_only: Refuse changes although there is an upper.
        passthrough: Which files of layers the kernel reads and writes by itself where it may.
        open_lower: Opens the lowers that are no plain directories, in the daemon, as for `Overlay`.

    Raises:
        ConfigError, LayerUnavailableError, LayerBusyError: As `LayerMount.create` has them.
        HostUnavailableError, HostError: It cannot be mounted; the message says why.
        OSError: ENOENT, ENOTDIR or EACCES for the target.
    """
    options = Options(allow_other=allow_other, read_only=read_only, passthrough=passthrough)
    order = _Order(rundir.new_token(), _absolute(config), target.absolute(), options, open_lower)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as messages:
        try:
            _fork(order, writer)
        finally:
            os.close(writer)
        mount = _mounted(order, messages)
        try:
            # The first request, and with it the negotiation, is answered.
            os.stat(mount.record.target)
        except OSError as error:
            if error.errno in _DEAD:
                raise _why(order, messages.readline()) from error
            mount.unmount(lazy=True)
            raise
        return mount


def _mounted(order: _Order, messages: IO[bytes]) -> FuseMount:
    line = messages.readline()
    if line != _READY:
        raise _why(order, line)
    return FuseMount(rundir.get(order.token))


def _why(order: _Order, line: bytes) -> Exception:
    """What the daemon said before it ended."""
    if line:
        return told.from_data(json.loads(line))
    return HostError(
        "the daemon ended without a word", hint=f"see {str(_log_of(order.token))!r}, if it is there"
    )


def _absolute(config: LayerMountConfig) -> LayerMountConfig:
    """The same layers wherever the process works."""
    upper, work = config.upper_path, config.work_dir_path
    return replace(
        config,
        upper_path=None if upper is None else upper.absolute(),
        work_dir_path=None if work is None else work.absolute(),
        lower_paths=tuple(lower.absolute() for lower in config.lower_paths),
    )


def _log_of(token: str) -> Path:
    return directory().absolute() / f"{token}.log"


# In the daemon.


def _fork(order: _Order, writer: int) -> None:
    """Start the daemon as nobody's child: its end is to be nobody's business."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            status = 0 if os.fork() else _run(order, writer)
        finally:
            # Nothing of the parent's program may run here, whatever was raised.
            if sys.exc_info()[1] is not None:
                _end_in_error()
            os._exit(status)
    # The caller may ignore the ends of its children; then it has ended all the same.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _end_in_error() -> NoReturn:
    import traceback  # noqa: PLC0415  start-up is to be fast

    traceback.print_exc()
    os._exit(1)


def _run(order: _Order, writer: int) -> int:
    """Serve; how the process is to end."""
    log = _log_of(order.token)
    _leave_everything(writer)
    from layermount.hosts.fuse import life  # noqa: PLC0415  only the daemon needs the engine

    is_ready = False

    def ready(_record: Record) -> None:
        nonlocal is_ready
        _talk_into(log)
        os.write(writer, _READY)
        is_ready = True

    try:
        life.serve(
            order.config,
            order.target,
            order.options,
            ready,
            open_lower=order.open_lower,
            token=order.token,
            last=lambda: _drop_if_empty(log),
        )
    except (LayerMountError, OSError) as error:
        _tell(writer, error)
        if is_ready:
            sys.stderr.write(f"layermount: {error}\n")
        return 1
    finally:
        _drop_if_empty(log)
    return 0


def _leave_everything(kept: int) -> None:
    """Keep nothing of the process that forked but its standard error, for the start."""
    # Objects of the parent own numbers of files that will be others' here: none may be finalised,
    # and nothing may be logged to them.
    gc.freeze()
    # What is made from here on stays, too, until the mount is served.
    gc.disable()
    _leave_loggers()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.closerange(_LAST_STANDARD + 1, kept)
    os.closerange(kept + 1, _HIGHEST)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in range(_LAST_STANDARD):
        os.dup2(null, standard)
    os.close(null)
    sys.stderr = os.fdopen(
        _LAST_STANDARD, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.environ["LAYERMOUNT_RUN_DIR"] = str(directory().absolute())
    sys.path[:] = map(os.path.abspath, sys.path)
    os.chdir("/")


def _leave_loggers() -> None:
    logging = sys.modules.get("logging")
    if logging is not None:
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            getattr(logger, "handlers", []).clear()


def _talk_into(log: Path) -> None:
    """Let standard error be the log from now on."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, _LAST_STANDARD)
    os.close(fd)


def _tell(writer: int, error: LayerMountError | OSError) -> None:
    try:
        os.write(writer, json.dumps(told.to_data(error)).encode("ascii") + b"\n")
    except BrokenPipeError:
        return  # it was started long ago


def _drop_if_empty(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size == 0:
            log.unlink()
