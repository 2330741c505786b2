"""Random I/O by descriptors and maps; what must hold is in `fsx.py`."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from random import SystemRandom

import pytest

from layermount.hosts.fuse import passthrough
from tests.fuse import fsx, places

RUNS = 20
# What a run may leave out: the operation was drawn when nothing was open.
EXPECTED = {
    *fsx.WEIGHTS.keys() - {"allocate", "punch", "zero"},
    *(f"fallocate {mode}" for mode in (0, 1, 3, 16, 17)),
}


@pytest.fixture
def fresh(host: str, ext4_dir: Path) -> fsx.Fresh:
    """Makes places on ext4, which has every mode of fallocate(2)."""
    return lambda: places.made(Path(tempfile.mkdtemp(dir=ext4_dir)), host)


def test_random_io(fresh: fsx.Fresh) -> None:
    """About 10,000 operations."""
    assert many(fresh, RUNS).keys() >= EXPECTED


@pytest.mark.parametrize("host", ["passthrough"], indirect=True)
def test_random_io_with_nothing_kept(fresh: fsx.Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that nobody has open is reached in the other way the next time."""
    monkeypatch.setattr(passthrough, "IDLE_LIMIT", 0)
    many(fresh, RUNS // 4)


@pytest.mark.slow
def test_much_random_io(fresh: fsx.Fresh) -> None:
    """More than 100,000 operations."""
    done: Counter[str] = Counter()
    while done.total() < 100_000:
        done += many(fresh, RUNS)


def many(fresh: fsx.Fresh, runs: int) -> Counter[str]:
    done: Counter[str] = Counter()
    for _ in range(runs):
        done += fsx.check(fresh, SystemRandom().getrandbits(32))
    return done
