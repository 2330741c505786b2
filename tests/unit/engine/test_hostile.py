"""Layers made to do harm, and callers who ask for too much. Rules: B1 to B4, L1 to L4."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layermount.config import LayerMountConfig
from layermount.engine.node import DirectoryNode
from layermount.engine.overlay import Overlay
from layermount.errors import (
    ConfigError,
    LayerBusyError,
    LayerCorruptError,
    LayerMountError,
    LayerUnavailableError,
)
from layermount.layer.base import CHARACTER_DEVICE, LINK, REGULAR
from layermount.layer.marks import OVERLAY, OVERLAY_USER
from layermount.linux import mounts
from layermount.testing.oracles import EngineTarget
from layermount.testing.trees import build, digest, directory, file, snapshot, symlink
from tests import forked

MARKS = OVERLAY if os.geteuid() == 0 else OVERLAY_USER


@contextmanager
def opened(upper: Path, *lowers: Path, **options: object) -> Iterator[EngineTarget]:
    upper.mkdir(exist_ok=True)
    target = EngineTarget(
        LayerMountConfig(upper, lowers, own_redirects=True, **options)  # type: ignore[arg-type]  # passed on
    )
    try:
        yield target
    finally:
        target.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that nothing may reach; it is the same afterwards."""
    secret = build(tmp_path / "outside", {"secret": file(b"secret"), "dir/secret": file(b"secret")})
    before = digest(secret)
    yield secret
    assert digest(secret) == before, "something outside the layers was changed"


LINKS: dict[str, Callable[[Path], str]] = {
    "absolute": str,
    "upwards": lambda outside: f"../../{outside.name}",
    "proc": lambda outside: f"/proc/self/cwd/../../..{outside}",
}


@pytest.mark.parametrize("where", ["upper", "lower"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_is_an_entry_and_leads_nowhere(
    tmp_path: Path, outside: Path, link: str, where: str
) -> None:
    layers = {"upper": tmp_path / "upper", "lower": tmp_path / "lower"}
    for path in layers.values():
        path.mkdir()
    (layers[where] / "link").symlink_to(LINKS[link](outside))
    with opened(layers["upper"], layers["lower"]) as target:
        root = target.overlay.root
        node = target.overlay.lookup(root, "link")
        assert node.kind == LINK
        assert not isinstance(node, DirectoryNode)
        for do in (
            lambda: target.overlay.open(node, os.O_RDWR),
            lambda: target.overlay.open(node, os.O_RDONLY),
            lambda: target.overlay.rmdir(root, "link"),
            lambda: target.overlay.truncate(node, 0),
        ):
            with pytest.raises(OSError, match="link"):
                do()
        target.overlay.utimens(node, 1, 1)
        if os.geteuid() == 0:
            target.overlay.chown(node, 5, 5)
        target.overlay.rename(root, "link", root, "moved")
        target.overlay.unlink(root, "moved")


def test_a_link_in_the_middle_of_a_lower_hides_what_is_deeper(
    tmp_path: Path, outside: Path
) -> None:
    near = build(tmp_path / "near", {"dir": symlink(str(outside))})
    far = build(tmp_path / "far", {"dir/file": file()})
    with opened(tmp_path / "upper", near, far) as target:
        assert set(snapshot(target)) == {".", "dir"}
        assert not isinstance(target.overlay.lookup(target.overlay.root, "dir"), DirectoryNode)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/", "", "../outside/secret"])
def test_a_name_is_one_component(tmp_path: Path, outside: Path, name: str) -> None:
    build(tmp_path / "lower", {"file": file(), "dir/file": file()})
    with opened(tmp_path / "upper", tmp_path / "lower") as target:
        overlay, root = target.overlay, target.overlay.root
        node = overlay.lookup(root, "file")
        attempts: list[Callable[[], object]] = [
            lambda: overlay.create(root, name),
            lambda: overlay.mkdir(root, name),
            lambda: overlay.symlink(root, name, "x"),
            lambda: overlay.mknod(root, name, 0o010644),
            lambda: overlay.link(node, root, name),
            lambda: overlay.unlink(root, name),
            lambda: overlay.rmdir(root, name),
            lambda: overlay.rename(root, "file", root, name),
            lambda: overlay.rename(root, name, root, "new"),
            lambda: overlay.whiteout(root, name),
        ]
        for do in attempts:
            with pytest.raises(OSError, match=r"Errno"):
                do()
        assert set(snapshot(target)) == {".", "file", "dir", "dir/file"}


def test_a_parent_swapped_for_a_link_leads_nothing_outside(tmp_path: Path, outside: Path) -> None:
    """Somebody swaps a directory of each layer for a link while the engine works."""
    lower = build(tmp_path / "lower", {f"dir/sub/{number}": file(b"lower") for number in range(50)})
    upper = build(tmp_path / "upper", {"dir/sub": directory(), "secret": file()})
    stop = threading.Event()

    def swap(layer: Path) -> None:
        aside, place, link = layer / "dir/aside", layer / "dir/sub", layer / "dir/link"
        link.symlink_to(outside)
        dir_fd = os.open(layer, os.O_RDONLY)
        while not stop.is_set():
            try:
                place.rename(aside)
                link.rename(place)
                place.rename(link)
                aside.rename(place)
            except OSError:
                # The engine has moved one of them itself.
                continue
        os.close(dir_fd)

    def work(target: EngineTarget, number: int) -> None:
        path = f"dir/sub/{number % 50}"
        steps: list[Callable[[], object]] = [
            lambda: target.write(path, b"changed", 0),
            lambda: target.chmod(path, 0o777),
            lambda: target.create("dir/sub/secret", 0o600, b"new"),
            lambda: target.rename("secret", "dir/sub/secret", 0),
            lambda: target.unlink("dir/sub/secret"),
            lambda: target.rename("dir/sub/secret", "secret", 0),
            lambda: target.mkdir("dir/sub/dir", 0o700),
            lambda: target.rmdir("dir/sub/dir"),
            lambda: target.setxattr("dir/sub", "user.x", b"1", 0),
        ]
        for step in steps:
            try:
                step()
            except (OSError, LayerMountError):
                # What fails is not the question here.
                continue

    threads = [threading.Thread(target=swap, args=(layer,)) for layer in (upper, lower)]
    for thread in threads:
        thread.start()
    try:
        deadline, rounds = time.monotonic() + 3, 0
        while time.monotonic() < deadline:
            with opened(upper, lower) as target:
                work(target, rounds)
            rounds += 1
        assert rounds > 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b".",
        b"..",
        b"/",
        b"//",
        b"a/b",
        b"/a//b",
        b"/../outside",
        b"/a/..",
        b"/a/./b",
        b"../a",
        b"/a\0b",
        b"a\0",
    ],
)
def test_a_redirect_that_cannot_be_followed_is_damage(
    tmp_path: Path, outside: Path, target: bytes
) -> None:
    near = build(tmp_path / "near", {"dir": directory()})
    far = build(tmp_path / "far", {"a/b/file": file(), "dir/file": file()})
    os.setxattr(near / "dir", MARKS.key("redirect"), target)
    with (
        opened(tmp_path / "upper", near, far) as overlay,
        pytest.raises(LayerCorruptError, match="redirect"),
    ):
        snapshot(overlay)


@pytest.mark.parametrize("target", [b"/nowhere/at/all", b"nowhere", b"/file", b"/link/dir"])
def test_a_redirect_to_nothing_shows_the_directory_alone(
    tmp_path: Path, outside: Path, target: bytes
) -> None:
    near = build(tmp_path / "near", {"dir/near": file()})
    far = build(
        tmp_path / "far", {"dir/far": file(), "file": file(), "link": symlink(str(outside))}
    )
    os.setxattr(near / "dir", MARKS.key("redirect"), target)
    with opened(tmp_path / "upper", near, far) as overlay:
        assert overlay.listdir("dir") == [("near", REGULAR)]


@pytest.mark.parametrize("record", ["origin", "nlink", "impure", "opaque", "uuid", "protattr"])
@pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 200, b"\0\xfb\x1d\0\1" + b"\1" * 24])
def test_a_record_of_rubbish_changes_nothing_that_is_shown(
    tmp_path: Path, record: str, value: bytes
) -> None:
    upper = build(tmp_path / "upper", {"file": file(b"data"), "dir/file": file()})
    lower = build(tmp_path / "lower", {"file": file(b"other"), "dir/lower": file()})
    for path in ("file", "dir"):
        os.setxattr(upper / path, MARKS.key(record), value)
    os.setxattr(upper, MARKS.key("impure"), b"y")
    with opened(upper, lower) as target:
        assert target.read("file") == b"data"
        assert {name for name, _ in target.listdir("dir")} == {"file", "lower"}
        target.write("file", b"D", 0)
        target.rename("file", "dir/moved", 0)
        assert target.read("dir/moved") == b"Data"


def test_a_shell_without_data_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    upper = build(tmp_path / "upper", {"file": file(b"\0" * 100), "other": file(b"\0" * 9)})
    lower = build(tmp_path / "lower", {"other": directory(), "far": file(b"data")})
    for path in ("file", "other"):
        os.setxattr(upper / path, MARKS.key("metacopy"), b"")
    os.setxattr(upper, MARKS.key("impure"), b"y")
    with opened(upper, lower) as target:
        for path in ("file", "other"):
            with pytest.raises(OSError, match="missing") as caught:
                target.read(path)
            assert caught.value.errno == errno.EIO
            with pytest.raises(OSError, match="missing"):
                target.write(path, b"x", 0)
        target.unlink("file")


def test_names_like_marks_of_another_dialect_are_names(tmp_path: Path) -> None:
    names = [".wh.x", ".wh..wh..opq", ".wh..wh.plnk", ".wh.", "#1", "work", "index"]
    lower = build(tmp_path / "lower", {name: file(b"lower") for name in names} | {"x": file()})
    with opened(tmp_path / "upper", lower) as target:
        assert {name for name, _ in target.listdir(".")} == {*names, "x"}
        for name in names:
            assert target.read(name) == b"lower"
            target.write(name, b"upper", 0)
            target.unlink(name)
        assert target.listdir(".") == [("x", REGULAR)]


def test_no_mark_can_be_made_by_its_form(tmp_path: Path) -> None:
    lower = build(tmp_path / "lower", {"file": file()})
    with opened(tmp_path / "upper", lower) as target:
        with pytest.raises(PermissionError):
            target.mknod("mark", CHARACTER_DEVICE << 12, 0)
        target.mkdir("dir", 0o755)
        target.setxattr("dir", MARKS.key("opaque"), b"y", 0)
        target.setxattr("dir", MARKS.key("redirect"), b"/../..", 0)
        target.create("empty", 0o600, b"")
        target.setxattr("empty", MARKS.key("whiteout"), b"", 0)
    with opened(tmp_path / "upper", lower) as target:
        assert {name for name, _ in target.listdir(".")} == {"file", "dir", "empty"}
        assert target.listdir("dir") == []


@pytest.mark.parametrize(
    "name", ["a" * 255, "é" * 127, "\udcff\udc80", "new\nline", " ", "\\", "~"]
)
def test_any_name_is_kept(tmp_path: Path, name: str) -> None:
    lower = build(tmp_path / "lower", {name: file(b"lower"), f"dir/{name}/{name}": file()})
    with opened(tmp_path / "upper", lower) as target:
        target.write(name, b"U", 0)
        target.rename(f"dir/{name}", f"{name}2"[-255:], 0)
        target.unlink(name)
        target.symlink(name, name)
        assert target.readlink(name) == name
    with opened(tmp_path / "upper", lower) as target:
        assert target.readlink(name) == name
        assert [found for found, _ in target.listdir(f"{name}2"[-255:])] == [name] or len(
            name
        ) == 255


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "a" * 5000])
def test_a_name_that_is_too_long_is_enametoolong(tmp_path: Path, name: str) -> None:
    lower = build(tmp_path / "lower", {"file": file(), "dir/file": file()})
    with opened(tmp_path / "upper", lower) as target:
        attempts: list[Callable[[], object]] = [
            lambda: target.stat(name),
            lambda: target.create(name, 0o600, b""),
            lambda: target.mkdir(name, 0o700),
            lambda: target.symlink(name, "x"),
            lambda: target.link("file", name),
            lambda: target.rename("file", name, 0),
            lambda: target.rename(name, "new", 0),
            lambda: target.unlink(name),
            lambda: target.rmdir(name),
        ]
        for number, do in enumerate(attempts):
            with pytest.raises(OSError, match="Errno") as caught:
                do()
            assert caught.value.errno == errno.ENAMETOOLONG, number


def test_a_hundred_thousand_entries(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "many").mkdir(parents=True)
    fd = os.open(lower / "many", os.O_RDONLY)
    for number in range(100_000):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with opened(tmp_path / "upper", lower) as target:
        assert len(target.listdir("many")) == 100_000
        many = target.overlay.lookup(target.overlay.root, "many")
        assert isinstance(many, DirectoryNode)
        for number in range(0, 100_000, 100):
            assert target.overlay.lookup(many, str(number)).kind == REGULAR
        for number in range(100):
            target.overlay.unlink(many, str(number))
        assert len(target.overlay.listdir(many)) == 99_900


@pytest.mark.needs("root")
@pytest.mark.parametrize("where", ["upper", "lower"])
def test_what_is_mounted_in_a_layer_is_not_of_it(tmp_path: Path, where: str) -> None:
    upper = build(tmp_path / "upper", {"dir/upper": file()})
    lower = build(tmp_path / "lower", {"dir/lower": file()})
    point = tmp_path / where / "dir"
    mounts.mount("tmpfs", str(point), "tmpfs", 0)
    try:
        (point / "secret").write_bytes(b"secret")
        with opened(upper, lower) as target:
            if where == "upper":
                with pytest.raises(OSError, match="Errno") as caught:
                    target.listdir("dir")
                assert caught.value.errno == errno.EXDEV
                with pytest.raises(OSError, match="Errno"):
                    target.create("dir/new", 0o600, b"")
            else:
                assert {name for name, _ in target.listdir("dir")} == {"lower", "upper"}
                target.create("dir/new", 0o600, b"")
        assert os.listdir(point) == ["secret"]
    finally:
        mounts.umount2(str(point))


OVERLAPS: dict[str, tuple[str, str | None, list[str]]] = {
    "same lower twice": ("upper", None, ["lower", "lower"]),
    "upper is lower": ("upper", None, ["upper"]),
    "lower in lower": ("upper", None, ["lower", "lower/dir"]),
    "lower in upper": ("upper", None, ["upper/dir"]),
    "upper in lower": ("lower/dir", None, ["lower"]),
    "work in upper": ("upper", "upper/work", ["lower"]),
    "work in lower": ("upper", "lower/work", ["lower"]),
    "work is upper": ("upper", "upper", ["lower"]),
    "upper in work": ("other/dir", "other", ["lower"]),
    "by a link": ("upper", None, ["lower", "link"]),
    "in by a link": ("upper", None, ["lower", "link/dir"]),
}


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    for name in ("upper", "lower", "other"):
        build(tmp_path / name, {"dir/file": file()})
    (tmp_path / "link").symlink_to("lower")
    return tmp_path


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_layers_that_overlap_are_refused(overlapping: Path, overlap: str) -> None:
    upper, work, lowers = OVERLAPS[overlap]
    before = digest(overlapping / "lower")
    with pytest.raises(ConfigError, match=r"same directory|lies inside"):
        Overlay(
            LayerMountConfig(
                overlapping / upper,
                [overlapping / path for path in lowers],
                work_dir_path=None if work is None else overlapping / work,
            )
        )
    assert digest(overlapping / "lower") == before


@pytest.mark.needs("root")
@pytest.mark.parametrize("source", ["lower", "lower/dir", "upper", "upper/dir"])
def test_layers_that_overlap_by_a_bind_mount_are_refused(overlapping: Path, source: str) -> None:
    bound = overlapping / "bound"
    bound.mkdir()
    mounts.mount(str(overlapping / source), str(bound), "", mounts.MS_BIND)
    try:
        config = LayerMountConfig(overlapping / "upper", [overlapping / "lower", bound])
        with pytest.raises(ConfigError, match=r"same directory|lies inside"):
            Overlay(config)
    finally:
        mounts.umount2(str(bound))


@pytest.mark.parametrize("shared", ["upper", "work"])
def test_a_second_owner_is_refused_by_name(tmp_path: Path, shared: str) -> None:
    for name in ("upper", "lower", "other"):
        (tmp_path / name).mkdir()
    mine = LayerMountConfig(
        tmp_path / "upper", [tmp_path / "lower"], work_dir_path=tmp_path / "work"
    )
    theirs = LayerMountConfig(
        tmp_path / ("upper" if shared == "upper" else "other"),
        [tmp_path / "lower"],
        work_dir_path=tmp_path / ("work" if shared == "work" else "work2"),
    )
    found: list[BaseException] = []

    def second() -> None:
        with pytest.raises(LayerBusyError, match=f"^{shared}.*this process") as caught:
            Overlay(theirs)
        found.append(caught.value)

    overlay = Overlay(mine)
    try:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert found
        name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        who = f"process {os.getpid()} .{name[:6]}"
        with pytest.raises(LayerBusyError, match=f"^{shared}.*{who}"):
            forked.in_child(lambda: Overlay(theirs))
    finally:
        overlay.close()
    Overlay(theirs).close()


@pytest.mark.needs("ext4")
def test_filesystems(tmp_path: Path, ext4_dir: Path) -> None:
    other = build(ext4_dir / "lower", {"file": file(b"data"), "dir/file": file()})
    (tmp_path / "upper").mkdir()
    with pytest.raises(ConfigError, match="another filesystem"):
        Overlay(LayerMountConfig(tmp_path / "upper", [other], work_dir_path=ext4_dir / "work"))
    near = build(tmp_path / "near", {"dir/near": file()})
    with opened(tmp_path / "upper", near, other) as target:
        before = {path: entry.inode for path, entry in snapshot(target).items()}
        assert len(set(before.values())) == len(before)
        target.write("file", b"D", 0)
        target.chmod("dir/file", 0o600)
        target.rename("dir", "moved", 0)
    with opened(tmp_path / "upper", near, other) as target:
        assert target.read("file") == b"Data"
        after = {path: entry.inode for path, entry in snapshot(target).items()}
    assert after == {path.replace("dir", "moved"): inode for path, inode in before.items()}


@pytest.mark.parametrize("what", ["missing", "file", "loop"])
def test_what_is_no_directory_is_unavailable(tmp_path: Path, what: str) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lower").mkdir()
    for upper, lowers in (
        (tmp_path / what, [tmp_path / "lower"]),
        (tmp_path / "upper", [tmp_path / what]),
    ):
        with pytest.raises(LayerUnavailableError):
            Overlay(LayerMountConfig(upper, lowers))


def test_a_failed_opening_leaves_the_locks_free(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    for _ in range(3):
        with pytest.raises(LayerUnavailableError):
            Overlay(LayerMountConfig(tmp_path / "upper", [tmp_path / "missing"]))
    (tmp_path / "missing").mkdir()
    Overlay(LayerMountConfig(tmp_path / "upper", [tmp_path / "missing"])).close()
