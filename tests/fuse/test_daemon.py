from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layermount.config import LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.errors import (
    ConfigError,
    HostError,
    LayerBusyError,
    LayerMountError,
    LayerUnavailableError,
)
from layermount.hosts import ending, rundir
from layermount.hosts.base import Host
from layermount.hosts.fuse import daemon
from layermount.hosts.fuse.life import ENDING
from layermount.hosts.fuse.mounted import FuseMount
from layermount.hosts.rundir import Outcome
from layermount.linux import mountinfo, mounts, processes
from tests.forked import USER, become, in_child, user_directory
from tests.fuse.ordinary import as_user

needs_root = pytest.mark.needs("root", "fuse")
needs_fuse = pytest.mark.needs("fuse")

DEADLINE_S = 30


class Home:
    """Layers, a mount point and a run directory of one test."""

    def __init__(self, base: Path) -> None:
        self.lower, self.upper, self.target, self.run = (
            base / name for name in ("lower", "upper", "target", "run")
        )
        for path in (self.lower, self.upper, self.target):
            path.mkdir()
        (self.lower / "a").write_text("one\n")

    def config(self, **options: object) -> LayerMountConfig:
        return LayerMountConfig(self.upper, [self.lower], **options)  # type: ignore[arg-type]  # the caller's keys

    def start(self, **options: Any) -> FuseMount:
        return daemon.start(self.config(), self.target, **options)

    def left(self) -> list[str]:
        """What is in the run directory, mounted, or held."""
        found = sorted(os.listdir(self.run)) if self.run.exists() else []
        found += [m.target for m in mountinfo.mounts() if m.target == str(self.target)]
        Overlay(self.config()).close()
        return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    made = Home(tmp_path)
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(made.run))
    yield made
    for record in rundir.records():
        assert record.owner is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.owner.pid, signal.SIGKILL)
        mounts.umount2(record.target, mounts.MNT_DETACH)


def pid_of(mount: FuseMount) -> int:
    assert mount.record.owner is not None
    return mount.record.owner.pid


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.01)


def wait_for_end(mount: FuseMount) -> None:
    owner = mount.record.owner
    assert owner is not None
    wait_for(lambda: not processes.is_alive(owner), "the daemon's end")


@needs_root
def test_a_mount_from_start_to_end(home: Home) -> None:
    with home.start() as mount:
        host: Host = mount
        assert (host.name, host.target) == ("fuse", home.target)
        assert (home.target / "a").read_text() == "one\n"
        (home.target / "a").write_text("two\n")
        assert rundir.find(home.target) == mount.record
        found = mountinfo.find(mount.mount_id)
        assert found is not None
        assert (found.target, found.source) == (str(home.target), mount.record.source)
        assert not {"nosuid", "nodev"}.intersection(found.options)
    assert home.left() == []
    assert (home.upper / "a").read_text() == "two\n"
    assert (home.lower / "a").read_text() == "one\n"
    mount.unmount()


@needs_root
def test_an_upper_is_free_when_unmount_returns(home: Home) -> None:
    for number in range(5):
        mount = home.start()
        (home.target / str(number)).write_bytes(b"x" * 100_000)
        mount.unmount()
        with contextlib.closing(Overlay(home.config())) as overlay:
            assert len(overlay.listdir(overlay.root)) == number + 2


def _locked(home: Home) -> contextlib.AbstractContextManager[object]:
    return contextlib.closing(Overlay(home.config()))


# What is wrong, and what is raised: what the library raises in this process.
FAILURES: dict[str, tuple[Callable[[Home], LayerMountConfig], str, type[Exception], str]] = {
    "no target": (Home.config, "nowhere", FileNotFoundError, "No such file"),
    "a file": (Home.config, "lower/a", NotADirectoryError, "Not a directory"),
    "no lower": (
        lambda home: LayerMountConfig(home.upper, [home.lower / "no"]),
        *("target", LayerUnavailableError, "cannot open"),
    ),
    "overlap": (
        lambda home: LayerMountConfig(home.upper, [home.upper]),
        *("target", ConfigError, "same directory"),
    ),
}


@needs_root
@pytest.mark.parametrize(("make", "target", "error", "words"), FAILURES.values(), ids=FAILURES)
def test_the_very_error_is_raised(
    home: Home,
    make: Callable[[Home], LayerMountConfig],
    target: str,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        daemon.start(make(home), home.target.parent / target)
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(home.target.parent / target)
    if isinstance(caught.value, ConfigError | LayerUnavailableError):
        with pytest.raises(LayerMountError) as expected:
            Overlay(make(home))
        assert str(caught.value) == str(expected.value)
        assert caught.value.hint == expected.value.hint
    assert home.left() == []


@needs_root
def test_an_upper_in_use_is_told(home: Home) -> None:
    with (
        contextlib.closing(Overlay(home.config())),
        pytest.raises(LayerBusyError, match=f"in use by process {os.getpid()}") as caught,
    ):
        home.start()
    assert caught.value.hint is not None
    with home.start() as mount, pytest.raises(LayerBusyError, match=f"process {pid_of(mount)}"):
        home.start()
    assert home.left() == []


@needs_root
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_it_in_order(home: Home, number: signal.Signals) -> None:
    config = home.config(durability="volatile")
    mark = home.upper.parent / ".layermount-work/upper/work/incompat/volatile"
    mount = daemon.start(config, home.target)
    assert mark.exists()
    assert mount.record.volatile
    os.kill(pid_of(mount), number)
    wait_for_end(mount)
    assert not mark.exists()
    assert home.left() == []
    mount.unmount()


@needs_root
def test_a_signal_takes_a_mount_in_use_out_of_the_tree(home: Home) -> None:
    mount = home.start()
    with (home.target / "a").open() as file:
        os.kill(pid_of(mount), signal.SIGTERM)
        wait_for(lambda: not os.path.ismount(home.target), "the mount point to be free")
        assert file.read() == "one\n"
        assert os.path.exists(f"/proc/{pid_of(mount)}/fd")
    wait_for_end(mount)
    assert home.left() == []


@needs_root
def test_a_second_signal_waits_for_nobody(home: Home) -> None:
    mount = home.start()
    fd = os.open(home.target / "a", os.O_RDONLY)
    os.kill(pid_of(mount), signal.SIGTERM)
    wait_for(lambda: not os.path.ismount(home.target), "the mount point to be free")
    os.kill(pid_of(mount), signal.SIGTERM)
    wait_for_end(mount)
    assert home.left() == []
    with contextlib.suppress(ConnectionError, OSError):
        os.close(fd)


@needs_root
@pytest.mark.parametrize("command", [("umount",), ("fusermount3", "-u")], ids=" ".join)
def test_unmounted_from_outside(home: Home, command: tuple[str, ...]) -> None:
    mount = home.start()
    subprocess.run([*command, home.target], check=True)
    wait_for_end(mount)
    assert home.left() == []


@needs_root
def test_a_busy_mount_stays_and_its_user_is_named(home: Home) -> None:
    mount = home.start()
    with subprocess.Popen(["sleep", "60"], cwd=home.target) as user:
        with pytest.raises(HostError, match="busy") as caught:
            mount.unmount()
        assert f"sleep ({user.pid})" in str(caught.value.hint)
        assert (home.target / "a").read_text() == "one\n"
        mount.unmount(lazy=True)
        assert not os.path.ismount(home.target)
        user.kill()
    wait_for_end(mount)
    assert home.left() == []


@contextlib.contextmanager
def _copied_mounts() -> Iterator[None]:
    """A process whose mount namespace has a copy of every mount."""
    command = ("unshare", "--mount", "sh", "-c", "echo copied; exec sleep 60")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"copied\n"
        yield
        other.kill()


def _volatile(home: Home) -> tuple[FuseMount, Path]:
    """A mount of a volatile upper, and the mark of one that was not closed."""
    mount = daemon.start(home.config(durability="volatile"), home.target)
    return mount, home.upper.parent / ".layermount-work/upper/work/incompat/volatile"


@needs_root
def test_a_copy_in_another_namespace_is_not_waited_for(home: Home) -> None:
    mount, mark = _volatile(home)
    with _copied_mounts():
        before = time.monotonic()
        mount.unmount()
        assert time.monotonic() - before < DEADLINE_S / 2
        assert not mark.exists()
        assert home.left() == []


@needs_root
@pytest.mark.parametrize("copied", [False, True])
def test_a_daemon_that_takes_its_time_to_end_ends_in_order(home: Home, *, copied: bool) -> None:
    """Told to end while it was about to, or while it could not listen."""
    mount, mark = _volatile(home)
    (home.target / "new").write_text("kept\n")
    with _copied_mounts() if copied else contextlib.nullcontext():
        os.kill(pid_of(mount), signal.SIGSTOP)
        waker = threading.Timer(1.5, os.kill, (pid_of(mount), signal.SIGCONT))
        waker.start()
        mount.unmount()
        waker.join()
        assert not mark.exists()
        assert home.left() == []
    assert (home.upper / "new").read_text() == "kept\n"


@needs_root
def test_what_a_killed_daemon_leaves_is_swept(home: Home) -> None:
    mount = home.start()
    with subprocess.Popen(["sleep", "60"], cwd=home.target) as user:
        os.kill(pid_of(mount), signal.SIGKILL)
        wait_for_end(mount)
        with pytest.raises(OSError, match="not connected|abort") as caught:
            os.listdir(home.target)
        # ECONNABORTED for what was asked while the last threads of the daemon were ending.
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        assert {Path(name).suffix for name in os.listdir(home.run)} == {".json", ".sock", ".log"}
        (swept,) = ending.sweep()
        assert (swept.record, swept.outcome) == (mount.record, Outcome.UNMOUNTED)
        assert home.left() == []
        user.kill()
    with home.start():
        assert (home.target / "a").read_text() == "one\n"


@needs_root
def test_a_killed_daemon_s_mount_can_be_unmounted(home: Home) -> None:
    mount = home.start()
    os.kill(pid_of(mount), signal.SIGKILL)
    wait_for_end(mount)
    mount.unmount()
    ending.sweep()
    assert home.left() == []


@needs_root
def test_what_the_daemon_keeps_of_its_starter(home: Home, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file, home.start() as mount:
        os.set_inheritable(file.fileno(), True)  # noqa: FBT003  # Python's signature
        proc = Path(f"/proc/{pid_of(mount)}")
        files = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
        assert file.name not in files
        assert [os.readlink(proc / f"fd/{n}") for n in (0, 1)] == [os.devnull] * 2
        assert os.readlink(proc / "fd/2") == str(home.run / f"{mount.record.token}.log")
        assert os.readlink(proc / "cwd") == "/"
        assert os.getsid(pid_of(mount)) != os.getsid(0)
        (limit,) = (x for x in (proc / "limits").read_text().splitlines() if "open files" in x)
        soft, hard = limit.split()[3:5]
        assert soft == hard


@needs_root
def test_relative_paths_are_those_of_the_starter(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.run.parent)
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", "run")
    with daemon.start(LayerMountConfig("upper", ["lower"]), Path("target")) as mount:
        assert mount.target == home.target
        assert (mount.record.upper, mount.record.lowers) == (str(home.upper), (str(home.lower),))
        (home.target / "b").touch()
    assert home.left() == []


@needs_root
def test_the_umask_is_that_of_who_creates(home: Home) -> None:
    with home.start():
        old = os.umask(0o027)
        (home.target / "file").touch()
        os.umask(0)
        (home.target / "directory").mkdir(mode=0o777)
        os.umask(old)
        modes = [(home.target / name).stat().st_mode & 0o777 for name in ("file", "directory")]
    assert modes == [0o640, 0o777]


@needs_root
@pytest.mark.parametrize("allow_other", [False, True])
def test_who_sees_it(allow_other: bool) -> None:
    with user_directory() as base:
        os.environ["LAYERMOUNT_RUN_DIR"] = str(base / "run")
        home = Home(base)

        def user() -> str:
            return (home.target / "a").read_text()

        with home.start(allow_other=allow_other):
            if allow_other:
                assert in_child(user, user=USER) == "one\n"
            else:
                with pytest.raises(PermissionError):
                    in_child(user, user=USER)
        del os.environ["LAYERMOUNT_RUN_DIR"]


@needs_root
def test_read_only(home: Home) -> None:
    with home.start(read_only=True), pytest.raises(OSError, match="Read-only") as caught:
        (home.target / "a").write_text("x")
    assert caught.value.errno == errno.EROFS
    with daemon.start(LayerMountConfig(None, [home.lower]), home.target) as mount:
        assert mount.record.upper is None
        with pytest.raises(OSError, match="Read-only"):
            (home.target / "b").touch()


@needs_root
def test_the_target_may_be_a_layer(home: Home) -> None:
    with daemon.start(home.config(), home.lower):
        (home.lower / "a").write_text("changed\n")
        assert (home.lower / "a").read_text() == "changed\n"
    assert (home.lower / "a").read_text() == "one\n"


# As an ordinary user.


@needs_fuse
@pytest.mark.parametrize("end", ["unmount", "SIGTERM", "kill"])
def test_an_ordinary_user(end: str) -> None:
    with user_directory() as base:

        def user() -> tuple[list[str], str]:
            os.environ["LAYERMOUNT_RUN_DIR"] = str(base / "run")
            home = Home(base)
            mount = home.start()
            (home.target / "a").write_text("two\n")
            if end == "unmount":
                mount.unmount()
            elif end == "SIGTERM":
                os.kill(pid_of(mount), signal.SIGTERM)
                wait_for_end(mount)
            else:
                os.kill(pid_of(mount), signal.SIGKILL)
                wait_for_end(mount)
                (swept,) = ending.sweep()
                assert swept.outcome is Outcome.UNMOUNTED
            return home.left(), (home.upper / "a").read_text()

        assert as_user(user) == ([], "two\n")


@needs_fuse
def test_the_helper_s_refusal_reaches_the_starter() -> None:
    with user_directory() as base:

        def user() -> list[str]:
            os.environ["LAYERMOUNT_RUN_DIR"] = str(base / "run")
            home = Home(base)
            with pytest.raises(HostError, match="cannot mount at '/usr'"):
                daemon.start(home.config(), Path("/usr"))
            return home.left()

        assert as_user(user) == []


@pytest.mark.needs("root", "fuse", "userns")
def test_in_a_user_namespace_it_mounts_by_itself() -> None:
    """For everybody in the namespace, if asked for, without fusermount3."""
    from layermount.linux import namespaces

    with user_directory() as base:

        def user() -> tuple[list[str], str]:
            become(USER)
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            os.environ["LAYERMOUNT_RUN_DIR"] = str(base / "run")
            os.environ["PATH"] = "/nowhere"
            home = Home(base)
            with home.start(allow_other=True):
                text = (home.target / "a").read_text()
            return home.left(), text

        def child() -> tuple[list[str], str]:
            from tests.fuse.ordinary import open_device

            namespaces.unshare(namespaces.CLONE_NEWNS)
            namespaces.set_propagation(mounts.MS_PRIVATE)
            open_device()
            return in_child(user)

        assert in_child(child) == ([], "one\n")


@needs_root
def test_what_the_daemon_makes_for_itself_nobody_else_may_write(home: Home) -> None:
    with home.start():
        work = home.upper.parent / ".layermount-work"
        modes = {str(path): path.stat().st_mode & 0o022 for path in (work, *work.rglob("*"))}
    assert modes
    assert not any(modes.values()), modes
