from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layermount.testing.trees import digest
from tests.cli.command import Person, assert_error, wait_for


def test_without_a_terminal_changes_are_dropped(person: Person) -> None:
    assert person.sh("echo x > a") == (0, "", "")
    assert person.kept() == []
    assert list(person.views.iterdir()) == []


def test_kept_changes_are_there_and_can_be_dropped(person: Person) -> None:
    status, out, err = person.sh("echo x > a; exit 3", "--keep")
    name = person.one_kept()
    assert (status, out) == (3, "")
    assert err == f"layermount: kept as {name}; `layermount diff {name}` shows what changed\n"
    assert person.layermount("diff", name).stdout == b"M a\n"
    assert person.layermount("discard", name).returncode == 0
    assert list(person.views.iterdir()) == []


def test_a_named_view_goes_on(person: Person) -> None:
    assert person.sh("echo 1 > new", "--name", "work")[0] == 0
    assert person.sh("cat new; echo 2 >> new", "--name", "work", "-q") == (0, "1\n", "")
    assert person.sh("cat new", "--name", "work", "--drop") == (0, "1\n2\n", "")
    assert person.kept() == []


def test_a_named_view_covers_one_directory_only(person: Person) -> None:
    person.sh("true", "--name", "work")
    done = person.layermount("run", "--name", "work", "true", cwd=person.project / "sub")
    assert_error(done, 47, "'work' is kept already", str(person.project))
    done = person.layermount("run", "--name", "work", "--lower", person.base, "true")
    assert_error(done, 47, "'work' is kept already")


def test_an_upper_of_ones_own(person: Person) -> None:
    upper = person.base / "mine/upper"
    (person.base / "mine").mkdir()
    person.owned(person.base / "mine")
    assert person.sh("echo x > a; rm b", "--upper", upper, "-q") == (0, "", "")
    assert (upper / "a").read_text() == "x\n"
    assert person.sh("cat a; echo y >> a", "--upper", upper, "-q") == (0, "x\n", "")
    assert person.layermount("discard", person.one_kept()).returncode == 0
    assert (upper / "a").read_text() == "x\ny\n"
    assert list((person.base / "mine").iterdir()) == [upper]
    assert person.sh("ls", "--upper", upper)[1] == "a\nsub\ntext\n"
    done = person.layermount("run", "--upper", upper, "--drop", "true")
    assert_error(done, 2, "--drop", "--upper")


def test_an_upper_in_the_lower_is_refused_and_leaves_no_view(person: Person) -> None:
    done = person.layermount("run", "--upper", person.project / "upper", "true")
    assert_error(done, 40, "lies in", str(person.project))
    assert person.kept() == []


@contextmanager
def running(person: Person, *flags: str, script: str = "echo x > a") -> Iterator[str]:
    """A run that goes on meanwhile; the name of its view."""
    waiting = f"{script}; echo ready; read line"
    with person.start("run", *flags, "--keep", "sh", "-c", waiting) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield person.one_kept()
        process.communicate(b"\n")
        assert process.returncode == 0


def test_a_view_in_use_can_be_looked_at_and_not_be_used(person: Person) -> None:
    with running(person, "--name", "work") as name:
        assert person.kept()[0]["in_use"]
        assert b"(running)" in person.layermount("list").stdout
        assert person.layermount("diff", name).stdout == b"M a\n"
        assert_error(person.layermount("run", "--name", name, "true"), 14, "in use", "layermount")
        assert_error(person.layermount("discard", name), 14, "in use")
    assert not person.kept()[0]["in_use"]
    assert person.layermount("run", "--name", "work", "true").returncode == 0


def test_what_is_left_running_keeps_the_view(person: Person) -> None:
    status, out, err = person.sh("echo x > a; sleep 60 >/dev/null 2>&1 & echo $!", "--drop")
    job = int(out)
    try:
        name = person.one_kept()
        expected = f"layermount: still running in the view, which is kept as {name}: {job}\n"
        assert (status, err) == (0, expected)
        assert person.kept()[0]["in_use"]
        assert_error(person.layermount("run", "--name", name, "true"), 14, "still use", str(job))
        assert_error(person.layermount("discard", name), 14, "still use", str(job))
    finally:
        os.kill(job, signal.SIGKILL)
    wait_for(lambda: not person.kept()[0]["in_use"], "the job's end")
    assert person.layermount("discard", name).returncode == 0


def test_what_ends_by_itself_at_once_is_not_called_left_running(person: Person) -> None:
    assert person.sh("echo x > a; sleep 0.05 &") == (0, "", "")
    assert person.kept() == []


def test_the_state_directory_in_the_lower(person: Person) -> None:
    """In `$HOME` the changes cannot be kept below `$HOME`."""
    home = person.base / "home"
    before = digest(home)
    elsewhere = Path(f"/var/tmp/layermount-{person.uid}")
    was_there = elsewhere.exists()
    status, out, err = person.sh("echo x > new; ls -A", "--name", f"t{os.getpid()}", cwd=home)
    try:
        assert (status, out) == (0, "new\n"), err
        assert digest(home) == before
        (view,) = [v for v in person.kept() if v["name"] == f"t{os.getpid()}"]
        assert view["upper"].startswith(f"{elsewhere}/views/")
    finally:
        person.layermount("discard", f"t{os.getpid()}")
        if not was_there:
            (elsewhere / "views").rmdir()
            elsewhere.rmdir()


def test_the_state_directory_that_is_named(person: Person) -> None:
    place = {"LAYERMOUNT_STATE_DIR": str(person.base / "place")}
    assert person.sh("echo x > a", "--name", "x", env=place)[0] == 0
    assert person.kept() == []
    (view,) = person.json("list", env=place)["views"]
    assert view["upper"] == str(person.base / "place/x/upper")
    done = person.layermount("run", "true", env={"LAYERMOUNT_STATE_DIR": str(person.project)})
    assert_error(done, 45, "lies inside the lower")


def test_a_place_that_others_may_write_to_is_not_used(person: Person) -> None:
    place = person.base / "place"
    place.mkdir()
    person.owned(place)
    place.chmod(0o777)
    env = {"LAYERMOUNT_STATE_DIR": str(place)}
    assert_error(person.layermount("run", "true", env=env), 45, "written to by others")
    assert_error(person.layermount("list", env=env), 45, "written to by others")


def test_what_is_hard_to_remove_is_dropped(person: Person) -> None:
    """No right to enter or to write, deep, and the kernel's own work directory of mode 000."""
    deep = "/".join(["d"] * 300)
    script = f"mkdir -p {deep} x/y; touch x/y/z; chmod 500 x/y; chmod 0 x; chmod 500 ."
    assert person.sh(script) == (0, "", "")
    assert list(person.views.iterdir()) == []
    assert person.sh(script, "--name", "x", "-q")[0] == 0
    assert person.layermount("discard", "x").returncode == 0
    assert list(person.views.iterdir()) == []


def test_the_root_of_a_view_looks_like_the_directory(person: Person) -> None:
    os.setxattr(person.project, "user.mine", b"1")
    os.setxattr(person.project, "user.overlay.opaque", b"y")
    person.project.chmod(0o2751)
    outside = person.project.stat()
    _, out, _ = person.sh("stat -c '%a %u %Y' .; ls")
    assert out.split() == [
        *("2751", str(person.uid), str(int(outside.st_mtime)), "a", "b", "sub", "text"),
    ]


BROKEN = {
    "empty": ("", "no description"),
    "a field is of another kind": (
        json.dumps(
            dict.fromkeys(("name", "target", "upper", "work", "dialect"), 3)
            | {"version": 1, "lowers": [], "command": [], "created_ns": 1}
        ),
        "no description",
    ),
    "of another version": ('{"version": 99}', "version 99"),
    "not there": (None, "no description"),
}


@pytest.mark.needs("userns")
@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_description(user: Person, text: str | None, words: str) -> None:
    user.sh("true", "--name", "good", "-q")
    user.sh("true", "--name", "bad", "-q")
    description = user.views / "bad/view.json"
    description.unlink()
    if text is not None:
        description.write_text(text)
        user.owned(description)
    done = user.layermount("list")
    assert (done.returncode, done.stdout.split()[5]) == (0, b"good")
    assert words in done.stderr.decode()
    assert_error(user.layermount("diff", "bad"), 45, words)
    assert_error(user.layermount("run", "--name", "bad", "true"), 45, words)
    assert user.layermount("discard", "bad").returncode == 0
    assert user.one_kept() == "good"


def test_what_a_crash_left_is_swept(person: Person) -> None:
    person.sh("mkdir x; chmod 0 x", "--name", "x", "-q")
    os.rename(person.views / "x", person.views / ".dropped-1-1-abcdef")
    new = person.views / ".new-1-1-abcdef"
    new.mkdir()
    person.owned(new)
    assert person.layermount("list").returncode == 0
    assert list(person.views.iterdir()) == []


def test_two_views_at_once(person: Person) -> None:
    processes = [person.start("run", "--keep", "-q", "sleep", "0.2") for _ in range(2)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert len(person.kept()) == 2


@pytest.mark.needs("userns")
def test_where_no_namespace_can_be_had(me: Person) -> None:
    """The limit is that of a user namespace around it all, in which nobody has a privilege."""
    around = ("unshare", "--user", "--map-user=1000", "--keep-caps", "sh", "-c")
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --ambient-caps=-all "$@"'
    done = subprocess.run(
        [*around, script, "sh", *me.command("run", "true")],
        env=me.environment,
        cwd=me.project,
        capture_output=True,
        check=False,
    )
    assert_error(done, 41, "no mount namespace can be had")
