"""Places for overlays that are mounted, once for each host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuse import places
from tests.fuse.places import Place

HOSTS = [
    pytest.param("kernel", marks=pytest.mark.needs("root", "overlay")),
    pytest.param("passthrough", marks=pytest.mark.needs("root", "fuse")),
    pytest.param("fuse", marks=pytest.mark.needs("root", "fuse")),
]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host's name; what runs keeps its records in a directory of this test."""
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    name: str = request.param
    return name


@pytest.fixture
def place(tmp_path: Path, host: str) -> Place:
    """Empty layers, not mounted yet."""
    return places.made(tmp_path / "overlay", host)
