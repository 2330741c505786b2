from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from layermount.testing.trees import digest
from tests.cli.command import Person, assert_error, wait_for

ENDINGS = {
    "success": ("true", 0),
    "failure": ("exit 3", 3),
    "largest": ("exit 255", 255),
    "SIGTERM": ("kill -TERM $$", -signal.SIGTERM),
    "SIGKILL": ("kill -KILL $$", -signal.SIGKILL),
    "SIGINT": ("kill -INT $$", -signal.SIGINT),
    "SIGSEGV": ("kill -SEGV $$", -signal.SIGSEGV),
    "real-time signal": ("kill -34 $$", -34),
}
CHANGES = "echo more >> a; rm b; mkdir new; echo x > new/file; mv sub/c sub/d; chmod 600 text"


@pytest.mark.parametrize(("script", "status"), ENDINGS.values(), ids=ENDINGS)
def test_it_ends_as_the_command_ends(person: Person, script: str, status: int) -> None:
    assert person.sh(script) == (status, "", "")


def test_a_command_that_is_not_found(person: Person) -> None:
    done = person.layermount("run", "nosuch\n")
    assert_error(done, 127, "'nosuch\\n'", "No such file", hint=False)
    assert person.kept() == []


def test_a_command_that_cannot_be_executed(person: Person) -> None:
    assert_error(person.layermount("run", "./a"), 126, "'./a'", "Permission denied", hint=False)


def test_a_script_without_an_interpreter_line(person: Person) -> None:
    script = person.project / "script"
    script.write_text('echo "$0 $1"; exit 4\n')
    script.chmod(0o755)
    done = person.layermount("run", "./script", "x")
    assert (done.returncode, done.stdout) == (4, b"./script x\n")


def test_everything_after_the_command_is_its_own(person: Person) -> None:
    done = person.layermount("run", "printf", "%s,", "--name", "-h", "--", "--keep")
    assert done.stdout == b"--name,-h,--,--keep,"


def test_paths_are_inside_what_they_are_outside(person: Person) -> None:
    project = person.project
    assert person.sh("pwd; cat a sub/c; ls; id -u")[1].split() == [
        *(str(project), "one", "three", "a", "b", "sub", "text", str(person.uid)),
    ]
    status, out, _ = person.sh("pwd; cat c", "--at", project, cwd=project / "sub")
    assert (status, out) == (0, f"{project}/sub\nthree\n")


def test_the_environment_stays_as_it_is(person: Person) -> None:
    done = person.layermount("run", "env", "-0", env={"ODD": "a\nb \udcff"})
    lines = done.stdout.rstrip(b"\0").split(b"\0")
    outside = {**person.environment, "ODD": "a\nb \udcff"}
    assert sorted(lines) == sorted(os.fsencode(f"{k}={v}") for k, v in outside.items())


@pytest.mark.parametrize("flags", [(), ("--keep",), ("--name", "x")], ids=["drop", "keep", "name"])
def test_the_lower_is_never_touched(person: Person, flags: tuple[str, ...]) -> None:
    before = digest(person.project)
    assert person.sh(f"{CHANGES}; touch .; chmod 700 .", *flags)[0] == 0
    assert digest(person.project) == before


def test_what_is_written_is_seen_inside(person: Person) -> None:
    status, out, _ = person.sh(f"{CHANGES}; cat a new/file sub/d; ls")
    assert (status, out.split()) == (
        *(0, ["one", "more", "x", "three", "a", "new", "sub", "text"]),
    )


@pytest.mark.parametrize("size", [0, 1, 3_000_000], ids=["empty", "one", "large"])
def test_streams_pass_through(person: Person, size: int) -> None:
    data = os.urandom(size)
    done = person.layermount("run", "sh", "-c", "tee copy; cat copy >&2", given=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, data)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_closed_inside(person: Person, number: int) -> None:
    script = f"test ! -e /proc/$$/fd/{number} && echo changed > a"
    done = person.layermount(
        *("run", "--name", "x", "sh", "-c", script), preexec_fn=lambda: os.close(number)
    )
    assert done.returncode == 0
    assert person.layermount("diff", "x").stdout == b"M a\n"


def test_a_closed_error_stream_hides_no_status(person: Person) -> None:
    done = person.layermount("run", "nosuch", preexec_fn=lambda: os.close(2))
    assert done.returncode == 127


def test_the_command_has_no_files_but_its_streams(person: Person) -> None:
    assert person.sh("ls /proc/$$/fd")[1].split() == ["0", "1", "2"]


# Signals 32 and 33 are the C library's own: nobody can set them, and they may be inherited.
_OF_LIBC = 0b11 << 31

DISPOSITIONS: dict[str, tuple[Callable[[], object] | None, int]] = {
    "nothing is ignored": (None, 0),
    "what was ignored": (
        lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        1 << signal.SIGINT - 1,
    ),
    "children": (lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN), 1 << signal.SIGCHLD - 1),
}


@pytest.mark.parametrize(("prepare", "ignored"), DISPOSITIONS.values(), ids=DISPOSITIONS)
def test_signals_are_inside_as_outside(
    person: Person, prepare: Callable[[], object] | None, ignored: int
) -> None:
    def start() -> None:
        # Whoever runs the tests may ignore signals, too.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        if prepare is not None:
            prepare()

    command = ("run", "grep", "^Sig[BI][lg][kn]", "/proc/self/status")
    done = person.layermount(*command, preexec_fn=start)
    blocked, found = (int(word, 16) & ~_OF_LIBC for word in done.stdout.split()[1::2])
    assert (blocked, found) == (0, ignored)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_passed_on(person: Person, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.01; done"
    with person.start("run", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"got\n"
        assert process.wait() == 7


def test_a_signal_that_ends_the_command_ends_us(person: Person) -> None:
    with person.start("run", "sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait() == -signal.SIGTERM
    assert person.kept() == []


def test_when_we_are_killed_the_command_dies_and_the_view_stays(person: Person) -> None:
    script = "echo x > a; rm b; echo $$; exec sleep 60"
    with person.start("run", "sh", "-c", script) as process:
        assert process.stdout is not None
        inner = int(process.stdout.readline())
        process.kill()
        process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the command's end")
    (view,) = person.kept()
    assert (view["exit_status"], view["in_use"]) == (None, False)
    assert b"(did not finish)" in person.layermount("list").stdout
    assert person.layermount("diff", view["name"]).stdout == b"D b\nM a\n"
    assert person.layermount("discard", view["name"]).returncode == 0
    assert person.kept() == []


def test_children_of_the_caller_are_not_taken_for_the_commands(person: Person) -> None:
    """A shell that starts a job and then becomes us by exec leaves us its job."""
    words = " ".join(f"'{os.fsdecode(word)}'" for word in person.command("run", "true"))
    script = f"sleep 60 >/dev/null 2>&1 & echo $!; exec {words}"
    with subprocess.Popen(
        ["sh", "-c", script],
        env=person.environment,
        cwd=person.project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        job = int(process.stdout.readline())
        try:
            assert process.wait() == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""
        finally:
            os.kill(job, signal.SIGKILL)
    assert person.kept() == []


@pytest.mark.needs("userns")
def test_a_view_in_a_view(me: Person) -> None:
    inner = " ".join(f"'{os.fsdecode(word)}'" for word in me.command("run", "cat", "a"))
    status, out, _ = me.sh(f"echo changed > a; {inner}; cat a")
    assert (status, out) == (0, "changed\nchanged\n")


def test_several_lowers(person: Person) -> None:
    for name, files in {"high": ["x", "y"], "low": ["y", "z"]}.items():
        (person.base / name).mkdir()
        for file in files:
            (person.base / name / file).write_text(f"{name}\n")
    lowers = ("--lower", person.base / "high", "--lower", person.base / "low")
    status, out, _ = person.sh("ls; cat x y z", *lowers)
    assert (status, out.split()) == (0, ["x", "y", "z", "high", "high", "low"])
    status, out, _ = person.sh("cat sub/*", *lowers, "--at", person.project / "sub")
    assert (status, out.split()) == (0, ["high", "high", "low"])
