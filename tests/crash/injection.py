"""One operation in a child process under strace, which makes one of its system calls fail or fatal.

The child is forked from the test's own interpreter with everything imported, opens the overlay, and
waits; then strace attaches, and from there on every call counts. What the child has to say it sends
through a socket, which is no call that is ever counted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from layermount.config import LayerMountConfig
from layermount.engine.overlay import Overlay
from tests import forked
from tests.crash.operations import Act
from tests.crash.views import View, through_engine

#: What changes a filesystem, and what makes a change last.
_CALLS = (
    "openat,openat2,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,unlink,unlinkat,rmdir,"
    "rename,renameat,renameat2,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,"
    "chmod,fchmod,fchmodat,chown,lchown,fchown,fchownat,utimensat,write,pwrite64,pwritev,pwritev2,"
    "copy_file_range,ioctl,fallocate,truncate,ftruncate,fsync,fdatasync,sync_file_range,syncfs"
)
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_WRITING_OPEN = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|O_TRUNC|O_TMPFILE")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of an operation: the `number`-th of its name, from 1."""

    name: str
    number: int
    line: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name} {self.number}: {self.line}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the child.

    Attributes:
        killed: It was, before it could say anything.
        error: The errno the operation failed with, None when it did not fail.
        seen: What the same open overlay shows afterwards.
        again: What it shows after the operation was done once more, if it had failed.
        trace: What strace wrote.
    """

    killed: bool
    error: int | None
    seen: View
    again: View | None
    trace: list[str]

    @property
    def was_injected(self) -> bool:
        """Whether the fault took place."""
        return self.killed or any("(INJECTED" in line for line in self.trace)


def run(config: LayerMountConfig, act: Act, trace: Path, fault: str | None = None) -> Outcome:
    """Do one operation in a child.

    Args:
        config: The overlay.
        act: The operation.
        trace: Where strace writes.
        fault: An expression for `strace -e inject=`; None lets everything succeed.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = forked.fork()
        if pid == 0:
            _child(config, act, ours, theirs)
        theirs.close()
        try:
            assert ours.recv(1) == b"r", "the child could not open the overlay"
            with _tracing(pid, trace, fault):
                ours.sendall(b"g")
                raw = _receive_all(ours)
        finally:
            status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or raw, f"the child ended without an answer, status {status}"
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    if killed:
        return Outcome(True, None, {}, None, lines)
    error, seen, again = pickle.loads(raw)  # noqa: S301  from our own child
    if isinstance(error, str):
        raise AssertionError(error)
    return Outcome(False, error, seen, again, lines)


def calls(config: LayerMountConfig, act: Act, trace: Path) -> tuple[list[Call], View]:
    """The changing system calls of an operation that succeeds, and what is seen after it."""
    outcome = run(config, act, trace)
    assert outcome.error is None, os.strerror(outcome.error or 0)
    # What follows in the trace is the child looking at its own work, which changes nothing.
    numbers: dict[str, int] = {}
    found = []
    for line in outcome.trace:
        match = _LINE.match(line)
        if match is None:
            continue
        name, rest = match.groups()
        numbers[name] = numbers.get(name, 0) + 1
        if _changes(name, rest):
            found.append(Call(name, numbers[name], rest))
    return found, outcome.seen


def _changes(name: str, rest: str) -> bool:
    if name.startswith("openat"):
        return _WRITING_OPEN.search(rest) is not None
    return name != "ioctl" or "FICLONE" in rest


def _child(config: LayerMountConfig, act: Act, ours: socket.socket, theirs: socket.socket) -> None:
    """In the child; never returns."""
    try:
        ours.close()
        overlay = Overlay(config)
        theirs.sendall(b"r")
        theirs.recv(1)
        answer = _attempt(overlay, act)
    except BaseException as unexpected:  # noqa: BLE001  it is told to the parent
        answer = (f"unexpected: {unexpected!r}", {}, None)
    theirs.sendall(pickle.dumps(answer))
    os._exit(0)


def _attempt(overlay: Overlay, act: Act) -> tuple[int | str | None, View, View | None]:
    try:
        act(overlay)
    except OSError as error:
        # Whatever errno it is, the parent compares it.
        seen = through_engine(overlay)
        try:
            act(overlay)
        except OSError as second:
            number = errno.errorcode.get(second.errno or 0)
            return f"the second attempt fails with {number}: {second}", seen, None
        return error.errno, seen, through_engine(overlay)
    return None, through_engine(overlay), None


@contextlib.contextmanager
def _tracing(pid: int, trace: Path, fault: str | None) -> Iterator[None]:
    """Strace on a process, attached until the process ends."""
    command = ["strace", "-p", str(pid), "-o", str(trace), "-e", f"trace={_CALLS}"]
    if fault is not None:
        command += ["-e", f"inject={fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        assert "attached" in line, line + strace.stderr.read()
        yield
        strace.stderr.read()


def _receive_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
