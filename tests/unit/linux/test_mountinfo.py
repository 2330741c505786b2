from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layermount.linux import mountinfo, namespaces
from layermount.linux.mountinfo import Mount, OverlayLayers
from layermount.linux.mounts import MS_PRIVATE
from tests.forked import in_child

HEAD = b"36 35 98:0 / /mnt rw,relatime "

PARSED = {
    "all fields": (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
        Mount(
            mount_id=36,
            parent_id=35,
            device="98:0",
            root="/mnt1",
            target="/mnt2",
            options=("rw", "noatime"),
            propagation=("master:1",),
            fstype="ext3",
            source="/dev/root",
            super_options=(("rw", None), ("errors", "continue")),
        ),
    ),
    "no propagation, no source": (
        b"1 0 0:1 / / rw - tmpfs  rw\n",
        Mount(1, 0, "0:1", "/", "/", ("rw",), (), "tmpfs", "", (("rw", None),)),
    ),
    "a dash as a name, white space that is not escaped": (
        b"2 1 0:2 /- /\x0b\x0c\r rw shared:1 master:2 - fuse.x - rw,a=b=c\n",
        Mount(
            mount_id=2,
            parent_id=1,
            device="0:2",
            root="/-",
            target="/\x0b\x0c\r",
            options=("rw",),
            propagation=("shared:1", "master:2"),
            fstype="fuse.x",
            source="-",
            super_options=(("rw", None), ("a", "b=c")),
        ),
    ),
    "escapes and bytes that are not UTF-8": (
        b"2 1 0:2 / /a\\040b\\011c\\012d\\134e\\134040\xff rw - x a\\040b rw,k=1\\0542\n",
        Mount(
            mount_id=2,
            parent_id=1,
            device="0:2",
            root="/",
            target="/a b\tc\nd\\e\\040\udcff",
            options=("rw",),
            propagation=(),
            fstype="x",
            source="a b",
            super_options=(("rw", None), ("k", "1,2")),
        ),
    ),
}

LAYERS = {
    "one by one": (
        b"rw,lowerdir+=/a,lowerdir+=/b\\054c,datadir+=/d,upperdir=/u\\134,workdir=/w:x",
        OverlayLayers(("/a", "/b,c"), ("/d",), "/u\\", "/w:x"),
    ),
    "in one text": (b"rw,lowerdir=/a:/b", OverlayLayers(("/a", "/b"))),
    "a protected colon and backslash": (
        b"rw,lowerdir=/a\\134:b:/c\\134\\134d",
        OverlayLayers(("/a:b", "/c\\d")),
    ),
    "data layers": (
        b"rw,lowerdir=/a:/b::/c::/d",
        OverlayLayers(("/a", "/b"), ("/c", "/d")),
    ),
}


@pytest.mark.parametrize(("line", "mount"), PARSED.values(), ids=PARSED)
def test_a_line(line: bytes, mount: Mount) -> None:
    assert mountinfo.parse(line) == mount


@pytest.mark.parametrize(("options", "layers"), LAYERS.values(), ids=LAYERS)
def test_the_layers_of_an_overlay(options: bytes, layers: OverlayLayers) -> None:
    mount = mountinfo.parse(HEAD + b"- overlay overlay " + options + b"\n")
    assert mountinfo.overlay_layers(mount) == layers


@pytest.mark.parametrize("line", [b"", b"1 2 3", b"1 2 0:1 / / rw no dash here\n"])
def test_another_format_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not in list|to unpack"):
        mountinfo.parse(line)


@pytest.mark.needs("userns")
def test_the_real_file_has_the_root_and_is_found_by_number() -> None:
    def child() -> None:
        # Alone, so that nobody else's mounts come and go.
        namespaces.unshare_user(namespaces.CLONE_NEWNS)
        namespaces.set_propagation(MS_PRIVATE)
        mounts = mountinfo.mounts()
        assert any(mount.target == "/" for mount in mounts)
        for mount in mounts:
            assert mountinfo.find(mount.mount_id) == mount
        assert mountinfo.find(max(mount.mount_id for mount in mounts) + 1_000_000) is None
        everything = {mount.mount_id for mount in mounts if mount.target != "/"}
        assert {mount.mount_id for mount in mountinfo.below("/")} == everything

    in_child(child)


def test_the_mount_of_a_descriptor() -> None:
    fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    number = mountinfo.mount_id_of(fd)
    os.close(fd)
    found = mountinfo.find(number)
    assert found is not None
    assert (found.target, found.fstype) == ("/proc", "proc")


def test_a_closed_descriptor_is_on_no_mount() -> None:
    fd = os.open("/", os.O_PATH)
    os.close(fd)
    with pytest.raises(FileNotFoundError) as caught:
        mountinfo.mount_id_of(fd)
    assert caught.value.errno == errno.ENOENT


def test_mounts_below_a_directory(tmp_path: Path) -> None:
    assert "/proc" not in {mount.target for mount in mountinfo.below("/proc")}
    assert list(mountinfo.below(str(tmp_path))) == []
