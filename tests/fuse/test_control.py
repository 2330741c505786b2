from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from layermount.config import LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.errors import ConfigError, HostError
from layermount.events import Event, EventKind
from layermount.hosts import rundir
from layermount.hosts.fuse import asking
from layermount.hosts.fuse.control import BACKLOG, Backlog, Control
from layermount.hosts.run_directory import socket_path
from layermount.hosts.rundir import Record
from layermount.linux import processes
from layermount.mount import LayerMount
from tests.forked import USER, in_child

DEADLINE_S = 30


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Overlay]:
    """An overlay in this process; nothing is mounted, so that the sockets are tested by themselves.

    The run directory has a long name, longer than a socket's address may be.
    """
    run = tmp_path / ("long" * 30)
    monkeypatch.setenv("LAYERMOUNT_RUN_DIR", str(run))
    for name in ("upper", "lower"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/a").write_text("one\n")
    with contextlib.closing(
        Overlay(LayerMountConfig(tmp_path / "upper", [tmp_path / "lower"]))
    ) as o:
        yield o


def a_record() -> Record:
    mount_namespace, pid_namespace, boot = rundir.place()
    return Record(
        token=rundir.new_token(),
        host="fuse",
        target="/nowhere",
        mount_id=1,
        fstype="fuse.layermount",
        source="layermount:x",
        lowers=("/lower\udcff",),
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


@pytest.fixture
def record(overlay: Overlay) -> Iterator[Record]:
    """A mount as the run directory has it, and its control socket, answered."""
    made = a_record()
    control = Control(made.token, overlay)
    control.bind()
    control.start(made, lambda: {"requests": {"lookup": 3}})
    yield made
    control.close()
    control.close()
    with pytest.raises(HostError, match="does not answer"):
        asking.status(made)


def event(number: int) -> Event:
    return Event(EventKind.CREATED, f"file{number}\udcff", timestamp_ns=number)


def plain(value: object) -> Any:
    return json.loads(json.dumps(value))


def test_status(record: Record, overlay: Overlay) -> None:
    status = asking.status(record)
    assert status["mount"] == plain(asdict(record))
    assert status["session"] == {"requests": {"lookup": 3}}
    assert status["overlay"] == plain(asdict(overlay.counters.copy()))
    assert status["config"]["lower_paths"] == list(map(str, overlay.config.lower_paths))
    assert status["config"]["durability"] == "auto"
    assert "reflink" in status["config"]["capabilities"]
    assert status["daemon"]["pid"] == os.getpid()
    assert status["daemon"]["memory"] > 1 << 20


@pytest.mark.parametrize("path", ["a", "nothing", "/a/", "", "b\udcff"])
def test_explain_is_the_library_s(record: Record, overlay: Overlay, path: str) -> None:
    config = overlay.config
    overlay.unlink(overlay.root, "a")
    found = asking.explain(record, path)
    overlay.close()
    with LayerMount.create(config) as mount:
        assert found == plain(asdict(mount.explain(path)))


def test_an_error_is_the_library_s(record: Record, overlay: Overlay) -> None:
    overlay.symlink(overlay.root, "loop", "loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        asking.explain(record, "loop/x")
    assert caught.value.filename == "loop/x"


def test_events_come_in_order(record: Record, overlay: Overlay) -> None:
    stream = asking.events(record)
    assert next(stream) == {"kind": "subscribed"}
    overlay.mkdir(overlay.root, "d")
    overlay.rename(overlay.root, "d", overlay.root, "e")
    first, second = next(stream), next(stream)
    assert (first["kind"], first["path"], first["pid"]) == ("created", "d", os.getpid())
    assert (second["kind"], second["old_path"], second["path"]) == ("renamed", "d", "e")


def test_each_listener_hears_everything_until_it_leaves(record: Record, overlay: Overlay) -> None:
    streams = [asking.events(record) for _ in range(3)]
    for stream in streams:
        next(stream)
    overlay.events.publish(event(1))
    assert [next(stream) for stream in streams] == [plain(asdict(event(1)))] * 3
    streams.pop().close()
    overlay.events.publish(event(2))
    assert [next(stream)["timestamp_ns"] for stream in streams] == [2, 2]
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + DEADLINE_S
    while overlay.events.has_subscribers:
        assert time.monotonic() < deadline, "somebody still listens"
        time.sleep(0.01)


def test_a_slow_listener_holds_up_nobody_and_is_told_what_it_missed(
    record: Record, overlay: Overlay
) -> None:
    stream = asking.events(record)
    next(stream)
    sent = 10 * BACKLOG
    for number in range(sent):
        overlay.events.publish(event(number))
    times: list[int] = []
    dropped = 0
    while len(times) + dropped < sent:
        item = next(stream)
        if item["kind"] == "dropped":
            dropped += item["count"]
        else:
            times.append(item["timestamp_ns"])
    assert dropped > 0
    assert len(times) >= BACKLOG
    assert times == sorted(times)
    overlay.events.publish(event(sent))
    assert next(stream)["timestamp_ns"] == sent


def test_a_stream_ends_with_the_mount(overlay: Overlay) -> None:
    record = a_record()
    control = Control(record.token, overlay)
    control.bind()
    control.start(record, dict)
    stream = asking.events(record)
    next(stream)
    control.close()
    assert list(stream) == []


QUESTIONS = {
    "no JSON": b"{\n",
    "no object": b"[1]\n",
    "no question": b"{}\n",
    "unknown": b'{"ask": "everything"}\n',
    "no path": b'{"ask": "explain"}\n',
    "a path with NUL": b'{"ask": "explain", "path": "a\\u0000b"}\n',
    "no text": b"\xff\xfe\n",
}


def answer(record: Record, raw: bytes, *, whole: bool = True) -> bytes:
    with socket.socket(socket.AF_UNIX) as client, socket_path(record.token) as path:
        client.settimeout(DEADLINE_S)
        client.connect(path)
        client.sendall(raw)
        if not whole:
            client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").readline()


@pytest.mark.parametrize("raw", QUESTIONS.values(), ids=QUESTIONS)
def test_what_is_no_question_is_told(record: Record, raw: bytes) -> None:
    reply = json.loads(answer(record, raw))
    assert reply["error"]["class"] == ConfigError.__name__
    assert asking.status(record)["daemon"]["pid"] == os.getpid()


def test_half_a_question_gets_no_answer(record: Record) -> None:
    assert answer(record, b'{"ask"', whole=False) == b""


@pytest.mark.needs("root")
def test_nobody_else_may_ask(record: Record, overlay: Overlay) -> None:
    """Neither by its mode nor, where that is changed, by who is at the other end."""
    with socket_path(record.token) as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        listening = os.open(path, os.O_PATH)

    def ask(question: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{listening}")
            client.sendall(question)
            return client.makefile("rb").readline()

    status, events = b'{"ask": "status"}\n', b'{"ask": "events"}\n'
    with pytest.raises(PermissionError):
        in_child(lambda: ask(status), user=USER)
    with socket_path(record.token) as path:
        os.chmod(path, 0o666)
    for question in (status, events):
        reply = json.loads(in_child(functools.partial(ask, question), user=USER))
        assert reply == {"error": {"errno": 1, "message": "Operation not permitted", "path": None}}
    assert not overlay.events.has_subscribers
    os.close(listening)


def test_the_kernel_s_mounts_have_nobody_to_ask(record: Record) -> None:
    with pytest.raises(HostError, match="has no daemon to ask") as caught:
        asking.status(replace(record, host="kernel"))
    assert caught.value.hint is not None


def test_a_socket_without_a_record_is_swept(record: Record) -> None:
    home = Path(os.environ["LAYERMOUNT_RUN_DIR"])
    (home / "silent.log").touch()
    (home / "telling.log").write_text("it went wrong\n")
    rundir.write(record)
    rundir.sweep()
    assert sorted(os.listdir(home)) == sorted(
        [f"{record.token}.json", f"{record.token}.sock", "telling.log"]
    )
    rundir.forget(record)
    rundir.sweep()
    assert os.listdir(home) == ["telling.log"]


def test_a_backlog_that_is_closed_writes_to_no_file() -> None:
    """Its number may be another file's by then."""
    backlog = Backlog(limit=2)
    with backlog:
        for number in range(5):
            backlog.put(event(number))
        events, dropped = backlog.take()
        assert ([e.timestamp_ns for e in events], dropped) == ([0, 1], 3)
        assert backlog.take() == ([], 0)
    another = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(another, backlog.fd)
    backlog.put(event(6))
    with pytest.raises(BlockingIOError):
        os.eventfd_read(another)
    for fd in {another, backlog.fd}:
        os.close(fd)
