from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.errors import ViewError
from layermount.views import places

SHARED = Path(f"/var/tmp/layermount-{os.getuid()}/views")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME")
    return tmp_path


STATES = {
    "home": ({}, ["HOME/.local/state/layermount/views", str(SHARED)]),
    "XDG_STATE_HOME": ({"XDG_STATE_HOME": "/x"}, ["/x/layermount/views", str(SHARED)]),
    "a relative XDG_STATE_HOME": ({"XDG_STATE_HOME": "x"}, [str(SHARED)]),
    "LAYERMOUNT_STATE_DIR": ({"LAYERMOUNT_STATE_DIR": "/x", "XDG_STATE_HOME": "/y"}, ["/x"]),
}


@pytest.mark.parametrize(("environment", "expected"), STATES.values(), ids=STATES)
def test_the_places(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: list[str]
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    found = [str(state).replace(str(home), "HOME") for state in places.state_directories()]
    assert found == expected


def test_the_first_place_outside_the_lowers(home: Path, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    assert places.usable([lower]) == home / ".local/state/layermount/views"
    assert (home / ".local/state/layermount/views").stat().st_mode & 0o777 == 0o700


def test_a_link_to_a_place_inside_a_lower(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "lower/inside").mkdir(parents=True)
    (home / "state").symlink_to("lower/inside")
    monkeypatch.setenv("LAYERMOUNT_STATE_DIR", str(home / "state"))
    with pytest.raises(ViewError, match="lies inside the lower"):
        places.usable([home / "lower"])


UNTRUSTED = {"others": 0o707, "group": 0o770}


@pytest.mark.parametrize("mode", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_place_that_others_may_write_to(
    home: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    place = home / "place"
    place.mkdir()
    place.chmod(mode)
    monkeypatch.setenv("LAYERMOUNT_STATE_DIR", str(place))
    for look in (places.existing, lambda: places.usable([])):
        with pytest.raises(ViewError, match="may be written to by others"):
            look()


@pytest.mark.needs("root")
def test_attack_a_shared_place_that_somebody_else_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the directory above could exchange the views in it."""
    monkeypatch.setattr(places, "_SHARED", str(tmp_path))
    above = tmp_path / f"layermount-{os.getuid()}"
    (above / "views").mkdir(parents=True)
    assert places.existing() == [above / "views"]
    os.chown(above, 4242, -1)
    assert places.existing() == []
    (home / ".local").mkdir()
    with pytest.raises(ViewError, match="belongs to user 4242"):
        places.usable([home / ".local"])


def test_a_place_that_is_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("LAYERMOUNT_STATE_DIR", str(home / "file/state"))
    assert places.existing() == []
    with pytest.raises(ViewError, match="cannot be used: File exists"):
        places.usable([])
