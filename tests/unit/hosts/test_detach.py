from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.hosts import detach
from layermount.linux import mountinfo, mounts, namespaces
from tests.forked import in_child


@pytest.mark.needs("userns")
def test_a_number_that_was_given_to_another_mount_is_left_alone(tmp_path: Path) -> None:
    def child() -> list[bool]:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        mounts.mount("mine", str(tmp_path), "tmpfs")
        number = mountinfo.mounts()[-1].mount_id
        found = []
        for source in ("another", "mine"):
            detach.unmount(str(tmp_path), number, source, lazy=False)
            found.append(os.path.ismount(tmp_path))
        detach.unmount(str(tmp_path), number, "mine", lazy=False)
        return found

    assert in_child(child) == [True, False]


@pytest.mark.needs("userns")
def test_users_are_found_by_directory_and_by_file(tmp_path: Path) -> None:
    def child() -> list[list[int]]:
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        mounts.mount("mine", str(tmp_path), "tmpfs")
        number = mountinfo.mounts()[-1].mount_id

        def users() -> list[int]:
            return [user.pid for user in detach.users(str(tmp_path), number)]

        found = [users()]
        (tmp_path / "file").touch()
        with (tmp_path / "file").open():
            found.append(users())
        os.chdir(tmp_path)
        return [*found, users(), [os.getpid()]]

    nobody, by_file, by_directory, me = in_child(child)
    assert nobody == []
    assert by_file == me
    assert by_directory == me
