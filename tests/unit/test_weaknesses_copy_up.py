"""What LayerMount 0.2 gets wrong when it copies up, by its number; ours must not."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount import ConfigError, Event, LayerBusyError, LayerMount
from layermount.linux import files
from layermount.testing.trees import LONG_AGO_NS, build, digest, directory, file, hardlink, whiteout
from tests.unit.overlays import (
    BIG,
    MARKS,
    config_of,
    heard,
    is_shell,
    make_layers,
    open_layers,
    open_overlay,
)


def make_shell(mount: LayerMount, base: Path, path: str = "f") -> None:
    """Let the upper have a copy of `path` with metadata only."""
    mount.chmod(path, 0o600)
    assert is_shell(base, path)


def overwrite_by_open(mount: LayerMount) -> None:
    with mount.open("f", "wb") as opened:
        opened.write(b"new")


def overwrite_by_flags(mount: LayerMount) -> None:
    with mount.open_file("f", os.O_RDWR | os.O_TRUNC) as opened:
        opened.write(b"new")


def overwrite_open_file(mount: LayerMount) -> None:
    with mount.open_file("f", os.O_RDWR) as opened:
        opened.overwrite()
        opened.write(b"new")


def overwrite_by_truncate(mount: LayerMount) -> None:
    mount.truncate("f", 0)
    with mount.open_file("f", os.O_WRONLY) as opened:
        opened.write(b"new")


@pytest.mark.parametrize(
    "overwrite",
    [overwrite_by_open, overwrite_by_flags, overwrite_open_file, overwrite_by_truncate],
)
def test_w02_overwrite_of_a_metadata_only_copy_stays_overwritten(
    tmp_path: Path, overwrite: Callable[[LayerMount], None]
) -> None:
    """W-02: the lower's data never comes back over what was written."""
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        make_shell(mount, tmp_path)
        overwrite(mount)
        assert mount.path("f").read_bytes() == b"new"
        mount.ensure_in_upper("f")
        assert mount.path("f").read_bytes() == b"new"
    with open_layers(tmp_path) as mount:
        assert mount.path("f").read_bytes() == b"new"


@pytest.mark.parametrize("shell", [True, False], ids=["shell", "lower"])
@pytest.mark.parametrize("size", [0, 1, 5000, len(BIG), len(BIG) + 5000])
def test_w03_a_new_size_of_a_metadata_only_copy_holds(
    tmp_path: Path, size: int, shell: bool
) -> None:
    """W-03: completing the data undoes neither truncation nor extension."""
    expected = BIG[:size].ljust(size, b"\0")
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        if shell:
            make_shell(mount, tmp_path)
        mount.truncate("f", size)
        mount.ensure_in_upper("f")
        assert mount.stat("f").st_size == size
        assert mount.path("f").read_bytes() == expected
    with open_layers(tmp_path) as mount:
        assert mount.path("f").read_bytes() == expected


def test_w03_times_set_on_a_metadata_only_copy_hold(tmp_path: Path) -> None:
    """W-03: completing the data leaves the times that the caller set."""
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        mount.utime("f", ns=(11_000_000_001, 22_000_000_002))
        assert is_shell(tmp_path, "f")
        mount.ensure_in_upper("f")
        assert not is_shell(tmp_path, "f")
        assert mount.stat("f").st_mtime_ns == 22_000_000_002
        assert (tmp_path / "upper/f").read_bytes() == BIG


PARENT_CHANGES: dict[str, Callable[[LayerMount], object]] = {
    "create": lambda mount: mount.path("a/b/new").write_text(""),
    "mkdir": lambda mount: mount.mkdir("a/b/new"),
    "symlink": lambda mount: mount.symlink("t", "a/b/new"),
    "rename": lambda mount: mount.rename("top", "a/b/new"),
    "unlink": lambda mount: mount.unlink("a/b/c"),
    "whiteout": lambda mount: mount.create_whiteout("a/b/none"),
    "write": lambda mount: mount.path("a/b/c").write_text("changed"),
}


@pytest.mark.parametrize("change", PARENT_CHANGES)
def test_w17_parents_come_up_with_their_metadata(tmp_path: Path, change: str) -> None:
    """W-17: a directory that is made in the upper on the way is a copy, not a bare mkdir."""
    owner = (1234, 5678) if os.geteuid() == 0 else None
    above = directory(mode=0o2750, owner=owner, xattrs={"user.note": b"kept"})
    tree = {"a": above, "a/b": above, "a/b/c": file(b"c"), "top": file(b"t")}
    with open_overlay(tmp_path, tree) as mount:
        before = mount.stat("a"), mount.stat("a/b")
        PARENT_CHANGES[change](mount)
        for path, old in zip(("a", "a/b"), before, strict=True):
            new = mount.stat(path)
            assert (tmp_path / "upper" / path).is_dir()
            assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
            assert mount.getxattr(path, "user.note") == b"kept"
        # Nothing was made or removed in it.
        assert mount.stat("a").st_mtime_ns == LONG_AGO_NS


@pytest.mark.parametrize(
    "flags",
    [
        os.O_WRONLY,
        os.O_RDWR,
        os.O_RDONLY | os.O_TRUNC,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_CREAT,
        os.O_RDONLY,
        os.O_RDONLY | os.O_CREAT,
    ],
    ids=["write", "read-write", "read-truncate", "append", "create", "read", "read-create"],
)
def test_w18_nothing_opens_a_lower_file_for_writing(tmp_path: Path, flags: int) -> None:
    """W-18: whatever the flags, a descriptor that can write is one of the upper's file."""
    with open_overlay(tmp_path, {"f": file(b"data")}) as mount:
        before = digest(tmp_path / "lower0")
        with mount.open_file("f", flags) as opened:
            access = fcntl.fcntl(opened.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
            lower = os.stat(tmp_path / "lower0/f")
            assert access == os.O_RDONLY or not os.path.samestat(os.fstat(opened.fileno()), lower)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                upper = os.stat(tmp_path / "upper/f")
                assert os.path.samestat(os.fstat(opened.fileno()), upper)
            else:
                assert access == os.O_RDONLY
                assert not (tmp_path / "upper/f").exists()
        assert digest(tmp_path / "lower0") == before


def test_w22_attributes_of_a_metadata_only_copy_are_visible(tmp_path: Path) -> None:
    """W-22: a copy without data has all of its attributes at once."""
    xattrs = {"user.a": b"1", "user.empty": b"", "user.binary": bytes(range(256))}
    with open_overlay(tmp_path, {"f": file(BIG, xattrs=xattrs)}) as mount:
        make_shell(mount, tmp_path)
        assert {key: mount.getxattr("f", key) for key in mount.listxattr("f")} == xattrs
        mount.setxattr("f", "user.a", b"2")
        mount.removexattr("f", "user.empty")
        mount.ensure_in_upper("f")
        shown = {key: mount.getxattr("f", key) for key in mount.listxattr("f")}
        assert shown == {"user.a": b"2", "user.binary": bytes(range(256))}


def make_sparse(path: Path) -> None:
    with path.open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(4 << 20)
        sparse.write(b"middle")
        sparse.truncate(16 << 20)


def segments(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as opened:
        return files.data_segments(opened.fileno(), os.fstat(opened.fileno()).st_size)


def test_w26_holes_stay_holes(tmp_path: Path) -> None:
    """W-26: a sparse file takes no more room after its copy-up."""
    make_layers(tmp_path, {})
    make_sparse(tmp_path / "lower0/f")
    with open_layers(tmp_path) as mount:
        mount.ensure_in_upper("f")
    upper, lower = tmp_path / "upper/f", tmp_path / "lower0/f"
    assert upper.stat().st_blocks * 512 < 1 << 20
    assert segments(upper) == segments(lower)
    assert upper.read_bytes() == lower.read_bytes()


def test_w27_work_files_of_a_crash_are_swept_at_open(tmp_path: Path) -> None:
    """W-27: what a crash left in the work directory is gone, and nothing else is."""
    with open_overlay(tmp_path, {"f": file(b"f")}) as mount:
        work = mount.config.work_dir_path
        assert work is not None
    build(work / "work", {"#1": file(b"half"), "#2/deep/x": file(b"x"), "#3": whiteout()})
    (work / "work/#2").chmod(0)
    with open_layers(tmp_path) as mount:
        assert os.listdir(work / "work") == []
        assert mount.path("f").read_text() == "f"


def test_w27_what_no_overlay_left_is_refused_and_kept(tmp_path: Path) -> None:
    """W-27: a directory that is no work directory loses nothing (rule W3)."""
    build(tmp_path / "data/work", {"#1": file(b"half"), "thesis": file(b"years")})
    make_layers(tmp_path, {})
    config = config_of(tmp_path, work_dir_path=tmp_path / "data")
    with pytest.raises(ConfigError, match="thesis"):
        LayerMount.create(config)
    assert sorted(os.listdir(tmp_path / "data/work")) == ["#1", "thesis"]


def test_w27_work_files_of_a_running_overlay_are_left_alone(tmp_path: Path) -> None:
    """W-27: the sweep happens under the lock only."""
    with open_overlay(tmp_path, {}) as mount:
        work = mount.config.work_dir_path
        assert work is not None
        (work / "work/#busy").write_bytes(b"")
        with pytest.raises(LayerBusyError):
            LayerMount.create(config_of(tmp_path))
        assert (work / "work/#busy").exists()


def look(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (
        path.read_bytes(),
        stat.S_IMODE(status.st_mode),
        status.st_mtime_ns,
        os.getxattr(path, "user.note"),
    )


def test_w28_a_copy_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """W-28: whoever looks at the upper while a file is copied up sees nothing, or all of it."""
    count = 8
    whole = file(BIG, mode=0o640, xattrs={"user.note": b"kept"})
    seen: dict[int, tuple[object, ...]] = {}

    def watch() -> None:
        for number in range(count):
            path = tmp_path / "upper" / str(number)
            while not path.exists():
                pass
            seen[number] = look(path)

    with open_overlay(tmp_path, {str(number): whole for number in range(count)}) as mount:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(count):
            mount.ensure_in_upper(str(number))
        watcher.join(60)
    expected = (BIG, 0o640, LONG_AGO_NS, b"kept")
    assert list(seen.values()) == [expected] * count


def test_w28_the_event_comes_when_the_copy_is_whole(tmp_path: Path) -> None:
    """W-28: who is told of a copy-up finds all of it on disk."""
    found: list[tuple[object, ...]] = []

    def note(event: Event) -> None:
        if event.path == "d/f":
            found.append(look(tmp_path / "upper/d/f"))

    tree = {"d/f": file(BIG, mode=0o640, xattrs={"user.note": b"kept"})}
    with open_overlay(tmp_path, tree) as mount:
        mount.on_event(note)
        mount.ensure_in_upper("d/f")
    assert found == [(BIG, 0o640, LONG_AGO_NS, b"kept")]


@pytest.mark.parametrize(
    "key", ["user.overlay", "user.overlayish", "user.overlay.mine", "user.overlay.overlay.deep"]
)
def test_w60_attributes_named_like_marks_are_kept_and_replaced(tmp_path: Path, key: str) -> None:
    """W-60: no attribute of a user is lost because of its name, and none is left over."""
    with open_overlay(tmp_path, {"f": file(BIG, xattrs={key: b"1"})}) as mount:
        assert mount.getxattr("f", key) == b"1"
        mount.ensure_in_upper("f")
        assert mount.listxattr("f") == [key]
        mount.setxattr("f", key, b"2")
    with open_layers(tmp_path) as mount:
        assert mount.getxattr("f", key) == b"2"
        mount.removexattr("f", key)
        assert mount.listxattr("f") == []


def test_w61_hard_links_of_lowers_are_counted_and_break_at_copy_up(tmp_path: Path) -> None:
    """W-61: a lower's links are reported; one that is changed becomes a file of its own."""
    with open_overlay(tmp_path, {"a": file(b"old"), "b": hardlink("a")}) as mount:
        assert mount.stat("a").st_nlink == mount.stat("b").st_nlink == 2
        assert mount.stat("a").st_ino == mount.stat("b").st_ino
        mount.path("a").write_text("new")
        assert mount.stat("a").st_nlink == 1
        assert mount.stat("a").st_ino != mount.stat("b").st_ino
        assert mount.path("b").read_text() == "old"
    assert (tmp_path / "lower0/a").read_text() == "old"


def test_w61_hard_links_within_the_upper_hold(tmp_path: Path) -> None:
    """W-61: what is linked through the overlay is one file, whatever layer it came from."""
    with open_overlay(tmp_path, {"a": file(BIG)}) as mount:
        mount.link("a", "b")
        mount.path("b").write_text("new")
        assert mount.path("a").read_text() == "new"
        assert mount.stat("a").st_nlink == 2
        assert mount.stat("a").st_ino == mount.stat("b").st_ino
    with open_layers(tmp_path) as mount:
        assert mount.stat("a").st_ino == mount.stat("b").st_ino
        mount.unlink("a")
        assert mount.path("b").read_text() == "new"
        assert mount.stat("b").st_nlink == 1


def test_a_metadata_only_copy_that_is_linked_finds_its_data(tmp_path: Path) -> None:
    """W-02 and W-61 together: the second name of a shell leads to the same data."""
    with open_overlay(tmp_path, {"d/a": file(BIG), "e": directory()}) as mount:
        make_shell(mount, tmp_path, "d/a")
        mount.link("d/a", "e/b")
        mount.unlink("d/a")
        assert mount.path("e/b").read_bytes() == BIG
    with open_layers(tmp_path) as mount:
        assert mount.path("e/b").read_bytes() == BIG
        events = heard(mount)
        with mount.open("e/b", "ab") as opened:
            opened.write(b"!")
        assert events
        assert mount.path("e/b").read_bytes() == BIG + b"!"
    assert MARKS.key("metacopy") not in os.listxattr(tmp_path / "upper/e/b")
