"""W-37: every capability that is turned off has the fallback that `config.Capabilities` tells."""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from layermount import Capabilities, EventKind, LayerMount
from layermount.testing.trees import Tree, directory, file
from tests.conftest import FilesystemFactory
from tests.unit.overlays import (
    BIG,
    MARKS,
    heard,
    is_shell,
    make_layers,
    names_below,
    open_layers,
    open_overlay,
)

# Owner, one user, group, mask, others: include/uapi/linux/posix_acl_xattr.h.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 7, 1234),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
)
ACL_ACCESS = "system.posix_acl_access"


def without(capability: Capabilities) -> Capabilities:
    return Capabilities.all() & ~capability


def warnings_of(mount: LayerMount, act: Callable[[], object]) -> list[str]:
    """The paths that `act` causes warnings about."""
    events = heard(mount)
    act()
    return [path for kind, path in events if kind is EventKind.WARNING]


def set_acl(path: Path) -> None:
    try:
        os.setxattr(path, ACL_ACCESS, ACL)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"no ACLs on the filesystem of {path}")


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_xattrs(tmp_path: Path, is_on: bool) -> None:
    """Off: copy-up leaves `user.*` attributes behind, and warns."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.XATTRS)
    tree: Tree = {
        "d": directory(xattrs={"user.d": b"1"}),
        "d/f": file(b"x", xattrs={"user.f": b"1"}),
        "d/bare": file(b"x"),
    }
    with open_overlay(tmp_path, tree, capabilities=capabilities) as mount:
        warned = warnings_of(mount, lambda: mount.ensure_in_upper("d/f"))
        assert warned == ([] if is_on else ["d", "d/f"])
        assert warnings_of(mount, lambda: mount.ensure_in_upper("d/bare")) == []
        assert mount.listxattr("d/f") == (["user.f"] if is_on else [])
        assert mount.listxattr("d") == (["user.d"] if is_on else [])
        assert mount.path("d/f").read_bytes() == b"x"


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_acls(tmp_path: Path, is_on: bool) -> None:
    """Off: copy-up keeps the mode bits only, and warns."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.ACLS)
    make_layers(tmp_path, {"f": file(b"x")})
    set_acl(tmp_path / "lower0/f")
    mode = os.stat(tmp_path / "lower0/f").st_mode
    with open_layers(tmp_path, capabilities=capabilities) as mount:
        warned = warnings_of(mount, lambda: mount.ensure_in_upper("f"))
        assert warned == ([] if is_on else ["f"])
        assert mount.listxattr("f") == ([ACL_ACCESS] if is_on else [])
        assert mount.stat("f").st_mode == mode


@pytest.mark.parametrize(
    ("off", "key"), [(Capabilities.ACLS, "user.f"), (Capabilities.XATTRS, ACL_ACCESS)]
)
def test_w37_only_what_is_lost_is_warned_about(tmp_path: Path, off: Capabilities, key: str) -> None:
    """An attribute that is copied is no reason for a warning."""
    make_layers(tmp_path, {"f": file(b"x")})
    if key == ACL_ACCESS:
        set_acl(tmp_path / "lower0/f")
    else:
        os.setxattr(tmp_path / "lower0/f", key, b"1")
    with open_layers(tmp_path, capabilities=without(off)) as mount:
        assert warnings_of(mount, lambda: mount.ensure_in_upper("f")) == []
        assert mount.listxattr("f") == [key]


@pytest.mark.needs("root")
@pytest.mark.parametrize("is_on", [True, False])
def test_w37_owners(tmp_path: Path, is_on: bool) -> None:
    """Off: what is copied up belongs to the caller, and a warning says so."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.OWNERS)
    tree: Tree = {"f": file(b"x", owner=(1234, 5678)), "own": file(b"x")}
    with open_overlay(tmp_path, tree, capabilities=capabilities) as mount:
        warned = warnings_of(mount, lambda: mount.ensure_in_upper("f"))
        assert warned == ([] if is_on else ["f"])
        status = mount.stat("f")
        owner = (1234, 5678) if is_on else (os.geteuid(), os.getegid())
        assert (status.st_uid, status.st_gid) == owner
        assert warnings_of(mount, lambda: mount.ensure_in_upper("own")) == []


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_sparse_files(tmp_path: Path, is_on: bool) -> None:
    """Off: holes are written out as zeros; the content is the same."""
    size = 4 << 20
    capabilities = Capabilities.all() if is_on else without(Capabilities.SPARSE_FILES)
    capabilities &= ~Capabilities.REFLINK
    make_layers(tmp_path, {"f": file(b"begin")})
    os.truncate(tmp_path / "lower0/f", size)
    with open_layers(tmp_path, capabilities=capabilities) as mount:
        mount.ensure_in_upper("f")
        assert mount.path("f").read_bytes() == b"begin".ljust(size, b"\0")
    allocated = (tmp_path / "upper/f").stat().st_blocks * 512
    assert allocated < 1 << 20 if is_on else allocated >= size


@pytest.mark.needs("reflink")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("is_on", [True, False])
def test_w37_reflink(filesystem: FilesystemFactory, kind: str, is_on: bool) -> None:
    """On: the copy takes no room. Off: the kernel copies, and may share what it can."""
    base = filesystem(kind)
    capabilities = Capabilities.all() if is_on else without(Capabilities.REFLINK)
    make_layers(base, {"f": file(os.urandom(8 << 20))})
    os.sync()
    with open_layers(base, capabilities=capabilities) as mount:
        before = os.statvfs(base).f_bfree
        mount.ensure_in_upper("f")
        os.sync()
        taken = (before - os.statvfs(base).f_bfree) * os.statvfs(base).f_frsize
        assert taken < 4 << 20 or not is_on
        assert mount.path("f").read_bytes() == (base / "lower0/f").read_bytes()


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_metacopy(tmp_path: Path, is_on: bool) -> None:
    """Off: the first change of any kind copies the data too."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.METACOPY)
    with open_overlay(tmp_path, {"f": file(BIG)}, capabilities=capabilities) as mount:
        mount.chmod("f", 0o600)
        assert is_shell(tmp_path, "f") == is_on
        assert ((tmp_path / "upper/f").read_bytes() == BIG) == (not is_on)
        assert mount.path("f").read_bytes() == BIG


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_redirect_dir(tmp_path: Path, is_on: bool) -> None:
    """Off: renaming a lower's directory is EXDEV; what the upper alone has moves all the same."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.REDIRECT_DIR)
    tree: Tree = {"d/x": file()}
    with open_overlay(tmp_path, tree, upper={"u/y": file()}, capabilities=capabilities) as mount:
        assert failure(lambda: mount.rename("d", "e")) == (0 if is_on else errno.EXDEV)
        mount.rename("u", "v")
        assert names_below(mount) == [*(["e", "e/x"] if is_on else ["d", "d/x"]), "v", "v/y"]


def failure(act: Callable[[], object]) -> int:
    """The errno that `act` ends in, 0 for none."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.needs("root")
@pytest.mark.parametrize("is_on", [True, False])
def test_w37_device_nodes_cannot_be_created(tmp_path: Path, is_on: bool) -> None:
    """Off: making a device is EPERM; fifos and marks are none."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.DEVICE_NODES)
    with open_overlay(tmp_path, {"f": file()}, capabilities=capabilities) as mount:
        null = os.makedev(1, 3)
        made = failure(lambda: mount.mknod("null", stat.S_IFCHR | 0o666, null))
        assert made == (0 if is_on else errno.EPERM)
        assert mount.exists("null") == is_on
        mount.mkfifo("fifo")
        mount.unlink("f")
        assert mount.resolve_path("f").is_whiteout


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "is_on",
    [
        True,
        False,
    ],
)
def test_w37_device_nodes_cannot_be_copied_up(tmp_path: Path, is_on: bool) -> None:
    """Off: copying one up is EPERM."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.DEVICE_NODES)
    make_layers(tmp_path, {})
    os.mknod(tmp_path / "lower0/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with open_layers(tmp_path, capabilities=capabilities) as mount:
        found = failure(lambda: mount.chmod("null", 0o600))
        assert found == (0 if is_on else errno.EPERM)
        assert (tmp_path / "upper/null").exists() == is_on


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_hard_links(tmp_path: Path, is_on: bool) -> None:
    """Off: linking is EPERM, and nothing is copied up for it."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.HARD_LINKS)
    with open_overlay(tmp_path, {"f": file()}, capabilities=capabilities) as mount:
        assert failure(lambda: mount.link("f", "g")) == (0 if is_on else errno.EPERM)
        assert names_below(mount) == (["f", "g"] if is_on else ["f"])
        assert mount.get_stats().copy_ups == int(is_on)


@pytest.mark.parametrize("is_on", [True, False])
def test_w37_rename_whiteout(tmp_path: Path, is_on: bool) -> None:
    """Off: renaming what a lower holds is EXDEV; what the upper alone has moves all the same."""
    capabilities = Capabilities.all() if is_on else without(Capabilities.RENAME_WHITEOUT)
    tree: Tree = {"f": file(), "d/x": file()}
    with open_overlay(tmp_path, tree, upper={"u": file()}, capabilities=capabilities) as mount:
        for old, new in (("f", "g"), ("d", "e")):
            move = functools.partial(mount.rename, old, new)
            assert failure(move) == (0 if is_on else errno.EXDEV)
        mount.rename("u", "v")
        left = ["e", "e/x", "g", "v"] if is_on else ["d", "d/x", "f", "v"]
        assert names_below(mount) == left


def test_w37_every_capability_has_a_test_here() -> None:
    """A capability without a test of its fallback is not one."""
    tested = {name.removeprefix("test_w37_") for name in globals() if name.startswith("test_w37_")}
    for capability in Capabilities:
        name = str(capability.name).lower()
        assert any(test == name or test.startswith(f"{name}_") for test in tested), name


def test_w37_capabilities_are_what_is_asked_for_and_there(tmp_path: Path) -> None:
    """Nothing that was left out is used, and nothing that is missing is claimed."""
    asked = Capabilities.XATTRS | Capabilities.HARD_LINKS
    with open_overlay(tmp_path, {}, capabilities=asked) as mount:
        assert mount.overlay.upper is not None
        assert mount.overlay.upper.capabilities == asked
    with open_layers(tmp_path, capabilities=Capabilities.NONE) as mount:
        assert mount.overlay.upper is not None
        assert mount.overlay.upper.capabilities == Capabilities.NONE
        mount.path("f").write_text("works")
        assert mount.path("f").read_text() == "works"
    assert MARKS.key("opaque") not in os.listxattr(tmp_path / "upper")
