"""What this machine can do for the tests, found out by doing it.

A probe returns None for "yes" or the reason for "no". It leaves nothing behind. Deciding what to do
about a "no" belongs to `conftest.py`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Probe = Callable[[], str | None]

# mkfs.xfs refuses less than 300 MB; the images are sparse.
IMAGE_SIZE = 512 * 1024 * 1024
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
}

_FICLONE = 0x40049409
# An ordinary user's PATH often lacks the folders of mkfs and losetup.
_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
}


def run(*command: str | Path) -> str | None:
    """Run a command; None if it exits with 0, or one line that says what went wrong."""
    try:
        done = subprocess.run(
            command,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        return f"{command[0]}: no such program"
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer within 60 s"
    if done.returncode == 0:
        return None
    output = done.stdout.decode(errors="replace").strip().splitlines()
    name = str(command[0])
    return f"{name}: {output[0].removeprefix(f'{name}: ') if output else done.returncode}"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory that goes away."""
    with tempfile.TemporaryDirectory(prefix="layermount-probe-") as path:
        yield Path(path)


def mount_image(kind: str, image: Path, target: Path) -> str | None:
    """Make a filesystem of `kind` in the new file `image` and mount it; a reason if that fails."""
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    return run(*MKFS[kind], image) or run("mount", "-t", kind, "-o", "loop", image, target)


def _overlay_options(base: Path) -> str:
    for name in ("lower", "upper", "work", "merged"):
        (base / name).mkdir()
    return f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"


def _root() -> str | None:
    return None if os.geteuid() == 0 else f"runs as user {os.geteuid()}"


def _overlay() -> str | None:
    with scratch() as base:
        options = _overlay_options(base)
        reason = run("mount", "-t", "overlay", "overlay", "-o", options, base / "merged")
        return reason or run("umount", base / "merged")


def _userns() -> str | None:
    with scratch() as base:
        options = f"{_overlay_options(base)},userxattr"
        mount = ("mount", "-t", "overlay", "overlay", "-o", options, base / "merged")
        return run("unshare", "--user", "--map-root-user", "--mount", *mount)


def _fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return run("fusermount3", "--version")


def _fuse_overlayfs() -> str | None:
    with scratch() as base:
        options = _overlay_options(base)
        reason = run("fuse-overlayfs", "-o", options, base / "merged")
        return reason or run("fusermount3", "-u", base / "merged")


def _loop() -> str | None:
    with scratch() as base:
        image = base / "image"
        image.write_bytes(bytes(1 << 20))
        script = 'device=$(losetup --find --show --read-only "$0") && losetup --detach "$device"'
        return run("sh", "-c", script, image)


def _filesystem(kind: str) -> Probe:
    def probe() -> str | None:
        with scratch() as base:
            reason = mount_image(kind, base / "image", base / "mounted")
            return reason or run("umount", base / "mounted")

    return probe


def _reflink() -> str | None:
    with scratch() as base:
        reason = mount_image("xfs", base / "image", base / "mounted")
        if reason is not None:
            return reason
        try:
            source, target = base / "mounted/source", base / "mounted/target"
            source.write_bytes(bytes(4096))
            with source.open("rb") as old, target.open("wb") as new:
                fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError as error:
            reason = f"FICLONE on xfs: {error.strerror}"
        return run("umount", base / "mounted") or reason


def _strace() -> str | None:
    with scratch() as base:
        inject = ("strace", "-f", "-qq", "-o", base / "trace", "-e", "inject=fsync:error=EIO")
        reason = run(*inject, "sync", base)
    if reason is None:
        return "strace: an injected error had no effect"
    return None if "Input/output error" in reason else reason


def _gcc() -> str | None:
    with scratch() as base:
        source = base / "probe.c"
        source.write_text("#include <stdio.h>\n#include <linux/fs.h>\nint main(void) { return 0; }")
        return run("gcc", "-o", base / "probe", source) or run(base / "probe")


def _acl() -> str | None:
    with scratch() as base:
        return run("setfacl", "-m", "u:65534:r", base)


def _attr() -> str | None:
    with scratch() as base:
        return run("setfattr", "-n", "user.layermount", "-v", "1", base)


def _bwrap() -> str | None:
    return run("bwrap", "--ro-bind", "/", "/", "true")


def _program(name: str) -> Probe:
    return lambda: run(name, "--version")


PROBES: dict[str, Probe] = {
    "root": _root,
    "overlay": _overlay,
    "userns": _userns,
    "fuse": _fuse,
    "fuse-overlayfs": _fuse_overlayfs,
    "loop": _loop,
    "ext4": _filesystem("ext4"),
    "btrfs": _filesystem("btrfs"),
    "xfs": _filesystem("xfs"),
    "reflink": _reflink,
    "strace": _strace,
    "gcc": _gcc,
    "acl": _acl,
    "attr": _attr,
    "bwrap": _bwrap,
    **{name: _program(name) for name in ("patch", "git", "make", "rsync", "dpkg-deb")},
}


def results() -> dict[str, str | None]:
    """Name to None for what works here, to the reason for what does not."""
    return {name: probe() for name, probe in PROBES.items()}
