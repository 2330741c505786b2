"""What the engine costs: `python benchmarks/engine.py [--quick] [--json] [--only NAME ...]`.

Needs root, loop devices, mkfs for ext4, btrfs and xfs, and 4 GiB of disk. README.md beside this
says how to read what it prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filesystems import loop_filesystem, on_term, overlayfs, run
from measure import Action, Goal, Row, Target, compare, in_turn, steady, table
from trees import Tree, big_file, deep_stack, wide_directory, wide_tree

from layermount import LayerMount, LayerMountConfig

GIB = 1024**3
MIB = 1024**2
NO_GOAL = Goal()


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much is done; `rounds` is for the cheap workloads, `few` for those that copy much."""

    directories: int = 500
    lookups: int = 20_000
    entries: int = 10_000
    layers: int = 500
    big: int = GIB
    rounds: int = 9
    few: int = 5


QUICK = Scale(directories=100, lookups=5_000, layers=100, big=128 * MIB, rounds=3, few=2)


# Looking.


def _mount(tree: Tree) -> LayerMount:
    return LayerMount.create(LayerMountConfig(tree.upper, tree.lowers))


def _stat_all(stat_: Callable[[str], object], paths: list[str]) -> Action:
    def action() -> None:
        for path in paths:
            try:
                stat_(path)
            except FileNotFoundError:
                continue

    return action


def _pick(paths: list[str], count: int) -> list[str]:
    return random.Random(1).choices(paths, k=count)  # noqa: S311  a fixed choice, no secret


def _looked_up(workload: str, tree: Tree, scale: Scale) -> Iterator[Row]:
    with _mount(tree) as mount:
        for what, paths in (("", tree.files), (", missing", tree.missing)):
            chosen = _pick(paths, scale.lookups)
            targets = {
                "engine": steady(_stat_all(mount.stat, chosen)),
                "os.stat": steady(
                    _stat_all(os.stat, [os.path.join(tree.plain, p) for p in chosen])
                ),
            }
            samples = in_turn(targets, scale.rounds)
            yield compare(f"{workload}{what}", samples, "engine", "os.stat", NO_GOAL)


def resolve(scale: Scale) -> Iterator[Row]:
    """Metadata by path, in an overlay whose directories have been read."""
    with loop_filesystem("ext4", GIB) as base:
        tree = wide_tree(base / "wide", scale.directories, everywhere=True)
        yield from _looked_up(f"stat × {scale.lookups}", tree, scale)
        tree = deep_stack(base / "deep", scale.layers)
        name = f"stat × {scale.lookups}, {scale.layers} lowers"
        yield from _looked_up(name, tree, scale)


def listing(scale: Scale) -> Iterator[Row]:
    """One big merged directory."""
    with loop_filesystem("ext4", GIB) as base:
        tree = wide_directory(base, scale.entries)
        plain = tree.plain / "wide"

        @contextmanager
        def fresh() -> Iterator[Action]:
            with _mount(tree) as mount:
                yield lambda: mount.listdir("wide")

        with _mount(tree) as mount:
            warm = in_turn(
                {
                    "listdir, warm": steady(lambda: mount.listdir("wide")),
                    "merge_directory, warm": steady(lambda: list(mount.merge_directory("wide"))),
                    "os.listdir": steady(lambda: os.listdir(plain)),
                    "os.scandir + stat": steady(lambda: _scan_with_stat(plain)),
                },
                scale.rounds,
            )
        cold = in_turn(
            {"listdir, cold": fresh, "os.listdir": steady(lambda: os.listdir(plain))}, scale.rounds
        )
    workload = f"list {scale.entries} entries"
    yield compare(workload, cold, "listdir, cold", "os.listdir", NO_GOAL)
    yield compare(workload, warm, "listdir, warm", "os.listdir", NO_GOAL)
    yield compare(workload, warm, "merge_directory, warm", "os.scandir + stat", NO_GOAL)


def _scan_with_stat(path: Path) -> list[tuple[str, os.stat_result]]:
    with os.scandir(path) as entries:
        return sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)


def _drain(entries: Iterator[object]) -> None:
    for _ in entries:
        pass


def walk(scale: Scale) -> Iterator[Row]:
    """A whole tree. Cold is an overlay that has just been opened; the kernel's caches are warm."""
    for what, everywhere in (("as images are", False), ("all in all layers", True)):
        with loop_filesystem("ext4", GIB) as base:
            tree = wide_tree(base, scale.directories, everywhere=everywhere)
            yield from _walked(f"walk {len(tree.files)} files, {what}", base, tree, scale)


def _walked(workload: str, base: Path, tree: Tree, scale: Scale) -> Iterator[Row]:
    @contextmanager
    def fresh() -> Iterator[Action]:
        with _mount(tree) as mount:
            yield lambda: _drain(mount.walk())

    plain = {"os.walk": steady(lambda: _drain(os.walk(tree.plain)))}
    with overlayfs(base, tree.lowers, tree.upper) as merged:
        targets = {"kernel overlayfs": steady(lambda: _drain(os.walk(merged))), **plain}
        kernel = in_turn(targets, scale.rounds)
    cold = in_turn({"engine, cold": fresh, **plain}, scale.rounds)
    with _mount(tree) as mount:
        targets = {"engine, warm": steady(lambda: _drain(mount.walk())), **plain}
        warm = in_turn(targets, scale.rounds)
    yield compare(workload, cold, "engine, cold", "os.walk", Goal(ratio=3))
    yield compare(workload, warm, "engine, warm", "os.walk", Goal(ratio=3))
    yield compare(workload, kernel, "kernel overlayfs", "os.walk", NO_GOAL)


def opening(scale: Scale) -> Iterator[Row]:
    """An overlay opened and closed: probes, locks and a clean work directory."""
    with loop_filesystem("ext4", GIB) as base:
        few = Tree(base / "upper", [base / "lower"], base, [], [])
        for path in (few.upper, *few.lowers):
            path.mkdir()
        many = deep_stack(base / "deep", scale.layers)
        kernel = steady(lambda: _mount_kernel(base, few))
        targets = {
            "1 lower": steady(lambda: _mount(few).close()),
            f"{scale.layers} lowers": steady(lambda: _mount(many).close()),
            "mount and umount of overlayfs": kernel,
        }
        samples = in_turn(targets, scale.rounds)
    for name in list(targets)[:2]:
        yield compare("open + close", samples, name, "mount and umount of overlayfs", NO_GOAL)


def _mount_kernel(base: Path, tree: Tree) -> None:
    with overlayfs(base, tree.lowers, tree.upper):
        pass


# Copy-up.


def _append(path: str | Path, opener: Callable[[str | Path, str], object] = open) -> None:
    with opener(path, "ab") as file:  # type: ignore[attr-defined]  # what open() gives
        file.write(b"x")


def _engine_change(base: Path, durability: str, change: Callable[[LayerMount], None]) -> Target:
    """A change of the lower's file `big` through the engine, with an empty upper each time."""

    @contextmanager
    def target() -> Iterator[Action]:
        upper = base / "upper"
        upper.mkdir()
        work = base / "work"
        config = LayerMountConfig(
            upper, [base / "lower"], work_dir_path=work, durability=durability
        )
        with LayerMount.create(config) as mount:
            yield lambda: change(mount)
        shutil.rmtree(upper)
        shutil.rmtree(work)
        _settle(base)

    return target


def _kernel_change(base: Path, options: str, change: Callable[[Path], None]) -> Target:
    """The same through the kernel's overlayfs."""

    @contextmanager
    def target() -> Iterator[Action]:
        upper = base / "upper"
        upper.mkdir()
        with overlayfs(base, [base / "lower"], upper, options) as merged:
            yield lambda: change(merged / "big")
        shutil.rmtree(upper)
        _settle(base)

    return target


def _cp(base: Path, *, sync: bool) -> Target:
    @contextmanager
    def target() -> Iterator[Action]:
        copy = base / "copy"

        def action() -> None:
            run("cp", "--reflink=auto", base / "lower/big", copy)
            if sync:
                run("sync", copy)

        yield action
        copy.unlink()
        _settle(base)

    return target


def _settle(base: Path) -> None:
    """Leave no writing to be done to the next sample."""
    run("sync", "--file-system", base)


def _change_targets(base: Path) -> dict[str, Target]:
    def append(mount: LayerMount) -> None:
        _append("big", mount.open)

    def chmod(mount: LayerMount) -> None:
        mount.chmod("big", 0o600)

    metacopy = ",metacopy=on,redirect_dir=on"
    return {
        "append, volatile": _engine_change(base, "volatile", append),
        "append, auto": _engine_change(base, "auto", append),
        "chmod, auto": _engine_change(base, "auto", chmod),
        "cp": _cp(base, sync=False),
        "cp + sync": _cp(base, sync=True),
        "overlayfs append, volatile": _kernel_change(base, ",volatile", _append),
        "overlayfs append": _kernel_change(base, "", _append),
        "overlayfs chmod, metacopy": _kernel_change(base, metacopy, lambda path: path.chmod(0o600)),
    }


def _change_samples(kind: str, scale: Scale) -> dict[str, list[float]]:
    with loop_filesystem(kind, scale.big * 5 // 2 + GIB // 2) as base:
        (base / "lower").mkdir()
        big_file(base / "lower/big", scale.big)
        return in_turn(_change_targets(base), scale.few)


def copyup(scale: Scale) -> Iterator[Row]:
    """A big file of a lower changed for the first time, where blocks cannot be shared."""
    samples = _change_samples("ext4", scale)
    workload = f"copy-up of {scale.big // MIB} MiB, ext4"
    for target, against, goal in (
        ("append, volatile", "cp", Goal(ratio=1.1)),
        ("append, auto", "cp + sync", Goal(ratio=1.1)),
        ("append, volatile", "overlayfs append, volatile", NO_GOAL),
        ("append, auto", "overlayfs append", NO_GOAL),
        ("chmod, auto", "overlayfs chmod, metacopy", NO_GOAL),
    ):
        yield compare(workload, samples, target, against, goal)


def reflink(scale: Scale) -> Iterator[Row]:
    """The same where blocks can be shared."""
    for kind in ("btrfs", "xfs"):
        samples = _change_samples(kind, scale)
        workload = f"copy-up of {scale.big // MIB} MiB, {kind}"
        for target, against, goal in (
            ("append, volatile", "cp", Goal(seconds=5e-3)),
            ("append, auto", "cp + sync", NO_GOAL),
            ("append, volatile", "overlayfs append, volatile", NO_GOAL),
            ("append, auto", "overlayfs append", NO_GOAL),
            ("chmod, auto", "overlayfs chmod, metacopy", NO_GOAL),
        ):
            yield compare(workload, samples, target, against, goal)


# Memory.

_MEMORY = """
import re, sys
from pathlib import Path
from layermount import LayerMount, LayerMountConfig
def resident():
    text = Path("/proc/self/status").read_text()
    return [int(re.search(rf"{key}:\\s+(\\d+)", text)[1]) * 1024 for key in ("VmRSS", "VmHWM")]
upper, *lowers = sys.argv[1:]
with LayerMount.create(LayerMountConfig(upper, lowers)) as mount:
    before, _ = resident()
    entries = sum(len(names) + len(others) for _, names, others in mount.walk())
    after, peak = resident()
print(entries, before, after, peak)
"""


def memory(scale: Scale) -> str:
    """Resident memory of a process of its own that has walked the wide tree."""
    with loop_filesystem("ext4", GIB) as base:
        tree = wide_tree(base, scale.directories, everywhere=True)
        answer = run(sys.executable, "-c", _MEMORY, tree.upper, *tree.lowers)
    entries, before, after, peak = map(int, answer.split())
    each = (after - before) / entries
    return (
        f"memory after a walk of {entries} entries: {each:.0f} bytes an entry; resident "
        f"{before / MIB:.1f} MiB before, {after / MIB:.1f} after, {peak / MIB:.1f} at the peak"
    )


WORKLOADS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "resolve": resolve,
    "list": listing,
    "walk": walk,
    "open": opening,
    "copyup": copyup,
    "reflink": reflink,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine against the machine.")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: a minute")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, "memory"], default=None)
    return parser.parse_args()


def main() -> None:
    """Run what was asked for and print it."""
    on_term()
    arguments = _arguments()
    scale = QUICK if arguments.quick else Scale()
    wanted = arguments.only or [*WORKLOADS, "memory"]
    rows = [row for name in WORKLOADS if name in wanted for row in WORKLOADS[name](scale)]
    note = memory(scale) if "memory" in wanted else ""
    if arguments.json:
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "memory": note}))
        return
    if rows:
        print(table(rows))
    if note:
        print(note)


if __name__ == "__main__":
    main()
