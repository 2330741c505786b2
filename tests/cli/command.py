"""The installed command as a subprocess, used by root or by an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forked import USER

ROOT = Path(__file__).parent.parent.parent
#: Seconds after which a command that hangs is a failure; far more than any of them needs.
DEADLINE_S = 30


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who uses the command.

    Attributes:
        uid: Root's or an ordinary user's.
        base: A directory of their own, for this test; `$HOME` is in it.
        project: A directory to run in; a lower.
    """

    uid: int
    base: Path
    project: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.base / "home"),
            "LAYERMOUNT_RUN_DIR": str(self.base / "run"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
        }

    @property
    def views(self) -> Path:
        return self.base / "home/.local/state/layermount/views"

    def command(self, *arguments: str | Path | bytes) -> list[str | bytes]:
        """The command line of `layermount ARGUMENTS` as this person."""
        given = [os.fspath(argument) for argument in arguments]
        if self.uid == os.geteuid():
            return [sys.executable, "-m", "layermount", *given]
        return [sys.executable, str(ROOT / "tests/cli/as_user.py"), str(self.uid), *given]

    def start(
        self,
        *arguments: str | Path | bytes,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """`layermount ARGUMENTS` in the project, not waited for; all three streams are pipes."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            self.command(*arguments),
            env={**self.environment, **(env or {})},
            **{"cwd": self.project, **streams, **options},
        )

    def layermount(
        self, *arguments: str | Path | bytes, given: bytes = b"", **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """What `layermount ARGUMENTS` ended in."""
        with self.start(*arguments, **options) as process:
            try:
                out, err = process.communicate(given, timeout=DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def sh(self, script: str, *flags: str | Path, **options: Any) -> tuple[int, str, str]:
        """`layermount run FLAGS -- sh -c SCRIPT`: status, standard output, standard error."""
        done = self.layermount("run", *flags, "--", "sh", "-c", script, **options)
        return done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr)

    def json(self, *arguments: str | Path | bytes, **options: Any) -> Any:
        """What a command that must succeed prints as JSON."""
        done = self.layermount(*arguments, "--json", **options)
        assert (done.returncode, done.stderr) == (0, b""), done
        return json.loads(done.stdout)

    def kept(self) -> list[dict[str, Any]]:
        """The views that are kept, but of others who run tests at the same time."""
        views: list[dict[str, Any]] = self.json("list")["views"]
        return [view for view in views if view["target"].startswith(str(self.base))]

    def one_kept(self) -> str:
        """The name of the only view that is kept."""
        (view,) = self.kept()
        name: str = view["name"]
        return name

    def owned(self, path: Path) -> Path:
        """The path, given to this person."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)
        return path


@contextlib.contextmanager
def at_home(base: Path, uid: int) -> Iterator[Person]:
    """A person with an empty home and a project with a few files."""
    person = Person(uid, base, base / "project")
    for path in (base, base / "home", person.project, person.project / "sub"):
        path.mkdir(exist_ok=True)
        person.owned(path)
    files = {"a": "one\n", "b": "two\n", "sub/c": "three\n", "text": "1\n2\n3\n4\n5\n6\n7\n8\n9\n"}
    for name, content in files.items():
        (person.project / name).write_text(content)
        person.owned(person.project / name)
    yield person


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.01)


def assert_error(
    done: subprocess.CompletedProcess[bytes], status: int, *words: str, hint: bool = True
) -> None:
    """The command failed with that status, one line that has these words, and perhaps a hint."""
    lines = done.stderr.decode().splitlines()
    assert done.returncode == status, done
    assert lines, done
    assert lines[0].startswith("layermount: "), done
    assert all(word in lines[0] for word in words), done
    assert len(lines) == 1 + hint, done
    assert not hint or lines[1].startswith("hint: "), done
    assert done.stdout == b"", done


ORDINARY = USER
