"""What changes a thread is done in threads of their own, or in a child."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount.linux import credentials
from tests.forked import USER, in_child


def in_thread(function: Callable[[], object]) -> object:
    """What `function` returns in a thread that ends with it."""
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(function())
        except OSError as error:
            answers.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return answers[0]


def status_of(thread: int, field: str) -> list[str]:
    text = Path(f"/proc/self/task/{thread}/status").read_text(encoding="utf-8")
    return next(line for line in text.splitlines() if line.startswith(field)).split()[1:]


@pytest.mark.needs("root")
def test_what_a_thread_makes_belongs_to_its_user_and_it_may_still_do_all(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    def make() -> list[str]:
        credentials.keep_capabilities_on_fsuid()
        credentials.setfsgid(1001)
        credentials.setfsuid(1000)
        (tmp_path / "made").write_bytes(b"")
        credentials.setfsuid(0)
        credentials.setfsgid(0)
        (tmp_path / "after").write_bytes(b"")
        return status_of(threading.get_native_id(), "Uid")

    assert in_thread(make) == ["0"] * 4
    found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()}
    assert found == {"made": (1000, 1001), "after": (0, 0)}


@pytest.mark.needs("root")
def test_without_the_capabilities_kept_the_user_is_only_that_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    def make() -> None:
        credentials.keep_capabilities_on_fsuid()
        credentials.keep_capabilities_on_fsuid(on=False)
        credentials.setfsuid(1000)
        (tmp_path / "made").write_bytes(b"")

    assert in_thread(make) == errno.EACCES


@pytest.mark.needs("root")
def test_other_threads_stay_who_they_are(tmp_path: Path) -> None:
    changed, looked = threading.Event(), threading.Event()
    native: list[int] = []

    def change() -> None:
        credentials.keep_capabilities_on_fsuid()
        credentials.setfsuid(1000)
        credentials.setfsgid(1001)
        native.append(threading.get_native_id())
        changed.set()
        looked.wait(60)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert changed.wait(60)
        assert status_of(native[0], "Uid")[3] == "1000"
        assert status_of(native[0], "Gid")[3] == "1001"
        assert status_of(threading.get_native_id(), "Uid")[3] == "0"
        (tmp_path / "made").write_bytes(b"")
        assert (tmp_path / "made").stat().st_uid == 0
    finally:
        looked.set()
        thread.join(60)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "act",
    [lambda: credentials.setfsuid(USER + 1), lambda: credentials.setfsgid(USER + 1)],
    ids=["user", "group"],
)
def test_what_the_kernel_refuses_in_silence_is_an_error(act: Callable[[], None]) -> None:
    with pytest.raises(PermissionError, match="cannot act as"):
        in_child(act, user=USER)


def test_a_thread_may_have_a_umask_of_its_own(tmp_path: Path) -> None:
    before = os.umask(0o022)

    def make() -> None:
        credentials.unshare_fs()
        os.umask(0o077)
        (tmp_path / "made").touch()

    in_thread(make)
    assert os.umask(before) == 0o022
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
