"""What is mounted in this mount namespace, as /proc/self/mountinfo tells it.

Changing it is in `mounts.py`. Sources: proc_pid_mountinfo(5); seq_show_option in
include/linux/seq_file.h for the escapes; ovl_show_options in fs/overlayfs/params.c for the layers.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_OCTAL = re.compile(rb"\\([0-7]{3})")
# One layer of the old `lowerdir=a:b::c`, in which a backslash protects the character after it.
_OLD_LAYER = re.compile(r"((?:[^\\:]|\\.)*)(:{0,2})", re.DOTALL)
_PROTECTED = re.compile(r"\\(.)", re.DOTALL)


class Mount(NamedTuple):
    """One line of mountinfo, escapes undone.

    Attributes:
        mount_id: Unique among the mounts of this moment; the kernel gives a free number anew.
        parent_id: The mount it is attached to.
        device: "major:minor", as `st_dev` has it for most of its files.
        root: The directory of the filesystem that is the mount's root.
        target: The mount point, seen from this process's root.
        options: The mount's own options ("rw", "nosuid", "relatime").
        propagation: Fields like "shared:7" or "master:3"; empty for a private mount.
        fstype: "overlay", "fuse.something", "ext4".
        source: What was given as device; free text for a filesystem without one.
        super_options: The filesystem's options in its own order; a flag's value is None.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[tuple[str, str | None], ...]

    def values(self, key: str) -> tuple[str, ...]:
        """Every value of the super option `key`, in order; empty when it is not set."""
        return tuple(v for k, v in self.super_options if k == key and v is not None)


class OverlayLayers(NamedTuple):
    """The layers of a mounted overlay, as they were named when it was mounted.

    Attributes:
        lowers: Index 0 wins.
        data_lowers: Lowers that are reached through redirects only.
        upper: None for a read-only overlay.
        work: None for a read-only overlay.
    """

    lowers: tuple[str, ...]
    data_lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None


def mounts() -> list[Mount]:
    """All mounts of this mount namespace that are below this process's root, in mount order.

    A mount that another one hides is listed, too.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return [parse(line) for line in file]


def overlays() -> list[Mount]:
    """The overlays among them."""
    with open("/proc/self/mountinfo", "rb") as file:
        return [parse(line) for line in file if b" - overlay " in line]


def find(mount_id: int) -> Mount | None:
    """The mount with that number, or None."""
    prefix = b"%d " % mount_id
    with open("/proc/self/mountinfo", "rb") as file:
        return next((parse(line) for line in file if line.startswith(prefix)), None)


def below(path: str) -> Iterator[Mount]:
    """The mounts whose mount point lies below the directory `path`, an absolute real path."""
    prefix = path.rstrip("/") + "/"
    return (m for m in mounts() if m.target.startswith(prefix) and m.target != "/")


def mount_id_of(fd: int) -> int:
    """The number of the mount that holds `fd`; detached mounts have one, too.

    Raises:
        OSError: ENOENT when `fd` is not open or /proc is not mounted, ENOSYS before Linux 3.15.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.ENOSYS, "no mnt_id", f"/proc/self/fdinfo/{fd}")


def parse(line: bytes) -> Mount:
    """One line of mountinfo.

    Raises:
        ValueError: The line is not of that format.
    """
    # Only spaces and newlines end a field: other white space stands in names as it is.
    fields = line.rstrip(b"\n").split(b" ")
    dash = fields.index(b"-", 6)
    fstype, source, options = fields[dash + 1 : dash + 4]
    return Mount(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=fields[2].decode(),
        root=_decoded(fields[3]),
        target=_decoded(fields[4]),
        options=tuple(_decoded(o) for o in fields[5].split(b",")),
        propagation=tuple(_decoded(f) for f in fields[6:dash]),
        fstype=_decoded(fstype),
        source=_decoded(source),
        super_options=tuple(_option(o) for o in options.split(b",")),
    )


def overlay_layers(mount: Mount) -> OverlayLayers:
    """The layers of an overlay.

    An upper that was named by text (by mount(8), for one) keeps the backslashes that protected
    special characters; the kernel does not tell it from a name that has backslashes.
    """
    lowers = mount.values("lowerdir+")
    data_lowers = mount.values("datadir+")
    if not lowers:
        lowers, data_lowers = _old_layers(":".join(mount.values("lowerdir")))
    upper = next(iter(mount.values("upperdir")), None)
    work = next(iter(mount.values("workdir")), None)
    return OverlayLayers(lowers, data_lowers, upper, work)


def _old_layers(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lowers: list[str] = []
    data_lowers: list[str] = []
    into = lowers
    for layer, separator in _OLD_LAYER.findall(text):
        if layer:
            into.append(_PROTECTED.sub(r"\1", layer))
        if separator == "::":
            into = data_lowers
    return tuple(lowers), tuple(data_lowers)


def _option(raw: bytes) -> tuple[str, str | None]:
    key, equals, value = raw.partition(b"=")
    return _decoded(key), _decoded(value) if equals else None


def _decoded(raw: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), raw))
