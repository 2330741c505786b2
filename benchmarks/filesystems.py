"""Filesystems of a benchmark's own: an image file on a loop device, gone afterwards.

The filesystem a machine happens to have would be measured with all its habits: one mounted with
`discard` waits for every file that is removed, one without a journal syncs for free.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_MKFS = {
    # Inodes for many small files, and nothing left to be initialised while something is measured.
    "ext4": ("mkfs.ext4", "-q", "-F", "-i", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
}
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}


def run(*command: str | Path) -> str:
    """What a command prints; it fails when the command does."""
    done = subprocess.run(
        command, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode().strip()


def on_term() -> None:
    """Let SIGTERM end the program as an exception does, so that what it mounted is unmounted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@contextmanager
def loop_filesystem(kind: str, size: int) -> Iterator[Path]:
    """A new filesystem of `kind` with `size` bytes, mounted at a path that is empty.

    The image's blocks are allocated beforehand and written around the page cache, so that it costs
    what a disk would.
    """
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="layermount-benchmark-"))
        stack.callback(shutil.rmtree, base)
        image, mounted = base / "image", base / "mounted"
        mounted.mkdir()
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        run(*_MKFS[kind], image)
        device = run("losetup", "--find", "--show", "--direct-io=on", image)
        stack.callback(run, "losetup", "--detach", device)
        run("mount", "-t", kind, device, mounted)
        stack.callback(run, "umount", mounted)
        place = mounted / "benchmark"
        place.mkdir()
        yield place


@contextmanager
def overlayfs(base: Path, lowers: list[Path], upper: Path, options: str = "") -> Iterator[Path]:
    """The kernel's own overlay of the same layers, mounted at a path below `base`."""
    merged, work = base / "merged", base / "kernel-work"
    for path in (merged, work):
        path.mkdir(exist_ok=True)
    given = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}{options}"
    run("mount", "-t", "overlay", "overlay", "-o", given, merged)
    try:
        yield merged
    finally:
        run("umount", merged)
        shutil.rmtree(work)
