"""What a live mount tells: who did what, what was asked, what it is made of."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layermount.hosts.fuse import asking
from layermount.hosts.fuse.mounted import FuseMount
from layermount.testing import trees
from tests.fuse import places

pytestmark = pytest.mark.needs("root", "fuse")


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FuseMount]:
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(tmp_path / "run"))
    place = places.made(tmp_path / "overlay", "passthrough", {"a": trees.file(b"lower")})
    with place.mount() as mount:
        assert isinstance(mount, FuseMount)
        yield mount


@pytest.mark.parametrize(
    ("command", "events"),
    [
        ("echo more >> a", [("copy-up", "a")]),
        ("echo new > b", [("created", "b")]),
        ("rm a", [("whiteout-created", "a"), ("removed", "a")]),
        ("mkdir d; mv d e", [("created", "d"), ("renamed", "e")]),
    ],
)
def test_an_event_names_the_process_that_asked(
    mount: FuseMount, command: str, events: list[tuple[str, str]]
) -> None:
    stream = asking.events(mount.record)
    assert next(stream) == {"kind": "subscribed"}
    with subprocess.Popen(["sh", "-c", command], cwd=mount.target) as shell:
        found = [next(stream) for _ in events]
    assert [(event["kind"], event["path"]) for event in found] == events
    if not command.startswith(("rm", "mkdir")):
        assert {event["pid"] for event in found} == {shell.pid}
    assert all(event["pid"] != _daemon(mount) for event in found)


def _daemon(mount: FuseMount) -> int:
    assert mount.record.owner is not None
    return mount.record.owner.pid


def test_requests_are_counted(mount: FuseMount) -> None:
    (mount.target / "a").read_bytes()
    status = asking.status(mount.record)
    served = status["session"]
    assert isinstance(served, dict)
    requests = served["requests"]
    assert requests["lookup"] >= 1
    assert requests["read"] == 1
