"""What LayerMount 0.2 lacks around its engine, by its number: patterns, locks, events, defaults."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from layermount import (
    ClosedError,
    ConfigError,
    Event,
    EventKind,
    LayerBusyError,
    LayerMount,
    LayerMountConfig,
    LayerMountFile,
    LayerUnavailableError,
)
from layermount.testing.trees import digest, file
from tests import forked
from tests.unit.overlays import (
    BIG,
    config_of,
    heard,
    in_turn,
    is_shell,
    make_layers,
    open_layers,
    open_overlay,
)

Act = Callable[[LayerMount], object]

# What each pattern matches of these names: every class of pattern, stars inside and in the middle.
NAMES = ["my-secret-file", "public", "secret", "secret.txt", "sacred.txt", "x.tar.gz"]
PATTERNS = {
    "*secret*": ["my-secret-file", "secret", "secret.txt"],
    "*secret": ["secret"],
    "secret*": ["secret", "secret.txt"],
    "s*t": ["secret", "secret.txt", "sacred.txt"],
    "s*.t*t": ["secret.txt", "sacred.txt"],
    "s?cret": ["secret"],
    "s??red.txt": ["sacred.txt"],
    "[sp]*": ["public", "secret", "secret.txt", "sacred.txt"],
    "[!sp]*": ["my-secret-file", "x.tar.gz"],
    "*.*.*": ["x.tar.gz"],
    "*": NAMES,
    "secret": ["secret"],
    "SECRET": [],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_w07_every_class_of_pattern_matches(tmp_path: Path, pattern: str) -> None:
    """W-07: a star means the same wherever it stands in a pattern, and so does `?`."""
    with open_overlay(tmp_path, {f"d/{name}": file() for name in NAMES}) as mount:
        root, expected = mount.path(), sorted(f"d/{name}" for name in PATTERNS[pattern])
        assert sorted(str(path) for path in root.glob(f"d/{pattern}")) == expected
        assert sorted(str(path) for path in root.glob(f"*/{pattern}")) == expected
        below = {str(path) for path in root.rglob(pattern)}
        assert sorted(below - {"d"}) == expected


OLD, NEW = b"o" * 65536, b"n" * 65536


def test_w34_one_handle_serves_reads_and_writes_of_many_threads(tmp_path: Path) -> None:
    """W-34: copy-up under an open handle pulls nothing away from whoever is reading through it."""
    rounds, readers = 30, 3
    wrong: list[object] = []

    def read(handle: LayerMountFile, start: threading.Barrier, done: threading.Event) -> None:
        start.wait(60)
        while True:
            # Looked at first, so that there is one read after the last write.
            last = done.is_set()
            try:
                data = handle.pread(len(OLD), 0)
            except OSError as error:
                wrong.append(error)
                return
            if data not in (OLD, NEW):
                wrong.append(data)
            if last:
                if data != NEW:
                    wrong.append("the last read saw nothing of the write")
                return

    with open_overlay(tmp_path, {str(n): file(OLD) for n in range(rounds)}) as mount:
        for number in range(rounds):
            start, done = threading.Barrier(readers + 1), threading.Event()
            with mount.open_file(str(number), os.O_RDONLY) as handle:
                threads = [
                    threading.Thread(target=read, args=(handle, start, done))
                    for _ in range(readers)
                ]
                for thread in threads:
                    thread.start()
                start.wait(60)
                # One call: what is on disk changes from all old to all new only by the copy-up.
                with mount.open_file(str(number), os.O_RDWR) as writer:
                    writer.pwrite(NEW, 0)
                done.set()
                for thread in threads:
                    thread.join(60)
    assert not any(not is_mixture(item) for item in wrong)


def is_mixture(item: object) -> bool:
    """Whether a read met the write halfway: the kernel may show that on any file."""
    return isinstance(item, bytes) and len(item) == len(OLD) and set(item) <= set(b"on")


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads that take turns every few instructions, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("many_switches")
def test_w34_closing_under_a_reader_is_an_error_not_another_file(tmp_path: Path) -> None:
    """W-34: after a close there is a ClosedError, never the data of whoever got the number next."""
    found: set[object] = set()

    def read(handle: LayerMountFile) -> None:
        try:
            while True:
                found.add(handle.pread(9, 0))
        except (ClosedError, OSError) as error:
            found.add(type(error))

    with open_overlay(tmp_path, {"f": file(b"mine"), "g": file(b"other")}) as mount:
        for _ in range(100):
            handle = mount.open_file("f", os.O_RDONLY)
            threads = [threading.Thread(target=read, args=(handle,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            handle.close()
            others = [mount.open_file("g", os.O_RDONLY) for _ in range(3)]
            for thread in threads:
                thread.join(60)
            for other in others:
                other.close()
        assert mount.get_stats().active_handles == 0
    assert found == {b"mine", ClosedError}


def test_w54_an_upper_has_one_owner(tmp_path: Path) -> None:
    """W-54: a second overlay on the same upper is refused, and says who has it."""
    with open_overlay(tmp_path, {}):
        with pytest.raises(LayerBusyError, match="this process"):
            open_layers(tmp_path)
        # Another work directory is no way around it.
        with pytest.raises(LayerBusyError, match="upper"):
            open_layers(tmp_path, work_dir_path=tmp_path / "other-work")
    open_layers(tmp_path).close()


def test_w54_a_work_directory_has_one_owner(tmp_path: Path) -> None:
    """W-54: two uppers may not share a work directory while both are in use."""
    (tmp_path / "other").mkdir()
    work = tmp_path / "work"
    with open_overlay(tmp_path, {}, work_dir_path=work):
        other = LayerMountConfig(tmp_path / "other", work_dir_path=work)
        with pytest.raises(LayerBusyError, match="work"):
            LayerMount.create(other)


def test_w54_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """W-54: a killed process leaves no lock behind; a lower needs none at all."""
    make_layers(tmp_path, {"f": file(b"f")})
    held: list[LayerMount] = []

    def hold() -> None:
        held.append(open_layers(tmp_path))
        held[0].path("f").write_text("changed")

    forked.killed(hold)
    with open_layers(tmp_path) as mount:
        assert mount.path("f").read_text() == "changed"
        with LayerMount.create(LayerMountConfig(None, [tmp_path / "lower0"])) as second:
            assert second.path("f").read_text() == "f"


def test_w54_another_process_is_named(tmp_path: Path) -> None:
    """W-54: the message says which process has the upper."""
    make_layers(tmp_path)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = forked.fork()
    if pid == 0:
        try:
            mount = open_layers(tmp_path)
            os.write(writer, b"open")
            signal.pause()
            mount.close()
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 4) == b"open"
        with pytest.raises(LayerBusyError, match=f"process {pid}"):
            open_layers(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


# Layers that overlap, as paths below one directory: upper, lowers, work directory.
OVERLAPS: dict[str, tuple[str, list[str], str]] = {
    "upper is a lower": ("a", ["a"], "work"),
    "upper below a lower": ("a/b", ["a"], "work"),
    "lower below the upper": ("a", ["a/b"], "work"),
    "one lower twice": ("up", ["a", "a"], "work"),
    "a lower below another": ("up", ["a", "a/b"], "work"),
    "work is the upper": ("a", ["c"], "a"),
    "work below the upper": ("a", ["c"], "a/b"),
    "upper below work": ("a/b", ["c"], "a"),
    "work is a lower": ("up", ["a"], "a"),
    "work below a lower": ("up", ["a"], "a/b"),
    "by another spelling": ("up", ["a", "c/../a"], "work"),
    "by a link": ("up", ["a", "link"], "work"),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_w54_layers_that_overlap_are_refused(tmp_path: Path, case: str) -> None:
    """W-54: what is changed through one would show in the other."""
    make_overlapping(tmp_path)
    upper, lowers, work = OVERLAPS[case]
    config = LayerMountConfig(
        tmp_path / upper, [tmp_path / lower for lower in lowers], work_dir_path=tmp_path / work
    )
    with pytest.raises((ConfigError, LayerBusyError)):
        LayerMount.create(config)


def make_overlapping(base: Path) -> None:
    for name in ("a/b", "c", "up"):
        (base / name).mkdir(parents=True)
    (base / "link").symlink_to("a")


@pytest.mark.parametrize("lower", ["a", "a/b"])
def test_w54_a_refused_configuration_changes_nothing(tmp_path: Path, lower: str) -> None:
    """W-54: a lower that is named as the work directory by mistake loses nothing."""
    make_overlapping(tmp_path)
    (tmp_path / lower / "work").mkdir()
    (tmp_path / lower / "work/precious").write_text("data")
    before = digest(tmp_path / "a")
    config = LayerMountConfig(tmp_path / "up", [tmp_path / "a"], work_dir_path=tmp_path / lower)
    with pytest.raises(ConfigError):
        LayerMount.create(config)
    assert digest(tmp_path / "a") == before


def test_w54_a_work_directory_elsewhere_is_refused(tmp_path: Path) -> None:
    """W-54: what lands in the upper must land with one rename."""
    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is on the filesystem of the test's directory")
    (tmp_path / "upper").mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        config = LayerMountConfig(tmp_path / "upper", work_dir_path=Path(elsewhere, "work"))
        with pytest.raises(ConfigError, match="another filesystem"):
            LayerMount.create(config)


def test_w54_a_missing_layer_is_named(tmp_path: Path) -> None:
    """W-54: what cannot be opened is said, not called "not writable"."""
    make_layers(tmp_path, {})
    for config in (
        LayerMountConfig(tmp_path / "missing"),
        LayerMountConfig(tmp_path / "upper", [tmp_path / "missing"]),
    ):
        with pytest.raises(LayerUnavailableError, match="missing"):
            LayerMount.create(config)
    # Nothing is kept locked by what failed.
    open_layers(tmp_path).close()


def test_w64_there_is_a_work_directory_without_naming_one(tmp_path: Path) -> None:
    """W-64: it lies beside the upper, one for each upper, and is made when it is missing."""
    uppers = [tmp_path / name for name in ("one", "two")]
    for upper in uppers:
        upper.mkdir()
    with (
        LayerMount.create(LayerMountConfig(uppers[0])) as first,
        LayerMount.create(LayerMountConfig(uppers[1])) as second,
    ):
        for mount, name in ((first, "one"), (second, "two")):
            assert mount.config.work_dir_path == tmp_path / ".layermount-work" / name
            mount.path("f").write_text(name)
            assert (tmp_path / ".layermount-work" / name).is_dir()
    assert [(upper / "f").read_text() for upper in uppers] == ["one", "two"]


# What each change reports, over the layers of the test below.
REPORTED: dict[str, tuple[Act, list[tuple[EventKind, str]]]] = {
    "create": (lambda m: m.path("new").write_text("x"), [(EventKind.CREATED, "new")]),
    "mkdir": (lambda m: m.mkdir("new"), [(EventKind.CREATED, "new")]),
    "symlink": (lambda m: m.symlink("t", "new"), [(EventKind.CREATED, "new")]),
    "link": (
        lambda m: m.link("f", "new"),
        [(EventKind.COPY_UP, "f"), (EventKind.CREATED, "new")],
    ),
    "write": (
        lambda m: m.path("d/f").write_text("x"),
        [(EventKind.COPY_UP, "d"), (EventKind.COPY_UP, "d/f")],
    ),
    "chmod": (lambda m: m.chmod("f", 0o600), [(EventKind.COPY_UP, "f")]),
    "chmod, then data": (
        in_turn(lambda m: m.chmod("f", 0o600), lambda m: m.ensure_in_upper("f")),
        [(EventKind.COPY_UP, "f"), (EventKind.COPY_UP_DATA, "f")],
    ),
    "unlink of a lower": (
        lambda m: m.unlink("f"),
        [(EventKind.WHITEOUT_CREATED, "f"), (EventKind.REMOVED, "f")],
    ),
    "unlink in the upper": (lambda m: m.unlink("u"), [(EventKind.REMOVED, "u")]),
    "rmdir": (lambda m: m.rmdir("ud"), [(EventKind.REMOVED, "ud")]),
    "rename in the upper": (lambda m: m.rename("u", "v"), [(EventKind.RENAMED, "v")]),
    "rename of a lower": (
        lambda m: m.rename("d", "e"),
        [
            (EventKind.COPY_UP, "d"),
            (EventKind.RENAMED, "e"),
            (EventKind.WHITEOUT_CREATED, "d"),
        ],
    ),
    "opaque": (
        lambda m: m.set_opaque("d"),
        [(EventKind.COPY_UP, "d"), (EventKind.OPAQUE_SET, "d")],
    ),
    "whiteout": (
        lambda m: m.create_whiteout("d"),
        [(EventKind.WHITEOUT_CREATED, "d"), (EventKind.REMOVED, "d")],
    ),
    "whiteout of nothing": (
        lambda m: m.create_whiteout("none"),
        [(EventKind.WHITEOUT_CREATED, "none")],
    ),
    "read": (lambda m: (m.path("d/f").read_bytes(), list(m.walk())), []),
    "a failure": (lambda m: m.exists("f/x") or m.access("none", os.W_OK), []),
}


@pytest.mark.parametrize("case", REPORTED)
def test_w67_everything_that_happens_is_reported(tmp_path: Path, case: str) -> None:
    """W-67: copy-ups with lazy data, creations, removals, renames, marks: each once, in order."""
    act, expected = REPORTED[case]
    lower = {"f": file(b"f"), "d/f": file(b"df")}
    with open_overlay(tmp_path, lower, upper={"u": file(), "ud/x": file()}) as mount:
        mount.unlink("ud/x")
        found = heard(mount)
        act(mount)
        assert found == expected


def test_w67_a_rename_tells_both_paths(tmp_path: Path) -> None:
    """W-67: whoever follows a file by its events can."""
    with open_overlay(tmp_path, {"a/f": file(b"f"), "b/x": file()}) as mount:
        events: list[Event] = []
        mount.on_event(events.append)
        mount.rename("a/f", "b/g")
        renamed = [(e.old_path, e.path) for e in events if e.kind is EventKind.RENAMED]
        assert renamed == [("a/f", "b/g")]
        assert {event.pid for event in events} == {os.getpid()}
        assert [event.timestamp_ns for event in events] == sorted(e.timestamp_ns for e in events)


def test_w67_any_number_of_subscribers_and_a_failing_one_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """W-67: each subscriber hears everything; one that raises is logged and keeps its place."""
    first: list[str] = []
    last: list[str] = []
    failures = 0

    def fail(event: Event) -> None:
        nonlocal failures
        failures += 1
        raise RuntimeError(f"cannot handle {event.path}")

    with open_overlay(tmp_path, {"f": file(b"f")}) as mount:
        mount.on_event(lambda event: first.append(event.path))
        mount.on_event(fail)
        subscription = mount.on_event(lambda event: last.append(event.path))
        with caplog.at_level(logging.ERROR, "layermount.events"):
            mount.path("f").write_text("changed")
            mount.mkdir("d")
        assert mount.path("f").read_text() == "changed"
        assert (first, last, failures) == (["f", "d"], ["f", "d"], 2)
        assert [record.name for record in caplog.records] == ["layermount.events"] * 2
        assert "cannot handle d" in caplog.text
        subscription.close()
        subscription.close()
        caplog.clear()
        with caplog.at_level(logging.CRITICAL, "layermount.events"):
            mount.mkdir("e")
        assert (first, last) == (["f", "d", "e"], ["f", "d"])


def test_w67_a_subscriber_may_use_the_overlay(tmp_path: Path) -> None:
    """W-67: no lock is held while events are told."""
    sizes: list[int] = []
    with open_overlay(tmp_path, {"f": file(BIG)}) as mount:

        def look(event: Event) -> None:
            if event.kind is EventKind.COPY_UP:
                thread = threading.Thread(target=lambda: sizes.append(mount.stat("f").st_size))
                thread.start()
                thread.join(60)
                mount.path("log").write_text(event.path)

        mount.on_event(look)
        mount.chmod("f", 0o600)
        assert is_shell(tmp_path, "f")
        assert sizes == [len(BIG)]
        assert mount.path("log").read_text() == "f"


def test_w67_events_come_in_the_thread_that_caused_them(tmp_path: Path) -> None:
    """W-67: another thread that finishes meanwhile does not tell this one's events."""
    told: dict[str, int | None] = {}
    is_held, may_go = threading.Event(), threading.Event()

    def note(event: Event) -> None:
        told[event.path] = threading.current_thread().ident
        if event.path == "a":
            is_held.set()
            may_go.wait(60)

    with open_overlay(tmp_path, {"a/b/f": file(b"f")}) as mount:
        mount.on_event(note)
        thread = threading.Thread(target=lambda: mount.chmod("a/b/f", 0o600))
        thread.start()
        assert is_held.wait(60)
        # Two more events of the other thread wait.
        mount.mkdir("mine")
        may_go.set()
        thread.join(60)
        assert told["mine"] == threading.get_ident()
        assert {told[path] for path in ("a", "a/b", "a/b/f")} == {thread.ident}


def test_relative_names_of_a_configuration_are_of_the_moment_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As W-54 and W-64: a path without a slash works, and changing directory later does no harm."""
    make_layers(tmp_path, {"f": file(b"f")})
    monkeypatch.chdir(tmp_path)
    with LayerMount.create(LayerMountConfig("upper", ["lower0"])) as mount:
        monkeypatch.chdir("/")
        mount.path("f").write_text("changed")
        assert PurePosixPath(str(mount.resolve_path("f").full_path)) == PurePosixPath("upper/f")
    assert (tmp_path / "upper/f").read_text() == "changed"
    assert config_of(tmp_path).work_dir_path == tmp_path / ".layermount-work/upper"
