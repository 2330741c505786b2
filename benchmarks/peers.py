"""Whoever shows layers as one tree, mounted by the command a user would type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filesystems import run

OURS, FUSE_OVERLAYFS, KERNEL = "layermount", "fuse-overlayfs", "kernel overlayfs"
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Layers:
    """What is mounted; `lowers` nearest first."""

    lowers: list[Path]
    upper: Path
    work: Path
    target: Path

    def options(self, *more: str) -> str:
        """For `mount -o`."""
        lowers = ":".join(map(str, self.lowers))
        given = (f"lowerdir={lowers}", f"upperdir={self.upper}", f"workdir={self.work}", *more)
        return ",".join(given)


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who can mount.

    Attributes:
        mount: The words that mount layers. Nobody syncs what is copied up, as fuse-overlayfs never
            does, unless told to by the second argument.
        umount: The words that unmount, before the target.
    """

    name: str
    mount: Callable[[Layers, bool], list[str]]
    umount: tuple[str, ...] = ("umount",)


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount that answers.

    Attributes:
        path: Where.
        daemon: The process that serves it; None for the kernel.
        seconds: From the start of the command to the first answer.
    """

    path: Path
    daemon: int | None
    seconds: float

    def cpu(self) -> float | None:
        """Seconds that the daemon has computed by now, with all its threads."""
        if self.daemon is None:
            return None
        # clock_getcpuclockid(3): what the kernel calls the clock of another process.
        return time.clock_gettime((~self.daemon << 3) | 2)

    def settle(self) -> None:
        """Wait until the daemon is through with what nobody waits for: releases and the like."""
        before, deadline = None, time.monotonic() + 1
        while (now := self.cpu()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.002)

    def resident(self) -> int | None:
        """Bytes of the daemon in memory."""
        if self.daemon is None:
            return None
        status = Path(f"/proc/{self.daemon}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


def _ours(layers: Layers, syncing: bool) -> list[str]:  # noqa: FBT001  the type of Peer.mount
    words = [sys.executable, "-m", "layermount", "mount", "--host", "fuse", str(layers.target)]
    for lower in layers.lowers:
        words += ["--lower", str(lower)]
    words += ["--upper", str(layers.upper), "--work", str(layers.work)]
    return words if syncing else [*words, "--volatile"]


def _fuse_overlayfs(layers: Layers, syncing: bool) -> list[str]:  # noqa: ARG001, FBT001  as above
    return ["fuse-overlayfs", "-o", layers.options(), str(layers.target)]


def _kernel(layers: Layers, syncing: bool) -> list[str]:  # noqa: FBT001  as above
    options = layers.options(*([] if syncing else ["volatile"]))
    return ["mount", "-t", "overlay", "overlay", "-o", options, str(layers.target)]


PEERS = (
    Peer(OURS, _ours, (sys.executable, "-m", "layermount", "umount")),
    Peer(FUSE_OVERLAYFS, _fuse_overlayfs),
    Peer(KERNEL, _kernel),
)


def by_kernel(peer: Peer) -> Peer:
    """The same, the kernel reading every file by itself; the others have no such choice."""
    if peer.name != OURS:
        return peer
    return replace(peer, mount=lambda *given: [*peer.mount(*given), "--passthrough", "all"])


@contextmanager
def mounted(peer: Peer, layers: Layers, *, syncing: bool = False) -> Iterator[Mounted]:
    """The layers, mounted by `peer`; at the end unmounted, and the daemon gone."""
    for path in (layers.upper, layers.work, layers.target):
        path.mkdir(exist_ok=True)
    words = peer.mount(layers, syncing)
    above = layers.target.parent.stat().st_dev
    # A file, as a daemon that keeps a pipe open would be waited for.
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False
        )
        device = layers.target.stat().st_dev
        seconds = time.perf_counter() - start
        said.seek(0)
        text = said.read().decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(words)}: {text}"
    assert device != above, f"{' '.join(words)}: nothing is mounted; {text}"
    daemon = None
    try:
        daemon = None if peer.name == KERNEL else _daemon_of(device)
        yield Mounted(layers.target, daemon, seconds)
    finally:
        run(*peer.umount, layers.target)
        _wait_for(daemon)


def _daemon_of(device: int) -> int:
    """The process that holds the connection of a FUSE mount."""
    line = f"fuse_connection:\t{os.minor(device)}"
    for process in Path("/proc").glob("[0-9]*"):
        if any(line in text.splitlines() for text in _descriptors(process)):
            return int(process.name)
    raise LookupError(f"no process serves device {device}")


def _descriptors(process: Path) -> Iterator[str]:
    try:
        for entry in (process / "fdinfo").iterdir():
            yield entry.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return  # it has ended


def _wait_for(daemon: int | None) -> None:
    """Wait for the end of a daemon; one that does not end is killed, as it holds the layers."""
    deadline = time.monotonic() + _PATIENCE
    while daemon is not None and _lives(daemon):
        if time.monotonic() > deadline:
            seen = _seen(daemon)
            os.kill(daemon, signal.SIGKILL)
            raise TimeoutError(f"unmounted, and still there after {_PATIENCE} s: {seen}")
        time.sleep(0.001)


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _seen(process: int) -> str:
    """What a process and its threads are doing."""
    own = Path(f"/proc/{process}")
    tasks = [f"{task.name} {(task / 'wchan').read_text()}" for task in (own / "task").iterdir()]
    return f"{(own / 'stat').read_text()}; {', '.join(tasks)}"
