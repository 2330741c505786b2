"""What every test gets: probes and their marker, a clean environment, filesystems, a leak check.

A test says what it needs with `@pytest.mark.needs("root", "overlay")`, or by asking for a fixture
that needs it. Where that is missing it skips with the reason; `$LAYERMOUNT_REQUIRE`, a list of
names separated by commas, turns such a skip into a failure.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import probes

FilesystemFactory = Callable[[str], Path]

_REQUIRED = frozenset(filter(None, os.environ.get("LAYERMOUNT_REQUIRE", "").split(",")))
_RESULTS = pytest.StashKey[dict[str, str | None]]()

# Real system calls have no steady pace, so there is no deadline.
_COMMON = settings(
    deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
# No database of examples: the checkout need not be writable.
settings.register_profile("ci", _COMMON, max_examples=100, database=None)
settings.register_profile("long", _COMMON, max_examples=5000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    unknown = _REQUIRED - probes.PROBES.keys()
    if unknown:
        raise pytest.UsageError(f"LAYERMOUNT_REQUIRE: no probe named {', '.join(sorted(unknown))}")
    # A worker of xdist gets what its controller found out.
    inherited: dict[str, str | None] | None = getattr(config, "workerinput", {}).get("probes")
    config.stash[_RESULTS] = probes.results() if inherited is None else inherited


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    node.workerinput["probes"] = node.config.stash[_RESULTS]  # type: ignore[attr-defined]  # xdist has no types


def pytest_report_header(config: pytest.Config) -> list[str]:
    results = config.stash[_RESULTS]
    off = [f"  {name}: {reason}" for name, reason in results.items() if reason is not None]
    on = ", ".join(name for name, reason in results.items() if reason is None)
    return [f"enabled: {on or 'nothing'}", "disabled: " + ("" if off else "nothing"), *off]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        _demand(item.config, *marker.args)


def _demand(config: pytest.Config, *names: str) -> None:
    """Skip the running test, or fail it, unless the machine has everything in `names`."""
    results = config.stash[_RESULTS]
    for name in names:
        if name not in results:
            pytest.fail(f"needs: no probe named {name!r}")
        reason = results[name]
        if reason is None:
            continue
        if name in _REQUIRED:
            pytest.fail(f"LAYERMOUNT_REQUIRE names {name!r}, but: {reason}")
        pytest.skip(f"needs {name}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session when it leaves mounts or open files below its directory; unmount the mounts.

    Being autouse it is set up before, and torn down after, whatever a test asks for.
    """
    base = tmp_path_factory.getbasetemp()
    mounts_before, files_before = _mounts_below(base), _files_below(base)
    yield
    gc.collect()
    mounts = sorted(_mounts_below(base) - mounts_before)
    files = sorted(_files_below(base) - files_before)
    # A mount left in place would be walked into when the directory is removed.
    for mount in reversed(mounts):
        probes.run("umount", "--lazy", mount)
    assert not mounts + files, f"left behind: mounts {mounts}, open files {files}"


@pytest.fixture(scope="session", autouse=True)
def _xdg_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Directories for the user's files, one for each test; the first is for fixtures."""
    base = tmp_path_factory.mktemp("xdg")
    directories = (base / str(number) for number in itertools.count())
    with pytest.MonkeyPatch.context() as monkeypatch:
        _isolate(monkeypatch, next(directories))
        yield directories


@pytest.fixture(autouse=True)
def _clean_environment(
    monkeypatch: pytest.MonkeyPatch, _xdg_directories: Iterator[Path]
) -> Iterator[None]:
    _isolate(monkeypatch, next(_xdg_directories))
    old = os.umask(0o022)
    yield
    os.umask(old)


def _isolate(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    for name in list(os.environ):
        if name.startswith("LAYERMOUNT_"):
            monkeypatch.delenv(name)
    for kind in ("CACHE_HOME", "CONFIG_HOME", "DATA_HOME", "RUNTIME_DIR", "STATE_HOME"):
        monkeypatch.setenv(f"XDG_{kind}", str(base / kind.lower()))
    # The one directory that the system makes, not its user.
    (base / "runtime_dir").mkdir(mode=0o700, parents=True)


@pytest.fixture(scope="session")
def _mounted_images(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Path]]:
    """Mount an image of a kind once in a session, on demand, and unmount it at the end."""
    base = tmp_path_factory.mktemp("filesystems")
    mounted: dict[str, Path] = {}

    def mount(kind: str) -> Path:
        if kind not in mounted:
            reason = probes.mount_image(kind, base / f"{kind}.image", base / kind)
            assert reason is None, reason
            mounted[kind] = base / kind
            mounted[kind].chmod(0o755)
        return mounted[kind]

    yield mount
    failures = [reason for path in mounted.values() if (reason := probes.run("umount", path))]
    assert not failures, failures


@pytest.fixture
def filesystem(
    request: pytest.FixtureRequest, _mounted_images: Callable[[str], Path]
) -> FilesystemFactory:
    """A function from "ext4", "btrfs" or "xfs" to a fresh directory on such a filesystem."""

    def make(kind: str) -> Path:
        _demand(request.config, "root", "loop", kind)
        path = Path(tempfile.mkdtemp(dir=_mounted_images(kind)))
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def ext4_dir(filesystem: FilesystemFactory) -> Path:
    """A fresh directory on ext4: no reflink."""
    return filesystem("ext4")


@pytest.fixture
def btrfs_dir(filesystem: FilesystemFactory) -> Path:
    """A fresh directory on btrfs: reflink and subvolumes."""
    return filesystem("btrfs")


@pytest.fixture
def xfs_dir(filesystem: FilesystemFactory) -> Path:
    """A fresh directory on xfs: reflink."""
    return filesystem("xfs")


def _mounts_below(base: Path) -> set[str]:
    text = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    points = (line.split(" ")[4] for line in text.splitlines())
    unescaped = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point) for point in points)
    return {point for point in unescaped if point.startswith(f"{base}/")}


def _files_below(base: Path) -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the descriptor that lists the directory
        if target.startswith(f"{base}/"):
            found.add(f"{entry.name}: {target}")
    return found
