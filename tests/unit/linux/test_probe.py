from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount.linux import mountinfo, mounts, namespaces, probe
from layermount.linux.probe import DirectoryFindings, Finding
from tests.conftest import FilesystemFactory
from tests.forked import USER, in_child, user_directory

FEATURES = frozenset(DirectoryFindings._fields)
PRIVILEGED = frozenset({"trusted_xattrs", "chown", "device_nodes"})


def probed(path: Path) -> DirectoryFindings:
    """What is found at a path, and that nothing is left there."""
    before = sorted(os.listdir(path))
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return probe.directory(fd)
    finally:
        os.close(fd)
        assert sorted(os.listdir(path)) == before


def missing(findings: DirectoryFindings) -> set[str]:
    return {name for name in FEATURES if not getattr(findings, name)}


class TestDirectory:
    @pytest.mark.parametrize(
        ("kind", "lacks"), [("ext4", {"reflink"}), ("xfs", set()), ("btrfs", set())]
    )
    def test_what_filesystems_have(
        self, filesystem: FilesystemFactory, kind: str, lacks: set[str]
    ) -> None:
        assert missing(probed(filesystem(kind))) == lacks

    @pytest.mark.needs("root")
    def test_an_ordinary_user_lacks_what_needs_privilege(self) -> None:
        with user_directory() as path:
            findings = in_child(lambda: probed(path), user=USER)
            lacks_as_root = missing(probed(path))
        assert missing(findings) == PRIVILEGED | lacks_as_root
        for name in PRIVILEGED:
            finding: Finding = getattr(findings, name)
            assert finding.reason == os.strerror(errno.EPERM)
            assert finding.remedy is not None
            assert "CAP_" in finding.remedy

    @pytest.mark.needs("userns")
    def test_a_filesystem_that_has_nearly_nothing(self, tmp_path: Path) -> None:
        def child() -> set[str]:
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            mounts.mount("none", str(tmp_path), "ramfs")
            return missing(probed(tmp_path))

        lacks = in_child(child)
        assert {"user_xattrs", "acls", "reflink", "rename_whiteout"} <= lacks
        assert not {"hard_links", "rename_noreplace", "case_sensitive"} & lacks

    def test_each_finding_is_called_as_its_field(self, tmp_path: Path) -> None:
        findings = probed(tmp_path)
        assert {getattr(findings, name).name for name in FEATURES} == FEATURES

    def test_each_missing_one_says_why_and_what_to_do(self, tmp_path: Path) -> None:
        findings = probed(tmp_path)
        for name in missing(findings):
            assert getattr(findings, name).reason
            assert getattr(findings, name).remedy

    def test_a_directory_that_cannot_be_written_is_an_error(self) -> None:
        fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with pytest.raises(OSError, match="layermount-probe"):
            probe.directory(fd)
        os.close(fd)


class TestHosts:
    def test_every_host_is_told_about(self) -> None:
        found = probe.hosts()
        assert [finding.name for finding in found] == ["overlay", "user-overlay", "fuse", "openat2"]
        for finding in found:
            assert finding.reason
            assert finding.available or finding.remedy

    def test_it_is_asked_once(self) -> None:
        assert probe.overlay() is probe.overlay()
        assert probe.user_overlay() is probe.user_overlay()

    @pytest.mark.needs("userns")
    def test_it_leaves_no_mount(self) -> None:
        def child() -> bool:
            # Alone, so that nobody else's mounts come and go.
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            namespaces.set_propagation(mounts.MS_PRIVATE)
            before = mountinfo.mounts()
            assert probe.overlay()
            return mountinfo.mounts() == before

        assert in_child(child)

    @pytest.mark.needs("root", "overlay")
    def test_root_may(self) -> None:
        assert fresh(probe.overlay)

    @pytest.mark.needs("root")
    def test_an_ordinary_user_may_not(self) -> None:
        found = fresh(probe.overlay, user=USER)
        assert not found
        assert found.reason == "making a namespace failed: Operation not permitted"
        assert found.remedy == "run it as root, or with CAP_SYS_ADMIN"

    @pytest.mark.needs("userns")
    def test_an_ordinary_user_may_in_a_namespace(self) -> None:
        assert fresh(probe.user_overlay, user=USER)

    @pytest.mark.needs("userns")
    def test_no_user_namespaces_left(self) -> None:
        def child() -> Finding:
            namespaces.unshare_user()
            Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="utf-8")
            return probe.user_overlay()

        found = in_child(child, user=USER)
        assert not found
        assert found.reason == "making a namespace failed: No space left on device"
        assert found.remedy is not None
        assert "user.max_user_namespaces" in found.remedy

    @pytest.mark.needs("root", "fuse")
    def test_fuse_without_its_device(self) -> None:
        def child() -> Finding:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            namespaces.set_propagation()
            mounts.mount("none", "/dev", "tmpfs")
            return probe.fuse()

        found = in_child(child)
        assert not found
        assert found.reason == "/dev/fuse: No such file or directory"
        assert found.remedy is not None
        assert "modprobe fuse" in found.remedy

    @pytest.mark.needs("root", "fuse")
    def test_fuse_that_is_forbidden(self) -> None:
        def child() -> Finding:
            namespaces.unshare_user(namespaces.CLONE_NEWNS)
            return probe.fuse()

        if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
            pytest.skip("/dev/fuse is for everybody")
        found = in_child(child, user=USER)
        assert not found
        assert found.reason == "/dev/fuse: Permission denied"

    def test_a_fusermount_that_cannot_mount_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "fusermount3").touch(mode=0o755)
        tmp_path.chmod(0o755)
        monkeypatch.setenv("PATH", "/nonexistent")
        assert probe.fusermount() is None
        monkeypatch.setenv("PATH", f"/nonexistent:{tmp_path}")
        usable = str(tmp_path / "fusermount3") if os.geteuid() == 0 else None
        assert probe.fusermount() == usable

    def test_openat2(self) -> None:
        assert fresh(probe.beneath)


def fresh(asked: Callable[[], Finding], user: int | None = None) -> Finding:
    """What a probe finds as another user; nothing is remembered from one process to the next."""
    return in_child(asked, user=user)
