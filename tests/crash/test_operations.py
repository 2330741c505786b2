"""Every operation, killed before, or failing at, every system call that changes anything.

What is seen afterwards, by the same process, after a new start, and by the kernel, is the state
before the operation or the state after it. Rules: W1 to W5, C1 to C6.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layermount.config import Durability, LayerMountConfig
from layermount.errors import LayerUnavailableError
from layermount.layer.base import DIRECTORY
from layermount.testing.oracles import EngineTarget, KernelTarget
from layermount.testing.trees import (
    Shown,
    Snapshot,
    differences,
    digest,
    snapshot,
    without,
)
from tests.crash import injection
from tests.crash.operations import CASES, Case, build_lowers

pytestmark = pytest.mark.needs("root", "overlay", "strace")

KILL = "KILL"
#: Characters of a difference that are shown.
_LINE = 200


@dataclass(frozen=True, slots=True)
class Bench:
    """What the interruptions of one operation share.

    Attributes:
        lowers: Never changed.
        inodes: Their inode numbers, which stay whatever happens.
        base: Room for uppers.
        timed: Whether the modification times of files are compared.
    """

    lowers: list[Path]
    inodes: frozenset[int]
    base: Path
    durability: Durability = Durability.AUTO
    timed: bool = True

    def config(self, place: Path) -> LayerMountConfig:
        return LayerMountConfig(
            place / "upper",
            self.lowers,
            work_dir_path=place / "work",
            durability=self.durability,
        )

    def settled(self, shown: Snapshot) -> Snapshot:
        """What differs from run to run is made equal."""
        return {path: self._settle(entry) for path, entry in shown.items()}

    def _settle(self, entry: Shown) -> Shown:
        inode = entry.inode if entry.inode in self.inodes else None
        if entry.kind != DIRECTORY:
            return dataclasses.replace(entry, inode=inode, mtime_ns=self._time(entry.mtime_ns))
        # A directory's time moves when an entry is taken away to be removed, or a mark is
        # replaced, a little before or after the operation itself. Its count of links and its
        # number say whether lowers are merged into it, which may be decided while it looks the
        # same.
        return dataclasses.replace(entry, inode=None, mtime_ns=None, nlink=None)

    def _time(self, mtime_ns: int | None) -> int | None:
        if mtime_ns is None or not self.timed:
            return None
        return _NOW if mtime_ns > _LONG_BEFORE_NOW_NS else mtime_ns


_NOW = -1
_LONG_BEFORE_NOW_NS = time.time_ns() - 10**9 * 86400


@pytest.fixture(scope="module")
def lowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    built = build_lowers(tmp_path_factory.mktemp("lowers"))
    before = [digest(path) for path in built]
    yield built
    assert [digest(path) for path in built] == before, "a lower was changed"


@pytest.fixture
def bench(lowers: list[Path], tmp_path: Path) -> Bench:
    shown = [entry for path in lowers for entry in snapshot(path).values()]
    return Bench(lowers, frozenset(entry.inode or 0 for entry in shown), tmp_path)


def arrange(bench: Bench, case: Case) -> Path:
    """An upper as the operation wants it, closed."""
    template = bench.base / "template"
    (template / "upper").mkdir(parents=True)
    target = EngineTarget(bench.config(template))
    case.arrange(target)
    # What a process finds out once, such as its privileges, is not part of an operation.
    snapshot(target)
    target.close()
    return template


def copied(place: Path, name: str) -> Path:
    target = place.parent / name
    subprocess.run(["cp", "-a", place, target], check=True)
    return target


def reopened(bench: Bench, place: Path) -> Snapshot:
    """What is seen after a new start; the sweep is complete, and the kernel sees the same."""
    target = EngineTarget(bench.config(place))
    try:
        assert list((place / "work/work").iterdir()) == [], "the work directory was not swept"
        seen = snapshot(target)
    finally:
        target.close()
    options = ("redirect_dir=on", "metacopy=on", "index=off")
    kernel = KernelTarget(
        place / "mounted", place / "upper", place / "work", bench.lowers, *options
    )
    try:
        shown = snapshot(Path(kernel.root))
    finally:
        kernel.close()
    assert_one_of(without(seen, "inode", "links"), kernel=without(shown, "inode", "links"))
    return bench.settled(seen)


def _id(case: Case) -> str:
    return case.name.replace(" ", "-")


def assert_one_of(seen: Snapshot, **wanted: Snapshot) -> None:
    if seen not in wanted.values():
        lines = [
            f"not as {name}: {line[:_LINE]}"
            for name, shown in wanted.items()
            for line in differences(seen, shown)
        ]
        raise AssertionError("\n".join(lines))


def interrupt_everywhere(bench: Bench, case: Case, fault: str) -> None:
    bench = dataclasses.replace(bench, timed=not case.in_place)
    template = arrange(bench, case)
    whole = copied(template, "whole")
    calls = injection.calls(bench.config(whole), case.act, bench.base / "trace")
    before = reopened(bench, copied(template, "before"))
    after = reopened(bench, whole)
    assert calls
    failures = []
    for call in calls:
        place = copied(template, "place")
        try:
            if fault == KILL:
                kill(bench, case, call, before, after)
            else:
                fail(bench, case, call, fault, before, after)
        except AssertionError as failure:
            failures.append(f"{call}\n{failure}")
        finally:
            shutil.rmtree(place)
    if failures:
        title = f"{len(failures)} of {len(calls)} calls"
        pytest.fail("\n".join([title, *failures]), pytrace=False)


def kill(bench: Bench, case: Case, call: injection.Call, before: Snapshot, after: Snapshot) -> None:
    place, trace = bench.base / "place", bench.base / "trace"
    fault = f"{call.name}:signal=KILL:when={call.number}"
    outcome = injection.run(bench.config(place), case.act, trace, fault)
    assert outcome.killed, "the process was not killed"
    seen = reopened(bench, place)
    assert_one_of(seen, before=before, after=after)


def fail(
    bench: Bench,
    case: Case,
    call: injection.Call,
    fault: str,
    before: Snapshot,
    after: Snapshot,
) -> None:
    place, trace = bench.base / "place", bench.base / "trace"
    expression = f"{call.name}:error={fault}:when={call.number}"
    outcome = injection.run(
        bench.config(place),
        case.act,
        trace,
        expression,
        when_failed=lambda: copied(place, "failed"),
    )
    assert outcome.was_injected, "the fault did not take place"
    seen = bench.settled(outcome.seen)
    if outcome.error is None:
        # A failure without harm: what was replaced stays until the next start.
        assert_one_of(seen, after=after)
    else:
        assert outcome.error == getattr(errno, fault), errno.errorcode[outcome.error]
        allowed = {"before": before}
        if case.truncates and call.name == "openat":
            allowed["after"] = after
        try:
            assert_one_of(seen, **allowed)
            assert_one_of(reopened(bench, bench.base / "failed"), **allowed)
        finally:
            shutil.rmtree(bench.base / "failed")
        assert outcome.again is not None
        assert_one_of(bench.settled(outcome.again), after=after)
    assert_one_of(reopened(bench, place), after=after)


@pytest.mark.parametrize("fault", [KILL, "ENOSPC", pytest.param("EIO", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_before_or_after(bench: Bench, case: Case, fault: str) -> None:
    interrupt_everywhere(bench, case, fault)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_killed_with_everything_synced(bench: Bench, case: Case) -> None:
    interrupt_everywhere(dataclasses.replace(bench, durability=Durability.STRICT), case, KILL)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "directory" in case.name or "over" in case.name], ids=_id
)
def test_what_cannot_be_synced_is_still_seen_truly(bench: Bench, case: Case) -> None:
    """The change may have landed already, and an error says that it may not last."""
    bench = dataclasses.replace(bench, durability=Durability.STRICT)
    template = arrange(bench, case)
    whole, trace = copied(template, "whole"), bench.base / "trace"
    calls = injection.calls(bench.config(whole), case.act, trace)
    allowed = {"before": reopened(bench, template), "after": reopened(bench, whole)}
    for call in calls:
        if call.name != "fsync":
            continue
        place = copied(template, "place")
        fault = f"fsync:error=EIO:when={call.number}"
        # Doing it once more is not tried: it may have been done.
        outcome = injection.run(bench.config(place), case.act, trace, fault, again=False)
        assert outcome.error == errno.EIO
        seen = bench.settled(outcome.seen)
        assert_one_of(seen, **allowed)
        assert reopened(bench, place) == seen, call
        shutil.rmtree(place)


def test_a_volatile_upper_is_refused_after_a_crash(bench: Bench) -> None:
    bench = dataclasses.replace(bench, durability=Durability.VOLATILE)
    case = CASES[0]
    template = arrange(bench, case)
    trace = bench.base / "trace"
    fault = "renameat2:signal=KILL:when=1"
    assert injection.run(bench.config(template), case.act, trace, fault).killed
    for durability in Durability:
        again = dataclasses.replace(bench, durability=durability)
        with pytest.raises(LayerUnavailableError, match="volatile"):
            EngineTarget(again.config(template))
