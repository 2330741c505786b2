from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command import DEADLINE_S, Person

QUESTION = b"keep, drop or show the changes? [keep] "


class Terminal:
    """A command at a terminal, typed to and read from the other side."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def read_until(self, text: bytes) -> None:
        """Read on until a text comes that was not read yet."""
        start = len(self.seen)
        while text not in self.seen[start:]:
            piece = self._read()
            assert piece, f"the end, without {text!r}: {self.seen!r}"
            self.seen += piece

    def end(self) -> int:
        """Read to the end: how the command ended."""
        while piece := self._read():
            self.seen += piece
        return self.process.wait(DEADLINE_S)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:
            # EIO: nobody has the other side open any more.
            return b""


@contextmanager
def terminal(person: Person, *arguments: str, stdout: int | None = None) -> Iterator[Terminal]:
    master, slave = pty.openpty()

    def prepare() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with person.start(
        *arguments,
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        start_new_session=True,
        preexec_fn=prepare,
    ) as process:
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            os.close(master)
            if process.poll() is None:
                process.kill()


ANSWERS = {
    "keep": (b"keep\n", True),
    "k": (b"k\n", True),
    "nothing": (b"\n", True),
    "nonsense, then keep": (b"what\nkeep\n", True),
    "drop": (b"drop\n", False),
    "d": (b"D\n", False),
    "end of input": (b"\x04", True),
    "Ctrl-C": (b"\x03", True),
}


@pytest.mark.needs("userns")
@pytest.mark.parametrize(("typed", "is_kept"), ANSWERS.values(), ids=ANSWERS)
def test_the_question(user: Person, typed: bytes, is_kept: bool) -> None:
    with terminal(user, "run", "sh", "-c", "echo x > a; rm b; exit 3") as screen:
        screen.read_until(QUESTION)
        screen.type(typed)
        assert screen.end() == 3
    assert b"1 deleted, 1 modified; -6 B\r\nD b\r\nM a\r\n" in plain(screen.seen)
    assert (b"kept as run-" in screen.seen) == is_kept
    assert (b"the changes are dropped" in screen.seen) != is_kept
    assert len(user.kept()) == is_kept


def plain(seen: bytes) -> bytes:
    """What is left without colours."""
    for code in (31, 32, 33, 36, 0):
        seen = seen.replace(b"\x1b[%dm" % code, b"")
    return seen


def test_many_changes_are_shown_when_asked_for(person: Person) -> None:
    script = "rm b; for n in $(seq 100 130); do touch $n; done"
    with terminal(person, "run", "sh", "-c", script) as screen:
        screen.read_until(QUESTION)
        assert b"and 22 more" in screen.seen
        assert plain(screen.seen).index(b"D b") < plain(screen.seen).index(b"A 100")
        assert b"130" not in screen.seen
        screen.type(b"show\n")
        screen.read_until(QUESTION)
        assert b"130" in screen.seen
        screen.type(b"drop\n")
        assert screen.end() == 0
    assert person.kept() == []


def test_nothing_is_asked_without_changes(person: Person) -> None:
    with terminal(person, "run", "true") as screen:
        assert screen.end() == 0
    assert screen.seen == b"layermount: nothing was changed\r\n"


@pytest.mark.parametrize("flag", ["--keep", "--drop"])
def test_nothing_is_asked_when_it_is_said(person: Person, flag: str) -> None:
    with terminal(person, "run", flag, "-q", "touch", "x") as screen:
        assert screen.end() == 0
    assert screen.seen == b""
    assert len(person.kept()) == (flag == "--keep")


def test_standard_output_is_the_commands_alone(person: Person, tmp_path: Path) -> None:
    with (
        (tmp_path / "out").open("wb") as out,
        terminal(person, "run", "sh", "-c", "echo mine; echo x > a", stdout=out.fileno()) as screen,
    ):
        screen.read_until(QUESTION)
        screen.type(b"show\nkeep\n")
        assert screen.end() == 0
    assert (tmp_path / "out").read_bytes() == b"mine\n"


def test_ctrl_c_goes_to_the_command(person: Person) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done"
    with terminal(person, "run", "--drop", "sh", "-c", script) as screen:
        screen.read_until(b"ready\r\n")
        screen.type(b"\x03")
        assert screen.end() == 5
    assert b"caught" in screen.seen


def test_ctrl_c_that_ends_the_command_ends_us_and_loses_nothing(person: Person) -> None:
    script = "echo x > a; echo ready; exec sleep 60"
    with terminal(person, "run", "sh", "-c", script) as screen:
        screen.read_until(b"ready\r\n")
        screen.type(b"\x03")
        screen.read_until(QUESTION)
        screen.type(b"\n")
        assert screen.end() == -signal.SIGINT
    assert len(person.kept()) == 1


def test_a_terminal_that_goes_away_at_the_question_loses_nothing(person: Person) -> None:
    with terminal(person, "run", "sh", "-c", "echo x > a") as screen:
        screen.read_until(QUESTION)
    screen.process.wait(DEADLINE_S)
    assert person.layermount("diff", person.one_kept()).stdout == b"M a\n"


def test_what_cannot_be_told_is_kept(person: Person) -> None:
    """A lower that is gone: nothing can be compared, and nothing is lost."""
    lower = person.base / "lower"
    lower.mkdir()
    person.owned(lower)
    script = f"echo x > new; mv {lower} {lower}.moved"
    with terminal(person, "run", "--lower", str(lower), "sh", "-c", script) as screen:
        assert screen.end() == 0
    assert b"what was changed cannot be told: " in screen.seen
    assert len(person.kept()) == 1
