"""Layers for one overlay, and the hosts that show it; the kernel's is the model of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layermount.config import LayerMountConfig
from layermount.hosts import kernel
from layermount.hosts.fuse import daemon
from layermount.hosts.fuse.mounted import FuseMount
from layermount.hosts.fuse.policy import Passthrough
from layermount.hosts.kernel import KernelMount
from layermount.testing import trees

Mounted = KernelMount | FuseMount


@dataclass(frozen=True)
class Place:
    """Directories below `base` for one overlay, and who shows it."""

    base: Path
    host: str

    @property
    def lower(self) -> Path:
        return self.base / "lower"

    @property
    def upper(self) -> Path:
        return self.base / "upper"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def target(self) -> Path:
        return self.base / "target"

    def mount(self, host: str | None = None) -> Mounted:
        """Show the overlay, in this host or in another one."""
        return HOSTS[host or self.host](self)


def made(base: Path, host: str, tree: trees.Tree | None = None) -> Place:
    """A place with empty layers, or with a lower of these entries."""
    place = Place(base, host)
    for path in (place.lower, place.upper, place.work, place.target):
        path.mkdir(parents=True)
    trees.build(place.lower, tree or {})
    return place


def empty_work(place: Place) -> bool:
    """Whether nothing that was being prepared is left."""
    return os.listdir(place.work / "work") == []


def _kernel(place: Place) -> Mounted:
    options = kernel.Options(redirect_dir=True, metacopy=True, index=False)
    return kernel.mount(
        place.target,
        lowers=[place.lower],
        upper=place.upper,
        work=place.work,
        options=options,
    )


def _fuse(passthrough: Passthrough) -> Callable[[Place], Mounted]:
    def mount(place: Place) -> Mounted:
        config = LayerMountConfig(place.upper, [place.lower], work_dir_path=place.work)
        return daemon.start(config, place.target, passthrough=passthrough)

    return mount


#: "fuse" moves the bytes itself; else the kernel moves those of the upper, or all it may.
HOSTS: dict[str, Callable[[Place], Mounted]] = {
    "kernel": _kernel,
    "passthrough": _fuse(Passthrough.AUTO),
    "all": _fuse(Passthrough.ALL),
    "fuse": _fuse(Passthrough.OFF),
}
#: Where who has a large file of a lower open goes on with that when it is copied up, against H2.
KEEP_OLD = {"all"}
#: From this size on the kernel reads a file of a lower by itself where it may (bytes).
LARGE = 128 * 1024
