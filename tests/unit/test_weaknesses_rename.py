"""What LayerMount 0.2 loses when it renames and deletes, by its number; ours must not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layermount import LayerMount, LayerMountConfig
from layermount.layer.marks import OVERLAY_USER
from layermount.testing.oracles import EngineTarget
from layermount.testing.trees import (
    Entry,
    Snapshot,
    Tree,
    assert_same,
    build,
    digest,
    directory,
    file,
    snapshot,
    whiteout,
    without,
)
from tests.forked import USER, in_child, user_directory
from tests.unit.overlays import (
    BIG,
    MARKS,
    config_of,
    files_below,
    is_shell,
    make_layers,
    names_below,
    open_layers,
    open_overlay,
)


def test_w04_a_directory_of_several_lowers_moves_as_it_is_shown(tmp_path: Path) -> None:
    """W-04: the merged view moves, with what each lower adds and without what a mark deletes."""
    lowers: list[Tree] = [
        {"d/a": file(b"0"), "d/gone": whiteout(), "d/sub/s0": file(b"s0")},
        {"d/a": file(b"hidden"), "d/b": file(b"1"), "d/gone": file(), "d/sub/s1": file(b"s1")},
        {"d/c": file(b"2"), "d/gone": file()},
    ]
    expected = ["e", "e/a", "e/b", "e/c", "e/sub", "e/sub/s0", "e/sub/s1"]
    with open_overlay(tmp_path, *lowers) as mount:
        mount.rename("d", "e")
        assert names_below(mount) == expected
        assert mount.path("e/a").read_bytes() == b"0"
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == expected
        assert mount.path("e/sub/s1").read_bytes() == b"s1"


def test_w05_a_directory_moved_onto_a_deleted_one_shows_its_own_content_only(
    tmp_path: Path,
) -> None:
    """W-05: what was deleted does not come back inside what takes its name."""
    with open_overlay(tmp_path, {"d/old": file(), "d/sub/old": file()}) as mount:
        mount.create_whiteout("d")
        mount.mkdir("new")
        mount.path("new/own").write_text("")
        mount.mkdir("new/sub")
        mount.rename("new", "d")
        assert names_below(mount) == ["d", "d/own", "d/sub"]
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == ["d", "d/own", "d/sub"]


def test_w06_a_new_file_inherits_nothing_from_the_one_removed_before(tmp_path: Path) -> None:
    """W-06: records are on the object itself, so they go when it goes."""
    tree: Tree = {"f": file(BIG, xattrs={"user.old": b"1"}), "d/x": file(b"x")}
    with open_overlay(tmp_path, tree) as mount:
        mount.chmod("f", 0o600)
        assert is_shell(tmp_path, "f")
        mount.unlink("f")
        mount.path("f").write_text("new")
        mount.rename("d", "e")
        mount.create_whiteout("e")
        mount.mkdir("e")
    with open_layers(tmp_path) as mount:
        assert mount.path("f").read_text() == "new"
        assert mount.listxattr("f") == []
        assert mount.listdir("e") == []


@pytest.mark.parametrize("target", ["g", "d/g", "d/sub/g"])
def test_w06_a_metadata_only_copy_keeps_its_data_when_it_is_renamed(
    tmp_path: Path, target: str
) -> None:
    """W-06: the record moves with the file."""
    with open_overlay(tmp_path, {"a/f": file(BIG), "d/sub": directory()}) as mount:
        mount.chmod("a/f", 0o600)
        mount.rename("a/f", target)
        assert is_shell(tmp_path, target)
        assert mount.path(target).read_bytes() == BIG
    with open_layers(tmp_path) as mount:
        assert mount.path(target).read_bytes() == BIG
        mount.ensure_in_upper(target)
        assert mount.path(target).read_bytes() == BIG


def test_w23_layers_work_wherever_they_are(tmp_path: Path) -> None:
    """W-23: no record names a place on this machine, so layers may be moved elsewhere."""
    base = tmp_path / "base"
    with open_overlay(base, {"a/f": file(BIG), "d/x": file(b"x"), "d/y": file(b"y")}) as mount:
        mount.chmod("a/f", 0o600)
        mount.rename("a/f", "f")
        mount.rename("d", "e")
        mount.unlink("e/y")
        inode = mount.stat("f").st_ino
    moved = tmp_path / "some/where/else"
    moved.parent.mkdir(parents=True)
    base.rename(moved)
    with open_layers(moved) as mount:
        assert names_below(mount) == ["a", "e", "e/x", "f"]
        assert mount.path("f").read_bytes() == BIG
        assert mount.path("e/x").read_bytes() == b"x"
        # Without the right to open by handle, a file is found again under its old name only.
        assert mount.stat("f").st_ino == inode or os.geteuid() != 0


def test_w21_what_is_in_the_upper_below_a_moved_directory_keeps_its_meaning(tmp_path: Path) -> None:
    """W-21: nested marks stay marks, nested opacity stays, copies without data keep their data."""
    tree: Tree = {
        "d/gone/x": file(),
        "d/sub/deleted": file(),
        "d/sub/shell": file(BIG),
        "d/remade/old": file(),
    }
    expected = ["e", "e/remade", "e/remade/new", "e/sub", "e/sub/shell"]
    with open_overlay(tmp_path, tree) as mount:
        mount.create_whiteout("d/gone")
        mount.unlink("d/sub/deleted")
        mount.chmod("d/sub/shell", 0o600)
        mount.create_whiteout("d/remade")
        mount.mkdir("d/remade")
        mount.path("d/remade/new").write_text("")
        assert is_shell(tmp_path, "d/sub/shell")
        mount.rename("d", "e")
        assert names_below(mount) == expected
        assert mount.path("e/sub/shell").read_bytes() == BIG
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == expected
        assert mount.path("e/sub/shell").read_bytes() == BIG


def test_w24_a_directory_of_a_lower_is_moved_without_copying_it(tmp_path: Path) -> None:
    """W-24: the rename costs one directory, however much is below."""
    tree = {f"d/{top}/{name}": file(b"x") for top in range(20) for name in range(20)}
    with open_overlay(tmp_path, tree) as mount:
        mount.rename("d", "e")
        assert len(names_below(mount, "e")) == 20 * 21
        assert mount.get_stats().copy_ups == 1
    # The directory, and the mark where it was.
    assert files_below(tmp_path / "upper") == ["d", "e"]


def test_w24_without_records_it_is_refused_and_not_copied(tmp_path: Path) -> None:
    """W-24: where the kernel would not follow a record, the answer is the kernel's: EXDEV."""
    make_layers(tmp_path, {"d/x": file(b"x")})
    before = digest(tmp_path / "lower0")
    config = config_of(tmp_path, dialect=OVERLAY_USER.name, own_redirects=False)
    with LayerMount.create(config) as mount:
        with pytest.raises(OSError, match="d") as caught:
            mount.rename("d", "e")
        assert caught.value.errno == errno.EXDEV
        assert (caught.value.filename, caught.value.filename2) == ("d", "e")
        assert names_below(mount) == ["d", "d/x"]
    assert digest(tmp_path / "lower0") == before


@pytest.mark.parametrize("target", ["d/x", "d/sub/x", "d/sub", "d/../d/sub/x"])
@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_w25_a_directory_is_not_moved_into_itself(tmp_path: Path, target: str, origin: str) -> None:
    """W-25: the answer is EINVAL, and nothing is changed."""
    tree: Tree = {"d/sub": directory(), "d/f": file()}
    upper, lower = (tree, {}) if origin == "upper" else ({}, tree)
    with open_overlay(tmp_path, lower, upper=upper) as mount:
        with pytest.raises(OSError, match="d") as caught:
            mount.rename("d", target)
        assert caught.value.errno == errno.EINVAL
        assert names_below(mount) == ["d", "d/f", "d/sub"]
        assert mount.get_stats().copy_ups == 0
        mount.rename("d", "d")
        assert names_below(mount) == ["d", "d/f", "d/sub"]


REPLACED: dict[str, Tree] = {
    "file": {"old": file(b"old")},
    "empty": {"old": directory()},
    "full": {"old/in": file(b"old")},
}
# What replacing gives, by what moves and what is there: an errno, or 0.
REPLACING = {
    ("file", "file"): 0,
    ("file", "empty"): errno.EISDIR,
    ("file", "full"): errno.EISDIR,
    ("directory", "file"): errno.ENOTDIR,
    ("directory", "empty"): 0,
    ("directory", "full"): errno.ENOTEMPTY,
}


@pytest.mark.parametrize(("moving", "there"), REPLACING)
@pytest.mark.parametrize("old_in", ["upper", "lower"])
@pytest.mark.parametrize("new_in", ["upper", "lower"])
def test_w55_and_w56_only_what_may_be_replaced_is(
    tmp_path: Path, moving: str, there: str, old_in: str, new_in: str
) -> None:
    """W-55, W-56: a directory replaces an empty one only, at once; a refusal leaves both alone."""
    new: Tree = {"new": file(b"new")} if moving == "file" else {"new/own": file(b"new")}
    layers: dict[str, dict[str, Entry]] = {"upper": {}, "lower": {}}
    layers[new_in].update(new)
    layers[old_in].update(REPLACED[there])
    make_layers(tmp_path, layers["lower"], upper=layers["upper"])
    before = view_of(tmp_path)
    expected = REPLACING[moving, there]
    with open_layers(tmp_path) as mount:
        try:
            mount.rename_file("new", "old", replace=True)
            found = 0
        except OSError as error:
            found = error.errno or -1
    assert found == expected
    if expected:
        assert_same(view_of(tmp_path), before)
    else:
        with open_layers(tmp_path) as mount:
            assert names_below(mount) == (["old"] if moving == "file" else ["old", "old/own"])
            path = "old" if moving == "file" else "old/own"
            assert mount.path(path).read_bytes() == b"new"


def view_of(base: Path) -> Snapshot:
    target = EngineTarget(config_of(base))
    try:
        return without(snapshot(target), "nlink")
    finally:
        target.close()


def test_w55_what_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    """W-55: without `replace` whatever is there is the end of it."""
    with open_overlay(tmp_path, {"new": file(b"new"), "old": file(b"old")}) as mount:
        with pytest.raises(FileExistsError):
            mount.rename_file("new", "old")
        assert mount.path("old").read_bytes() == b"old"
        mount.rename_file("new", "other")
        assert names_below(mount) == ["old", "other"]


def test_w68_a_removal_that_fails_is_reported_and_leaves_no_mark(tmp_path: Path) -> None:
    """W-68: a directory that is not empty is neither removed nor deleted by a mark."""
    tree: Tree = {"d/lower": file(), "d/sub/x": file()}
    with open_overlay(tmp_path, tree, upper={"d/upper": file()}) as mount:
        for remove in (mount.rmdir, mount.delete_file, mount.check_can_delete_file):
            with pytest.raises(OSError, match="d") as caught:
                remove("d")
            assert caught.value.errno == errno.ENOTEMPTY
        assert names_below(mount) == ["d", "d/lower", "d/sub", "d/sub/x", "d/upper"]
        assert mount.explain("d").is_deleted is False
    assert files_below(tmp_path / "upper") == ["d", "d/upper"]


def remove_without_the_right(base: Path) -> tuple[list[str], list[str]]:
    build(base / "lower0", {"d/lower": file()}, marks=OVERLAY_USER)
    build(base / "upper", {"d/upper": file()}, marks=OVERLAY_USER)
    # Another one's sticky directory would do the same; this one is the simplest.
    (base / "upper/d").chmod(0o555)
    failed = []
    config = LayerMountConfig(base / "upper", [base / "lower0"])
    with LayerMount.create(config) as mount:
        for name in ("lower", "upper"):
            for remove in (mount.unlink, mount.delete_file, mount.create_whiteout):
                try:
                    remove(f"d/{name}")
                except PermissionError:
                    failed.append(name)
        shown = names_below(mount)
    return failed, shown


def test_w68_a_removal_without_the_right_is_reported_and_leaves_no_mark() -> None:
    """W-68: what the caller may not remove stays visible, and no mark deletes it."""
    with user_directory() as base:
        failed, shown = in_child(lambda: remove_without_the_right(base), user=USER)
        assert failed == ["lower"] * 3 + ["upper"] * 3
        assert shown == ["d", "d/lower", "d/upper"]
        assert files_below(base / "upper") == ["d", "d/upper"]
        (base / "upper/d").chmod(0o755)


def test_a_directory_made_opaque_keeps_the_files_it_has_in_the_upper(tmp_path: Path) -> None:
    """As W-21, for opacity set on purpose: a copy without data gets its data first."""
    tree: Tree = {
        "d/shell": file(BIG),
        "d/lower": file(),
        "d/sub/shell": file(BIG),
        "far/shell": file(BIG),
    }
    expected = ["d", "d/far", "d/far/shell", "d/shell", "d/sub", "d/sub/shell"]
    with open_overlay(tmp_path, tree) as mount:
        mount.chmod("d/shell", 0o600)
        mount.chmod("d/sub/shell", 0o600)
        mount.rename("far", "d/far")
        mount.chmod("d/far/shell", 0o600)
        assert is_shell(tmp_path, "d/sub/shell")
        mount.set_opaque("d")
        assert names_below(mount) == expected
        assert {mount.path(p).read_bytes() == BIG for p in expected if "shell" in p} == {True}
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == expected
        assert {mount.path(p).read_bytes() == BIG for p in expected if "shell" in p} == {True}
    assert os.getxattr(tmp_path / "upper/d", MARKS.key("opaque")) == b"y"
