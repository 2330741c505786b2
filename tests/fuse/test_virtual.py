"""Layers that no directory is: seen through the FUSE host, and by the kernel through that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.config import LayerMountConfig
from layermount.hosts import kernel
from layermount.hosts.fuse import daemon
from layermount.testing import trees
from layermount.testing.virtual import MemoryLayer

pytestmark = pytest.mark.needs("root", "fuse", "overlay")

TREE = {
    "file": trees.file(b"content", mode=0o640, owner=(1000, 100), mtime_ns=10**18),
    "big": trees.file(bytes(range(256)) * 2048),
    "directory": trees.directory(mode=0o711),
    "directory/below": trees.file(b"below"),
    "link": trees.symlink("directory/below"),
    "fifo": trees.fifo(),
}


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A read-only view of one layer in memory."""
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    target = tmp_path / "view"
    target.mkdir()
    config = LayerMountConfig(None, [Path("in memory")])
    with daemon.start(
        config, target, allow_other=True, open_lower=lambda _: MemoryLayer(TREE)
    ) as mount:
        yield mount.target


def test_a_layer_in_memory_is_shown(view: Path, tmp_path: Path) -> None:
    plain = trees.build(tmp_path / "plain", TREE)
    shown = trees.without(trees.snapshot(view), "inode", "nlink")
    trees.assert_same(shown, trees.without(trees.snapshot(plain), "inode", "nlink"))


@pytest.mark.parametrize("name", ["file", "new"])
def test_it_is_read_only(view: Path, name: str) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        (view / name).write_bytes(b"x")


def test_the_kernel_takes_it_for_a_lower(view: Path, tmp_path: Path) -> None:
    upper, work, merged = (tmp_path / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir()
    options = kernel.Options(redirect_dir=True)
    with kernel.mount(merged, lowers=[view], upper=upper, work=work, options=options):
        with (merged / "file").open("ab") as file:
            file.write(b" and more")
        (merged / "directory/below").unlink()
        (merged / "directory").rename(merged / "moved")
        assert (merged / "file").read_bytes() == b"content and more"
        assert (merged / "big").read_bytes() == bytes(range(256)) * 2048
        assert os.listdir(merged / "moved") == []
    assert (view / "file").read_bytes() == b"content"
    assert (view / "directory/below").read_bytes() == b"below"
    assert (upper / "file").read_bytes() == b"content and more"
