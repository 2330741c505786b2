"""`LayerMountFile` and `mount.open`: the same as Python's own files on a plain directory."""

from __future__ import annotations

import array
import csv
import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layermount import ClosedError, LayerMountFile
from layermount.testing.trees import Entry, Tree, build, directory, file, symlink
from tests.unit.overlays import BIG, files_below, is_shell, names_below, open_overlay

Open = Callable[..., Any]

ENTRIES: Tree = {
    "file": file(b"one\ntwo\nthree\n"),
    "empty": file(b""),
    "dir": directory(),
    "link": symlink("file"),
    "dangling": symlink("missing-target"),
    "dirlink": symlink("dir"),
    "loop": symlink("loop"),
    "d/in": file(b"inside"),
}
MODES = ["r", "rb", "r+", "w", "wb", "w+b", "x", "x+", "a", "ab+", "b+r", "+tw"]
PATHS = [
    "file", "empty", "missing", "dir", "link", "dangling", "dirlink", "loop", "d/in", "d/new",
    "none/x", "file/x", "dir/", "missing/", "file/", "dirlink/", ".", "d/../file", "x" * 256,
]  # fmt: skip


def outcome(opener: Open, *arguments: object, **options: object) -> object:
    """What opening, reading, writing and closing gives: values, or a class and an errno."""
    seen: list[object] = []
    try:
        with opener(*arguments, **options) as opened:
            text = isinstance(opened, io.TextIOBase)
            seen += [type(opened).__name__, opened.mode] if not is_raw(opened) else [opened.mode]
            seen += [opened.readable(), opened.writable(), opened.seekable(), opened.tell()]
            for act in (
                lambda: opened.read(5),
                lambda: opened.write("1\n2" if text else b"1\n2"),
                lambda: opened.seek(2),
                opened.readline,
                lambda: opened.truncate(9),
                lambda: opened.seek(0, os.SEEK_END),
            ):
                seen.append(caught(act))
            seen.append(opened.closed)
        seen.append(opened.closed)
    except (OSError, ValueError, LookupError, TypeError) as error:
        seen.append(form_of(error))
    return seen


def is_raw(opened: object) -> bool:
    return isinstance(opened, io.RawIOBase)


def caught(act: Callable[[], object]) -> object:
    try:
        return act()
    except (OSError, ValueError) as error:
        return form_of(error)


def form_of(error: Exception) -> object:
    kind = ValueError if isinstance(error, ClosedError) else type(error)
    return kind, getattr(error, "errno", None)


def needed(path: str) -> Tree:
    """The entries that matter to what is at a path."""
    first = path.replace("d/../", "").partition("/")[0]
    names = (
        {first, "file"} if first == "link" else {first, "dir"} if first == "dirlink" else {first}
    )
    return {
        name: entry for name, entry in ENTRIES.items() if name.partition("/")[0] in names | {"d"}
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_open_is_the_built_in_open(tmp_path: Path, mode: str, layer: str) -> None:
    """On every kind of entry: same values, or the same exception and errno; same files after it."""
    tree: dict[str, Entry] = {}
    for number, path in enumerate(PATHS):
        tree |= {f"{number}/{name}": entry for name, entry in needed(path).items()}
    plain = build(tmp_path / "plain", tree)
    upper, lower = (tree, {}) if layer == "upper" else ({}, tree)
    with open_overlay(tmp_path, lower, upper=upper) as mount:
        for number, path in enumerate(PATHS):
            expected = outcome(open, f"{plain}/{number}/{path}", mode)
            assert (path, outcome(mount.open, f"{number}/{path}", mode)) == (path, expected)
        assert names_below(mount) == files_below(plain)
        for top, _, names in mount.walk():
            for name in names:
                if stat.S_ISREG(mount.lstat(f"{top}/{name}").st_mode):
                    data = (plain / top / name).read_bytes()
                    assert mount.path(f"{top}/{name}").read_bytes() == data
        assert mount.get_stats().active_handles == 0


@pytest.mark.parametrize(
    "mode", ["", "+", "b", "rw", "rr", "r++", "rbt", "z", "U", "r b", "rU", "wbb"]
)
def test_a_mode_that_open_does_not_know(tmp_path: Path, mode: str) -> None:
    plain = build(tmp_path / "plain", {"f": file(b"data")})
    with open_overlay(tmp_path, {"f": file(b"data")}) as mount:
        with pytest.raises(ValueError, match="mode"):
            open(plain / "f", mode)  # noqa: SIM115  it is never open
        with pytest.raises(ValueError, match="mode"):
            mount.open("f", mode)
        assert mount.path("f").read_bytes() == b"data"


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("r", {"buffering": 0}),
    ("w", {"buffering": 0}),
    ("rb", {"buffering": 0}),
    ("r+b", {"buffering": 0}),
    ("ab", {"buffering": 0}),
    ("xb", {"buffering": 0}),
    ("r", {"buffering": 1}),
    ("w+", {"buffering": 1}),
    ("rb", {"buffering": 2}),
    ("rb", {"buffering": 100000}),
    ("rb", {"encoding": "utf-8"}),
    ("wb", {"errors": "strict"}),
    ("wb", {"newline": ""}),
    ("r", {"encoding": "latin-1", "errors": "replace", "newline": ""}),
    ("w", {"newline": "\r\n"}),
    ("r", {"newline": "x"}),
    ("r", {"encoding": "no-such-encoding"}),
]


@pytest.mark.parametrize(("mode", "options"), OPTIONS)
def test_open_takes_the_built_in_options(
    tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    name = "missing" if "x" in mode else "file"
    plain = build(tmp_path / "plain", ENTRIES)
    with open_overlay(tmp_path / "layers", ENTRIES) as mount:
        expected = outcome(open, plain / name, mode, **options)
        assert outcome(mount.open, name, mode, **options) == expected
        assert mount.get_stats().active_handles == 0


@pytest.mark.parametrize(
    ("mode", "options"), [("w", {"buffering": 0}), ("wb", {"encoding": "utf-8"}), ("rw", {})]
)
def test_arguments_that_do_not_go_together_leave_the_file_alone(
    tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    with open_overlay(tmp_path, ENTRIES) as mount:
        with pytest.raises(ValueError, match=r"mode|unbuffered"):
            mount.open("file", mode, **options)
        assert mount.path("file").read_bytes() == b"one\ntwo\nthree\n"
        assert not (tmp_path / "upper/file").exists()


RAW_CALLS: dict[str, Callable[[Any], object]] = {
    "read": lambda f: (f.read(3), f.read(), f.read(), f.tell()),
    "readall": lambda f: f.readable() and (f.seek(4), f.readall(), f.readall()),
    "readinto": lambda f: (f.readinto(b := bytearray(4)), bytes(b)),
    "readinto array": lambda f: (f.readinto(b := array.array("I", [0, 0])), b.tobytes()),
    "readline": lambda f: (f.readline(), f.readlines()),
    "iterate": list,
    "seek": lambda f: (f.seek(-2, os.SEEK_END), f.read(), f.seek(-5, os.SEEK_CUR), f.read(1)),
    "seek after the end": lambda f: (f.seek(100), f.read(), f.tell()),
    "seek before the start": lambda f: f.seek(-1),
    "seek far back": lambda f: f.seek(-100, os.SEEK_CUR),
    "seek to data": lambda f: f.seek(3, os.SEEK_DATA),
    "seek to a hole": lambda f: f.seek(3, os.SEEK_HOLE),
    "seek to data after the end": lambda f: f.seek(10, os.SEEK_DATA),
    "seek nowhere": lambda f: f.seek(0, 99),
    "write": lambda f: (f.write(b"abc"), f.tell(), f.seek(0), f.read()),
    "write array": lambda f: (f.write(array.array("H", [1, 2])), f.tell()),
    "write memory": lambda f: f.write(memoryview(b"abcdef")[::1]),
    "write nothing": lambda f: (f.write(b""), f.tell()),
    "write text": lambda f: f.writable() and f.write("text"),
    "write after the end": lambda f: (f.seek(12), f.write(b"x"), f.seek(0), f.read()),
    "writelines": lambda f: (f.writelines([b"a", b"b"]), f.tell()),
    "truncate": lambda f: (f.seek(4), f.truncate(), f.tell(), f.seek(0), f.read()),
    "truncate to": lambda f: (f.truncate(20), f.tell(), f.seek(0), f.read()),
    "truncate to less than nothing": lambda f: f.truncate(-1),
    "flush": lambda f: f.flush(),
    "what it is": lambda f: (f.readable(), f.writable(), f.seekable(), f.isatty(), f.mode),
    "closed": lambda f: (f.closed, f.close(), f.closed, f.close()),
}


@pytest.mark.parametrize("mode", ["rb", "wb", "ab", "r+b", "w+b", "a+b"])
def test_a_raw_file_behaves_as_pythons_own(tmp_path: Path, mode: str) -> None:
    tree = {name: file(b"0123456789") for name in RAW_CALLS}
    plain = build(tmp_path / "plain", tree)
    with open_overlay(tmp_path, tree) as mount:
        for name, act in RAW_CALLS.items():
            with io.FileIO(plain / name, mode) as expected, mount.open(name, mode, 0) as opened:
                wanted = caught_type(act, expected)
                assert (name, caught_type(act, opened)) == (name, wanted)
            assert (name, mount.path(name).read_bytes()) == (name, (plain / name).read_bytes())


def caught_type(act: Callable[[Any], object], opened: object) -> object:
    try:
        return act(opened)
    except (OSError, ValueError, TypeError) as error:
        return form_of(error)


CLOSED_CALLS: dict[str, Callable[[Any], object]] = {
    "read": lambda f: f.read(1),
    "readall": lambda f: f.readall(),
    "readinto": lambda f: f.readinto(bytearray(1)),
    "readline": lambda f: f.readline(),
    "write": lambda f: f.write(b"x"),
    "seek": lambda f: f.seek(0),
    "tell": lambda f: f.tell(),
    "truncate": lambda f: f.truncate(0),
    "flush": lambda f: f.flush(),
    "fileno": lambda f: f.fileno(),
    "readable": lambda f: f.readable(),
    "writable": lambda f: f.writable(),
    "seekable": lambda f: f.seekable(),
    "iterate": next,
    "enter": lambda f: f.__enter__(),
}
OUR_CALLS: dict[str, Callable[[LayerMountFile], object]] = {
    "pread": lambda f: f.pread(1, 0),
    "pwrite": lambda f: f.pwrite(b"x", 0),
    "overwrite": lambda f: f.overwrite(),
    "fsync": lambda f: f.fsync(),
    "info": lambda f: f.info,
}


@pytest.mark.parametrize("call", CLOSED_CALLS)
def test_after_close_pythons_own_files_raise_value_error(tmp_path: Path, call: str) -> None:
    """What the next test demands of ours."""
    opened = io.FileIO(tmp_path / "f", "w+")
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        CLOSED_CALLS[call](opened)


def test_after_close_every_call_is_an_error(tmp_path: Path) -> None:
    """`ClosedError` is a `ValueError`, which is what Python's own files raise."""
    with open_overlay(tmp_path, {"f": file(b"data")}) as mount:
        for act in (CLOSED_CALLS | OUR_CALLS).values():
            opened = mount.open_file("f", os.O_RDWR)
            opened.close()
            assert opened.closed
            with pytest.raises(ValueError, match="closed"):
                act(opened)
            opened.close()


def test_after_the_overlay_is_closed_every_call_on_its_files_is_an_error(tmp_path: Path) -> None:
    # To Python, a file whose overlay is gone is open still.
    calls = {n: act for n, act in (CLOSED_CALLS | OUR_CALLS).items() if n not in ("flush", "enter")}
    with open_overlay(tmp_path, {"f": file(b"data")}) as mount:
        files = {name: mount.open_file("f", os.O_RDWR) for name in calls}
    for name, act in calls.items():
        with pytest.raises(ClosedError, match="closed"):
            act(files[name])
        files[name].close()
        assert files[name].closed


def test_what_is_still_in_a_buffer_when_the_overlay_closes_is_not_lost_in_silence(
    tmp_path: Path,
) -> None:
    with open_overlay(tmp_path, {"f": file(b"old")}) as mount:
        opened = mount.open("f", "w")
        opened.write("new")
    with pytest.raises(ClosedError):
        opened.close()
    assert opened.closed


def test_a_file_closes_itself_when_nobody_has_it(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"f": file(b"old")}) as mount:
        opened = mount.open_file("f", os.O_RDONLY)
        assert mount.get_stats().active_handles == 1
        del opened
        assert mount.get_stats().active_handles == 0


@pytest.mark.parametrize("data", ["", "one line", "größe\nzwei\r\ndrei\n" * 1000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_text(tmp_path: Path, data: str, encoding: str) -> None:
    plain = tmp_path / "plain"
    with open_overlay(tmp_path / "layers", {"f": file(b"old")}) as mount:
        for newline in (None, "", "\n", "\r\n"):
            with plain.open("w", encoding=encoding, newline=newline) as expected:
                expected.write(data)
            with mount.open("f", "w", encoding=encoding, newline=newline) as opened:
                assert isinstance(opened, io.TextIOWrapper)
                opened.write(data)
            assert mount.path("f").read_bytes() == plain.read_bytes()
            with (
                mount.open("f", encoding=encoding, newline=newline) as opened,
                plain.open(encoding=encoding, newline=newline) as expected,
            ):
                assert list(opened) == list(expected)
                opened.seek(0)
                assert opened.read() == data if newline == "" else True


def test_programs_of_the_standard_library_take_its_files(tmp_path: Path) -> None:
    rows = [["name", "value"], ["a", "1"], ["ü", "x,y"]]
    with open_overlay(tmp_path, {"in": file(BIG)}) as mount:
        with mount.open("in", "rb") as source, mount.open("copy", "wb") as target:
            shutil.copyfileobj(source, target)
        assert mount.path("copy").read_bytes() == BIG

        with mount.open("z", "w+b") as opened, zipfile.ZipFile(opened, "w") as archive:
            archive.writestr("member", BIG, zipfile.ZIP_DEFLATED)
        with mount.open("z", "r+b") as opened, zipfile.ZipFile(opened, "a") as archive:
            archive.writestr("second", b"2")
        with mount.open("z", "rb") as opened, zipfile.ZipFile(opened) as archive:
            assert archive.read("member") == BIG
            assert archive.read("second") == b"2"
            assert archive.testzip() is None

        with mount.open("t", "wb") as opened, tarfile.open(fileobj=opened, mode="w:gz") as tar:
            member = tarfile.TarInfo("member")
            member.size = len(BIG)
            tar.addfile(member, io.BytesIO(BIG))
        with mount.open("t", "rb") as opened, tarfile.open(fileobj=opened) as tar:
            extracted = tar.extractfile("member")
            assert extracted is not None
            assert extracted.read() == BIG

        with gzip.open(mount.open_file("g", os.O_WRONLY | os.O_CREAT), "wb") as packed:
            packed.write(BIG)
        with mount.open("g", "rb") as opened, gzip.open(opened) as packed:
            assert packed.read() == BIG

        with mount.open("c", "w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows(rows)
        with mount.open("c", newline="", encoding="utf-8") as opened:
            assert list(csv.reader(opened)) == rows


def test_positions_of_holes_and_data(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {}) as mount, mount.create_file("f") as opened:
        opened.seek(1 << 20)
        opened.write(b"x" * 4096)
        opened.truncate(4 << 20)
        assert opened.seek(0, os.SEEK_DATA) == 1 << 20
        assert opened.read(1) == b"x"
        assert opened.seek(1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
        with pytest.raises(OSError, match="No such device or address") as caught:
            opened.seek(2 << 20, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO


def test_append_goes_to_the_end_whoever_else_writes(tmp_path: Path) -> None:
    with (
        open_overlay(tmp_path, {"f": file(b"0")}) as mount,
        mount.open("f", "ab", 0) as first,
        mount.open("f", "ab", 0) as second,
    ):
        for number in range(1, 9):
            (first if number % 2 else second).write(b"%d" % number)
        assert mount.path("f").read_bytes() == b"012345678"
        assert (first.tell(), second.tell()) == (8, 9)


@pytest.mark.parametrize("mode", ["rb", "r"])
@pytest.mark.parametrize("is_copied_up_by", ["write", "chmod, then write", "truncate", "rename"])
def test_a_reader_sees_a_later_writer_across_copy_up(
    tmp_path: Path, mode: str, is_copied_up_by: str
) -> None:
    with (
        open_overlay(tmp_path, {"f": file(b"old-old-old")}) as mount,
        mount.open("f", mode, 0 if "b" in mode else 1) as reader,
    ):
        assert reader.read(3) in (b"old", "old")
        number = reader.fileno()
        path = "f"
        if is_copied_up_by == "chmod, then write":
            mount.chmod("f", 0o600)
            assert is_shell(tmp_path, "f")
        elif is_copied_up_by == "truncate":
            mount.truncate("f", 3)
        elif is_copied_up_by == "rename":
            path = "g"
            mount.rename("f", path)
        with mount.open(path, "r+b") as writer:
            writer.write(b"new-new-new")
        reader.seek(0)
        assert reader.read() in (b"new-new-new", "new-new-new")
        assert reader.fileno() == number
    assert (tmp_path / "lower0/f").read_bytes() == b"old-old-old"


@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_file_goes_on_without_its_name(tmp_path: Path, layer: str, mode: str) -> None:
    tree: Tree = {"d/f": file(b"old")}
    upper, lower = (tree, {}) if layer == "upper" else ({}, tree)
    flags = os.O_RDWR if "+" in mode else os.O_RDONLY
    with (
        open_overlay(tmp_path, lower, upper=upper) as mount,
        mount.open_file("d/f", flags) as opened,
    ):
        mount.unlink("d/f")
        mount.path("d/f").write_text("another")
        if "+" in mode:
            opened.write(b"new")
            opened.seek(0)
        assert opened.read() == (b"new" if "+" in mode else b"old")
        assert opened.info.st_size == 3
        assert opened.path == "d/f"
        assert mount.path("d/f").read_text() == "another"
        mount.create_whiteout("d")
        opened.seek(0)
        assert len(opened.read()) == 3


def test_a_file_goes_on_under_its_new_name(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"a/f": file(b"old"), "b/x": file()}) as mount:
        with mount.open_file("a/f", os.O_RDWR) as opened:
            mount.rename("a/f", "b/g")
            assert (opened.path, opened.name) == ("b/g", "b/g")
            opened.write(b"new")
            mount.rename("b", "c")
            assert opened.path == "c/g"
            assert opened.info.st_size == 3
        assert mount.path("c/g").read_bytes() == b"new"
        assert not mount.exists("a/f")


def test_a_replaced_file_is_the_one_that_was_opened(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"f": file(b"old"), "g": file(b"new")}) as mount:
        with mount.open("f", "rb") as opened:
            mount.replace("g", "f")
            assert opened.read() == b"old"
        assert mount.path("f").read_bytes() == b"new"


def test_a_fifo_is_a_stream(tmp_path: Path) -> None:
    received: list[bytes] = []
    with open_overlay(tmp_path, {}) as mount:
        mount.mkfifo("p")

        def receive() -> None:
            with mount.open("p", "rb") as reader:
                assert not reader.seekable()
                received.append(reader.read())

        thread = threading.Thread(target=receive)
        thread.start()
        with mount.open("p", "wb") as writer:
            writer.write(b"one ")
            writer.flush()
            writer.write(b"two")
        thread.join(60)
        assert received == [b"one two"]
        fd = mount.open_file("p", os.O_RDWR | os.O_NONBLOCK)
        with fd, pytest.raises(OSError, match="Illegal seek") as caught:
            fd.seek(0)
        assert caught.value.errno == errno.ESPIPE


def test_reading_everything_takes_few_calls(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:
        assert mount.path("f").read_bytes() == BIG
        assert mount.get_stats().reads <= 3
        assert mount.get_stats().bytes_read == len(BIG)


def test_positions_of_calls_that_take_one_are_their_own(tmp_path: Path) -> None:
    with (
        open_overlay(tmp_path, {"f": file(b"0123456789")}) as mount,
        mount.open_file("f", os.O_RDWR) as opened,
    ):
        assert opened.read(2) == b"01"
        assert opened.pread(3, 5) == b"567"
        assert opened.pread(3, 100) == b""
        assert opened.pwrite(b"xyz", 8) == 3
        assert opened.tell() == 2
        assert opened.read() == b"234567xyz"
        opened.overwrite()
        assert (opened.tell(), opened.info.st_size) == (0, 0)
        opened.fsync()
