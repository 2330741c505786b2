"""One upper, written by the engine and by the kernel's overlayfs in turns: both show one tree."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from layermount.config import Capabilities, LayerMountConfig
from layermount.layer.base import DIRECTORY, REGULAR
from layermount.layer.marks import OVERLAY, OVERLAY_USER, KernelMarks
from layermount.linux.files import RENAME_EXCHANGE
from layermount.testing.oracles import EngineTarget, KernelTarget, Target, attempt
from layermount.testing.trees import (
    Snapshot,
    Tree,
    assert_same,
    build,
    device,
    digest,
    directory,
    fifo,
    file,
    hardlink,
    snapshot,
    symlink,
    whiteout,
    without,
)

pytestmark = pytest.mark.needs("root", "overlay")

_NEAR: Tree = {
    "file": file(b"file", mode=0o640, owner=(3, 4), xattrs={"user.color": b"blue"}),
    "large": file(b"large" * 4000),
    "other": file(b"other"),
    "link": symlink("file"),
    "fifo": fifo(),
    "null": device(1, 3),
    "dir/sub/deep/file": file(b"deep"),
    "dir/near": file(b"near"),
    "empty": directory(mode=0o700),
    "gone": whiteout(),
    "own/only": file(b"only near"),
    "own/gone": whiteout(),
    "opaque": directory(opaque=True),
    "opaque/near": file(b"near"),
    "names/one": file(b"several names"),
    "names/two": hardlink("names/one"),
    "three": hardlink("names/one"),
    "pair/left": file(b"pair" * 2000),
    "pair/right": hardlink("pair/left"),
}
_FAR: Tree = {
    "gone": file(b"gone"),
    "own/gone": file(b"gone"),
    "own/far": file(b"far"),
    "opaque/far": file(b"far"),
    "dir/far": file(b"far"),
    "dir/sub/deep/far": file(b"far deep"),
    "distant/file": file(b"distant" * 1000),
}

Script = Callable[[Target], object]


def _run(*steps: Script) -> Script:
    """The steps in turn. What a target refuses is refused by both: redirects may be off."""
    return lambda target: [attempt(step, target) for step in steps]


#: Each leaves the upper in a state of its own; all of them together are a script, too.
SCRIPTS: dict[str, Script] = {
    "nothing": _run(),
    "copy-up": _run(
        lambda t: t.write("file", b"F", 0),
        lambda t: t.write("dir/sub/deep/far", b"F", 0),
        lambda t: t.utimens("link", 5, 5),
        lambda t: t.chmod("fifo", 0o600),
        lambda t: t.chmod("null", 0o666),
        lambda t: t.setxattr("own", "user.size", b"XL", 0),
    ),
    "metadata": _run(
        lambda t: t.chmod("large", 0o755),
        lambda t: t.chown("distant/file", 7, 8),
        lambda t: t.utimens("dir/near", 5, 6),
        lambda t: t.setxattr("file", "user.size", b"XL", 0),
        lambda t: t.setxattr("other", "user.size", b"XL", 0),
        lambda t: t.rename("other", "dir/sub/other", 0),
        lambda t: t.chown("large", 1, 1),
        lambda t: t.rename("large", "huge", 0),
        lambda t: t.link("huge", "empty/huge"),
        lambda t: t.chown("dir/sub/deep/far", 1, 1),
        lambda t: t.write("dir/sub/deep/far", b"data", 2),
    ),
    "remove": _run(
        lambda t: t.unlink("file"),
        lambda t: t.unlink("dir/far"),
        lambda t: t.rmdir("empty"),
        lambda t: t.unlink("opaque/near"),
        lambda t: t.rmdir("opaque"),
        lambda t: t.unlink("distant/file"),
        lambda t: t.rmdir("distant"),
        lambda t: t.mkdir("distant", 0o755),
        lambda t: t.create("file", 0o600, b"another"),
    ),
    "create": _run(
        lambda t: t.create("new", 0o600, b"new"),
        lambda t: t.mkdir("gone", 0o755),
        lambda t: t.mkdir("gone/new", 0o711),
        lambda t: t.create("own/gone", 0o600, b"back"),
        lambda t: t.symlink("dir/link", "../file"),
        lambda t: t.mknod("dir/pipe", 0o010600, 0),
        lambda t: t.link("new", "dir/new"),
    ),
    "move": _run(
        lambda t: t.rename("dir/sub", "own/sub", 0),
        lambda t: t.rename("own/sub/deep", "dir/deep", 0),
        lambda t: t.rename("dir", "moved", 0),
        lambda t: t.rename("moved/deep/file", "moved/file", 0),
        lambda t: t.mkdir("dir", 0o755),
        lambda t: t.create("dir/far", 0o600, b"not the old one"),
        lambda t: t.rename("distant", "empty", 0),
        lambda t: t.rename("own", "moved/own", 0),
        lambda t: t.mkdir("fresh", 0o755),
        lambda t: t.rename("fresh", "moved/own/sub", 0),
    ),
    "exchange": _run(
        lambda t: t.rename("dir", "own", RENAME_EXCHANGE),
        lambda t: t.rename("file", "distant", RENAME_EXCHANGE),
        lambda t: t.rename("distant", "dir/only", RENAME_EXCHANGE),
    ),
    "links": _run(
        lambda t: t.write("names/one", b"Changed", 0),
        lambda t: t.chmod("pair/left", 0o600),
    ),
    "more links": _run(
        lambda t: t.write("three", b"3", 0),
        lambda t: t.link("names/two", "names/four"),
        lambda t: t.unlink("names/one"),
        lambda t: t.rename("pair/right", "pair/moved", 0),
        lambda t: t.write("pair/moved", b"data", 1),
    ),
    "no links": _run(
        lambda t: t.unlink("names/one"),
        lambda t: t.unlink("names/two"),
        lambda t: t.write("three", b"3", 0),
        lambda t: t.unlink("pair/left"),
        lambda t: t.unlink("pair/right"),
    ),
    "links gone": _run(
        lambda t: t.chmod("names/two", 0o600),
        lambda t: t.unlink("three"),
        lambda t: t.unlink("names/one"),
        lambda t: t.unlink("names/two"),
        lambda t: t.rename("file", "pair/left", 0),
        lambda t: t.rename("other", "pair/right", 0),
    ),
}
SCRIPTS["everything"] = _run(*SCRIPTS.values())

_ORIGIN = "trusted.overlay.origin"
OPTIONS = [
    tuple(
        f"{name}={'on' if on else 'off'}"
        for name, on in zip(("redirect_dir", "metacopy", "index"), switches, strict=True)
    )
    for switches in itertools.product((True, False), repeat=3)
    # Metadata-only copies need redirects: the kernel refuses to mount otherwise.
    if switches[0] or not switches[1]
]


@dataclass(frozen=True, slots=True)
class Bench:
    """One upper over two lowers, opened by one or the other."""

    base: Path
    lowers: list[Path]

    @contextmanager
    def engine(self, **more: object) -> Iterator[EngineTarget]:
        config = LayerMountConfig(
            self.base / "upper",
            self.lowers,
            work_dir_path=self.base / "work",
            **more,  # type: ignore[arg-type]  # passed on
        )
        target = EngineTarget(config)
        try:
            yield target
        finally:
            target.close()

    @contextmanager
    def kernel(self, *options: str) -> Iterator[KernelTarget]:
        target = self._mount(options)
        try:
            yield target
        finally:
            target.close()

    def _mount(self, options: Sequence[str]) -> KernelTarget:
        """A mount that was ended lives on for a moment in mount namespaces of other processes."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return KernelTarget(
                    self.base / "mounted",
                    self.base / "upper",
                    self.base / "work",
                    self.lowers,
                    *options,
                )
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "upper").mkdir()
    lowers = [build(tmp_path / "near", _NEAR), build(tmp_path / "far", _FAR)]
    before = [digest(path) for path in lowers]
    yield Bench(tmp_path, lowers)
    assert [digest(path) for path in lowers] == before, "a lower was changed"


def same(engine: Snapshot, kernel: Snapshot) -> None:
    assert_same(engine, kernel, ("engine", "kernel"))


def names_are_counted(shown: Snapshot) -> None:
    """With the index every name of a lower file leads to its one copy, and the count says so."""
    wrong = {
        path: (entry.nlink, entry.links)
        for path, entry in shown.items()
        if entry.kind != DIRECTORY and entry.nlink != max(1, len(entry.links or ()))
    }
    assert wrong == {}


@pytest.mark.parametrize("index", ["on", "off"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_kernel_shows_what_the_engine_wrote(bench: Bench, script: str, index: str) -> None:
    with bench.engine() as target:
        SCRIPTS[script](target)
    with bench.engine() as target:
        engine = snapshot(target)
    with bench.kernel("redirect_dir=on", "metacopy=on", f"index={index}") as mounted:
        same(engine, snapshot(mounted))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("options", OPTIONS, ids=",".join)
def test_turns(bench: Bench, options: tuple[str, ...], script: str) -> None:
    """The kernel writes, the engine reads and writes, the kernel reads and writes, and so on."""
    with bench.kernel(*options) as mounted:
        SCRIPTS[script](mounted)
    # What the kernel remembers while it is mounted is not what it finds again.
    with bench.kernel(*options) as mounted:
        kernel = snapshot(mounted)
    with bench.engine() as target:
        same(snapshot(target), kernel)
        SCRIPTS["everything"](target)
    with bench.engine() as target:
        engine = snapshot(target)
        if "index=on" in options:
            names_are_counted(engine)
    options = tuple(option.replace("=off", "=on") for option in options[:2]) + options[2:]
    with bench.kernel(*options) as mounted:
        same(engine, snapshot(mounted))
        SCRIPTS["everything"](mounted)
    with bench.kernel(*options) as mounted:
        kernel = snapshot(mounted)
    with bench.engine() as target:
        same(snapshot(target), kernel)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_link_index_is_kept(bench: Bench, script: str) -> None:
    options = ("redirect_dir=on", "metacopy=on", "index=on")
    with bench.kernel(*options):
        """Mounting makes the index."""
    with bench.engine() as target:
        SCRIPTS[script](target)
        running = snapshot(target)
    names_are_counted(running)
    with bench.engine() as target:
        engine = snapshot(target)
    assert_same(running, engine, ("running", "opened again"))
    with bench.kernel(*options) as mounted:
        same(engine, snapshot(mounted))
        index = sorted(os.listdir(bench.base / "work/index"))
    # Nothing is left in it that the kernel has to clear away.
    assert index == sorted(_wanted_index(engine, bench))


def _wanted_index(shown: Snapshot, bench: Bench) -> set[str]:
    upper = bench.base / "upper"
    paths = [upper / path for path, entry in shown.items() if entry.kind == REGULAR]
    found = set()
    for path in paths:
        if path.exists() and "trusted.overlay.nlink" in os.listxattr(path):
            found.add(os.getxattr(path, "trusted.overlay.origin").hex())
    return found


def test_open_files_of_an_indexed_link_follow_its_copy_up(bench: Bench) -> None:
    with bench.kernel("index=on"):
        """Mounting makes the index."""
    with bench.engine() as target:
        target.open_file(1, "names/two", os.O_RDONLY)
        target.write("three", b"Through", 0)
        assert target.read_file(1, 20, 0) == b"Through names"
        target.write("names/two", b"more", 0)
        assert target.read_file(1, 20, 0) == b"moreugh names"
        target.close_file(1)
        names_are_counted(snapshot(target))


def test_the_number_stays_when_the_data_comes_up(bench: Bench) -> None:
    """One of several names in a lower gets a number of its own with its metadata."""
    with bench.engine() as target:
        target.chmod("pair/left", 0o600)
        target.chmod("large", 0o600)
        before = snapshot(target)
        target.write("pair/left", b"data", 0)
        target.write("large", b"data", 0)
        running = snapshot(target)
    with bench.engine() as target:
        engine = snapshot(target)
    for path in ("pair/left", "large"):
        assert before[path].inode == running[path].inode == engine[path].inode
    with bench.kernel("redirect_dir=on", "metacopy=on") as mounted:
        same(engine, snapshot(mounted))


def test_two_lower_names_of_one_file_are_one_with_the_index(bench: Bench) -> None:
    with bench.kernel("index=on") as mounted:
        mounted.rename("names/one", "names/two", 0)
        kernel = snapshot(mounted)
    with bench.engine() as target:
        target.rename("names/one", "names/two", 0)
        same(snapshot(target), kernel)


def test_origin_records_are_the_kernels_own(bench: Bench, tmp_path: Path) -> None:
    def change(target: Target) -> None:
        target.write("file", b"F", 0)
        target.chmod("fifo", 0o600)
        target.utimens("link", 5, 5)
        target.write("dir/sub/deep/far", b"F", 0)
        target.write("names/one", b"1", 0)

    with bench.engine() as target:
        change(target)
    other = Bench(tmp_path / "kernel", bench.lowers)
    with other.kernel("index=off") as mounted:
        change(mounted)
    found = _origins(bench.base / "upper")
    assert len(found) == 8
    assert found == _origins(other.base / "upper")


def _origins(upper: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(upper)): os.getxattr(path, _ORIGIN, follow_symlinks=False)
        for path in upper.rglob("*")
        if _ORIGIN in os.listxattr(path, follow_symlinks=False)
    }


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "metadata"])
def test_user_marks(tmp_path: Path, script: str) -> None:
    (tmp_path / "upper").mkdir()
    near, far = tmp_path / "near", tmp_path / "far"
    bench = Bench(tmp_path, [build(near, _NEAR, marks=OVERLAY_USER), build(far, _FAR)])
    with bench.engine(dialect="overlay-user") as target:
        SCRIPTS[script](target)
    with bench.engine() as target:
        engine = snapshot(target)
    with bench.kernel("userxattr") as mounted:
        same(engine, snapshot(mounted))
        SCRIPTS["everything"](mounted)
    with bench.kernel("userxattr") as mounted:
        kernel = snapshot(mounted)
    with bench.engine() as target:
        assert target.overlay.upper is not None
        assert target.overlay.upper.marks is OVERLAY_USER
        same(snapshot(target), kernel)


@pytest.mark.parametrize("marks", [OVERLAY, OVERLAY_USER], ids=lambda marks: marks.name)
def test_marks_of_an_overlay_inside(tmp_path: Path, marks: KernelMarks) -> None:
    (tmp_path / "upper").mkdir()
    mine = {marks.key("opaque"): b"y", marks.key("overlay.opaque"): b"z", "user.mine": b"1"}
    lower: Tree = {"dir": directory(xattrs=mine), "dir/file": file(xattrs=mine)}
    bench = Bench(tmp_path, [build(tmp_path / "lower", lower, marks=marks)])
    switch = ["userxattr"] if marks is OVERLAY_USER else []
    with bench.engine(dialect=marks.name) as target:
        assert {
            key: target.getxattr("dir/file", key) for key in target.listxattr("dir/file")
        } == mine
        target.setxattr("dir/file", marks.key("whiteout"), b"", 0)
        target.removexattr("dir/file", marks.key("opaque"))
        target.mkdir("new", 0o755)
        target.setxattr("new", marks.key("redirect"), b"/x", 0)
        assert sorted(target.listdir("dir")) == [("file", REGULAR)]
        engine = snapshot(target)
    with bench.kernel(*switch) as mounted:
        same(engine, snapshot(mounted))
        mounted.setxattr("dir/file", marks.key("metacopy"), b"", 0)
        mounted.removexattr("new", marks.key("redirect"))
        kernel = snapshot(mounted)
    with bench.engine(dialect=marks.name) as target:
        same(snapshot(target), kernel)


@pytest.mark.parametrize("marks", [OVERLAY, OVERLAY_USER], ids=lambda marks: marks.name)
def test_whiteouts_by_attribute(tmp_path: Path, marks: KernelMarks) -> None:
    (tmp_path / "upper").mkdir()
    near = build(
        tmp_path / "near",
        {"deleted": file(), "kept": file(), "dir/deleted": file()},
    )
    for path in ("deleted", "dir/deleted"):
        os.setxattr(near / path, marks.key("whiteout"), b"y")
    for path in ("", "dir"):
        os.setxattr(near / path, marks.key("opaque"), b"x")
    far: Tree = {path: file(b"far") for path in ("deleted", "kept", "dir/deleted", "dir/far")}
    bench = Bench(tmp_path, [near, build(tmp_path / "far", far)])
    with bench.engine(dialect=marks.name) as target:
        engine = snapshot(target)
        assert set(engine) == {".", "kept", "dir", "dir/far"}
    with bench.kernel(*(["userxattr"] if marks is OVERLAY_USER else [])) as mounted:
        same(engine, snapshot(mounted))


_OCI: Tree = {
    ".wh.gone": file(),
    "dir/.wh.gone": file(),
    "dir/.wh.beside": file(),
    "dir/beside": file(b"beside its own mark"),
    "dir/.wh..wh.plnk": file(),
    "opaque/.wh..wh..opq": file(),
    "opaque/.wh.far": file(),
    "opaque/near": file(b"near"),
    "tree/.wh.sub": file(),
    "tree/sub/near": file(b"near"),
}
_BELOW_OCI: Tree = {
    "gone": file(),
    "dir/gone": file(),
    "dir/beside": file(b"deleted"),
    "dir/far": file(b"far"),
    "opaque/far": file(),
    "opaque/also": file(),
    "tree/sub/far": file(),
}
_OCI_SHOWS = {
    "dir": DIRECTORY,
    "dir/beside": REGULAR,
    "dir/far": REGULAR,
    "opaque": DIRECTORY,
    "opaque/near": REGULAR,
    "tree": DIRECTORY,
    "tree/sub": DIRECTORY,
    "tree/sub/near": REGULAR,
}


@pytest.mark.parametrize("script", ["nothing", "write", "remove"])
def test_oci_lowers(tmp_path: Path, script: str) -> None:
    """An upper over OCI lowers is the kernel's over the same lowers with the kernel's marks."""
    scripts: dict[str, Script] = {
        "nothing": _run(),
        "write": _run(
            lambda t: t.create("gone", 0o600, b"new"),
            lambda t: t.write("dir/beside", b"!", 0),
            lambda t: t.rename("tree", "dir/tree", 0),
            lambda t: t.mkdir("dir/gone", 0o755),
        ),
        "remove": _run(
            lambda t: t.unlink("opaque/near"),
            lambda t: t.rmdir("opaque"),
            lambda t: t.unlink("dir/far"),
            lambda t: t.unlink("tree/sub/near"),
            lambda t: t.rmdir("tree/sub"),
        ),
    }
    (tmp_path / "upper").mkdir()
    bench = Bench(tmp_path, [build(tmp_path / "oci", _OCI), build(tmp_path / "far", _BELOW_OCI)])
    with bench.engine(lower_dialects=["oci", None]) as target:
        shown = {path: entry.kind for path, entry in snapshot(target).items() if path != "."}
        assert shown == _OCI_SHOWS
        scripts[script](target)
    with bench.engine(lower_dialects=["oci", None]) as target:
        engine = snapshot(target)
    converted: Tree = {
        "gone": whiteout(),
        "dir/gone": whiteout(),
        "dir/beside": file(b"beside its own mark"),
        "opaque": directory(opaque=True),
        "opaque/near": file(b"near"),
        "tree/sub": directory(opaque=True),
        "tree/sub/near": file(b"near"),
    }
    kernel = Bench(tmp_path, [build(tmp_path / "converted", converted), bench.lowers[1]])
    with kernel.kernel("redirect_dir=on", "metacopy=on") as mounted:
        unlike = ("inode", "mtime_ns", "links")
        same(without(engine, *unlike), without(snapshot(mounted), *unlike))


@pytest.mark.needs("fuse-overlayfs")
@pytest.mark.parametrize("script", ["nothing", "copy-up", "remove", "links", "no links"])
def test_fuse_overlayfs_shows_what_the_engine_wrote(tmp_path: Path, script: str) -> None:
    """It follows neither redirects nor metadata-only copies, so none are written.

    There is no fifo: it opens one in an upper when it starts, and waits for a writer for ever.
    """
    (tmp_path / "upper").mkdir()
    near = {path: entry for path, entry in _NEAR.items() if path != "fifo"}
    bench = Bench(tmp_path, [build(tmp_path / "near", near), build(tmp_path / "far", _FAR)])
    plain = Capabilities.all() & ~Capabilities.METACOPY & ~Capabilities.REDIRECT_DIR
    with bench.engine(capabilities=plain) as target:
        SCRIPTS[script](target)
    with bench.engine() as target:
        engine = snapshot(target)
    mounted = bench.base / "mounted"
    mounted.mkdir()
    layers = ":".join(map(str, bench.lowers))
    options = f"lowerdir={layers},upperdir={bench.base}/upper,workdir={bench.base}/work"
    null = subprocess.DEVNULL
    command = ["fuse-overlayfs", "-o", options, str(mounted)]
    subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null)
    try:
        shown = snapshot(mounted)
    finally:
        subprocess.run(["fusermount3", "-u", mounted], check=True)
    unlike = ("inode", "links", "nlink")
    assert_same(without(engine, *unlike), without(shown, *unlike), ("engine", "fuse-overlayfs"))
