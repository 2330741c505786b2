from __future__ import annotations

import os

import pytest

from tests.cli.command import Person, assert_error

pytestmark = pytest.mark.needs("userns")


@pytest.fixture
def view(user: Person) -> Person:
    """A person with a kept view `x`."""
    script = "echo x > a; rm b; rm -r sub; mkdir sub; touch sub/new; ln -s a link"
    assert user.sh(script, "--name", "x", "-q")[0] == 0
    return user


RESOLVED = {
    "changed": ("a", "views/x/upper/a"),
    "with a slash": ("/a", "views/x/upper/a"),
    "untouched": ("text", "project/text"),
    "new": ("sub/new", "views/x/upper/sub/new"),
    "a link itself": ("link", "views/x/upper/link"),
    "the root": ("/", "views/x/upper"),
}
ABSENT = {
    "deleted": ("b", "b: deleted"),
    "below an opaque directory": ("sub/c", "sub/c: nothing is there"),
    "never there": ("zz", "zz: nothing is there"),
    "below a file": ("a/b", "a/b: nothing is there"),
}


@pytest.mark.parametrize(("path", "ending"), RESOLVED.values(), ids=RESOLVED)
def test_resolve(view: Person, path: str, ending: str) -> None:
    done = view.layermount("resolve", "x", path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().endswith(f"/{ending}\n")
    shown = view.json("resolve", "x", path)
    assert shown["full_path"] == done.stdout.decode().rstrip("\n")
    assert shown["layer"] == ("lower[0]" if path == "text" else "upper")


@pytest.mark.parametrize(("path", "said"), ABSENT.values(), ids=ABSENT)
def test_resolve_nothing(view: Person, path: str, said: str) -> None:
    done = view.layermount("resolve", "x", path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"layermount: {said}\n"


def test_resolve_a_name_that_is_no_text(view: Person) -> None:
    name = b"odd \xff\n"
    (view.project / os.fsdecode(name)).write_text("")
    done = view.layermount("resolve", "x", name)
    assert done.stdout == os.fsencode(view.project) + b"/" + name + b"\n"
    done = view.layermount("explain", "x", name)
    assert done.stdout.splitlines()[0] == b"odd \\xff\\x0a: file"


def test_explain(view: Person) -> None:
    done = view.layermount("explain", "x", "b")
    upper, project = view.views / "x/upper", view.project
    assert [line.split(maxsplit=2) for line in done.stdout.decode().splitlines()[2:]] == [
        *(
            ["upper", "deletes", f"a mark deletes 'b' in deeper layers  {upper}/b"],
            ["lower[0]", "hidden", f"hidden by the mark in upper on 'b'   {project}/b"],
        )
    ]
    shown = view.json("explain", "x", "sub/c")
    roles = [(verdict["layer"], verdict["role"]) for verdict in shown["verdicts"]]
    assert (shown["kind"], roles) == (None, [("upper", "absent"), ("lower[0]", "hidden")])
    assert "opaque directory 'sub'" in shown["verdicts"][1]["reason"]


def test_layers_one_by_one(user: Person) -> None:
    (user.base / "home/b").write_text("")
    layers = ("--lower", user.base / "home", "--lower", user.project)
    assert user.json("resolve", *layers, "b")["layer"] == "lower[0]"
    assert user.json("resolve", *layers, "sub/c")["layer"] == "lower[1]"


def test_too_many_arguments(view: Person) -> None:
    done = view.layermount("explain", "x", "a", "b")
    assert_error(done, 2, "more than a view and a path", hint=False)


def test_doctor(user: Person) -> None:
    shown = user.json("doctor")
    hosts = {host["name"]: host for host in shown["hosts"]}
    assert hosts["user-overlay"]["available"]
    assert all(host["reason"] for host in hosts.values())
    assert not hosts["overlay"]["available"]
    assert "root" in hosts["overlay"]["remedy"]
    findings = {finding["name"]: finding for finding in shown["findings"]}
    assert findings["whiteout_device"]["available"]
    assert not findings["trusted_xattrs"]["available"]
    text = user.layermount("doctor", user.project).stdout.decode()
    assert f"What an upper in {user.project} can hold" in text
    assert "  no  trusted xattrs: " in text
    assert "      remedy: run it as root, or with CAP_SYS_ADMIN\n" in text
    assert sorted(os.listdir(user.project)) == ["a", "b", "sub", "text"]


def test_doctor_where_nothing_may_be_written(user: Person) -> None:
    user.project.chmod(0o555)
    done = user.layermount("doctor")
    assert done.returncode == 0
    assert b"user-overlay" in done.stdout
    assert b"Permission denied" in done.stdout
    assert "Permission denied" in user.json("doctor")["problem"]
    assert_error(user.layermount("doctor", user.project), 2, "Permission denied")
    assert_error(user.layermount("doctor", "nosuch"), 2, "No such file")
