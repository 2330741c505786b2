"""Every operation, killed before or failing at every system call that changes anything.

What is seen afterwards, by the same process, after a new start, and by the kernel, is the state
before the operation or the state after it. Rules: W1 to W5, C1 to C6.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from layermount.config import Durability, LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.errors import LayerUnavailableError
from layermount.linux.mounts import mount, umount2
from tests.crash import injection, operations, views
from tests.crash.operations import CASES, Case
from tests.crash.views import View

pytestmark = pytest.mark.needs("root", "overlay", "strace")

#: Of these, every operation has one or two in the usual run; the rest is slow.
FAULTS = ("KILL", "ENOSPC", "EIO")


@dataclass(frozen=True, slots=True)
class Bench:
    """The lowers, which all tests share and none changes, and room for uppers."""

    lowers: list[Path]
    inodes: set[int]
    base: Path

    def config(self, upper: Path, **more: object) -> LayerMountConfig:
        return LayerMountConfig(
            upper / "upper", self.lowers, work_dir_path=upper / "work", **more  # type: ignore[arg-type]  # passed on
        )

    def settled(self, view: View) -> View:
        return views.settled(view, self.inodes)


@pytest.fixture(scope="module")
def lowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    built = operations.build_lowers(tmp_path_factory.mktemp("lowers"))
    before = [views.through_path(path) for path in built]
    yield built
    assert [views.through_path(path) for path in built] == before, "a lower was changed"


@pytest.fixture
def bench(lowers: list[Path], tmp_path: Path) -> Bench:
    inodes = {
        facts["inode"] for path in lowers for facts in views.through_path(path).values()
    }
    return Bench(lowers, inodes, tmp_path)  # type: ignore[arg-type]  # inodes are int


def arrange(bench: Bench, case: Case, **more: object) -> Path:
    """An upper as the operation wants it, closed."""
    template = bench.base / "template"
    (template / "upper").mkdir(parents=True)
    overlay = Overlay(bench.config(template, **more))
    case.arrange(overlay)
    overlay.close()
    return template


def copy(template: Path, name: str) -> Path:
    target = template.parent / name
    subprocess.run(["cp", "-a", template, target], check=True)
    return target


@contextmanager
def kernel(config: LayerMountConfig, target: Path) -> Iterator[Path]:
    target.mkdir()
    layers = ":".join(map(str, config.lower_paths))
    options = f"lowerdir={layers},upperdir={config.upper_path},workdir={config.work_dir_path}"
    mount("overlay", str(target), "overlay", 0, f"{options},redirect_dir=on,metacopy=on,index=off")
    try:
        yield target
    finally:
        umount2(str(target))


def reopened(config: LayerMountConfig) -> View:
    """What is seen after a new start; the sweep is complete, and the kernel sees the same."""
    overlay = Overlay(config)
    try:
        assert config.work_dir_path is not None
        assert list((config.work_dir_path / "work").iterdir()) == []
        seen = views.through_engine(overlay)
    finally:
        overlay.close()
    with kernel(config, config.work_dir_path.parent / "mounted") as mounted:
        shown = views.through_path(mounted)
    same = views.differences(views.without(seen, "inode"), views.without(shown, "inode"))
    assert not same, "\n".join(["the kernel sees another tree than the engine:", *same])
    return seen


def assert_one_of(seen: View, wanted: dict[str, View]) -> None:
    if seen not in wanted.values():
        lines = [
            f"not as {name}: {line}"
            for name, view in wanted.items()
            for line in views.differences(seen, view)
        ]
        pytest.fail("\n".join(lines), pytrace=False)


def check(bench: Bench, case: Case, fault: str, **more: object) -> int:
    """Interrupt an operation at each of its calls; how many there are."""
    template = arrange(bench, case, **more)
    whole = copy(template, "whole")
    calls, _ = injection.calls(bench.config(whole, **more), case.act, bench.base / "trace")
    before = bench.settled(reopened(bench.config(copy(template, "before"), **more)))
    after = bench.settled(reopened(bench.config(whole, **more)))
    assert calls
    failures = []
    for call in calls:
        try:
            _interrupt(bench, case, fault, call, template, before, after, **more)
        except (AssertionError, pytest.fail.Exception) as failure:
            failures.append(f"{call}\n{failure}")
    if failures:
        pytest.fail(f"{len(failures)} of {len(calls)} calls:\n" + "\n".join(failures), pytrace=False)
    return len(calls)


def _interrupt(
    bench: Bench,
    case: Case,
    fault: str,
    call: injection.Call,
    template: Path,
    before: View,
    after: View,
    **more: object,
) -> None:
    place = copy(template, "place")
    config = bench.config(place, **more)
    what = "signal=KILL" if fault == "KILL" else f"error={fault}"
    try:
        outcome = injection.run(
            config, case.act, bench.base / "trace", f"{call.name}:{what}:when={call.number}"
        )
        assert outcome.was_injected, "the fault did not take place"
        if outcome.killed:
            assert_one_of(bench.settled(reopened(config)), {"before": before, "after": after})
            return
        if outcome.error is None:
            # A failure that does no harm: a hint, or what is swept at the next start anyway.
            assert_one_of(bench.settled(outcome.seen), {"after": after})
            assert_one_of(bench.settled(reopened(config)), {"after": after})
            return
        assert outcome.error == getattr(errno, fault), errno.errorcode[outcome.error]
        assert_one_of(bench.settled(outcome.seen), {"before": before})
        assert outcome.again is not None
        assert_one_of(bench.settled(outcome.again), {"after": after})
        assert_one_of(bench.settled(reopened(config)), {"after": after})
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_before_or_after(bench: Bench, case: Case, fault: str) -> None:
    check(bench, case, fault)
