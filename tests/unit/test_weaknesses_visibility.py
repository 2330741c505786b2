"""What LayerMount 0.2 shows, hides or lets through wrongly, by its number; ours must not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount import LayerMount, LayerMountConfig, Operation
from layermount.engine.node import DirectoryNode
from layermount.layer.marks import OCI
from layermount.testing.trees import Tree, build, digest, directory, file, symlink, whiteout
from tests.unit.overlays import (
    MARKS,
    heard,
    make_layers,
    names_below,
    nothing,
    open_layers,
    open_overlay,
)

Act = Callable[[LayerMount], object]


def remake(mount: LayerMount) -> None:
    for name in ("a", "sub/deep", "sub"):
        mount.delete_file(f"d/{name}")
    mount.rmdir("d")
    mount.mkdir("d")
    mount.path("d/new").write_text("")


DEEP: Tree = {"d/a": file(b"a"), "d/sub/deep": file(b"deep")}
# What is shown, by layers (upper first) and by what is done to them.
SHOWN: dict[str, tuple[list[Tree], Act, list[str]]] = {
    "remade": ([{}, DEEP], remake, ["d", "d/new"]),
    "opaque": ([{"d": directory(opaque=True), "d/n": file()}, DEEP], nothing, ["d", "d/n"]),
    "opaque-above": (
        [{"d": directory(opaque=True), "d/sub/n": file()}, DEEP],
        nothing,
        ["d", "d/sub", "d/sub/n"],
    ),
    "whiteout-in-lower": (
        [{"d/u": file()}, {"d": whiteout()}, DEEP],
        nothing,
        ["d", "d/u"],
    ),
    "whiteout-of-ancestor": ([{"d": whiteout()}, {}, DEEP], nothing, []),
    "file-in-lower": ([{"d/u": file()}, {"d": file()}, DEEP], nothing, ["d", "d/u"]),
    "file-in-upper": ([{"d": file()}, DEEP], nothing, ["d"]),
    "opaque-lower-shows-its-own": (
        [{}, {"d": directory(opaque=True), "d/own": file()}, DEEP],
        nothing,
        ["d", "d/own"],
    ),
    "opaque-lower-merges-with-the-upper": (
        [{"d/u": file()}, {"d": directory(opaque=True), "d/own": file()}, DEEP],
        nothing,
        ["d", "d/own", "d/u"],
    ),
    "opaque-below-opaque": (
        [{}, {"d/sub": directory(opaque=True), "d/sub/own": file()}, DEEP],
        nothing,
        ["d", "d/a", "d/sub", "d/sub/own"],
    ),
}
EVER = ["d", "d/a", "d/n", "d/new", "d/own", "d/sub", "d/sub/deep", "d/sub/n", "d/sub/own", "d/u"]


@pytest.mark.parametrize("case", SHOWN)
def test_w08_and_w09_listing_and_resolving_agree(tmp_path: Path, case: str) -> None:
    """W-08, W-09: one rule of what is visible, whoever asks: listing, resolving, explaining.

    An ancestor's mark, a mark in a lower, and a file above a directory hide what is deeper; an
    opaque directory hides deeper layers and never its own content.
    """
    (upper, *lowers), act, expected = SHOWN[case]
    with open_overlay(tmp_path, *lowers, upper=upper) as mount:
        act(mount)
        assert_shows(mount, expected)
    with open_layers(tmp_path) as mount:
        assert_shows(mount, expected)


def assert_shows(mount: LayerMount, expected: list[str]) -> None:
    assert names_below(mount) == expected
    assert [path for path in EVER if mount.exists(path)] == expected
    assert [path for path in EVER if mount.resolve_path(path).full_path] == expected
    merged = [entry.name for entry in mount.merge_directory()]
    assert merged == [path for path in expected if "/" not in path]


def test_w09_a_former_upper_keeps_its_opaque_directories_as_a_lower(tmp_path: Path) -> None:
    """W-09: an upper with a remade directory shows the same when it serves as a lower."""
    with open_overlay(tmp_path, DEEP) as mount:
        remake(mount)
    (tmp_path / "upper").rename(tmp_path / "former")
    (tmp_path / "upper").mkdir()
    lowers = [tmp_path / "former", tmp_path / "lower0"]
    with LayerMount.create(LayerMountConfig(tmp_path / "upper", lowers)) as mount:
        assert_shows(mount, ["d", "d/new"])


@pytest.mark.parametrize("path", ["d/a", "d/sub", "d/sub/deep"])
def test_w10_nothing_is_reached_through_a_file(tmp_path: Path, path: str) -> None:
    """W-10: where the upper has a file, the lower's directory of that name is no way on."""
    with open_overlay(tmp_path, DEEP, upper={"d": file(b"f")}) as mount:
        for access in (mount.stat, mount.listdir, mount.open, mount.unlink):
            with pytest.raises(NotADirectoryError):
                access(path)
        with pytest.raises(NotADirectoryError):
            mount.open(path, "w")
        assert mount.resolve_path(path).full_path is None


@pytest.mark.parametrize(("dialect", "shown"), [(None, ["a", "b"]), ("oci", ["a"])])
def test_w11_a_mark_on_a_root_means_the_same_to_listing_and_resolving(
    tmp_path: Path, dialect: str | None, shown: list[str]
) -> None:
    """W-11: an opaque root hides deeper layers with OCI marks alone (V4); both go by it."""
    make_layers(tmp_path, {"a": file()}, {"b": file()})
    if dialect is None:
        os.setxattr(tmp_path / "lower0", MARKS.key("opaque"), b"y")
    else:
        (tmp_path / "lower0/.wh..wh..opq").write_bytes(b"")
    with open_layers(tmp_path, lower_dialects=[dialect, dialect]) as mount:
        listed = mount.listdir()
        assert sorted(listed) == shown
        assert [name for name in ("a", "b") if mount.exists(name)] == shown
        assert [name for name in ("a", "b") if mount.explain(name).answer] == shown


class Recorder:
    """A gate that allows everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Operation, str]] = []

    def check(self, operation: Operation, path: str) -> None:
        self.asked.append((operation, path))


@pytest.mark.parametrize(
    "spelling",
    ["d/x", "/d/x", "./d/x", "d//x", "d/./x", ".//d/././x", "d/../d/x", "../../d/x", "e/../d/x"],
)
def test_w12_every_spelling_is_one_path(tmp_path: Path, spelling: str) -> None:
    """W-12: a gate sees the one canonical path, and there is one entry behind all spellings."""
    make_layers(tmp_path, {"d/x": file(b"x"), "e": directory()})
    gate = Recorder()
    config = LayerMountConfig(tmp_path / "upper", [tmp_path / "lower0"])
    with LayerMount.create(config, gate=gate) as mount:
        assert mount.stat(spelling).st_ino == mount.stat("d/x").st_ino
        assert mount.resolve_path(spelling).path == "d/x"
        mount.open(spelling, "r+").close()
        mount.chmod(spelling, 0o600)
        mount.unlink(spelling)
        assert {path for _, path in gate.asked} == {"d/x"}
        assert (Operation.DELETE, "d/x") in gate.asked
        assert not mount.exists("d/x")


@pytest.mark.parametrize("name", [".overlay", ".layermount", ".layermount-work", ".wh.x", "work"])
@pytest.mark.parametrize("above", ["", "d/"])
def test_w13_no_name_is_reserved_at_any_depth(tmp_path: Path, name: str, above: str) -> None:
    """W-13: nothing of ours lies in the tree, so nothing is hidden or refused for its name."""
    with open_overlay(tmp_path, {f"{above}{name}/in": file(b"lower"), "d": directory()}) as mount:
        path = f"{above}{name}"
        assert name in mount.listdir(above)
        mount.path(path).joinpath("new").write_text("new")
        assert sorted(mount.listdir(path)) == ["in", "new"]
        mount.rename(path, f"{path}2")
        assert mount.path(f"{path}2/in").read_text() == "lower"


def test_w14_names_keep_their_case(tmp_path: Path) -> None:
    """W-14: names are what the caller gave, and differ when their case does."""
    with open_overlay(tmp_path, {"Dir/File": file(b"lower")}) as mount:
        mount.path("Dir/File").write_text("changed")
        mount.path("Dir/FILE").write_text("another")
        mount.mkdir("DIR")
        mount.rename("Dir/File", "Dir/file")
        mount.setxattr("Dir/FILE", "user.MixedCase", b"")
        assert names_below(mount) == ["DIR", "Dir", "Dir/FILE", "Dir/file"]
        assert mount.path("Dir/file").read_text() == "changed"
        assert mount.listxattr("Dir/FILE") == ["user.MixedCase"]
        assert not mount.exists("Dir/File")
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == ["DIR", "Dir", "Dir/FILE", "Dir/file"]


@pytest.mark.parametrize("dialect", [None, "oci"])
def test_w15_a_name_that_looks_like_a_mark_is_a_name(tmp_path: Path, dialect: str | None) -> None:
    """W-15: the right to create a file is not the right to delete another one."""
    make_layers(tmp_path)
    build(tmp_path / "lower0", {"d/x": file(b"x")}, marks=OCI)
    with open_layers(tmp_path, lower_dialects=[dialect]) as mount:
        mount.path("d/.wh.x").write_text("")
        mount.path("d/.wh..wh..opq").write_text("")
        mount.path("d/t").write_text("")
        mount.rename("d/t", "d/.wh.t")
        mount.symlink("x", "d/.wh.link")
        expected = [".wh..wh..opq", ".wh.link", ".wh.t", ".wh.x", "x"]
        assert sorted(mount.listdir("d")) == expected
        assert mount.path("d/x").read_bytes() == b"x"
    with open_layers(tmp_path, lower_dialects=[dialect]) as mount:
        assert sorted(mount.listdir("d")) == expected


def test_w15_nobody_makes_a_mark_by_hand(tmp_path: Path) -> None:
    """W-15: neither a whiteout device nor the attributes of marks are made through the overlay."""
    with open_overlay(tmp_path, {"d/x": file(b"x"), "e": file()}) as mount:
        with pytest.raises(PermissionError):
            mount.mknod("d/y", stat.S_IFCHR | 0o600, os.makedev(0, 0))
        for record, value in (("opaque", b"y"), ("redirect", b"/e"), ("whiteout", b"")):
            mount.setxattr("d", MARKS.key(record), value)
            assert mount.getxattr("d", MARKS.key(record)) == value
        assert mount.listdir("d") == ["x"]
    with open_layers(tmp_path) as mount:
        assert mount.listdir("d") == ["x"]
        assert mount.getxattr("d", MARKS.key("opaque")) == b"y"


@pytest.mark.parametrize("call", ["ensure_in_upper", "stat", "open", "explain", "set_opaque"])
def test_w16_no_path_tells_of_what_is_outside(tmp_path: Path, call: str) -> None:
    """W-16: ".." stops at the root, so a path to the outside is one inside, there or not."""
    (tmp_path / "secret").write_text("secret")
    with open_overlay(tmp_path, {"f": file()}) as mount:
        answers: list[int | None] = []
        for path in ("../secret", "../missing", "../../../../etc/passwd"):
            try:
                getattr(mount, call)(path)
                answers.append(None)
            except OSError as error:
                answers.append(error.errno)
        assert len(set(answers)) == 1
        assert answers[0] in (None, errno.ENOENT)
        assert not (tmp_path / "upper/secret").is_file()
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("origin", ["upper", "lower"])
@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_w19_and_w20_creation_collides_with_what_is_visible(
    tmp_path: Path, origin: str, there: str
) -> None:
    """W-19, W-20: a name is taken whatever layer has it, and what has it stays as it was."""
    entries: Tree = {
        "file": {"n": file(b"old")},
        "directory": {"n/child": file(b"old")},
        "link": {"n": symlink("nowhere")},
    }[there]
    upper, lower = (entries, {}) if origin == "upper" else ({}, entries)
    with open_overlay(tmp_path, lower, upper=upper) as mount:
        before = names_below(mount), mount.lstat("n")
        calls: list[Callable[[], object]] = [
            lambda: mount.create_file("n"),
            lambda: mount.open("n", "x"),
            lambda: mount.mkdir("n"),
            lambda: mount.symlink("t", "n"),
            lambda: mount.mkfifo("n"),
            lambda: mount.path("n").touch(exist_ok=False),
        ]
        for call in calls:
            with pytest.raises(FileExistsError):
                call()
        assert (names_below(mount), mount.lstat("n")) == before


ESCAPES: dict[str, Act] = {
    "read": lambda mount: mount.path("out/secret").read_text(),
    "write": lambda mount: mount.path("out/secret").write_text("pwned"),
    "create": lambda mount: mount.path("out/new").write_text("pwned"),
    "mkdir": lambda mount: mount.mkdir("out/dir"),
    "list": lambda mount: mount.listdir("out"),
    "unlink": lambda mount: mount.unlink("out/secret"),
    "chmod": lambda mount: mount.chmod("out/secret", 0o777),
    "opaque": lambda mount: mount.set_opaque("out"),
    "whiteout": lambda mount: mount.create_whiteout("out/secret"),
    "rename": lambda mount: mount.rename("f", "out/secret"),
    "up": lambda mount: mount.ensure_in_upper("out/secret"),
}


@pytest.mark.parametrize("act", ESCAPES)
@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_w65_a_link_in_a_layer_leads_nowhere_outside(tmp_path: Path, act: str, form: str) -> None:
    """W-65: a link on the way is followed inside the overlay, or not at all."""
    outside = build(tmp_path / "outside", {"secret": file(b"secret")})
    target = str(outside) if form == "absolute" else "../outside"
    make_layers(tmp_path, {"out": symlink(target), "f": file(b"f")})
    before = digest(outside)
    with open_layers(tmp_path) as mount, pytest.raises(OSError, match="out") as caught:
        ESCAPES[act](mount)
    # In the overlay there is no such directory; where one would be made the link is in the way.
    assert caught.value.errno in (errno.ENOENT, errno.EEXIST)
    assert digest(outside) == before


@pytest.mark.parametrize("layer", ["upper", "lower0"])
def test_w65_a_directory_swapped_for_a_link_redirects_nothing(tmp_path: Path, layer: str) -> None:
    """W-65: who can write to a layer on disk cannot turn the overlay's writes elsewhere."""
    outside = build(tmp_path / "outside", {"x": file(b"secret")})
    before = digest(outside)
    tree: Tree = {"d/x": file(b"x")}
    upper, lower = (tree, {}) if layer == "upper" else ({}, tree)
    with open_overlay(tmp_path, lower, upper=upper) as mount:
        assert mount.listdir() == ["d"]
        (tmp_path / layer / "d").rename(tmp_path / "was-d")
        (tmp_path / layer / "d").symlink_to(outside)
        with pytest.raises(OSError, match="d/") as caught:
            mount.path("d/new").write_text("pwned")
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
        with pytest.raises(OSError, match="d/x"):
            mount.path("d/x").read_text()
    assert digest(outside) == before


def test_w66_a_missing_name_costs_no_look_at_the_layers(tmp_path: Path) -> None:
    """W-66: that something is not there is remembered, too."""
    lowers: list[Tree] = [{f"d/{number}": file()} for number in range(20)]
    with open_overlay(tmp_path, *lowers) as mount:
        mount.listdir("d")
        before = mount.get_stats()
        for number in range(1000):
            assert not mount.exists(f"d/missing{number}")
        after = mount.get_stats()
        assert after.cache_misses == before.cache_misses
        assert after.cache_hits >= before.cache_hits + 1000


def test_w66_a_change_drops_nothing_that_is_remembered(tmp_path: Path) -> None:
    """W-66: what changes is put right where it is; nothing is read again because of it."""
    with open_overlay(tmp_path, {f"{n}/f": file() for n in range(50)}) as mount:
        list(mount.walk())
        before = mount.get_stats().cache_misses
        for number in range(50):
            mount.path(f"{number}/new").write_text("")
            mount.rename(f"{number}/new", f"{number}/newer")
            mount.unlink(f"{number}/f")
        assert [names for _, _, names in mount.walk() if names] == [["newer"]] * 50
        assert mount.get_stats().cache_misses == before


def test_w66_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    """W-66: the least recently used directory is forgotten, and is the same when read again."""
    tree = {f"{number:02}/f": file() for number in range(30)}
    with open_overlay(tmp_path, tree, path_cache_capacity=3) as mount:
        events = heard(mount)
        for _ in range(2):
            for number in range(30):
                assert mount.listdir(f"{number:02}") == ["f"]
        nodes = mount.overlay.tree.root.children.values()
        remembered = [n for n in nodes if isinstance(n, DirectoryNode) and n.index is not None]
        assert 0 < len(remembered) <= 3
        assert mount.get_stats().cache_misses >= 60
        assert events == []
