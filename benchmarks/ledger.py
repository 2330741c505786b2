"""Samples of steps done over mounts, and what they say about who mounted."""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from measure import Goal, compare, seconds_text
from peers import FUSE_OVERLAYFS, KERNEL, OURS, Mounted

#: Up to here a missed ratio is what a machine of two cores does by itself.
_NOISE = 1.15


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One step done once: seconds of the client, seconds the daemon computed for it."""

    seconds: float
    cpu: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Ledger:
    """The samples of all rounds.

    Attributes:
        client: The compiled program that does what is timed to the microsecond.
        samples: By step and peer, one a round.
        operations: By step, how many operations it is.
        memory: Bytes for each known inode, by peer.
    """

    client: Path
    samples: dict[str, dict[str, list[Sample]]] = dataclasses.field(default_factory=dict)
    operations: dict[str, int] = dataclasses.field(default_factory=dict)
    memory: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, step: str, operations: int, peer: str, sample: Sample) -> None:
        """Keep a sample."""
        self.operations[step] = operations
        self.samples.setdefault(step, {}).setdefault(peer, []).append(sample)

    def drop_first(self) -> None:
        """Forget the first round of everything, in which caches were filled."""
        for by_peer in (*self.samples.values(), self.memory):
            for found in by_peer.values():
                del found[:1]


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """Times what is done over one mount."""

    ledger: Ledger
    peer: str
    mount: Mounted

    def command(self, step: str, operations: int, *words: str | Path) -> None:
        """Time a program in the mount's root, its start included; its output goes nowhere."""

        def action() -> float:
            start = time.perf_counter()
            subprocess.run(
                words,
                cwd=self.mount.path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            return time.perf_counter() - start

        self._take(step, operations, action)

    def names(self, step: str, operation: str, names: Path) -> tuple[float, float]:
        """Time an operation on each name of a list; seconds of the first and the last thousand."""
        parts = (0.0, 0.0)

        def action() -> float:
            nonlocal parts
            with names.open() as lines:
                total, *ends = self._client(operation, stdin=lines)
            parts = (ends[0], ends[1])
            return total

        self._take(step, names.read_bytes().count(b"\n"), action)
        return parts

    def bytes(self, step: str, operation: str, file: str, block: int, count: int) -> None:
        """Time reading or writing `count` blocks of a file."""
        words = (operation, file, str(block), str(count))
        self._take(step, count, lambda: self._client(*words, stdin=subprocess.DEVNULL)[0])

    def _client(self, *words: str, stdin: object) -> list[float]:
        done = subprocess.run(
            [self.ledger.client, *words],
            cwd=self.mount.path,
            stdin=stdin,  # type: ignore[call-overload]  # a file or a constant
            stdout=subprocess.PIPE,
            check=True,
        )
        return [int(number) / 1e9 for number in done.stdout.split()]

    def _take(self, step: str, operations: int, action: Callable[[], float]) -> None:
        self.mount.settle()
        gc.collect()
        before = self.mount.cpu()
        seconds = action()
        self.mount.settle()
        after = self.mount.cpu()
        cpu = None if before is None or after is None else after - before
        self.ledger.add(step, operations, self.peer, Sample(seconds, cpu))


def compiled(source: Path, target: Path) -> Path:
    """A C program."""
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", target, source], check=True)
    os.sync()
    return target


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """What a step cost, for each operation, and against the others.

    Attributes:
        step: What was done.
        operations: How often in a sample.
        target: Whose line it is.
        seconds: Median, for one operation.
        cpu: Seconds its daemon computed for one operation; None for the kernel.
        against: The peer the goal is about.
        ratio: Median of the rounds' ratios to that one; under 1 the target is faster.
        lowest: The smallest of those ratios.
        highest: The largest of them.
        best: The ratio of the two fastest samples: noise only ever adds.
        others: What one operation costs each other peer: seconds and its daemon's.
        goal: What was wished for, "" for nothing.
        verdict: "holds", "noise" for up to 1.15, "MISSED", or "".
    """

    step: str
    operations: int
    target: str
    seconds: float
    cpu: float | None
    against: str
    ratio: float
    lowest: float
    highest: float
    best: float
    others: dict[str, tuple[float, float | None]]
    goal: str
    verdict: str


def lines(ledger: Ledger, goals: dict[str, tuple[str, Goal]]) -> list[Line]:
    """A line for each step that the target did, and that it can be compared in."""
    found = []
    for step, by_peer in ledger.samples.items():
        against, goal = goals.get(step, (FUSE_OVERLAYFS, Goal()))
        target = OURS if OURS in by_peer else FUSE_OVERLAYFS
        if target == against or against not in by_peer:
            against = KERNEL
        if target in by_peer and against in by_peer:
            found.append(_line(step, ledger, target, against, goal if target == OURS else Goal()))
    return found


def _line(step: str, ledger: Ledger, target: str, against: str, goal: Goal) -> Line:
    by_peer, operations = ledger.samples[step], ledger.operations[step]
    seconds = {peer: [each.seconds for each in found] for peer, found in by_peer.items()}
    row = compare(step, seconds, target, against, goal)
    middle = {peer: _middle(found, operations) for peer, found in by_peer.items()}
    noise = goal.ratio is not None and goal.seconds is None and row.ratio <= goal.ratio * _NOISE
    verdict = "holds" if row.holds else "noise" if noise else "MISSED"
    return Line(
        step,
        operations,
        target,
        *middle.pop(target),
        against,
        row.ratio,
        row.lowest,
        row.highest,
        min(seconds[target]) / min(seconds[against]),
        middle,
        row.goal,
        row.goal and verdict,
    )


def _middle(samples: Sequence[Sample], operations: int) -> tuple[float, float | None]:
    cpu = [each.cpu for each in samples if each.cpu is not None]
    seconds = statistics.median(each.seconds for each in samples) / operations
    return seconds, statistics.median(cpu) / operations if cpu else None


def table(found: Iterable[Line]) -> str:
    """The lines as a Markdown table; times are those of one operation."""
    head = ("step", "×", OURS, "CPU", FUSE_OVERLAYFS, "CPU", "kernel", "against", "ratio", "best")
    rows = [
        f"| {' | '.join(head)} | lowest–highest | goal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for line in found:
        times = {line.target: (line.seconds, line.cpu), **line.others}
        ours, theirs, kernel = (times.get(peer) for peer in (OURS, FUSE_OVERLAYFS, KERNEL))
        verdict = f"**{line.verdict}**" if line.verdict == "MISSED" else line.verdict
        cells = (
            line.step,
            str(line.operations),
            *_pair(ours),
            *_pair(theirs),
            _pair(kernel)[0],
            line.against,
            f"{line.ratio:.2f}×",
            f"{line.best:.2f}×",
            f"{line.lowest:.2f}–{line.highest:.2f}",
            f"{line.goal} {verdict}".strip(),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _pair(times: tuple[float, float | None] | None) -> tuple[str, str]:
    if times is None:
        return "", ""
    seconds, cpu = times
    return seconds_text(seconds), "" if cpu is None else seconds_text(cpu)
