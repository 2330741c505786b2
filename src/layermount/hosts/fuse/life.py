"""The life of a served mount: overlay opened, mounted, recorded, served, and all of it undone.

It happens in the calling process; a process of its own for it is in `daemon.py`. What requests mean
is in `session.py`, what others may ask a live mount in `control.py`.

Everything is undone in the reverse order, however it ends. What only a killed process leaves (a
mount that answers ENOTCONN, a record, a socket) the next sweep takes away.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from layermount.config import Durability, LayerMountConfig
from layermount.engine.assemble import LowerOpener, plain_directories
from layermount.engine.overlay import Overlay
from layermount.hosts import rundir
from layermount.hosts.fuse import mounting
from layermount.hosts.fuse.control import Control
from layermount.hosts.fuse.policy import Options
from layermount.hosts.fuse.session import Session
from layermount.hosts.run_directory import source_of
from layermount.hosts.rundir import Record
from layermount.linux import processes

#: How many new objects there are before garbage is looked for.
_GARBAGE = 100_000
#: What ends a mount in order.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(
    config: LayerMountConfig,
    target: Path,
    options: Options,
    ready: Callable[[Record], object],
    *,
    open_lower: LowerOpener | None = None,
    token: str | None = None,
    last: Callable[[], object] = lambda: None,
) -> None:
    """Show an overlay at a directory until it is unmounted or this process is told to end.

    Runs in the main thread. SIGTERM, SIGINT and SIGHUP unmount it; while it is in use it is taken
    out of the tree and served on until its last user is gone, or until a second signal. The limit
    of open files is raised and stays so.

    Args:
        config: The overlay.
        target: An existing directory.
        options: How it is shown.
        ready: Called when it is mounted, just before the first request is answered.
        open_lower: Opens the lowers that are no plain directories, as for `Overlay`.
        token: Names the mount; None for a new one.
        last: Called before a second signal ends the process, when all else is undone.

    Raises:
        ConfigError, LayerUnavailableError, LayerBusyError: As `Overlay` has them.
        HostUnavailableError, HostError: It cannot be mounted.
        OSError: ENOENT, ENOTDIR or EACCES for the target; EPROTO when the kernel is too old.
    """
    _allow_many_files()
    # Threads inherit the mask, so that none but the one that waits for them gets a signal.
    with _blocked(), ExitStack() as stack:
        overlay = Overlay(config, open_lower=open_lower or plain_directories)
        stack.callback(overlay.close)
        shown = _Shown(stack, config, options, overlay, token or rundir.new_token())
        attached = mounting.attach(target, shown.settings, shown.announce)
        stack.callback(shown.unmount, lazy=True)
        session = Session(overlay, attached.device_fd, options.passthrough)
        record = shown.attached(attached)
        shown.control.start(record, session.status)
        with _ended_by_signals(shown.unmount, stack, last):
            ready(record)
            # What is here stays, and so does what the kernel knows: cycles are broken where it
            # forgets. Looking for garbage among it costs time.
            gc.freeze()
            gc.set_threshold(_GARBAGE)
            gc.enable()
            session.serve()


class _Shown:
    """One mount, from before it is attached."""

    def __init__(
        self,
        stack: ExitStack,
        config: LayerMountConfig,
        options: Options,
        overlay: Overlay,
        token: str,
    ) -> None:
        restricted = os.geteuid() != 0 if options.restricted is None else options.restricted
        self.settings = mounting.Settings(
            source=source_of(token),
            allow_other=options.allow_other,
            read_only=options.read_only or config.upper_path is None,
            restricted=restricted,
        )
        self.control = Control(token, overlay)
        self._stack = stack
        self._config = config
        self._token = token
        self._record: Record | None = None

    def announce(self, target: str, mount_id: int) -> None:
        """Leave a trace before anything is attached: first the record, then the socket."""
        self._record = _record(self._token, target, mount_id, self.settings.source, self._config)
        rundir.write(self._record)
        self._stack.callback(rundir.forget, self._record)
        self.control.bind()
        self._stack.callback(self.control.close)

    def attached(self, attached: mounting.Attached) -> Record:
        """The record, with the number that is known by now."""
        assert self._record is not None  # noqa: S101  it is announced before it is attached
        if self._record.mount_id != attached.mount_id:
            self._record = replace(self._record, mount_id=attached.mount_id)
            rundir.write(self._record)
        return self._record

    def unmount(self, *, lazy: bool) -> None:
        """Unmount it if it still is mounted.

        Raises:
            OSError: EBUSY unless `lazy`.
        """
        if self._record is not None:
            record = self._record
            mounting.unmount(record.target, record.mount_id, record.source, lazy=lazy)


@contextlib.contextmanager
def _ended_by_signals(
    unmount: Callable[..., None], stack: ExitStack, last: Callable[[], object]
) -> Iterator[None]:
    """Wait for signals in a thread: the one that serves must not unmount, being asked meanwhile."""
    # Held by whoever undoes what is on the stack; the other one must neither do it nor end before.
    undoing = threading.Lock()

    def wait() -> None:
        signal.sigwait(ENDING)
        if undoing.locked():
            return
        try:
            unmount(lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            unmount(lazy=True)
        signal.sigwait(ENDING)
        if undoing.acquire(blocking=False):
            # Its users had their time; what they have open ends with this process.
            try:
                stack.close()
                last()
                os._exit(0)
            finally:
                undoing.release()

    thread = threading.Thread(target=wait, name="layermount-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        undoing.acquire()
        if thread.is_alive():
            signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
            thread.join()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Keep the ending signals for the thread that waits, and outlive readers that went away."""
    pipe_handler = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        # Whoever wanted it to end once more, while it was ending, has what he wanted.
        while signal.sigtimedwait(ENDING, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGPIPE, pipe_handler)


def _allow_many_files() -> None:
    """As many descriptors as this process may have: an open file of a user is one here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _record(
    token: str, target: str, mount_id: int, source: str, config: LayerMountConfig
) -> Record:
    mount_namespace, pid_namespace, boot = rundir.place()
    me = processes.identity()
    upper, work = config.upper_path, config.work_dir_path
    return Record(
        token=token,
        host="fuse",
        target=target,
        mount_id=mount_id,
        fstype=mounting.FSTYPE,
        source=source,
        lowers=tuple(os.path.realpath(lower) for lower in config.lower_paths),
        upper=None if upper is None else os.path.realpath(upper),
        work=None if work is None else os.path.realpath(work),
        volatile=upper is not None and config.durability is Durability.VOLATILE,
        owner=me,
        writer=me,
        mount_namespace=mount_namespace,
        pid_namespace=pid_namespace,
        boot=boot,
        created_ns=time.time_ns(),
    )
