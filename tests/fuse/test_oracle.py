"""A FUSE mount against the kernel's overlayfs and a plain directory, by random operations.

The machines are those of `tests/property`; what the engine does there in process is done here by
the daemon, in a process of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import SystemRandom
from typing import ClassVar

import pytest
from hypothesis import settings

from layermount.hosts.base import Host
from layermount.hosts.fuse import daemon
from layermount.hosts.fuse.policy import Passthrough
from layermount.layer.marks import OVERLAY, OVERLAY_USER
from layermount.testing.oracles import DirectoryTarget
from layermount.testing.trees import Entry, Tree
from tests.property.comparison import Shown, is_root
from tests.property.machine import OverlayMachine
from tests.property.sides import Side
from tests.property.test_found import CASES, Call, replay
from tests.property.walk import walk

#: By how much contents of `tests/property/layers.py` grow, by their size: to what the kernel reads
#: by itself where it may, and to what is copied up while others are served.
_FACTORS = {5000: 30, 9000: 120}


class MountTarget(DirectoryTarget):
    """A mounted overlay, unmounted when it is closed."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.target)
        self._host = host

    def copy_up(self, path: str) -> None:
        """Bring the entry into the upper, by a change that changes nothing."""
        self.chmod(path, self.stat(path).st_mode & 0o7777)

    def close(self) -> None:
        """Close everything that is open, and unmount."""
        super().close()
        self._host.unmount()


class MountMachine(OverlayMachine):
    """What the engine does, seen through a mount."""

    with_kernel = True
    passthrough: ClassVar[Passthrough]

    def begin(self, layers: list[Tree]) -> None:
        """With files large enough for the ways that only these go."""
        super().begin([{path: _grown(entry) for path, entry in tree.items()} for tree in layers])

    def engine_on(self, side: Side, *, metacopy: bool) -> Shown:
        target = self.base / "shown"
        target.mkdir(exist_ok=True)
        config = self.config(side, metacopy=metacopy)
        shown = MountTarget(daemon.start(config, target, passthrough=self.passthrough))
        self.stack.callback(shown.close)
        return shown


def _grown(entry: Entry) -> Entry:
    return dataclasses.replace(entry, data=entry.data * _FACTORS.get(len(entry.data), 1))


class PassthroughMachine(MountMachine):
    """Privileged marks, and the kernel moves the bytes."""

    marks = OVERLAY
    passthrough = Passthrough.AUTO


class FuseMachine(MountMachine):
    """Privileged marks, and the daemon moves the bytes."""

    marks = OVERLAY
    passthrough = Passthrough.OFF


class UserMarksMachine(MountMachine):
    """Unprivileged marks, and the daemon moves the bytes."""

    marks = OVERLAY_USER
    passthrough = Passthrough.OFF


MACHINES = [
    pytest.param(PassthroughMachine, id="passthrough"),
    pytest.param(FuseMachine, id="fuse"),
    pytest.param(UserMarksMachine, id="user-marks"),
]
pytestmark = [
    pytest.mark.needs("root", "overlay", "fuse"),
    pytest.mark.skipif(not is_root(), reason="privileged marks need the machine's root"),
]


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("layers", "calls"), CASES.values(), ids=CASES)
def test_found(machine: type[OverlayMachine], layers: list[Tree], calls: list[Call]) -> None:
    replay(machine, layers, calls)


@pytest.mark.parametrize("machine", MACHINES)
def test_random_walks(machine: type[OverlayMachine]) -> None:
    for _ in range(settings().max_examples):
        walk(machine, SystemRandom().getrandbits(32))


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_many_random_walks(machine: type[OverlayMachine]) -> None:
    for _ in range(2000):
        walk(machine, SystemRandom().getrandbits(32))
