from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from layermount.errors import HostError
from layermount.hosts import run_directory, rundir
from layermount.hosts.rundir import Outcome, Record, State
from layermount.linux import mountinfo, processes
from layermount.linux.processes import ProcessIdentity


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(path))
    return path


def record(**changes: object) -> Record:
    """A record of a mount that is truly there: /proc, as if it were ours."""
    proc = next(mount for mount in mountinfo.mounts() if mount.target == "/proc")
    mount_namespace, pid_namespace, boot = rundir.place()
    made = Record(
        token=rundir.new_token(),
        host="kernel",
        target=proc.target,
        mount_id=proc.mount_id,
        fstype=proc.fstype,
        source=proc.source,
        lowers=("/a", "/b\udcff\n,"),
        upper=None,
        work=None,
        volatile=False,
        owner=None,
        writer=processes.identity(),
        mount_namespace=mount_namespace,
        pid_namespace=pid_namespace,
        boot=boot,
        created_ns=1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller's keys are fields


DEAD = ProcessIdentity(1, 1)  # pid 1 started earlier or later, never at that tick
OTHER_MOUNT = {
    "number": {"mount_id": 2**31 - 1},
    "type": {"fstype": "overlay"},
    "source": {"source": "layermount:0"},
    "mount point": {"target": "/elsewhere"},
}


class TestRecords:
    def test_a_record_comes_back_as_it_was(self, home: Path) -> None:
        first = record(owner=processes.identity(), created_ns=2)
        second = record(created_ns=1)
        rundir.write(first)
        rundir.write(second)
        assert rundir.records() == [second, first]
        assert sorted(os.listdir(home)) == sorted(f"{r.token}.json" for r in (first, second))

    def test_the_newest_at_a_target_is_found(self) -> None:
        rundir.write(record(created_ns=1))
        newest = record(created_ns=2)
        rundir.write(newest)
        assert rundir.find(Path("/proc/../proc")) == newest
        assert rundir.find(Path("/sys")) is None

    @pytest.mark.parametrize("changes", OTHER_MOUNT.values(), ids=OTHER_MOUNT)
    def test_another_mount_is_not_taken_for_it(self, changes: dict[str, object]) -> None:
        rundir.write(record(**changes))
        assert rundir.records() == []

    def test_forgetting_twice_is_fine(self, home: Path) -> None:
        known = record()
        rundir.write(known)
        rundir.forget(known)
        rundir.forget(known)
        assert os.listdir(home) == []

    @pytest.mark.parametrize(
        "raw", [b"", b"[]", b"{}", b'{"version": 1}', b"\xff", b'{"version": 1, "lowers": 3}']
    )
    def test_one_that_cannot_be_read_is_told(self, home: Path, raw: bytes) -> None:
        run_directory.directory()
        (home / "x.json").write_bytes(raw)
        with pytest.raises(HostError, match=r"x\.json' cannot be read") as caught:
            rundir.records()
        assert caught.value.hint is not None

    def test_one_of_another_version_is_told(self, home: Path) -> None:
        known = record()
        rundir.write(known)
        path = home / f"{known.token}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
        with pytest.raises(HostError, match="of version 2"):
            rundir.records()


# What the record says, what its state is, what a sweep does.
STATES = {
    "no owner": ({}, State.LIVE),
    "its owner lives": ({"owner": processes.identity(1)}, State.LIVE),
    "its owner is dead": ({"owner": DEAD}, State.STALE),
    "not there, its writer lives": ({"mount_id": 2**31 - 1}, State.PENDING),
    "not there, its writer is dead": ({"mount_id": 2**31 - 1, "writer": DEAD}, State.GONE),
    "of another boot": ({"boot": "other"}, State.GONE),
    "in a namespace without processes": ({"mount_namespace": 1}, State.GONE),
    "pids of another namespace": ({"pid_namespace": 1, "owner": DEAD}, State.LIVE),
    "not there, pids of another namespace": (
        {"pid_namespace": 1, "mount_id": 2**31 - 1, "writer": DEAD},
        State.PENDING,
    ),
}
OUTCOMES = {State.GONE: Outcome.FORGOTTEN, State.STALE: Outcome.UNMOUNTED}


@pytest.mark.parametrize(("changes", "state"), STATES.values(), ids=STATES)
def test_what_a_sweep_does(home: Path, changes: dict[str, object], state: State) -> None:
    known = record(**changes)
    rundir.write(known)
    unmounted: list[Record] = []
    swept = rundir.sweep(unmounted.append)
    assert [(s.record, s.outcome) for s in swept] == (
        [(known, OUTCOMES[state])] if state in OUTCOMES else []
    )
    assert unmounted == ([known] if state is State.STALE else [])
    assert (home / f"{known.token}.json").exists() == (state not in OUTCOMES)


def test_what_cannot_be_unmounted_stays(home: Path) -> None:
    def refuse(_record: Record) -> None:
        raise PermissionError(1, "no", "/proc")

    known = record(owner=DEAD)
    rundir.write(known)
    (swept,) = rundir.sweep(refuse)
    assert swept.outcome is Outcome.REFUSED
    assert isinstance(swept.error, PermissionError)
    assert rundir.records() == [known]


def test_an_unexpected_error_is_raised() -> None:
    def fail(_record: Record) -> None:
        raise OSError(5, "broken")

    rundir.write(record(owner=DEAD))
    with pytest.raises(OSError, match="broken"):
        rundir.sweep(fail)


def test_a_write_that_was_cut_short_is_removed(home: Path) -> None:
    run_directory.directory()
    (home / ".1.1.cut").write_bytes(b"{")
    me = processes.identity()
    writing = home / f".{me.pid}.{me.start_time}.writing"
    writing.write_bytes(b"{")
    assert rundir.records() == []
    rundir.sweep()
    assert os.listdir(home) == [writing.name]
