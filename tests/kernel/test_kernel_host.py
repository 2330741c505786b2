"""The kernel's overlayfs as a host: real mounts, as root and as an ordinary user."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from layermount.errors import (
    HostError,
    HostUnavailableError,
    LayerBusyError,
    LayerChangedError,
    LayerMountError,
    LayerUnavailableError,
)
from layermount.hosts import kernel, kernel_layers, kernel_private, rundir
from layermount.hosts.base import Host
from layermount.hosts.kernel import KernelMount, Options
from layermount.hosts.rundir import Outcome
from layermount.linux import mountinfo, mounts, namespaces, processes
from tests.forked import USER, fork, in_child, killed, user_directory

FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
NAMES = {
    "comma": "a,b",
    "colon": "a:b::c",
    "backslash": "a\\b\\:c\\\\",
    "space and tab": " a\tb ",
    "newline": "a\nb",
    "bytes that are not UTF-8": "\udcff\udc80",
    "equals and hash": "a=b#c",
    "an escape": "\\040",
    "as long as can be": "x" * 255,
}
as_root = pytest.mark.needs("root", "overlay")
as_user = pytest.mark.needs("userns")


@dataclass(frozen=True)
class Place:
    """Directories for one overlay below `base`."""

    base: Path

    @property
    def lower(self) -> Path:
        return self.base / "lower"

    @property
    def upper(self) -> Path:
        return self.base / "upper"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def target(self) -> Path:
        return self.base / "target"

    def mount(self, **changes: object) -> KernelMount:
        arguments = {"lowers": [self.lower], "upper": self.upper, "work": self.work}
        return kernel.mount(self.target, **{**arguments, **changes})  # type: ignore[arg-type]  # as the caller says

    def enter(self, target: Path | None = None, **changes: object) -> None:
        arguments = {"lowers": [self.lower], "upper": self.upper, "work": self.work}
        merged = {**arguments, "user_marks": True, **changes}
        kernel_private.enter(target or self.lower, **merged)  # type: ignore[arg-type]  # as the caller says


def made(base: Path, owner: int | None = None) -> Place:
    place = Place(base)
    for path in (place.lower, place.lower / "dir", place.upper, place.work, place.target):
        path.mkdir()
    (place.lower / "file").write_text("lower")
    (place.lower / "dir/inner").write_text("inner")
    if owner is not None and owner != os.geteuid():
        for path in (base, *base.rglob("*")):
            os.chown(path, owner, owner)
    return place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "tree").mkdir()
    return made(tmp_path / "tree")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place of an ordinary user."""
    with user_directory() as path:
        monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(path / "run"))
        (path / "tree").mkdir()
        yield made(path / "tree", USER)


def snapshot(base: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory: mode, modification time, content."""
    found = {}
    for path in sorted(base.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def contents(place: Place) -> list[dict[str, tuple[int, int, bytes]]]:
    """What must stay; in the work directory the kernel makes one of its own before it refuses."""
    return [snapshot(path) for path in (place.lower, place.upper, place.target)]


def mounted(place: Place) -> list[str]:
    """The mount points below a place; other tests may be running."""
    return [mount.target for mount in mountinfo.below(str(place.base))]


@as_root
class TestMount:
    def test_changes_land_in_the_upper_and_the_lower_stays(self, place: Place) -> None:
        before = snapshot(place.lower)
        with place.mount() as mount:
            assert mount.target == place.target
            (place.target / "file").write_text("changed")
            (place.target / "dir/inner").unlink()
            assert (place.target / "file").read_text() == "changed"
        assert snapshot(place.lower) == before
        assert (place.upper / "file").read_text() == "changed"
        assert stat.S_ISCHR((place.upper / "dir/inner").lstat().st_mode)
        assert os.listdir(place.target) == []

    def test_it_is_a_host(self, place: Place) -> None:
        host: Host = place.mount()
        assert (host.name, host.target) == ("kernel", place.target)
        host.unmount()
        host.unmount()

    def test_index_0_wins(self, place: Place) -> None:
        top = place.base / "top"
        top.mkdir()
        (top / "file").write_text("top")
        with place.mount(lowers=[top, place.lower]):
            assert (place.target / "file").read_text() == "top"
        with place.mount(lowers=[place.lower, top]):
            assert (place.target / "file").read_text() == "lower"

    @pytest.mark.parametrize("style", kernel_layers._STYLES, ids=lambda style: style.__name__)
    @pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
    def test_names_of_any_form(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, style: object
    ) -> None:
        monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
        monkeypatch.setattr(kernel_layers, "_STYLES", (style,))
        (tmp_path / name).mkdir()
        place = made(tmp_path / name)
        (second := place.base / f"2{name}"[:255]).mkdir()
        (second / "second").write_text("second")
        target = place.base / f"t{name}"[:255]
        target.mkdir()
        layers = {"lowers": [place.lower, second], "upper": place.upper, "work": place.work}
        with kernel.mount(target, **layers) as mount:  # type: ignore[arg-type]  # as the keys say
            assert (target / "file").read_text() == "lower"
            (target / "second").write_text("changed")
            assert (place.upper / "second").read_text() == "changed"
            found = mountinfo.find(mount.mount_id)
            assert found is not None
            assert found.target == str(target)
            assert rundir.find(target) == mount.record
            shown = mountinfo.overlay_layers(found)
            if style is kernel_layers._by_descriptor:
                assert shown.lowers == (str(place.lower), str(second))
                assert (shown.upper, shown.work) == (str(place.upper), str(place.work))
        assert not os.path.ismount(target)

    def test_layers_as_descriptors_stay_the_callers(self, place: Place) -> None:
        fds = [os.open(path, FLAGS) for path in (place.lower, place.upper, place.work)]
        with place.mount(lowers=fds[:1], upper=fds[1], work=fds[2]) as mount:
            assert (place.target / "file").read_text() == "lower"
            assert mount.record.lowers == (str(place.lower),)
        for fd in fds:
            os.close(fd)

    def test_the_target_may_be_the_lower(self, place: Place) -> None:
        with kernel.mount(
            place.lower, lowers=[place.lower], upper=place.upper, work=place.work
        ) as mount:
            (place.lower / "new").touch()
            assert mount.target == place.lower
        assert not (place.lower / "new").exists()
        assert (place.upper / "new").exists()

    def test_a_link_as_target_is_followed(self, place: Place, tmp_path: Path) -> None:
        (link := tmp_path / "link").symlink_to(place.target)
        with kernel.mount(link, lowers=[place.lower], upper=place.upper, work=place.work) as mount:
            assert mount.target == place.target
            assert rundir.find(link) == mount.record

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_without_an_upper_it_is_read_only(self, place: Place, count: int) -> None:
        lowers = [place.lower]
        for number in range(1, count):
            (more := place.base / str(number)).mkdir()
            (more / f"file{number}").touch()
            lowers.append(more)
        with place.mount(lowers=lowers, upper=None, work=None):
            expected = {"dir", "file", *(f"file{number}" for number in range(1, count))}
            assert set(os.listdir(place.target)) == expected
            with pytest.raises(OSError, match="Read-only") as caught:
                (place.target / "x").touch()
            assert caught.value.errno == errno.EROFS

    def test_read_only_with_an_upper(self, place: Place) -> None:
        (place.upper / "above").touch()
        with place.mount(read_only=True):
            assert (place.target / "above").exists()
            with pytest.raises(OSError, match="Read-only"):
                (place.target / "x").touch()

    def test_options_reach_the_kernel(self, place: Place) -> None:
        options = Options(redirect_dir=True, metacopy=True, index=True)
        with place.mount(options=options) as mount:
            found = mountinfo.find(mount.mount_id)
            assert found is not None
            shown = dict(found.super_options)
            assert (shown["redirect_dir"], shown["metacopy"], shown["index"]) == ("on",) * 3
            (place.target / "dir").rename(place.target / "moved")
            assert (place.target / "moved/inner").read_text() == "inner"
        assert os.getxattr(place.upper / "moved", "trusted.overlay.redirect") == b"dir"

    def test_user_marks(self, place: Place) -> None:
        with place.mount(user_marks=True):
            (place.target / "dir/inner").unlink()
            (place.target / "dir").rmdir()
            (place.target / "dir").mkdir()
        names = os.listxattr(place.upper / "dir")
        assert "user.overlay.opaque" in names
        assert not any(name.startswith("trusted.") for name in names)

    def test_its_source_and_its_record_name_it(self, place: Place) -> None:
        with place.mount(owner=processes.identity()) as mount:
            found = mountinfo.find(mount.mount_id)
            assert found is not None
            assert found.source == f"layermount:{mount.record.token}"
            assert rundir.records() == [mount.record]
            assert mount.record.upper == str(place.upper)
            assert rundir.sweep() == []
        assert rundir.records() == []

    def test_a_detached_overlay_is_used_through_its_descriptor(self, place: Place) -> None:
        with ExitStack() as stack:
            layers = kernel_layers.open_layers(stack, [place.lower], place.upper, place.work)
            settings = kernel_layers.Settings(
                source="x", user_marks=False, read_only=False, options=Options()
            )
            fd = kernel_layers.detached(layers, settings)
            stack.callback(os.close, fd)
            assert mounted(place) == []
            new = os.open("new", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
            os.close(new)
            assert (place.upper / "new").exists()

    def test_500_lowers(self, place: Place) -> None:
        with place.mount(lowers=many(place, 500)):
            assert len(os.listdir(place.target)) == 500

    def test_501_lowers_are_refused_in_the_kernels_words(self, place: Place) -> None:
        with pytest.raises(HostError, match="too many lower directories, limit is 500") as caught:
            place.mount(lowers=many(place, 501))
        assert f"lower[500] '{place.base}/500'" in str(caught.value)


def make(path: Path) -> Path:
    path.mkdir()
    return path


def many(place: Place, count: int) -> list[Path]:
    paths = [place.base / str(number) for number in range(count)]
    for number, path in enumerate(paths):
        path.mkdir()
        (path / f"file{number}").touch()
    return paths


@dataclass(frozen=True)
class Refusal:
    """What is done, and what is said; `%s` in the pattern is the base."""

    changes: Callable[[Place], dict[str, object]]
    pattern: str
    hint: str
    kind: type[LayerMountError] = HostError


def volatile_left(place: Place) -> dict[str, object]:
    (place.work / "work/incompat/volatile").mkdir(parents=True)
    return {}


def own_redirects(place: Place) -> dict[str, object]:
    os.setxattr(place.upper, "user.layermount.redirects", b"1")
    return {}


def made_over_others(place: Place) -> dict[str, object]:
    (other := place.base / "other").mkdir()
    place.mount(options=Options(index=True)).unmount()
    return {"lowers": [other], "options": Options(index=True)}


REFUSALS = {
    "no lower": Refusal(lambda _: {"lowers": []}, "needs at least one lower", ""),
    "an upper without work": Refusal(
        lambda _: {"work": None}, "an upper and a work directory go together", ""
    ),
    "a missing lower": Refusal(
        lambda place: {"lowers": [place.lower, place.base / "missing"]},
        r"cannot open lower\[1\] '%s/missing': No such file",
        "",
        LayerUnavailableError,
    ),
    "a lower that is a file": Refusal(
        lambda place: {"lowers": [place.lower / "file"]},
        r"cannot open lower\[0\] .*: Not a directory",
        "",
        LayerUnavailableError,
    ),
    "work is upper": Refusal(
        lambda place: {"work": place.upper},
        "is in use by this process",
        "another upper and work",
        LayerBusyError,
    ),
    "work below upper": Refusal(
        lambda place: {"upper": place.base, "lowers": [Path("/usr/share")]},
        "work directory '%s/work' is, or lies in, upper '%s'",
        "do not contain each other",
    ),
    "lower is upper": Refusal(
        lambda place: {"lowers": [place.upper]},
        r"upper '%s/upper' is, or lies in, lower\[0\] '%s/upper'",
        "do not contain each other",
    ),
    "the same lower twice": Refusal(
        lambda place: {"lowers": [place.lower, place.lower]},
        r"lower\[1\] '%s/lower' is, or lies in, lower\[0\]",
        "do not contain each other",
    ),
    "a lower in a lower": Refusal(
        lambda place: {"lowers": [place.lower, place.lower / "dir"]},
        r"lower\[1\] '%s/lower/dir' is, or lies in, lower\[0\]",
        "do not contain each other",
    ),
    "work on another filesystem": Refusal(
        lambda _: {"work": Path("/dev/shm")},
        "upper '%s/upper' and work directory '/dev/shm' are on different mounts",
        "on one filesystem",
    ),
    "an upper that cannot be one": Refusal(
        lambda _: {"upper": Path("/proc/self/fd"), "work": Path("/proc/self/fdinfo")},
        "is on proc, which cannot hold an upper",
        "ext4, xfs, btrfs or tmpfs",
    ),
    "redirects with user marks": Refusal(
        lambda _: {"user_marks": True, "options": Options(redirect_dir=True)},
        "follows neither redirects nor metadata-only copies",
        "as root with trusted marks",
    ),
    "metacopy with user marks": Refusal(
        lambda _: {"user_marks": True, "options": Options(metacopy=True)},
        "follows neither redirects nor metadata-only copies",
        "as root with trusted marks",
    ),
    "an upper with redirects of our own": Refusal(
        own_redirects,
        "the kernel would show a wrong tree: upper '%s/upper' holds redirects",
        "FUSE or in process",
    ),
    "an upper left volatile": Refusal(
        volatile_left,
        "upper '%s/upper' was used with 'volatile' and was not closed cleanly",
        "remove work/incompat",
        LayerUnavailableError,
    ),
    "an upper over other lowers": Refusal(
        made_over_others, "upper '%s/upper' was made over other lowers", "without index"
    ),
}


@as_root
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_why_and_leaves_nothing(place: Place, refusal: Refusal) -> None:
    changes = refusal.changes(place)
    before = contents(place)
    descriptors = len(os.listdir("/proc/self/fd"))
    pattern = refusal.pattern.replace("%s", re.escape(str(place.base)))
    with pytest.raises(refusal.kind, match=pattern) as caught:
        place.mount(**changes)
    assert type(caught.value) is refusal.kind
    assert refusal.hint in (caught.value.hint or "")
    assert contents(place) == before
    assert mounted(place) == []
    assert rundir.records() == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


@as_root
class TestRefusedOtherwise:
    def test_a_missing_target_is_the_systems_error(self, place: Place) -> None:
        place.target.rmdir()
        with pytest.raises(FileNotFoundError, match="target"):
            place.mount()
        assert rundir.records() == []

    def test_the_kernels_log_is_told(self, place: Place) -> None:
        with pytest.raises(HostError, match=r"; kernel: .*same mount"):
            place.mount(work=Path("/dev/shm"))

    def test_a_second_overlay_with_the_same_upper(self, place: Place) -> None:
        with place.mount(), pytest.raises(LayerBusyError, match="in use by this process"):
            place.mount()

    def test_a_second_overlay_over_the_kernels_own(self, place: Place) -> None:
        layers = f"lowerdir={place.lower},upperdir={place.upper},workdir={place.work}"
        mounts.mount("x", str(place.target), "overlay", data=layers)
        try:
            with pytest.raises(LayerBusyError, match=f"by the overlay.* at '{place.target}'"):
                place.mount()
        finally:
            mounts.umount2(str(place.target))

    def test_overlays_three_deep(self, place: Place) -> None:
        second, third = (made(make(place.base / name)) for name in ("second", "third"))
        too_deep = pytest.raises(HostError, match="which the kernel stacks two deep at most")
        with place.mount(), second.mount(lowers=[place.target]), too_deep:
            third.mount(lowers=[second.target])

    def test_a_layer_that_contains_another_by_another_path(self, place: Place) -> None:
        mounts.mount(str(place.lower), str(place.target), "none", mounts.MS_BIND)
        try:
            with pytest.raises(
                HostError, match="one layer contains another, among lower"
            ) as caught:
                kernel.mount(place.target, lowers=[place.lower / "dir", place.target])
            assert "do not contain each other" in (caught.value.hint or "")
        finally:
            mounts.umount2(str(place.target))

    def test_a_work_directory_that_cannot_be_used(self, place: Place) -> None:
        """The kernel would mount it read-only and say so only to its log."""
        (place.work / "work").mkdir()
        subprocess.run(["chattr", "+i", place.work / "work"], check=True)
        try:
            with pytest.raises(HostError, match="would show the overlay read-only") as caught:
                place.mount()
            assert caught.value.hint is not None
        finally:
            subprocess.run(["chattr", "-i", place.work / "work"], check=True)
        assert mounted(place) == []


@as_root
class TestUnmount:
    def test_in_use_is_refused_and_says_by_whom(self, place: Place) -> None:
        mount = place.mount()
        with (place.target / "file").open(), pytest.raises(HostError, match="busy") as caught:
            mount.unmount()
        assert caught.value.hint is not None
        assert f"({os.getpid()})" in caught.value.hint
        assert rundir.records() == [mount.record]
        mount.unmount()
        assert rundir.records() == []

    def test_a_working_directory_is_a_use(self, place: Place) -> None:
        mount = place.mount()
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            os.chdir(place.target / "dir")
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)
        with pytest.raises(HostError, match="busy") as caught:
            mount.unmount()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert f"({pid})" in (caught.value.hint or "")
        mount.unmount()
        os.close(reader)
        os.close(writer)

    def test_lazily(self, place: Place) -> None:
        mount = place.mount()
        with (place.target / "file").open() as file:
            mount.unmount(lazy=True)
            assert not os.path.ismount(place.target)
            assert file.read() == "lower"
        assert rundir.records() == []

    def test_what_is_mounted_over_it_is_left_alone(self, place: Place) -> None:
        mount = place.mount()
        mounts.mount("none", str(place.target), "tmpfs")
        with pytest.raises(HostError, match="something else is mounted over it"):
            mount.unmount()
        assert [mount.fstype for mount in mountinfo.below(str(place.base))] == ["overlay", "tmpfs"]
        mounts.umount2(str(place.target))
        mount.unmount()

    def test_one_that_others_unmounted_is_fine(self, place: Place) -> None:
        mount = place.mount()
        mounts.umount2(str(place.target))
        assert rundir.records() == []
        mount.unmount()

    def test_by_its_record(self, place: Place) -> None:
        mount = place.mount()
        found = rundir.find(place.target)
        assert found is not None
        kernel.detach_record(found)
        assert mounted(place) == []
        mount.unmount()

    def test_the_locks_end_with_it(self, place: Place) -> None:
        place.mount().unmount()
        place.mount().unmount()


@as_root
class TestVolatile:
    def test_a_clean_end_takes_the_mark_away(self, place: Place) -> None:
        mark = place.work / "work/incompat/volatile"
        with place.mount(options=Options(volatile=True)):
            assert mark.exists()
        assert not mark.parent.exists()
        place.mount().unmount()

    def test_a_crash_leaves_it_and_the_upper_is_refused(self, place: Place) -> None:
        options = Options(volatile=True)
        killed(lambda: place.mount(options=options, owner=processes.identity()))
        assert [swept.outcome for swept in rundir.sweep()] == [Outcome.UNMOUNTED]
        with pytest.raises(LayerUnavailableError, match="not closed cleanly"):
            place.mount()

    def test_a_lazy_end_leaves_it(self, place: Place) -> None:
        place.mount(options=Options(volatile=True)).unmount(lazy=True)
        assert (place.work / "work/incompat/volatile").exists()

    def test_nothing_to_finish_is_fine(self, place: Place) -> None:
        place.mount().unmount()
        kernel.finish_volatile(place.upper, place.work)


@as_root
class TestCrash:
    def test_the_mount_of_a_dead_owner_is_swept(self, place: Place) -> None:
        killed(lambda: place.mount(owner=processes.identity()))
        assert mounted(place) == [str(place.target)]
        (swept,) = rundir.sweep()
        assert swept.outcome is Outcome.UNMOUNTED
        assert mounted(place) == []
        assert rundir.records() == []
        assert rundir.sweep() == []

    def test_one_in_use_stays_until_it_is_not(self, place: Place) -> None:
        killed(lambda: place.mount(owner=processes.identity()))
        with (place.target / "file").open():
            (swept,) = rundir.sweep()
            assert swept.outcome is Outcome.REFUSED
            assert swept.error is not None
            assert swept.error.errno == errno.EBUSY
            assert mounted(place) == [str(place.target)]
        assert [swept.outcome for swept in rundir.sweep()] == [Outcome.UNMOUNTED]

    def test_one_without_owner_stays(self, place: Place) -> None:
        killed(place.mount)
        assert rundir.sweep() == []
        (record,) = rundir.records()
        kernel.detach_record(record)

    def test_another_mount_with_the_same_target_is_left_alone(self, place: Place) -> None:
        killed(lambda: place.mount(owner=processes.identity()))
        mounts.umount2(str(place.target))
        mounts.mount("none", str(place.target), "tmpfs")
        (swept,) = rundir.sweep()
        assert swept.outcome is Outcome.FORGOTTEN
        assert os.path.ismount(place.target)
        mounts.umount2(str(place.target))

    @pytest.mark.needs("strace")
    @pytest.mark.parametrize(
        ("call", "number"),
        [
            ("fsopen", 1),
            ("fsconfig", 1),
            ("fsconfig", 3),
            ("fsconfig", 5),
            ("fsmount", 1),
            ("rename", 1),
            ("move_mount", 1),
            ("umount2", 1),
            ("unlink", 1),
        ],
    )
    def test_killed_at_any_step_nothing_stays(self, place: Place, call: str, number: int) -> None:
        program = (
            "import sys; from pathlib import Path;"
            "from layermount.hosts import kernel; from layermount.linux import processes;"
            "t, l, u, w = map(Path, sys.argv[1:]);"
            "kernel.mount(t, lowers=[l], upper=u, work=w, owner=processes.identity()).unmount()"
        )
        paths = (place.target, place.lower, place.upper, place.work)
        inject = f"inject={call}:signal=KILL:when={number}"
        command = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, sys.executable, "-c")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([*command, program, *paths], check=False, env=environment)
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        rundir.sweep()
        assert mounted(place) == []
        assert os.listdir(os.environ["LAYERMOUNT_RUN_DIR"]) == []
        with place.mount():
            assert (place.target / "file").read_text() == "lower"


def look(place: Place) -> tuple[str, str, list[str]]:
    """Change the view and tell what it looks like from inside."""
    Path("new").write_text("new")
    Path("dir/inner").unlink()
    return os.getcwd(), Path("file").read_text(), sorted(os.listdir(place.lower))


def drop_capabilities() -> None:
    """Give up every capability. Source: capset(2), _LINUX_CAPABILITY_VERSION_3."""
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, nothing) == 0


class TestPrivate:
    @as_root
    def test_as_root_with_trusted_marks(self, place: Place) -> None:
        def child() -> object:
            os.chdir(place.lower)
            place.enter(user_marks=False, options=Options(redirect_dir=True))
            os.rename("dir", "moved")
            os.rename("moved", "dir")
            return look(place)

        self.check(place, in_child(child))

    @as_user
    def test_as_an_ordinary_user(self, own: Place) -> None:
        def child() -> object:
            os.chdir(own.lower)
            own.enter()
            assert os.geteuid() == USER
            return look(own)

        self.check(own, in_child(child, user=USER))
        assert (own.upper / "new").stat().st_uid == USER

    def check(self, place: Place, seen: object) -> None:
        names = ["dir", "file", "new"]
        assert seen == (str(place.lower), "lower", names), "inside"
        assert sorted(os.listdir(place.lower)) == ["dir", "file"], "outside"
        assert (place.lower / "dir/inner").exists()
        assert (place.upper / "new").read_text() == "new"
        assert stat.S_ISCHR((place.upper / "dir/inner").lstat().st_mode)
        assert mounted(place) == []
        assert rundir.records() == []

    @as_user
    @pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
    def test_names_of_any_form(self, own: Place, name: str) -> None:
        (base := own.base / name).mkdir()
        os.chown(base, USER, -1)
        place = made(base, USER)

        def child() -> str:
            place.enter()
            return (place.lower / "file").read_text()

        assert in_child(child, user=USER) == "lower"

    @as_user
    def test_descriptors_from_before_and_another_target(self, own: Place) -> None:
        def child() -> list[str]:
            fds = [os.open(path, FLAGS) for path in (own.lower, own.upper, own.work)]
            own.enter(own.target, lowers=fds[:1], upper=fds[1], work=fds[2])
            return sorted(os.listdir(own.target))

        assert in_child(child, user=USER) == ["dir", "file"]

    @as_user
    def test_relative_paths(self, own: Place) -> None:
        def child() -> list[str]:
            os.chdir(own.base)
            own.enter(Path("lower"), lowers=[Path("lower")], upper=Path("upper"), work=Path("work"))
            return sorted(os.listdir("lower"))

        assert in_child(child, user=USER) == ["dir", "file"]

    @as_user
    def test_read_only_with_one_lower(self, own: Place) -> None:
        def child() -> int | None:
            own.enter(own.target, upper=None, work=None)
            assert sorted(os.listdir(own.target)) == ["dir", "file"]
            with pytest.raises(OSError, match="Read-only") as caught:
                (own.target / "x").touch()
            return caught.value.errno

        assert in_child(child, user=USER) == errno.EROFS

    @as_user
    def test_a_program_that_is_started_sees_it_without_privilege(self, own: Place) -> None:
        def child() -> str:
            own.enter()
            (own.lower / "new").touch()
            command = ["sh", "-c", 'ls "$0"; grep CapEff /proc/self/status', str(own.lower)]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        assert in_child(child, user=USER).split() == [
            "dir",
            "file",
            "new",
            "CapEff:",
            "0" * 16,
        ]

    @as_user
    def test_volatile_is_finished_by_the_caller_outside(self, own: Place) -> None:
        def child() -> None:
            own.enter(options=Options(volatile=True))

        in_child(child, user=USER)
        with pytest.raises(LayerUnavailableError, match="not closed cleanly"):
            in_child(own.enter, user=USER)
        in_child(lambda: kernel.finish_volatile(own.upper, own.work), user=USER)
        in_child(own.enter, user=USER)

    @as_user
    def test_killed_it_leaves_no_mount(self, own: Place) -> None:
        killed(own.enter)
        assert mounted(own) == []

    @pytest.mark.needs("root")
    def test_trusted_marks_need_privilege(self, own: Place) -> None:
        with pytest.raises(HostUnavailableError, match="Operation not permitted") as caught:
            in_child(lambda: own.enter(user_marks=False), user=USER)
        assert caught.value.hint == "run it as root, or with CAP_SYS_ADMIN"

    @as_user
    def test_no_user_namespaces_left(self, own: Place) -> None:
        def child() -> None:
            namespaces.unshare_user()
            Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="utf-8")
            # A program that is started has no capabilities any more, so it needs a namespace.
            drop_capabilities()
            own.enter()

        with pytest.raises(HostUnavailableError, match="No space left") as caught:
            in_child(child, user=USER)
        assert "max_user_namespaces" in (caught.value.hint or "")

    @as_user
    def test_mounts_below_a_lower_are_told(self, own: Place) -> None:
        def child() -> None:
            # A namespace of the user in which something is mounted, and one more inside it.
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            mounts.mount("none", str(own.lower / "dir"), "tmpfs")
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            own.enter()

        with pytest.raises(HostError, match="lower/dir' is mounted below lower") as caught:
            in_child(child, user=USER)
        assert caught.value.hint is not None

    @as_user
    def test_a_missing_layer(self, own: Place) -> None:
        with pytest.raises(LayerUnavailableError, match="missing': No such file"):
            in_child(lambda: own.enter(lowers=[own.base / "missing"]), user=USER)

    @as_user
    def test_an_exchanged_directory_is_noticed(self, own: Place) -> None:
        def child() -> None:
            place = kernel_private._place(own.lower)
            own.lower.rename(own.base / "away")
            own.lower.mkdir()
            with ExitStack() as stack:
                kernel_private._open_again(stack, place)

        with pytest.raises(LayerChangedError, match="became another directory"):
            in_child(child, user=USER)

    @as_user
    def test_an_upper_with_redirects_of_our_own(self, own: Place) -> None:
        os.setxattr(own.upper, "user.layermount.redirects", b"1")
        with pytest.raises(HostError, match="would show a wrong tree"):
            in_child(own.enter, user=USER)


class TestVerdict:
    @as_root
    def test_root(self) -> None:
        assert kernel.verdict()
        assert kernel_private.verdict()

    @pytest.mark.needs("root", "userns")
    def test_an_ordinary_user_has_only_its_own(self) -> None:
        def child() -> tuple[object, object]:
            return kernel.verdict(), kernel_private.verdict()

        public, private = in_child(child, user=USER)
        assert not public
        assert private
