from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.errors import HostError
from layermount.hosts import run_directory
from layermount.linux import mounts, namespaces
from tests.forked import USER, in_child, user_directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(path))
    return path


def test_it_is_made_for_the_user_alone(home: Path) -> None:
    assert run_directory.directory() == home
    assert home.stat().st_mode & 0o777 == 0o700
    assert run_directory.directory() == home


@pytest.mark.needs("root")
def test_where_it_is_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    def child() -> Path:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation()
        mounts.mount("none", "/run", "tmpfs")
        return run_directory.directory()

    monkeypatch.delenv("LAYERMOUNT_RUN_DIR", raising=False)
    assert in_child(child) == Path("/run/layermount")


@pytest.mark.needs("root")
def test_where_it_is_for_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with user_directory() as runtime:
        monkeypatch.delenv("LAYERMOUNT_RUN_DIR", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert in_child(run_directory.directory, user=USER) == runtime / "layermount"


@pytest.mark.needs("userns")
def test_where_it_is_for_a_user_without_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def child() -> Path:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        mounts.mount("none", "/tmp", "tmpfs")
        return run_directory.directory()

    monkeypatch.delenv("LAYERMOUNT_RUN_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert in_child(child, user=USER) == Path(f"/tmp/layermount-{USER}")


def test_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    home.symlink_to(tmp_path)
    with pytest.raises(HostError, match="is not a directory"):
        run_directory.directory()


def test_one_that_others_may_write_to_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o770)
    with pytest.raises(HostError, match=r"written to by others \(mode 0770\)"):
        run_directory.directory()


@pytest.mark.needs("root")
def test_one_of_somebody_else_is_refused(home: Path) -> None:
    home.mkdir()
    os.chown(home, 1, 1)
    with pytest.raises(HostError, match="belongs to user 1"):
        run_directory.directory()


@pytest.mark.usefixtures("home")
def test_the_empty_directory_is_empty() -> None:
    path = run_directory.empty_directory()
    assert os.listdir(path) == []
    assert run_directory.empty_directory() == path
