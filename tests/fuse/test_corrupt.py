"""A layer with a fault in it: what is whole is served, what is not says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.config import LayerMountConfig
from layermount.hosts.fuse import daemon
from layermount.layer.marks import OVERLAY

pytestmark = pytest.mark.needs("root", "fuse")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A merged directory with one entry whose record leads nowhere."""
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    upper, near, far, target = (tmp_path / name for name in ("upper", "near", "far", "target"))
    for path in (upper, near / "bad", near / "good", far / "bad", target):
        path.mkdir(parents=True)
    (near / "good/file").write_bytes(b"content")
    os.setxattr(near / "bad", OVERLAY.key("redirect"), b"../outside")
    with daemon.start(LayerMountConfig(upper, [near, far]), target) as mount:
        yield mount.target


def test_the_rest_of_a_directory_is_listed(root: Path) -> None:
    assert sorted(os.listdir(root)) == ["bad", "good"]
    with os.scandir(root) as entries:
        assert sorted((entry.name, entry.is_dir()) for entry in entries) == [
            ("bad", True),
            ("good", True),
        ]
    assert (root / "good/file").read_bytes() == b"content"


def test_the_fault_shows_where_it_is(root: Path) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output") as caught:
            os.stat(root / "bad")
        assert caught.value.errno == errno.EIO
