from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from layermount.linux import processes
from tests.forked import fork, in_child


@pytest.fixture
def sleeper() -> Iterator[int]:
    pid = fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_caller_is_alive() -> None:
    me = processes.identity()
    assert me.pid == os.getpid()
    assert me == processes.identity(os.getpid())
    assert processes.is_alive(me)


def test_the_start_is_later_for_a_child(sleeper: int) -> None:
    assert processes.identity(sleeper).start_time >= processes.identity().start_time


def test_the_same_pid_with_another_start_is_somebody_else(sleeper: int) -> None:
    child = processes.identity(sleeper)
    assert processes.is_alive(child)
    assert not processes.is_alive(replace(child, start_time=child.start_time - 1))


def test_a_zombie_and_a_reaped_process_are_not_alive() -> None:
    pid = fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    child = processes.identity(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not processes.is_alive(child), "a zombie"
    assert pid in processes.children(os.getpid()), "a zombie is still a child"
    os.waitpid(pid, 0)
    assert not processes.is_alive(child)
    assert pid not in processes.children(os.getpid())
    with pytest.raises(ProcessLookupError):
        processes.identity(pid)


@pytest.mark.parametrize("name", ["a) R 1 (b", "(", ") Z", "sp ace"])
def test_a_name_with_parentheses_does_not_confuse(name: str) -> None:
    def child() -> tuple[bool, bool]:
        before = processes.identity()
        with open("/proc/self/comm", "w", encoding="utf-8") as file:
            file.write(name)
        return processes.identity() == before, processes.is_alive(before)

    assert in_child(child) == (True, True)


def test_children(sleeper: int) -> None:
    assert sleeper in processes.children(os.getpid())
    assert processes.children(sleeper) == []


def test_a_pidfd_tells_the_end(sleeper: int) -> None:
    fd = processes.pidfd_open(sleeper)
    assert select.select([fd], [], [], 0)[0] == []
    os.kill(sleeper, signal.SIGKILL)
    assert select.select([fd], [], [], 10)[0] == [fd]
    os.close(fd)


def test_a_child_dies_with_its_parent() -> None:
    def parent() -> processes.ProcessIdentity:
        pid = os.fork()
        if pid == 0:
            processes.set_parent_death_signal(signal.SIGKILL)
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)
        return processes.identity(pid)

    reader, writer = os.pipe()
    orphan = in_child(parent)
    deadline = time.monotonic() + 10
    while processes.is_alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.close(reader)
    os.close(writer)


def test_a_subreaper_gets_orphans() -> None:
    def reaper() -> bool:
        processes.set_child_subreaper(on=True)
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            grandchild = os.fork()
            if grandchild == 0:
                signal.pause()
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        os.waitpid(middle, 0)
        grandchild = int(os.read(reader, 32))
        is_mine = grandchild in processes.children(os.getpid())
        os.kill(grandchild, signal.SIGKILL)
        os.waitpid(grandchild, 0)
        processes.set_child_subreaper(on=False)
        return is_mine

    assert in_child(reaper)
