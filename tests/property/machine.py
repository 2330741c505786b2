"""The state machine: random operations on the engine, a plain directory and the kernel at once."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from hypothesis import note
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
from tests.property import layers as given_layers
from tests.property.layers import Kind, Place

#: A memory filesystem where there is one: what is asked of the disk is not what is tested here.
_BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC)
DIALECTS = {marks.name: marks for marks in (OVERLAY, OVERLAY_USER)}
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

    # Making and remaking.

    @initialize(
        data=st.data(),
        metacopy=st.booleans(),
        kernel_metacopy=st.booleans(),
        thorough=st.booleans(),
        capacity=st.sampled_from((1, 2, 10_000)),
    )
    def start(
        self,
        data: st.DataObject,
        metacopy: bool,
        kernel_metacopy: bool,
        thorough: bool,
        capacity: int,
    ) -> None:
        layers = data.draw(given_layers.layers(root=self.as_root))
        for number, layer in enumerate(layers):
            for path, entry in layer.items():
                note(f"> lower {number}: {path}: {_described(entry)}")
        self.metacopy, self.kernel_metacopy = metacopy, kernel_metacopy
        self.thorough, self.capacity = thorough, capacity
        self.since_ns = time.time_ns() - 10**9
        plain = trees.build(self.base / "plain", trees.merged(layers), marks=OCI)
        self.plain = DirectoryTarget(plain)
        self.stack.callback(self.plain.close)
        self.engine_side = Side(self.base / "engine", layers, self.marks)
        self.open_engine()
        if self.with_kernel:
            self.kernel_side = Side(self.base / "kernel", layers, self.marks)
            self.mount_kernel()
        self.check()

    def open_engine(self) -> None:
        self.engine = self.engine_on(self.engine_side, metacopy=self.metacopy)

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

    def mount_kernel(self) -> None:
        self.kernel = self.kernel_on(self.kernel_side, metacopy=self.kernel_metacopy)

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
        call = f"{name}({', '.join(map(_short, arguments))})"
        note(f"> {call}: {_short(results['engine'])}")
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

    def path(self, place: Place) -> str:
        base = self.existing(place.kind, place.number)
        if place.name is None:
            return base
        return place.name if base == "." else f"{base}/{place.name}"

    def existing(self, kind: Kind, number: int) -> str:
        # The root last: the first is taken most often.
        every = sorted(_paths(self.plain.root), key=lambda path: (path == ".", path))
        match kind:
            case Kind.ANY:
                wanted = every
            case Kind.DIRECTORY:
                wanted = [path for path in every if self.is_directory(path)]
            case Kind.FILE:
                wanted = [path for path in every if not self.is_directory(path)]
        return wanted[number % len(wanted)] if wanted else "a"

    # The operations.

    @rule(at=given_layers.new_places, mode=given_layers.modes, data=given_layers.contents)
    def create(self, at: Place, mode: int, data: bytes) -> None:
        self.do("create", self.path(at), mode, data)

    @rule(
        at=given_layers.file_places,
        data=given_layers.contents,
        offset=st.sampled_from((0, 3, 7000)),
    )
    def write(self, at: Place, data: bytes, offset: int) -> None:
        self.do("write", self.path(at), data, offset)

    @rule(at=given_layers.file_places, data=given_layers.contents)
    def append(self, at: Place, data: bytes) -> None:
        self.do("append", self.path(at), data)

    @rule(at=given_layers.file_places, data=given_layers.contents)
    def overwrite(self, at: Place, data: bytes) -> None:
        self.do("overwrite", self.path(at), data)

    @rule(at=given_layers.file_places, size=st.sampled_from((0, 2, 6000, -1)))
    def truncate(self, at: Place, size: int) -> None:
        self.do("truncate", self.path(at), size)

    @rule(at=given_layers.new_places, mode=given_layers.modes)
    def mkdir(self, at: Place, mode: int) -> None:
        self.do("mkdir", self.path(at), mode)

    @rule(at=given_layers.new_places, text=st.sampled_from(given_layers.LINK_TARGETS))
    def symlink(self, at: Place, text: str) -> None:
        self.do("symlink", self.path(at), text)

    @rule(at=given_layers.file_places, new=given_layers.new_places)
    def link(self, at: Place, new: Place) -> None:
        self.do("link", self.path(at), self.path(new))

    @rule(at=given_layers.new_places, node=given_layers.nodes)
    def mknod(self, at: Place, node: tuple[int, int]) -> None:
        self.do("mknod", self.path(at), *node)

    @precondition(lambda self: self.as_root)
    @rule(at=given_layers.new_places, node=given_layers.devices)
    def mknod_device(self, at: Place, node: tuple[int, int]) -> None:
        self.do("mknod", self.path(at), *node)

    @rule(at=given_layers.file_places)
    def unlink(self, at: Place) -> None:
        self.do("unlink", self.path(at))

    @rule(at=given_layers.directory_places)
    def rmdir(self, at: Place) -> None:
        self.do("rmdir", self.path(at))

    @rule(at=given_layers.directory_places)
    def remove_tree(self, at: Place) -> None:
        """Empty a directory and remove it: only so does a merged one go."""
        path = self.path(at)
        if path == "." or not self.is_directory(path):
            return
        below = [p for p in _paths(self.plain.root) if p.startswith(f"{path}/")]
        for name in sorted(below, reverse=True):
            self.do("rmdir" if self.is_directory(name) else "unlink", name)
        self.do("rmdir", path)

    @rule(
        at=given_layers.any_places,
        new=given_layers.all_places,
        flags=given_layers.rename_flags,
    )
    def rename(self, at: Place, new: Place, flags: int) -> None:
        self.do("rename", self.path(at), self.path(new), flags)

    @rule(at=given_layers.directory_places, new=given_layers.new_places)
    def move_directory(self, at: Place, new: Place) -> None:
        self.do("rename", self.path(at), self.path(new), 0)

    @rule(at=given_layers.file_places, new=given_layers.new_places)
    def move_file(self, at: Place, new: Place) -> None:
        self.do("rename", self.path(at), self.path(new), 0)

    @rule(at=given_layers.directory_places, new=given_layers.directory_places)
    def replace_directory(self, at: Place, new: Place) -> None:
        self.do("rename", self.path(at), self.path(new), 0)

    @rule(at=given_layers.file_places, new=given_layers.file_places)
    def replace_file(self, at: Place, new: Place) -> None:
        self.do("rename", self.path(at), self.path(new), 0)

    @rule(at=given_layers.any_places, new=given_layers.any_places)
    def exchange(self, at: Place, new: Place) -> None:
        self.do("rename", self.path(at), self.path(new), files.RENAME_EXCHANGE)

    @rule(at=given_layers.any_places, mode=given_layers.modes)
    def chmod(self, at: Place, mode: int) -> None:
        self.do("chmod", self.path(at), mode)

    @precondition(lambda self: self.as_root)
    @rule(at=given_layers.any_places, owner=given_layers.owners)
    def chown(self, at: Place, owner: tuple[int, int]) -> None:
        self.do("chown", self.path(at), *owner)

    @rule(at=given_layers.any_places, atime_ns=given_layers.times, mtime_ns=given_layers.times)
    def utimens(self, at: Place, atime_ns: int, mtime_ns: int) -> None:
        self.do("utimens", self.path(at), atime_ns, mtime_ns)

    @rule(
        at=given_layers.any_places,
        key=given_layers.keys,
        value=given_layers.values,
        flags=given_layers.xattr_flags,
    )
    def setxattr(self, at: Place, key: str, value: bytes, flags: int) -> None:
        self.do("setxattr", self.path(at), key, value, flags)

    @precondition(lambda self: self.as_root)
    @rule(
        at=given_layers.any_places,
        key=given_layers.root_keys,
        value=given_layers.values,
        flags=given_layers.xattr_flags,
    )
    def setxattr_as_root(self, at: Place, key: str, value: bytes, flags: int) -> None:
        self.do("setxattr", self.path(at), key, value, flags)

    @rule(at=given_layers.any_places, default=st.booleans(), value=given_layers.acls)
    def set_acl(self, at: Place, default: bool, value: bytes) -> None:
        key = "system.posix_acl_default" if default else "system.posix_acl_access"
        self.do("setxattr", self.path(at), key, value, 0)

    @rule(
        at=given_layers.any_places,
        key=given_layers.keys
        | given_layers.root_keys
        | st.sampled_from(("system.posix_acl_default", "system.posix_acl_access")),
    )
    def removexattr(self, at: Place, key: str) -> None:
        self.do("removexattr", self.path(at), key)

    @rule(at=given_layers.any_places, key=given_layers.keys | given_layers.root_keys)
    def getxattr(self, at: Place, key: str) -> None:
        self.do("getxattr", self.path(at), key)

    @rule(
        at=given_layers.any_places,
        name=given_layers.odd_names,
        operation=st.sampled_from(
            (
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
        ),
    )
    def odd_name(self, at: Place, name: str, operation: tuple[str, object]) -> None:
        path = self.existing(at.kind, at.number)
        if name == ".." and os.path.realpath(self.plain.at(path)) == str(self.plain.root):
            return  # it would lead out of the plain directory
        self.do(operation[0], f"{path}/{name}", *operation[1:])

    @rule(
        at=given_layers.any_places,
        new=given_layers.any_places,
        name=given_layers.odd_names,
        name_first=st.booleans(),
        flags=given_layers.rename_flags | st.none(),
    )
    def odd_name_of_two(
        self, at: Place, new: Place, name: str, name_first: bool, flags: int | None
    ) -> None:
        path, other = self.existing(at.kind, at.number), self.path(new)
        if name == ".." and os.path.realpath(self.plain.at(path)) == str(self.plain.root):
            return  # it would lead out of the plain directory
        both = (f"{path}/{name}", other) if name_first else (other, f"{path}/{name}")
        if flags is None:
            self.do("link", *both)
        else:
            self.do("rename", *both, flags)

    @rule(at=given_layers.file_places, number=st.integers(0, 2), flags=st.sampled_from(FLAGS))
    def open_file(self, at: Place, number: int, flags: int) -> None:
        if number in self.files:
            self.close_file(number)
        path = self.path(at)
        if self.is_directory(path):
            return  # a node of a directory is read, not opened
        if not isinstance(self.do("open_file", number, path, flags), Failure):
            self.files.add(number)

    def is_directory(self, path: str) -> bool:
        status = attempt(self.plain.stat, path)
        return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)

    @precondition(lambda self: self.files)
    @rule(
        which=st.integers(0, 2), size=st.sampled_from((4, 10_000)), offset=st.sampled_from((0, 3))
    )
    def read_file(self, which: int, size: int, offset: int) -> None:
        self.do("read_file", self.file(which), size, offset)

    @precondition(lambda self: self.files)
    @rule(which=st.integers(0, 2), data=given_layers.contents, offset=st.sampled_from((0, 3)))
    def write_file(self, which: int, data: bytes, offset: int) -> None:
        self.do("write_file", self.file(which), data, offset)

    @precondition(lambda self: self.files)
    @rule(which=st.integers(0, 2), size=st.sampled_from((0, 3, 100)))
    def truncate_file(self, which: int, size: int) -> None:
        self.do("truncate_file", self.file(which), size)

    def file(self, which: int) -> int:
        return sorted(self.files)[which % len(self.files)]

    def close_file(self, number: int) -> None:
        self.files.discard(number)
        self.do("close_file", number)

    @rule()
    def reopen(self) -> None:
        self.close_all()
        note("> reopen")
        self.open_engine()
        if self.with_kernel:
            self.mount_kernel()
        self.check()

    @rule()
    def seal(self) -> None:
        """The upper becomes a lower: its redirects and metadata-only copies are read from there."""
        if len(self.engine_side.lowers) > 4:
            return
        self.close_all()
        note("> seal")
        for side in self.sides:
            side.seal()
        _break_links(self.plain.root)
        self.open_engine()
        if self.with_kernel:
            self.mount_kernel()
        self.check()


def _described(entry: Entry) -> str:
    """Only what the entry says itself."""
    values = {field.name: getattr(entry, field.name) for field in dataclasses.fields(Entry)}
    plain = Entry(entry.kind)
    said = {k: v for k, v in values.items() if k == "kind" or v != getattr(plain, k)}
    return ", ".join(f"{key}={_short(value)}" for key, value in said.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}…{text[-5:]}"


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
            _copy(path, path.with_name("copy"), status)
            path.with_name("copy").replace(path)
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
