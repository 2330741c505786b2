"""Layers in memory: what they are, and that an overlay over them is one over directories."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

from layermount.config import LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.engine.pathops import PathOperations
from layermount.engine.paths import get_node
from layermount.errors import ConfigError
from layermount.layer.base import CHARACTER_DEVICE, DIRECTORY, LINK, REGULAR, WHITEOUT, Layer
from layermount.testing import conformance
from layermount.testing.conformance import Case, Face, Layers, Subject, Trait
from layermount.testing.conformance.faces import InProcessFace
from layermount.testing.oracles import Failure, attempt
from layermount.testing.trees import (
    Entry,
    Snapshot,
    Tree,
    assert_same,
    build,
    differences,
    directory,
    file,
    hardlink,
    snapshot,
    symlink,
    whiteout,
    without,
)
from layermount.testing.virtual import MemoryLayer
from tests.forked import USER, in_child, user_directory
from tests.unit.overlays import MARKS

TREE: Tree = {
    "a": file(b"data", mode=0o640, xattrs={"user.k": b"v"}, mtime_ns=123_456_789_012),
    "b": hardlink("a"),
    "d": directory(mode=0o711, opaque=True),
    "d/gone": whiteout(),
    "d/e/f": file(),
    "l": symlink("a"),
}


def test_what_a_layer_has() -> None:
    root = MemoryLayer(TREE).root
    assert root.fd is None
    assert dict(root.scan()) == {"a": REGULAR, "b": REGULAR, "d": DIRECTORY, "l": LINK}
    assert (root.path, root.directory("d").directory("e").path) == (".", "d/e")
    assert (root.directory("d").is_opaque(), root.is_opaque()) == (True, False)
    assert (root.directory("d").kind("gone"), root.kind("none")) == (WHITEOUT, None)
    assert root.readlink("l") == "a"
    assert (root.listxattr("a"), root.getxattr("b", "user.k")) == (["user.k"], b"v")
    with pytest.raises(OSError, match="No data"):
        root.getxattr("a", "user.none")


def test_metadata_is_that_of_a_directory(tmp_path: Path) -> None:
    build(tmp_path / "plain", TREE, marks=MARKS)
    root = MemoryLayer(TREE).root
    for name in ("a", "b", "l", "d"):
        plain, own = (tmp_path / "plain" / name).lstat(), root.stat(name)
        fields = ["mode", "nlink", "uid", "gid", "mtime_ns", "mtime", "rdev", "blksize"]
        fields += [] if name == "d" else ["size", "blocks"]
        for field in (f"st_{field}" for field in fields):
            if name != "l" or field != "st_mtime":
                assert getattr(own, field) == getattr(plain, field), (name, field)
    assert root.stat("a").st_ino == root.stat("b").st_ino != root.stat("l").st_ino


def test_layers_are_on_devices_of_their_own() -> None:
    one, other = MemoryLayer(TREE), MemoryLayer(TREE)
    assert one.root.stat(".").st_dev != other.root.stat(".").st_dev
    assert one.root.stat("a").st_dev == one.root.directory("d").stat(".").st_dev


def test_a_file_is_sealed_and_open_for_reading_alone() -> None:
    fd = MemoryLayer(TREE).root.open("a")
    try:
        assert os.pread(fd, 10, 0) == b"data"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        os.close(again)
        assert not os.get_inheritable(fd)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "number"), [("none", errno.ENOENT), ("d", errno.EISDIR), ("l", errno.ENXIO)]
)
def test_what_is_no_file_is_not_opened(name: str, number: int) -> None:
    assert attempt(MemoryLayer(TREE).root.open, name) == Failure(number)


@pytest.mark.parametrize(
    ("name", "number"), [("none", errno.ENOENT), ("a", errno.ENOTDIR), ("l", errno.ELOOP)]
)
def test_what_is_no_directory_is_not_entered(name: str, number: int) -> None:
    assert attempt(MemoryLayer(TREE).root.directory, name) == Failure(number)


@pytest.mark.parametrize("tree", [{"a": file(), "a/b": file()}, {"a": hardlink("none")}])
def test_a_tree_that_cannot_be_is_refused(tree: Tree) -> None:
    with pytest.raises(ValueError, match="'"):
        MemoryLayer(tree)


# In an overlay.


def _entries(root: Path) -> Tree:
    """What is in a layer on disk, marks included, as a tree."""
    shown = snapshot(root)
    tree: dict[str, Entry] = {}
    for path, entry in shown.items():
        opaque = dict(entry.xattrs).get(MARKS.key("opaque")) == b"y"
        xattrs = {key: value for key, value in entry.xattrs if MARKS.from_disk(key) is not None}
        first = (entry.links or (path,))[0]
        is_mark = entry.kind == CHARACTER_DEVICE and entry.device == 0
        tree[path] = Entry(
            WHITEOUT if is_mark else entry.kind,
            entry.content if isinstance(entry.content, bytes) else b"",
            entry.mode,
            entry.owner,
            {MARKS.from_disk(key) or key: value for key, value in xattrs.items()},
            entry.mtime_ns or 0,
            entry.device,
            opaque,
            None if first == path else first,
        )
    return tree


def _memory(layers: Layers) -> dict[Path, Layer]:
    return {path: MemoryLayer(_entries(path), name=str(path)) for path in layers.lowers}


def _subject(base: Path, *, alternate: bool = False) -> Subject:
    """The engine over virtual lowers; with `alternate` every other one stays a directory."""
    own = conformance.in_process(base, marks=MARKS)

    @contextlib.contextmanager
    def show(layers: Layers) -> Iterator[Face]:
        memory = _memory(layers)
        for path in layers.lowers[1::2] if alternate else ():
            del memory[path]
        config = LayerMountConfig(layers.upper, layers.lowers, work_dir_path=layers.work)
        overlay = Overlay(config, open_lower=memory.get)
        with contextlib.closing(InProcessFace(PathOperations(overlay))) as face:
            yield face

    # There is no record of what has no file handle.
    lacks = {Trait.NUMBERS_STAY, Trait.NUMBERS_MOVE, Trait.OCI_LOWERS, Trait.ONE_FILESYSTEM}
    return dataclasses.replace(own, name="virtual", show=show, traits=own.traits - lacks)


@pytest.mark.parametrize("alternate", [False, True], ids=["virtual", "mixed"])
@pytest.mark.parametrize("case", conformance.runnable(_subject(Path())), ids=attrgetter("name"))
def test_conformance(tmp_path: Path, case: Case, *, alternate: bool) -> None:
    case.run(_subject(tmp_path, alternate=alternate))


LOWERS: tuple[Tree, ...] = (
    {
        "a": file(b"near" * 3000, mode=0o640, xattrs={"user.k": b"v"}),
        "d/gone": whiteout(),
        "d/n": file(b"n"),
        "opaque": directory(opaque=True),
        "l": symlink("d/n"),
        "locked": file(b"locked", mode=0o200),
    },
    {"a": file(b"far"), "d/gone": file(), "d/f": file(b"f"), "opaque/hidden": file()},
)


def _over(base: Path, *, virtual: bool) -> InProcessFace:
    names = [base / f"lower{number}" for number in range(len(LOWERS))]
    layers: dict[Path, Layer] = {}
    for path, tree in zip(names, LOWERS, strict=True):
        if virtual:
            layers[path] = MemoryLayer(tree)
        else:
            build(path, tree, marks=MARKS)
    build(base / "upper", {})
    config = LayerMountConfig(base / "upper", names, own_redirects=True)
    return InProcessFace(PathOperations(Overlay(config, open_lower=layers.get)))


def _change(face: InProcessFace) -> None:
    face.append("a", b"!")
    face.chmod("d/f", 0o600)
    face.rename("d", "moved", 0)
    face.unlink("moved/n")
    face.link("l", "l2")
    face.mkdir("d", 0o700)
    face.rmdir("opaque")
    face.create("opaque", 0o644, b"new")


@pytest.mark.parametrize("change", [False, True], ids=["as it is", "changed"])
def test_the_same_is_shown_as_over_directories(tmp_path: Path, *, change: bool) -> None:
    shown = {}
    for virtual in (False, True):
        base = tmp_path / str(virtual)
        base.mkdir()
        with contextlib.closing(_over(base, virtual=virtual)) as face:
            if change:
                _change(face)
            since_ns = 2_000_000_000_000_000_000 // 2 + 1
            shown[virtual] = without(snapshot(face, since_ns=since_ns), "inode")
    assert_same(shown[False], shown[True], ("directories", "memory"))
    uppers = [_upper(tmp_path / str(virtual) / "upper") for virtual in (False, True)]
    assert differences(*uppers) == []


def _upper(root: Path) -> Snapshot:
    """What is in the upper but the records that lead to a lower's file, which memory has not."""
    records = {MARKS.key(record) for record in ("origin", "impure")}
    return {
        path: dataclasses.replace(
            entry,
            inode=None,
            mtime_ns=None,
            xattrs=tuple((key, value) for key, value in entry.xattrs if key not in records),
        )
        for path, entry in snapshot(root).items()
    }


def test_numbers_stay_as_long_as_somebody_holds_the_entry(tmp_path: Path) -> None:
    with contextlib.closing(_over(tmp_path, virtual=True)) as face:
        before = {path: face.stat(path).st_ino for path in ("a", "d/n", "d/f", "d", "l")}
        held = [get_node(face.operations.overlay, path, follow=False) for path in before]
        assert len(set(before.values())) == len(before)
        assert len({face.stat(path).st_dev for path in before}) == 1
        face.append("a", b"!")
        face.chmod("d", 0o700)
        assert {path: face.stat(path).st_ino for path in before} == before
        assert [node.in_upper for node in held] == [True, False, False, True, False]


def test_a_view_of_one_virtual_layer(tmp_path: Path) -> None:
    layer = MemoryLayer(TREE)
    overlay = Overlay(LayerMountConfig(None, ["image"]), open_lower=lambda _path: layer)
    with contextlib.closing(InProcessFace(PathOperations(overlay))) as face:
        assert sorted(name for name, _ in face.listdir(".")) == ["a", "b", "d", "l"]
        assert face.read("a") == b"data"
        space = face.statfs()
        assert (space.f_bfree, space.f_namemax) == (0, 255)
        with pytest.raises(OSError, match="Read-only"):
            face.write("a", b"x", 0)


def test_a_special_file_of_a_virtual_layer_is_not_opened_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no directory to open it in; the working directory must not stand in for one."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    layer = MemoryLayer({"pipe": Entry(1, mode=0o644)})
    overlay = Overlay(LayerMountConfig(None, ["image"]), open_lower=lambda _path: layer)
    with contextlib.closing(overlay), pytest.raises(OSError, match="No such device"):
        overlay.open(overlay.lookup(overlay.root, "pipe"), os.O_RDONLY | os.O_NONBLOCK)


def test_layers_are_closed_when_assembly_fails(tmp_path: Path) -> None:
    closed = []

    class Watched(MemoryLayer):
        def close(self) -> None:
            closed.append(self.name)

    (tmp_path / "lower").mkdir()
    layers: dict[Path, Layer] = {Path("image"): Watched({})}
    twice = [Path("image"), tmp_path / "lower", tmp_path / "lower"]
    with pytest.raises(ConfigError, match="same directory"):
        Overlay(LayerMountConfig(None, twice), open_lower=layers.get)
    assert closed == ["memory"]


ACL = "system.posix_acl_access"
_OWNER, _NAMED, _GROUP, _MASK, _OTHER = 1, 2, 4, 16, 32


def _acl(*entries: tuple[int, int, int]) -> bytes:
    packed = [
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + named.to_bytes(4, "little")
        for tag, bits, named in entries
    ]
    return b"".join([b"\2\0\0\0", *packed])


_NOBODY = 0xFFFFFFFF
_BASE = ((_OWNER, 6, _NOBODY), (_GROUP, 0, _NOBODY))
ACCESS: dict[str, tuple[Entry, bool, bool]] = {
    "own": (file(mode=0o600, owner=(USER, 1)), True, True),
    "own, not even read": (file(mode=0o066, owner=(USER, 1)), False, False),
    "others'": (file(mode=0o604, owner=(1, 1)), True, False),
    "the group's": (file(mode=0o064, owner=(1, USER)), True, True),
    "the group has less": (file(mode=0o606, owner=(1, USER)), False, False),
    "nobody's": (file(mode=0o000, owner=(1, 1)), False, False),
    "named in the ACL": (
        file(
            mode=0o640,
            owner=(1, 1),
            xattrs={
                ACL: _acl(
                    *_BASE[:1],
                    (_NAMED, 6, USER),
                    *_BASE[1:],
                    (_MASK, 4, _NOBODY),
                    (_OTHER, 0, _NOBODY),
                )
            },
        ),
        True,
        False,
    ),
    "not named in the ACL": (
        file(
            mode=0o674,
            owner=(1, 1),
            xattrs={
                ACL: _acl(
                    *_BASE[:1],
                    (_NAMED, 7, 1),
                    *_BASE[1:],
                    (_MASK, 7, _NOBODY),
                    (_OTHER, 4, _NOBODY),
                )
            },
        ),
        True,
        False,
    ),
}


@pytest.mark.needs("root")
@pytest.mark.parametrize(("entry", "reads", "writes"), ACCESS.values(), ids=ACCESS)
def test_modes_and_acls_count_for_an_ordinary_user(
    entry: Entry, *, reads: bool, writes: bool
) -> None:
    layer = MemoryLayer(
        {"f": entry, "closed": directory(mode=0o700, owner=(1, 1)), "closed/f": file()}
    )

    def look() -> tuple[bool, bool]:
        (place / "upper").mkdir()
        config = LayerMountConfig(place / "upper", ["image"], work_dir_path=place / "work")
        overlay = Overlay(config, open_lower=lambda _path: layer)
        with contextlib.closing(InProcessFace(PathOperations(overlay))) as face:
            with pytest.raises(PermissionError):
                face.stat("closed/f")
            with pytest.raises(PermissionError):
                face.listdir("closed")
            return face.access("f", os.R_OK), face.access("f", os.W_OK)

    with user_directory() as place:
        assert in_child(look, user=USER) == (reads, writes)
