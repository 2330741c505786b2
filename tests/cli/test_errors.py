from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.command import Person, assert_error

#: Arguments → exit status, words of the only line.
WRONG = {
    "no such command": (["nosuch"], 2, "No such command 'nosuch'"),
    "no such option": (["list", "--nosuch"], 2, "No such option"),
    "run without a command": (["run"], 2, "Missing argument"),
    "run with a lower that is not there": (["run", "--lower", "nosuch", "true"], 2, "nosuch"),
    "run at a file": (["run", "--at", "a", "true"], 2, "a file"),
    "run with an upper that is a file": (["run", "--upper", "a", "true"], 2, "a file"),
    "run with a name with a slash": (["run", "--name", "a/b", "true"], 45, "'a/b'"),
    "run with a name with a newline": (["run", "--name", "a\nb", "true"], 45, r"'a\nb'"),
    "run with a hidden name": (["run", "--name", ".a", "true"], 45, "'.a'"),
    "run with an unknown host": (["run", "--host", "nosuch", "true"], 2, "nosuch"),
    "diff of no view": (["diff", "nosuch"], 46, "'nosuch'"),
    "diff of a path": (["diff", "../../etc"], 46, "'../../etc'"),
    "diff of a directory": (["diff", "sub"], 46, "no overlay is mounted there"),
    "diff of nothing": (["diff"], 2, "no layers are named"),
    "diff of an upper alone": (["diff", "--upper", "sub"], 2, "at least one lower"),
    "diff of a layer that is not there": (
        ["diff", "--upper", "nosuch", "--lower", "sub"], 11, "nosuch",
    ),
    "diff of a layer that is a file": (["diff", "--upper", "a", "--lower", "sub"], 11, "'a'"),
    "resolve in no view": (["resolve", "nosuch", "a"], 46, "'nosuch'"),
    "resolve without layers": (["resolve", "a"], 2, "no layers are named"),
    "both ways to name layers": (["resolve", "x", "a", "--lower", "sub"], 2, "both"),
    "discard of no view": (["discard", "nosuch"], 46, "'nosuch'"),
    "discard of a hidden directory": (["discard", ".."], 46, "'..'"),
    "mount at nothing": (["mount", "--lower", "sub", "nosuch"], 2, "nosuch"),
    "umount of nothing": (["umount", "nosuch"], 40, "nosuch"),
}  # fmt: skip
#: Wrong, and nobody knows a remedy.
WITHOUT_HINT = {"diff of an upper alone", "diff of a layer that is not there",
                "diff of a layer that is a file", "both ways to name layers"}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(user: Person, case: str) -> None:
    arguments, status, words = WRONG[case]
    done = user.layermount(*arguments)
    assert_error(done, status, words, hint=case not in WITHOUT_HINT)
    assert not user.views.exists() or list(user.views.iterdir()) == []


def test_discard_drops_all_or_nothing(user: Person) -> None:
    user.sh("true", "--name", "x", "-q")
    assert_error(user.layermount("discard", "x", "nosuch"), 46, "'nosuch'")
    assert user.one_kept() == "x"


def test_a_lower_without_the_right_to_enter(user: Person) -> None:
    user.project.chmod(0o700)
    (user.project / "sub").chmod(0)
    done = user.layermount("resolve", "--lower", user.project / "sub", "c")
    assert_error(done, 11, "Permission denied", str(user.project / "sub"), hint=False)


def test_a_working_directory_that_is_gone(user: Person) -> None:
    gone = user.project / "gone"
    gone.mkdir()
    user.owned(gone)
    done = user.layermount("run", "true", cwd=gone, preexec_fn=gone.rmdir)
    assert_error(done, 1, "No such file or directory", hint=False)


def test_help_and_version(user: Person) -> None:
    for arguments in ([], ["--help"], ["run", "-h"]):
        done = user.layermount(*arguments)
        assert b"Usage: " in done.stdout + done.stderr
        assert done.returncode == (0 if arguments else 2)
    assert user.layermount("--version").stdout.startswith(b"layermount ")


def test_a_reader_that_has_gone(user: Person) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = user.layermount("doctor", stdout=gone)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_a_full_disk_is_told(user: Person) -> None:
    with Path("/dev/full").open("wb") as full:
        done = user.layermount("doctor", stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"layermount: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_everything(user: Person, encoding: str) -> None:
    (user.project / "naïve ✓").mkdir()
    layers = ("--upper", user.project, "--lower", user.project / "sub")
    done = user.layermount("diff", *layers, env={"PYTHONIOENCODING": encoding})
    assert_error(done, 2, "lies inside", hint=False) if done.returncode else None
