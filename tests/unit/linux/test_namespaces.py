from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from layermount.linux import mountinfo, mounts, namespaces
from layermount.linux.namespaces import IdMap
from tests.forked import USER, in_child


def namespace(kind: str) -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


@pytest.mark.needs("userns")
def test_the_caller_keeps_its_ids_and_gets_capabilities() -> None:
    def child() -> tuple[int, int, str, bool]:
        before = namespace("user"), namespace("mnt")
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        changed = namespace("user") != before[0] and namespace("mnt") != before[1]
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
        return os.geteuid(), os.getegid(), effective.split()[1], changed

    user, group, capabilities, changed = in_child(child, user=USER)
    assert (user, group) == (USER, USER)
    assert changed
    assert int(capabilities, 16) & 1 << 21, "CAP_SYS_ADMIN inside"


@pytest.mark.needs("userns")
def test_setgroups_is_given_up() -> None:
    def child() -> str:
        namespaces.unshare_user()
        return Path("/proc/self/setgroups").read_text(encoding="utf-8").strip()

    assert in_child(child, user=USER) == "deny"


@pytest.mark.needs("userns")
def test_a_general_map() -> None:
    def child() -> tuple[int, int, list[str]]:
        user, group = os.geteuid(), os.getegid()
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        namespaces.write_id_maps([IdMap(0, user)], [IdMap(7, group)], deny_setgroups=True)
        text = Path("/proc/self/uid_map").read_text(encoding="utf-8")
        return os.geteuid(), os.getegid(), text.split()

    user, group, text = in_child(child, user=USER)
    assert (user, group) == (0, 7)
    assert text == ["0", str(USER), "1"]


@pytest.mark.needs("userns")
def test_a_second_map_is_refused() -> None:
    def child() -> None:
        namespaces.unshare_user()
        maps = [IdMap(0, 0)]
        namespaces.write_id_maps(maps, maps, deny_setgroups=False)

    with pytest.raises(PermissionError):
        in_child(child, user=USER)


@pytest.mark.needs("root")
def test_a_mount_namespace_needs_the_right() -> None:
    with pytest.raises(PermissionError):
        in_child(lambda: namespaces.unshare(namespaces.CLONE_NEWNS), user=USER)


def test_several_threads_are_einval() -> None:
    def child() -> int | None:
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER)
        except OSError as error:
            return error.errno
        finally:
            done.set()
            thread.join()
        return None

    assert in_child(child) == errno.EINVAL


@pytest.mark.needs("root")
def test_setns_enters_and_checks_the_kind() -> None:
    def child() -> tuple[bool, int | None]:
        old = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        before = namespace("mnt")
        namespaces.unshare(namespaces.CLONE_NEWNS)
        assert namespace("mnt") != before
        try:
            namespaces.setns(old, namespaces.CLONE_NEWUSER)
        except OSError as error:
            number = error.errno
        else:
            number = None
        namespaces.setns(old, namespaces.CLONE_NEWNS)
        return namespace("mnt") == before, number

    assert in_child(child) == (True, errno.EINVAL)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("flags", "mark"), [(mounts.MS_SHARED, "shared:"), (mounts.MS_PRIVATE, "")], ids=str
)
def test_propagation_of_every_mount(flags: int, mark: str) -> None:
    def child() -> set[bool]:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(flags)
        found = [mount.propagation for mount in mountinfo.mounts()]
        return {any(p.startswith(mark) for p in ps) if mark else ps == () for ps in found}

    assert in_child(child) == {True}


@pytest.mark.needs("root")
def test_a_slave_gives_nothing_back(tmp_path: Path) -> None:
    def child() -> list[bool]:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(mounts.MS_SHARED)

        def grandchild() -> None:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            namespaces.set_propagation()
            mounts.mount("none", str(tmp_path), "tmpfs")
            assert os.path.ismount(tmp_path)

        in_child(grandchild)
        return [os.path.ismount(tmp_path)]

    assert in_child(child) == [False]
