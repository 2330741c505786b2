"""The daemon killed in the middle of a write-heavy load: every change is there or not there, whole.

Rules: C4, W3, R2, M3.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random, SystemRandom

import pytest

from layermount.hosts import rundir
from layermount.hosts.rundir import Outcome
from layermount.linux import processes
from layermount.testing import trees
from layermount.testing.oracles import DirectoryTarget
from layermount.testing.trees import Snapshot, assert_same
from tests.fuse import load, places
from tests.fuse.places import Place

WORKERS = 3
ROUNDS = 3
#: What an overlay does not have in common with a plain directory, and times, which are of now.
NOT_IN_PLAIN = ("nlink", "inode", "links", "mtime_ns")

pytestmark = [
    pytest.mark.needs("root", "overlay", "fuse"),
    pytest.mark.parametrize("host", ["passthrough", "fuse"], indirect=True),
]


@pytest.fixture(params=["disk", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where waiting for the disk takes most of the time, and where nothing is waited for."""
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="layermount-killed-", dir="/dev/shm") as path:
        yield Path(path)


def test_killed(host: str, base: Path) -> None:
    for number in range(ROUNDS):
        round_of_load(host, base / str(number), SystemRandom().getrandbits(32))


@pytest.mark.slow
def test_killed_often(host: str, base: Path) -> None:
    for number in range(50):
        round_of_load(host, base / str(number), SystemRandom().getrandbits(32))


def round_of_load(host: str, base: Path, seed: int) -> None:
    """Load, kill, clean, look again: by the same host and by the kernel's overlayfs."""
    random = Random(seed)  # noqa: S311  # test data, no secret
    tree = load.lower(WORKERS)
    place = places.made(base, host, tree)
    plain = trees.build(base / "plain", tree)
    digest = trees.digest(place.lower)
    stopped = killed_under_load(place, seed, 0.02 + random.random() / 2)
    for worker in stopped:
        for step in worker.done:
            load.apply(plain, step)
    before = shown(plain)
    for worker in stopped:
        load.apply(plain, worker.step)
    after = shown(plain)
    for shown_by in (host, "kernel", host):
        with place.mount(shown_by):
            found = shown(place.target)
        for number, worker in enumerate(stopped):
            told = f"seed {seed}, shown by {shown_by}, {[s.step for s in stopped]}"
            parts = [part(tree, number) for tree in (found, before, after)]
            check(parts[0], parts[1], parts[2], worker.step, told)
    assert places.empty_work(place)
    assert trees.digest(place.lower) == digest, "the lower was changed"


def killed_under_load(place: Place, seed: int, seconds: float) -> list[load.Stopped]:
    """What each worker did until the daemon died; its mount is gone."""
    host = place.mount()
    record = host.record
    assert record.owner is not None
    workers = [load.Worker(n, place.target, f"{seed}.{n}") for n in range(WORKERS)]
    time.sleep(seconds)
    os.kill(record.owner.pid, signal.SIGKILL)
    stopped = [worker.stopped() for worker in workers]
    wait_for_end(record.owner)
    assert [(s.record.token, s.outcome) for s in rundir.sweep()] == [
        (record.token, Outcome.UNMOUNTED)
    ]
    assert not place.target.is_mount()
    failed = [told for told in stopped if isinstance(told, str)]
    assert not failed, f"seed {seed}: {failed}"
    return [told for told in stopped if not isinstance(told, str)]


def wait_for_end(process: processes.ProcessIdentity) -> None:
    deadline = time.monotonic() + 10
    while processes.is_alive(process):
        assert time.monotonic() < deadline, f"{process} does not end"
        time.sleep(0.01)


def shown(root: Path) -> Snapshot:
    with closing(DirectoryTarget(root)) as view:
        return trees.without(trees.snapshot(view), *NOT_IN_PLAIN)


def part(tree: Snapshot, worker: int) -> Snapshot:
    """What one worker alone changes."""
    return {path: entry for path, entry in tree.items() if load.owned_by(worker, path)}


def check(found: Snapshot, before: Snapshot, after: Snapshot, step: load.Step, told: str) -> None:
    """What is shown is what was there before the last step, or after it."""
    if step[0] == "fill":
        path, whole = step[1], after[step[1]].content
        there = found[path].content
        assert isinstance(whole, bytes)
        assert isinstance(there, bytes)
        assert whole.startswith(there), f"{path} is torn: {told}"
        found, before = ({**tree, path: after[path]} for tree in (found, before))
    if found not in (before, after):
        try:
            assert_same(found, before, ("shown", "before"))
        except AssertionError as error:
            error.add_note(f"{told}; nor is it what the step leaves")
            raise
