"""Timing: targets sampled in turn, and what the samples say about each other.

Everything on a machine wanders from minute to minute. Two targets are therefore sampled in turn,
round by round, and compared within each round: the median of those ratios is what to read.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Action = Callable[[], object]
#: Makes ready, gives the action to time, and clears away; only the action is timed.
Target = Callable[[], AbstractContextManager[Action]]


@dataclass(frozen=True, slots=True)
class Row:
    """One target against another.

    Attributes:
        workload: What was done.
        target: Who did it.
        seconds: Median of its samples.
        against: The other target.
        against_seconds: Median of that one's samples.
        ratio: Median of the per-round ratios; under 1 the target is the faster one.
        lowest: The smallest of those ratios.
        highest: The largest of them.
        goal: What was wished for, "" for nothing.
        holds: Whether the goal is met.
    """

    workload: str
    target: str
    seconds: float
    against: str
    against_seconds: float
    ratio: float
    lowest: float
    highest: float
    goal: str = ""
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row must keep to: a ratio, a time, or both; None does not count."""

    ratio: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"≤ {self.ratio:g}×"
        time_ = "" if self.seconds is None else f"≤ {seconds_text(self.seconds)}"
        return ", ".join(filter(None, (ratio, time_)))

    def holds(self, ratio: float, seconds: float) -> bool:
        """Whether these figures keep to it."""
        slow = self.ratio is not None and ratio > self.ratio
        late = self.seconds is not None and seconds > self.seconds
        return not slow and not late


def steady(action: Action) -> Target:
    """A target that needs nothing made ready."""

    @contextmanager
    def target() -> Iterator[Action]:
        yield action

    return target


def in_turn(targets: Mapping[str, Target], rounds: int) -> dict[str, list[float]]:
    """Seconds of each target in each round, after one round that does not count.

    The garbage collector runs as in every program, but each sample starts with none waiting.
    """
    samples: dict[str, list[float]] = {name: [] for name in targets}
    for number in range(rounds + 1):
        for name, target in targets.items():
            with target() as action:
                gc.collect()
                start = time.perf_counter()
                action()
                seconds = time.perf_counter() - start
            if number:
                samples[name].append(seconds)
    return samples


def compare(
    workload: str, samples: Mapping[str, Sequence[float]], target: str, against: str, goal: Goal
) -> Row:
    """The row of one target against another, of the same rounds."""
    ours, theirs = samples[target], samples[against]
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio, seconds = statistics.median(ratios), statistics.median(ours)
    return Row(
        workload,
        target,
        seconds,
        against,
        statistics.median(theirs),
        ratio,
        min(ratios),
        max(ratios),
        str(goal),
        goal.holds(ratio, seconds),
    )


def seconds_text(seconds: float) -> str:
    """A duration with three digits and the unit that fits it."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| workload | target | time | against | time | ratio | lowest–highest | goal |",
        "| --- | --- | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        verdict = row.goal and f"{row.goal} {'holds' if row.holds else '**MISSED**'}"
        cells = (
            row.workload,
            row.target,
            seconds_text(row.seconds),
            row.against,
            seconds_text(row.against_seconds),
            f"{row.ratio:.3g}×",
            f"{row.lowest:.3g}–{row.highest:.3g}",
            verdict,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
