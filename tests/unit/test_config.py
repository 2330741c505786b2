"""`LayerMountConfig` and `Capabilities`: checked when they are made, without touching the disk."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from layermount import Capabilities, ConfigError, Durability, LayerMount, LayerMountConfig

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no layers"),
    "no layers": ({"upper_path": None, "lower_paths": []}, "no layers"),
    "one lower, not a list": ({"lower_paths": "/a"}, "not a list"),
    "one lower path": ({"lower_paths": Path("/a")}, "not a list"),
    "empty upper": ({"upper_path": ""}, "empty"),
    "empty lower": ({"lower_paths": ["/a", ""]}, "empty"),
    "empty work": ({"upper_path": "/u", "work_dir_path": ""}, "empty"),
    "NUL in upper": ({"upper_path": "/u\0x"}, "NUL"),
    "NUL in a lower": ({"lower_paths": ["\0"]}, "NUL"),
    "work without upper": ({"lower_paths": ["/a"], "work_dir_path": "/w"}, "without upper_path"),
    "unknown durability": ({"upper_path": "/u", "durability": "sometimes"}, "durability"),
    "unknown dialect": ({"upper_path": "/u", "dialect": "aufs"}, "dialect"),
    "unknown lower dialect": ({"lower_paths": ["/a"], "lower_dialects": ["x"]}, "dialect"),
    "too few lower dialects": ({"lower_paths": ["/a"], "lower_dialects": []}, "one item for each"),
    "too many lower dialects": (
        {"lower_paths": ["/a"], "lower_dialects": [None, None]},
        "one item for each",
    ),
    "lower dialects without lowers": ({"upper_path": "/u", "lower_dialects": ["oci"]}, "one item"),
    "no capacity": ({"upper_path": "/u", "path_cache_capacity": 0}, "at least 1"),
    "less than none": ({"upper_path": "/u", "path_cache_capacity": -1}, "at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_contradiction_is_refused_at_once(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        LayerMountConfig(**arguments)


def test_a_hint_says_the_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        LayerMountConfig(lower_paths="/a")
    assert caught.value.hint == "write lower_paths=[...]"


def test_the_defaults() -> None:
    config = LayerMountConfig("/x/upper", ["/a", Path("/b")])
    assert config.upper_path == Path("/x/upper")
    assert config.lower_paths == (Path("/a"), Path("/b"))
    assert config.work_dir_path == Path("/x/.layermount-work/upper")
    assert config.capabilities == Capabilities.all()
    assert config.durability is Durability.AUTO
    assert config.dialect is None
    assert config.lower_dialects == (None, None)
    assert config.own_redirects is False
    assert config.path_cache_capacity == 10_000


def test_without_an_upper_there_is_no_work_directory() -> None:
    assert LayerMountConfig(lower_paths=["/a"]).work_dir_path is None


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ("upper", "base/.layermount-work/upper"),
        ("./upper/", "base/.layermount-work/upper"),
        (".", ".layermount-work/base"),
        ("upper/..", ".layermount-work/base"),
        ("../other", ".layermount-work/other"),
    ],
)
def test_the_work_directory_lies_beside_the_upper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upper: str, expected: str
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    assert LayerMountConfig(upper).work_dir_path == tmp_path / expected
    assert not (tmp_path / expected).exists()


def test_the_current_directory_can_be_an_upper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    with LayerMount.create(LayerMountConfig(".")) as mount:
        mount.path("f").write_text("f")
    assert os.listdir(tmp_path / "base") == ["f"]


def test_making_one_touches_nothing(tmp_path: Path) -> None:
    LayerMountConfig(tmp_path / "upper", [tmp_path / "lower"])
    assert list(tmp_path.iterdir()) == []


def test_it_cannot_be_changed_but_copied() -> None:
    config = LayerMountConfig("/u", ["/a"], durability="strict")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dialect = "overlay"  # type: ignore[misc]  # that is the point
    changed = dataclasses.replace(config, durability=Durability.VOLATILE)
    assert (config.durability, changed.durability) == (Durability.STRICT, Durability.VOLATILE)
    assert dataclasses.replace(changed, durability=Durability.STRICT) == config
    assert hash(dataclasses.replace(config)) == hash(config)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301  # our own


def test_layers_may_come_from_any_iterable() -> None:
    config = LayerMountConfig("/u", (Path(name) for name in "abc"))
    assert config.lower_paths == (Path("a"), Path("b"), Path("c"))
    assert config.lower_dialects == (None, None, None)


def test_capabilities_are_a_set() -> None:
    some = Capabilities.XATTRS | Capabilities.ACLS
    assert Capabilities.XATTRS in some
    assert Capabilities.REFLINK not in some
    assert Capabilities.NONE in some
    assert all(capability in Capabilities.all() for capability in Capabilities)
    assert Capabilities.all() & ~Capabilities.XATTRS | Capabilities.XATTRS == Capabilities.all()
    config = LayerMountConfig("/u", capabilities=Capabilities.NONE)
    assert config.capabilities == Capabilities.NONE


# What only the disk can tell is refused where it is opened.
def test_an_upper_in_a_dialect_that_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    config = LayerMountConfig(tmp_path / "upper", dialect="oci")
    with pytest.raises(ConfigError, match="oci"):
        LayerMount.create(config)


def test_an_upper_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "upper").write_text("")
    with pytest.raises(Exception, match="upper") as caught:
        LayerMount.create(LayerMountConfig(tmp_path / "upper"))
    assert type(caught.value).__name__ == "LayerUnavailableError"


def test_a_work_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "file").write_text("")
    config = LayerMountConfig(tmp_path / "upper", work_dir_path=tmp_path / "file/work")
    with pytest.raises(ConfigError, match="work directory"):
        LayerMount.create(config)
