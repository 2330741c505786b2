"""The state machine: random operations on the engine, a plain directory and the kernel at once."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import ClassVar

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from layermount.config import Capabilities, LayerMountConfig
from layermount.layer.base import DIRECTORY, REGULAR
from layermount.layer.marks import OCI, OVERLAY, OVERLAY_USER, KernelMarks
from layermount.linux import files
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

#: A memory filesystem where there is one: what is asked of the disk is not what is tested here.
_BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC)
ON_ODD_NAMES: tuple[tuple[str, *tuple[object, ...]], ...] = (
    ("unlink",),
    ("rmdir",),
    ("mkdir", 0o755),
    ("create", 0o644, b""),
    ("symlink", "a"),
    ("mknod", stat.S_IFIFO | 0o644, 0),
    ("read",),
    ("readlink",),
    ("truncate", 0),
    ("write", b"x", 0),
)
RANDOM = st.randoms(use_true_random=False)
_BOTH = (True, False)
_MOST_LOWERS = 4
#: Rules X1 to X4: what a plain directory does not have in common with an overlay.
NOT_IN_PLAIN = ("nlink", "inode", "links")
_NAMES = ("engine", "kernel")


class Side:
    """One overlay with layers of its own: `upper`, `work`, the lowers, nearest first."""

    def __init__(self, base: Path, layers: list[Tree], marks: KernelMarks) -> None:
        self.base = base
        self.name = base.name
        self.uppers = 0
        self.lowers = [
            trees.build(base / f"lower{n}", tree, marks=marks) for n, tree in enumerate(layers)
        ]
        self.digests = {lower: trees.digest(lower) for lower in self.lowers}
        self.new_upper()

    def new_upper(self) -> None:
        """Start with an empty upper."""
        self.upper = self.base / f"upper{self.uppers}"
        self.work = self.base / f"work{self.uppers}"
        self.upper.mkdir()
        os.utime(self.upper, ns=(trees.LONG_AGO_NS,) * 2)
        self.uppers += 1

    def seal(self) -> None:
        """The upper becomes the nearest lower, under a new upper with the same root."""
        old = self.upper
        self.lowers.insert(0, old)
        self.new_upper()
        shutil.copystat(old, self.upper)
        status = old.stat()
        os.chown(self.upper, status.st_uid, status.st_gid)
        os.utime(self.upper, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.digests[old] = trees.digest(old)

    def assert_lowers_unchanged(self) -> None:
        for lower, before in self.digests.items():
            assert trees.digest(lower) == before, f"{lower} was changed"


class OverlayMachine(RuleBasedStateMachine):
    """Every operation goes to all; results, errnos and what is shown must be the same."""

    marks: ClassVar[KernelMarks]
    with_kernel: ClassVar[bool]
    as_root: ClassVar[bool] = os.geteuid() == 0

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
        layers = given.layers(random, root=self.as_root)
        for number, layer in enumerate(layers):
            for path, entry in layer.items():
                self.say(f"lower {number}: {path}: {_described(entry)}")
        self.metacopy, self.kernel_metacopy = random.choice(_BOTH), random.choice(_BOTH)
        self.thorough = random.choice((True, False))
        self.capacity = random.choice((1, 2, 10_000))
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

    def engine_on(self, side: Side, *, metacopy: bool) -> EngineTarget:
        without = Capabilities.NONE if metacopy else Capabilities.METACOPY
        config = LayerMountConfig(
            side.upper,
            side.lowers,
            work_dir_path=side.work,
            capabilities=Capabilities.all() & ~without,
            dialect=self.marks.name,
            path_cache_capacity=self.capacity,
        )
        engine = EngineTarget(config)
        self.stack.callback(engine.close)
        return engine

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
        """Rule X9: the kernel does not know two names of a copied-up link or device for one file."""
        return self.marks is OVERLAY_USER and (name, kernel) == ("rename", Failure(errno.ESTALE))

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
            if hasattr(self, "engine"):
                self.finish()
        finally:
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
        return {
            path: entry
            if entry.kind in (DIRECTORY, REGULAR)
            else dataclasses.replace(entry, inode=None, links=None)
            for path, entry in shown.items()
        }

    # Choosing paths.

    def any(self, random: Random) -> str:
        """Mostly what is there, sometimes a name below it, which need not be."""
        return self.existing(random, lambda _path: True)

    def file(self, random: Random) -> str:
        return self.existing(random, lambda path: not self.is_directory(path))

    def directory(self, random: Random) -> str:
        return self.existing(random, self.is_directory)

    def existing(self, random: Random, wanted: Callable[[str], bool]) -> str:
        surely = random.randrange(8)
        # The root last: the first is taken most often.
        every = sorted(_paths(self.plain.root), key=lambda path: (path == ".", path))
        found = [path for path in every if wanted(path)] if surely else every
        path = random.choice(found or every)
        return path if surely else _below(path, random.choice(given.NAMES))

    def new(self, random: Random) -> str:
        """A name in a directory, taken or not."""
        above = self.directory(random)
        return _below(above, random.choice((*given.NAMES, "d")))

    def odd(self, random: Random) -> str:
        """A path that ends in what is no plain name."""
        path, name = self.any(random), random.choice(given.ODD_NAMES)
        if name == ".." and os.path.realpath(self.plain.at(path)) == str(self.plain.root):
            name = "."  # not out of the plain directory
        return f"{path}/{name}"

    def is_directory(self, path: str) -> bool:
        status = attempt(self.plain.stat, path)
        return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)

    # The operations.

    @rule(random=RANDOM)
    def create(self, random: Random) -> None:
        self.do("create", self.new(random), random.choice(given.MODES), _content(random))

    @rule(random=RANDOM)
    def write(self, random: Random) -> None:
        self.do("write", self.file(random), _content(random), random.choice((0, 3, 7000)))

    @rule(random=RANDOM)
    def append(self, random: Random) -> None:
        self.do("append", self.file(random), _content(random))

    @rule(random=RANDOM)
    def overwrite(self, random: Random) -> None:
        self.do("overwrite", self.file(random), _content(random))

    @rule(random=RANDOM)
    def truncate(self, random: Random) -> None:
        self.do("truncate", self.file(random), random.choice((0, 2, 6000, -1)))

    @rule(random=RANDOM)
    def mkdir(self, random: Random) -> None:
        self.do("mkdir", self.new(random), random.choice(given.MODES))

    @rule(random=RANDOM)
    def symlink(self, random: Random) -> None:
        self.do("symlink", self.new(random), random.choice(given.LINK_TARGETS))

    @rule(random=RANDOM)
    def link(self, random: Random) -> None:
        self.do("link", self.file(random), self.new(random))

    @rule(random=RANDOM)
    def mknod(self, random: Random) -> None:
        kinds = given.NODES + given.DEVICES if self.as_root else given.NODES
        self.do("mknod", self.new(random), *random.choice(kinds))

    @rule(random=RANDOM)
    def unlink(self, random: Random) -> None:
        self.do("unlink", self.file(random))

    @rule(random=RANDOM)
    def rmdir(self, random: Random) -> None:
        self.do("rmdir", self.directory(random))

    @rule(random=RANDOM)
    def remove_tree(self, random: Random) -> None:
        """Empty a directory and remove it: only so does a merged one go."""
        path = self.directory(random)
        if path == "." or not self.is_directory(path):
            return
        below = [name for name in _paths(self.plain.root) if name.startswith(f"{path}/")]
        for name in sorted(below, reverse=True):
            self.do("rmdir" if self.is_directory(name) else "unlink", name)
        self.do("rmdir", path)

    @rule(random=RANDOM)
    def move(self, random: Random) -> None:
        kind = random.choice((self.file, self.directory, self.any))
        flags = random.choice((0, 0, 0, files.RENAME_NOREPLACE))
        self.do("rename", kind(random), self.new(random), flags)

    @rule(random=RANDOM)
    def replace(self, random: Random) -> None:
        kind = random.choice((self.file, self.directory, self.any))
        self.do("rename", kind(random), kind(random), random.choice((0, 0, 0, 1, 3)))

    @rule(random=RANDOM)
    def exchange(self, random: Random) -> None:
        self.do("rename", self.any(random), self.any(random), files.RENAME_EXCHANGE)

    @rule(random=RANDOM)
    def chmod(self, random: Random) -> None:
        self.do("chmod", self.any(random), random.choice(given.MODES))

    @precondition(lambda self: self.as_root)
    @rule(random=RANDOM)
    def chown(self, random: Random) -> None:
        owner, group = random.choice(given.OWNERS), random.choice(given.OWNERS)
        self.do("chown", self.any(random), owner, group)

    @rule(random=RANDOM)
    def utimens(self, random: Random) -> None:
        times = random.choice(given.TIMES), random.choice(given.TIMES)
        self.do("utimens", self.any(random), *times)

    @rule(random=RANDOM)
    def setxattr(self, random: Random) -> None:
        key, value = random.choice(self.keys), random.choice(given.VALUES)
        self.do("setxattr", self.any(random), key, value, random.choice(given.XATTR_FLAGS))

    @rule(random=RANDOM)
    def set_acl(self, random: Random) -> None:
        key, value = random.choice(given.ACL_KEYS), given.acl(random)
        self.do("setxattr", self.any(random), key, value, 0)

    @rule(random=RANDOM)
    def removexattr(self, random: Random) -> None:
        self.do("removexattr", self.any(random), random.choice(self.keys + given.ACL_KEYS))

    @rule(random=RANDOM)
    def getxattr(self, random: Random) -> None:
        self.do("getxattr", self.any(random), random.choice(self.keys + given.ACL_KEYS))

    @property
    def keys(self) -> tuple[str, ...]:
        return given.KEYS + given.ROOT_KEYS if self.as_root else given.KEYS

    @rule(random=RANDOM)
    def odd_name(self, random: Random) -> None:
        operation, *arguments = random.choice(ON_ODD_NAMES)
        self.do(operation, self.odd(random), *arguments)

    @rule(random=RANDOM)
    def odd_name_of_two(self, random: Random) -> None:
        path, odd = self.any(random), self.odd(random)
        both = random.choice(((path, odd), (odd, path)))
        flags = random.choice((None, 0, 1, 2, 3))
        if flags is None:
            self.do("link", *both)
        else:
            self.do("rename", *both, flags)

    @rule(random=RANDOM)
    def open_file(self, random: Random) -> None:
        number, path = random.randrange(3), self.file(random)
        if number in self.files:
            self.close_file(number)
        if self.is_directory(path):
            return  # a node of a directory is read, not opened
        if isinstance(self.do("open_file", number, path, random.choice(FLAGS)), Failure):
            return
        self.files.add(number)
        if not stat.S_ISREG(self.plain.stat(path).st_mode):
            self.close_file(number)  # rule X10

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def read_file(self, random: Random) -> None:
        self.do("read_file", self.opened(random), random.choice((4, 10_000)), random.choice((0, 3)))

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def write_file(self, random: Random) -> None:
        self.do("write_file", self.opened(random), _content(random), random.choice((0, 3)))

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def truncate_file(self, random: Random) -> None:
        self.do("truncate_file", self.opened(random), random.choice((0, 3, 100)))

    def opened(self, random: Random) -> int:
        return random.choice(sorted(self.files))

    def close_file(self, number: int) -> None:
        self.files.discard(number)
        self.do("close_file", number)

    @rule(random=RANDOM)
    def reopen(self, random: Random) -> None:
        self.close_all()
        self.say("reopen")
        self.open_all()

    @rule(random=RANDOM)
    def seal(self, random: Random) -> None:
        """The upper becomes a lower: its redirects and metadata-only copies are read from there."""
        if len(self.engine_side.lowers) > _MOST_LOWERS:
            return
        self.close_all()
        self.say("seal")
        for side in self.sides:
            side.seal()
        _break_links(self.plain.root)
        self.open_all()


def _content(random: Random) -> bytes:
    return random.choice(given.CONTENTS)


def _described(entry: Entry) -> str:
    """Only what the entry says itself."""
    values = {field.name: getattr(entry, field.name) for field in dataclasses.fields(Entry)}
    plain = Entry(entry.kind)
    said = {k: v for k, v in values.items() if k == "kind" or v != getattr(plain, k)}
    return ", ".join(f"{key}={_short(value)}" for key, value in said.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}…{text[-5:]}"


def _below(path: str, name: str) -> str:
    return name if path == "." else f"{path}/{name}"


def _brief(target: Target, path: str) -> tuple[object, ...]:
    status = target.stat(path)
    kind = status.st_mode >> 12
    size = None if kind == DIRECTORY else status.st_size
    return kind, oct(status.st_mode), status.st_uid, status.st_gid, size


def _paths(root: Path) -> list[str]:
    found = ["."]
    for above, directories, names in os.walk(root):
        found += [os.path.relpath(os.path.join(above, name), root) for name in directories + names]
    return found


def _break_links(root: Path) -> None:
    """Give each name a file of its own: rule X1."""
    for path in map(root.joinpath, _paths(root)):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            above = path.parent.stat()
            # Made outside the tree, where nothing is inherited.
            _copy(path, root.with_name("copy"), status)
            root.with_name("copy").replace(path)
            os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _copy(path: Path, copy: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        copy.symlink_to(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(path, copy)
    else:
        os.mknod(copy, status.st_mode, status.st_rdev)
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        copy.chmod(stat.S_IMODE(status.st_mode))
    for key in os.listxattr(path, follow_symlinks=False):
        value = os.getxattr(path, key, follow_symlinks=False)
        os.setxattr(copy, key, value, follow_symlinks=False)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
