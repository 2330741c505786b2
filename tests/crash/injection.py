"""One operation in a child process under strace, which makes one of its system calls fail or fatal.

The child is forked from the test's own interpreter with everything imported, opens the overlay, and
waits; then strace attaches, and from there on every call counts. What the child has to say it sends
through a socket, by calls that are never counted.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from layermount.config import LayerMountConfig
from layermount.testing.oracles import EngineTarget
from layermount.testing.trees import Snapshot, snapshot
from tests import forked
from tests.crash.operations import Act

#: What changes a filesystem, and what makes a change last.
_CALLS = (
    "openat,openat2,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,unlink,unlinkat,rmdir,"
    "rename,renameat,renameat2,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,"
    "chmod,fchmod,fchmodat,chown,lchown,fchown,fchownat,utimensat,write,pwrite64,pwritev,pwritev2,"
    "copy_file_range,ioctl,fallocate,truncate,ftruncate,fsync,fdatasync,sync_file_range,syncfs"
)
_LINE = re.compile(r"(\w+)\((.*)")
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
        error: The errno that the operation failed with, None when it did not fail.
        seen: What the same open overlay shows afterwards.
        again: What it shows after the operation was done once more, if it had failed.
        trace: What strace wrote.
    """

    killed: bool
    error: int | None
    seen: Snapshot
    again: Snapshot | None
    trace: list[str]

    @property
    def was_injected(self) -> bool:
        """Whether the fault took place."""
        return self.killed or any("(INJECTED" in line for line in self.trace)


def run(
    config: LayerMountConfig,
    act: Act,
    trace: Path,
    fault: str | None = None,
    *,
    when_failed: Callable[[], object] = lambda: None,
    again: bool = True,
) -> Outcome:
    """Do one operation in a child.

    Args:
        config: The overlay.
        act: The operation.
        trace: Where strace writes.
        fault: An expression for `strace -e inject=`; None lets everything succeed.
        when_failed: Called after the operation has failed, before it is done once more.
        again: Whether it is done once more then.
    """
    ours, theirs = socket.socketpair()
    with ours:
        pid = forked.fork()
        if pid == 0:
            _child(config, act, ours, theirs, again=again)
        theirs.close()
        try:
            assert ours.recv(1) == b"r", "the child could not open the overlay"
            with _tracing(pid, trace, fault):
                ours.sendall(b"g")
                if ours.recv(1) == b"e":
                    when_failed()
                ours.sendall(b"g")
                raw = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        except BrokenPipeError:
            raw = b""
        finally:
            status = os.waitpid(pid, 0)[1]
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Outcome(killed=True, error=None, seen={}, again=None, trace=lines)
    assert raw, f"the child ended without an answer, status {status}"
    problem, error, seen, second = pickle.loads(raw)  # noqa: S301  # from our own child
    assert problem is None, problem
    return Outcome(killed=False, error=error, seen=seen, again=second, trace=lines)


def calls(config: LayerMountConfig, act: Act, trace: Path) -> list[Call]:
    """The changing system calls of an operation that succeeds."""
    outcome = run(config, act, trace)
    assert outcome.error is None, os.strerror(outcome.error or 0)
    numbers: dict[str, int] = {}
    found = []
    # What the child does afterwards, looking at its own work, is in the trace and changes nothing.
    for line in outcome.trace:
        match = _LINE.match(line)
        if match is None:
            continue
        name, rest = match.groups()
        numbers[name] = numbers.get(name, 0) + 1
        if _changes(name, rest):
            found.append(Call(name, numbers[name], rest))
    return found


def _changes(name: str, rest: str) -> bool:
    if name.startswith("openat"):
        return _WRITING_OPEN.search(rest) is not None
    if name == "pwrite64" and '"", 0, 0)' in rest:
        return False
    return name != "ioctl" or "FICLONE" in rest


def _child(
    config: LayerMountConfig, act: Act, ours: socket.socket, theirs: socket.socket, *, again: bool
) -> NoReturn:
    try:
        ours.close()
        target = EngineTarget(config)
        theirs.sendall(b"r")
        theirs.recv(1)
        answer = _attempt(target, act, theirs, again=again)
    except BaseException:  # noqa: BLE001  # it is told to the parent
        answer = (traceback.format_exc(), None, {}, None)
    theirs.sendall(pickle.dumps(answer))
    os._exit(0)


def _attempt(
    target: EngineTarget, act: Act, parent: socket.socket, *, again: bool
) -> tuple[str | None, int | None, Snapshot, Snapshot | None]:
    try:
        act(target)
    except OSError as error:
        # Whichever errno it is, the parent compares it.
        seen = snapshot(target)
        parent.sendall(b"e")
        parent.recv(1)
        if not again:
            return None, error.errno, seen, None
        act(target)
        return None, error.errno, seen, snapshot(target)
    parent.sendall(b"d")
    parent.recv(1)
    return None, None, snapshot(target), None


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
