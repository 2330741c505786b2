from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.layer.descriptors import DescriptorPool
from layermount.layer.directory import DirectoryLayer, LayerDirectory
from layermount.layer.marks import OVERLAY


class Holder:
    """What a pool holds: a descriptor that it may close."""

    def __init__(self) -> None:
        self._fd: int | None = os.open("/", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def is_open(self) -> bool:
        return self._fd is not None


@pytest.fixture
def pool() -> Iterator[DescriptorPool]:
    made = DescriptorPool(3)
    yield made
    made.close()


def test_the_least_recently_used_is_closed(pool: DescriptorPool) -> None:
    holders = [Holder() for _ in range(5)]
    for holder in holders[:3]:
        pool.add(holder)
    pool.touch(holders[0])
    pool.add(holders[3])
    assert [holder.is_open for holder in holders[:4]] == [True, False, True, True]
    pool.add(holders[4])
    assert [holder.is_open for holder in holders] == [True, False, False, True, True]


def test_dropping_and_closing(pool: DescriptorPool) -> None:
    holders = [Holder() for _ in range(3)]
    for holder in holders:
        pool.add(holder)
    pool.drop(holders[1])
    pool.drop(holders[1])
    assert [holder.is_open for holder in holders] == [True, False, True]
    pool.close()
    pool.close()
    assert not any(holder.is_open for holder in holders)


@pytest.fixture
def layer(tmp_path: Path, pool: DescriptorPool) -> Iterator[DirectoryLayer]:
    made = DirectoryLayer(tmp_path, OVERLAY, pool, read_only=False)
    yield made
    made.close()


def test_a_deep_directory_is_found_again_with_few_descriptors(
    tmp_path: Path, layer: DirectoryLayer
) -> None:
    deep = tmp_path
    for number in range(30):
        deep = deep / str(number)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"data")
    directory: LayerDirectory = layer.root
    for number in range(30):
        directory = directory.directory(str(number))
    side = [layer.root.directory("0").directory("1") for _ in range(5)]
    assert [name for name, _ in directory.scan()] == ["file"]
    assert all(part.fd is not None for part in side)
    os.close(directory.open("file"))


def test_a_directory_is_known_by_where_it_was_moved(tmp_path: Path, layer: DirectoryLayer) -> None:
    (tmp_path / "old/below").mkdir(parents=True)
    old = layer.root.directory("old")
    below = old.directory("below")
    os.rename(tmp_path / "old", tmp_path / "new")
    old.move(layer.root, "new")
    old.forget()
    below.forget()
    assert below.path == "new/below"
    assert [name for name, _ in old.scan()] == ["below"]
    assert list(below.scan()) == []
