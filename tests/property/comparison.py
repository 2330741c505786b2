"""One operation on the engine, a plain directory and the kernel, and what must hold then."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import ClassVar, Protocol

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from layermount.config import Capabilities, LayerMountConfig
from layermount.layer.base import DIRECTORY, REGULAR
from layermount.layer.marks import OCI, OVERLAY, OVERLAY_USER, KernelMarks
from layermount.testing import trees
from layermount.testing.oracles import (
    DirectoryTarget,
    EngineTarget,
    Failure,
    KernelTarget,
    Target,
    attempt,
)
from layermount.testing.trees import Entry, Snapshot, Tree, assert_same, snapshot, without
from tests.property import layers as given
from tests.property.sides import Side, all_paths

#: A memory filesystem where there is one: what is asked of the disk is not what is tested here.
_BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
RANDOM = st.randoms(use_true_random=False)
_BOTH = (True, False)
#: Rules X1 to X4: what a plain directory does not have in common with an overlay.
NOT_IN_PLAIN = ("nlink", "inode", "links")
_NAMES = ("engine", "kernel")


class Shown(Target, Protocol):
    """The engine by itself, or behind a mount."""

    def copy_up(self, path: str) -> None:
        """Bring the entry into the upper."""


def is_root() -> bool:
    """Whether this is the machine's root, not that of a user namespace."""
    return os.geteuid() == 0 and given.is_initial_namespace()


class Comparison(RuleBasedStateMachine):
    """Every operation goes to all; results, errnos and what is shown must be the same."""

    marks: ClassVar[KernelMarks]
    with_kernel: ClassVar[bool]
    metacopy = kernel_metacopy = thorough = True
    capacity = 10_000
    as_root: ClassVar[bool] = is_root()

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.base = Path(tempfile.mkdtemp(prefix="layermount-oracle-", dir=_BASE))
        self.stack.callback(shutil.rmtree, self.base)
        self.files: set[int] = set()
        self.kernel: KernelTarget | None = None
        self.said: list[str] = []

    # Making and remaking.

    @initialize(random=RANDOM)
    def start(self, random: Random) -> None:
        self.metacopy, self.kernel_metacopy = random.choice(_BOTH), random.choice(_BOTH)
        self.thorough = random.choice((True, False))
        self.capacity = random.choice((1, 2, 10_000))
        self.begin(given.layers(random, root=self.as_root))

    def begin(self, layers: list[Tree]) -> None:
        """Lay the layers out and open everything."""
        for number, layer in enumerate(layers):
            for path, entry in layer.items():
                self.say(f"lower {number}: {path}: {_described(entry)}")
        self.since_ns = time.time_ns() - 10**9
        plain = trees.build(self.base / "plain", trees.merged(layers), marks=OCI)
        self.plain = DirectoryTarget(plain)
        self.stack.callback(self.plain.close)
        self.engine_side = Side(self.base / "engine", layers, self.marks)
        if self.with_kernel:
            self.kernel_side = Side(self.base / "kernel", layers, self.marks)
        self.open_all()

    def open_all(self) -> None:
        self.engine = self.engine_on(self.engine_side, metacopy=self.metacopy)
        if self.with_kernel:
            self.kernel = self.kernel_on(self.kernel_side, metacopy=self.kernel_metacopy)
        self.check()

    def say(self, line: str) -> None:
        """Tell what is done, for when it fails."""
        self.said.append(line)
        if currently_in_test_context():
            note(line)

    def engine_on(self, side: Side, *, metacopy: bool) -> Shown:
        """The engine over a side's layers."""
        engine = EngineTarget(self.config(side, metacopy=metacopy))
        self.stack.callback(engine.close)
        return engine

    def config(self, side: Side, *, metacopy: bool) -> LayerMountConfig:
        without = Capabilities.NONE if metacopy else Capabilities.METACOPY
        return LayerMountConfig(
            side.upper,
            side.lowers,
            work_dir_path=side.work,
            capabilities=Capabilities.all() & ~without,
            dialect=self.marks.name,
            path_cache_capacity=self.capacity,
        )

    def kernel_on(self, side: Side, *, metacopy: bool) -> KernelTarget:
        options = ["userxattr"]
        if self.marks is OVERLAY:
            options = ["redirect_dir=on", f"metacopy={'on' if metacopy else 'off'}"]
        return KernelTarget(
            self.base / "merged", side.upper, side.work, side.lowers, "index=off", *options
        )

    def close_all(self) -> None:
        for number in tuple(self.files):
            self.close_file(number)
        self.engine.close()
        self.unmount_kernel()

    def close_file(self, number: int) -> None:
        self.files.discard(number)
        self.do("close_file", number)

    def unmount_kernel(self) -> None:
        if self.kernel is not None:
            self.kernel.close()
            self.kernel = None

    # Doing and checking.

    @property
    def sides(self) -> list[Side]:
        return [self.engine_side, self.kernel_side] if self.with_kernel else [self.engine_side]

    @property
    def targets(self) -> list[tuple[str, Target]]:
        """The kernel first: it is the reference."""
        found: list[tuple[str, Target]] = [("engine", self.engine), ("plain", self.plain)]
        return [("kernel", self.kernel), *found] if self.kernel is not None else found

    def do(self, name: str, *arguments: object) -> object:
        """Do the same everywhere; the results must be the same."""
        results: dict[str, object] = {}
        for target_name, target in self.targets:
            if target_name == "plain" and self.is_overlays_own(name, results["engine"], arguments):
                continue
            results[target_name] = attempt(getattr(target, name), *arguments)
        if self.is_stale(name, results.get("kernel")):
            del results["kernel"]
        call = f"{name}({', '.join(map(_short, arguments))})"
        self.say(f"{call}: {_short(results['engine'])}")
        assert len(set(map(repr, results.values()))) == 1, f"{call}: {results}"
        if name == "rename" and results["engine"] == Failure(errno.ENOTEMPTY):
            self.follow_refusal(str(arguments[0]))
        if self.thorough:
            self.check()
        else:
            self.check_paths([a for a in arguments if isinstance(a, str)])
        return results["engine"]

    def is_overlays_own(self, name: str, result: object, arguments: tuple[object, ...]) -> bool:
        """Refusals that only an overlay has: rules X5 to X7."""
        if name == "removexattr" and result == Failure(errno.ENODATA):
            return attempt(self.plain.getxattr, *arguments) == result
        if name == "rename" and result == Failure(errno.EXDEV):
            assert self.marks is OVERLAY_USER
            return True
        return name == "mknod" and result == Failure(errno.EPERM) and arguments[2] == 0

    def is_stale(self, name: str, kernel: object) -> bool:
        """Rule X9: the kernel does not know two names of a copied-up link for one file."""
        return self.marks is OVERLAY_USER and (name, kernel) == ("rename", Failure(errno.ESTALE))

    def has_stale_mode(self, path: str) -> bool:
        """Rule X9: by one name of such a file the kernel does not know the mode set by another."""
        if self.marks is not OVERLAY_USER or self.kernel is None:
            return False
        status = attempt(self.engine.stat, path)
        return (
            isinstance(status, os.stat_result)
            and status.st_mode >> 12 not in (DIRECTORY, REGULAR)
            and status.st_nlink > 1
        )

    def follow_refusal(self, path: str) -> None:
        """Rule X11: the kernel copies up what it then refuses to move; the engine does not."""
        if self.kernel is None:
            return
        if self.kernel.stat(path).st_nlink == 1 != self.engine.stat(path).st_nlink:
            self.engine.copy_up(path)

    def check(self) -> None:
        shown = {name: snapshot(target, since_ns=self.since_ns) for name, target in self.targets}
        plain = without(shown["plain"], *NOT_IN_PLAIN)
        assert_same(without(shown["engine"], *NOT_IN_PLAIN), plain, ("engine", "plain"))
        if "kernel" in shown:
            kernel = self.with_kept_times(shown["kernel"], plain)
            engine = self.lasting(shown["engine"])
            assert_same(without(engine, "inode"), without(self.lasting(kernel), "inode"), _NAMES)

    def with_kept_times(self, kernel: Snapshot, plain: Snapshot) -> Snapshot:
        """Rule X8: when a metadata-only copy gets its data, the kernel sets its time to now."""
        if not self.kernel_metacopy:
            return kernel
        return {
            path: dataclasses.replace(entry, mtime_ns=plain[path].mtime_ns)
            if entry.mtime_ns is None and entry.kind == REGULAR and path in plain
            else entry
            for path, entry in kernel.items()
        }

    def check_paths(self, paths: list[str]) -> None:
        for path in paths:
            found = {name: attempt(_brief, target, path) for name, target in self.targets}
            assert len(set(map(repr, found.values()))) == 1, f"{path}: {found}"

    def teardown(self) -> None:
        try:
            # What failed already is to be told, not what follows from it.
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        self.unmount_kernel()
        self.stack.close()

    def finish(self) -> None:
        """What must hold at the end, whatever happened before."""
        self.check()
        shown = {name: snapshot(target) for name, target in self.targets}
        self.close_all()
        assert os.listdir(self.engine_side.work / "work") == []
        for side in self.sides:
            self.check_anew(side, shown[side.name])
            side.assert_lowers_unchanged()

    def check_anew(self, side: Side, before: Snapshot) -> None:
        """The engine and the kernel show the same over a side's layers, and the same as before."""
        engine = self.engine_on(side, metacopy=True)
        shown = snapshot(engine)
        engine.close()
        assert_same(self.lasting(shown), self.lasting(before), ("opened anew", "before"))
        if self.with_kernel:
            self.kernel = self.kernel_on(side, metacopy=True)
            mounted = snapshot(self.kernel)
            self.unmount_kernel()
            assert_same(self.lasting(shown), self.lasting(mounted), ("opened anew", "mounted anew"))

    def lasting(self, shown: Snapshot) -> Snapshot:
        """Without the inode numbers that last no longer than a cache: rule X9."""
        if self.marks is OVERLAY:
            return shown
        if not self.as_root:
            return without(shown, "inode", "links")
        return {
            path: entry
            if entry.kind in (DIRECTORY, REGULAR)
            else dataclasses.replace(entry, inode=None, links=None)
            for path, entry in shown.items()
        }

    # Choosing paths.

    def any(self, random: Random) -> str:
        """Mostly what is there, sometimes a name below it, which need not be."""
        return "." if random.randrange(12) == 11 else self.existing(random, lambda _path: True)

    def file(self, random: Random) -> str:
        return self.existing(random, lambda path: not self.is_directory(path))

    def directory(self, random: Random) -> str:
        return self.existing(random, self.is_directory)

    def existing(self, random: Random, wanted: Callable[[str], bool]) -> str:
        every = sorted(all_paths(self.plain.root))
        if random.randrange(8) == 7:
            return below(random.choice(every), random.choice(given.NAMES))
        found = [path for path in every if wanted(path) and path != "."]
        return random.choice(found or ["."])

    def new(self, random: Random) -> str:
        """A name in a directory, taken or not."""
        above = random.choice(
            [path for path in all_paths(self.plain.root) if self.is_directory(path)]
        )
        return below(above, random.choice((*given.NAMES, "d")))

    def odd(self, random: Random) -> str:
        """A path that ends in what is no plain name."""
        path, name = self.any(random), random.choice(given.ODD_NAMES)
        if name == ".." and os.path.realpath(self.plain.at(path)) == str(self.plain.root):
            name = "."  # not out of the plain directory
        return f"{path}/{name}"

    def is_directory(self, path: str) -> bool:
        status = attempt(self.plain.stat, path)
        return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)


def _described(entry: Entry) -> str:
    """Only what the entry says itself."""
    values = {field.name: getattr(entry, field.name) for field in dataclasses.fields(Entry)}
    plain = Entry(entry.kind)
    said = {k: v for k, v in values.items() if k == "kind" or v != getattr(plain, k)}
    return ", ".join(f"{key}={_short(value)}" for key, value in said.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}…{text[-5:]}"


def below(path: str, name: str) -> str:
    return name if path == "." else f"{path}/{name}"


def _brief(target: Target, path: str) -> tuple[object, ...]:
    status = target.stat(path)
    kind = status.st_mode >> 12
    size = None if kind == DIRECTORY else status.st_size
    return kind, oct(status.st_mode), status.st_uid, status.st_gid, size
