from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from layermount.testing.trees import digest
from tests.cli.command import Person

CHANGES = r"""
echo more >> a; chmod 600 text; touch -d 2001-01-01 times
rm b; rm -r gone; mv file moved; mv dir other 2>/dev/null || true
rm -r again; mkdir again; echo new > again/new
rm kind; mkdir kind; ln -sfn elsewhere link; printf 'x\0y' > binary
ln a hard; mkfifo pipe; printf '\351' > "$(printf 'l\351gume\n')"; touch 'with space'
"""
FILES = ("a", "b", "text", "times", "gone/x", "file", "dir/f", "again/old", "again/same",
         "kind", "binary")  # fmt: skip


@pytest.fixture
def changed(person: Person) -> Person:
    """A person with a kept view `x` that has every kind of change."""
    for name in FILES:
        path = person.project / name
        path.parent.mkdir(exist_ok=True)
        person.owned(path.parent)
        path.write_text(f"{name}\n")
        person.owned(path)
    person.owned(person.project)
    (person.project / "link").symlink_to("a")
    person.owned(person.project / "link")
    before = digest(person.project)
    assert person.sh(CHANGES, "--name", "x", "-q") == (0, "", "")
    assert digest(person.project) == before
    return person


def test_every_kind(changed: Person) -> None:
    # A lower's directory moves by a record, which takes privilege; mv(1) copies it without.
    moved = (
        ["R dir/ -> other/"]
        if changed.uid == 0
        else ["D dir/", "A other/", "A other/f"]
    )  # fmt: skip
    expected = [
        *("D again/old", "D again/same", "D b", "D gone/", "R file -> moved"),
        *("M binary", "M kind/  (type)", "M link  (target)", "M text  (mode)"),
        *("M times  (times)", "M a", "A again/new", "A hard", r"A l\xe9gume", "A pipe"),
        *("A with space", *moved),
    ]
    lines = changed.layermount("diff", "x").stdout.decode().splitlines()
    assert sorted(lines) == sorted(expected)
    order = [line[0] for line in lines]
    assert order == sorted(order, key="DRMA".index)


def test_as_json(changed: Person) -> None:
    shown = {change["path"]: change for change in changed.json("diff", "x")}
    assert list(shown["a"].values()) == [
        *("modified", "a", "file", ["content", "times"], None, 2, 7),
    ]
    assert (shown["gone"]["kind"], shown["gone"]["entry"]) == ("deleted", "directory")
    assert (shown["moved"]["kind"], shown["moved"]["old_path"]) == ("renamed", "file")
    assert shown[os.fsdecode(b"l\xe9gume")]["new_size"] == 1
    assert shown["pipe"]["entry"] == "fifo"


def test_sizes(changed: Person) -> None:
    lines = changed.layermount("diff", "x", "--stat").stdout.decode().splitlines()
    assert "D b  -2 B" in lines
    assert "M a  2 B -> 7 B" in lines
    assert "M binary  7 B -> 3 B" in lines
    shown = changed.json("diff", "x")
    grown = sum((c["new_size"] or 0) - (c["old_size"] or 0) for c in shown)
    assert lines[-1].endswith(f"; {'-' if grown < 0 else '+'}{abs(grown)} B")


FILTERS = {
    "a file": (["a"], ["M a"]),
    "a directory": (["again/"], ["D again/old", "D again/same", "A again/new"]),
    "a pattern": (["*/new"], ["A again/new"]),
    "where it was": (["file"], ["R file -> moved"]),
    "two": (["a", "./b"], ["D b", "M a"]),
    "nothing": (["zz"], []),
    "everything": (["."], None),
}


@pytest.mark.parametrize(("paths", "expected"), FILTERS.values(), ids=FILTERS)
def test_paths(changed: Person, paths: list[str], expected: list[str] | None) -> None:
    lines = changed.layermount("diff", "x", *paths).stdout.decode().splitlines()
    if expected is None:
        expected = changed.layermount("diff", "x").stdout.decode().splitlines()
    assert lines == expected
    quiet = changed.layermount("diff", "-q", "x", *paths)
    assert (quiet.returncode, quiet.stdout) == (bool(expected), b"")


def test_no_changes(person: Person) -> None:
    person.sh("true", "--name", "x", "-q")
    assert person.layermount("diff", "x").stdout == b""
    assert person.json("diff", "x") == []
    assert person.layermount("diff", "--stat", "x").stdout == b"no changes\n"


def test_the_content(changed: Person) -> None:
    out = changed.layermount("diff", "-p", "x").stdout
    assert b"M a\n--- a/a\n+++ b/a\n@@ -1 +1,2 @@\n a\n+more\n" in out
    assert b"Binary files a/binary and b/binary differ\n" in out
    assert b"M link  (target)\n-link -> a\n+link -> elsewhere\n" in out
    assert b"+\xe9\n\\ No newline at end of file\n" in out


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
def test_the_content_can_be_applied(person: Person, tmp_path: Path) -> None:
    """A copy of the lower, patched, is what the view shows: text files, whatever is in them."""
    names = ["plain", "with space", 'quo"te', "back\\slash", "naïve", os.fsdecode(b"l\xe9gume")]
    for number, name in enumerate(names):
        (person.project / name).write_bytes(b"".join(b"%d\r\x0c\x85\n" % n for n in range(40)))
        (person.project / f"{number}.end").write_bytes(b"no newline")
        person.owned(person.project / name)
        person.owned(person.project / f"{number}.end")
    script = r"""
    for f in plain 'with space' 'quo"te' 'back\slash' na* l*; do
        sed -i -e '3s/^/changed /' -e 30d "$f"; printf 'tail\twithout newline' >> "$f"
    done
    rm 0.end; printf 'no newline, more' > 1.end; echo > 2.end; : > 3.end
    mkdir new; echo fresh > new/file; rm text; seq 100 > a
    """
    assert person.sh(script, "--name", "x", "-q") == (0, "", "")
    shutil.copytree(person.project, tmp_path / "copy")
    content = person.layermount("diff", "-p", "x").stdout
    applied = ["patch", "-p1", "--batch", "--binary", "--remove-empty-files"]
    subprocess.run(applied, input=content, cwd=tmp_path / "copy", check=True, capture_output=True)
    _, expected, _ = person.sh("find . -type f -size +0 -exec sha256sum {} +", "--name", "x", "-q")
    found = subprocess.run(
        ["find", ".", "-type", "f", "-size", "+0", "-exec", "sha256sum", "{}", "+"],
        cwd=tmp_path / "copy", capture_output=True, check=True,
    )  # fmt: skip
    assert sorted(os.fsdecode(found.stdout).splitlines()) == sorted(expected.splitlines())


def test_names_survive_json(person: Person) -> None:
    name = b'\xff\n\t"\\ \xc3\xa9'
    script = 'printf x > "$NAME"'
    assert person.sh(script, "--name", "x", "-q", env={"NAME": os.fsdecode(name)})[0] == 0
    (change,) = json.loads(person.layermount("diff", "x", "--json").stdout)
    assert os.fsencode(change["path"]) == name
    assert person.layermount("diff", "x").stdout == b'A \\xff\\x0a\\x09"\\ \xc3\xa9\n'


def test_what_its_owner_may_not_read(person: Person) -> None:
    script = "chmod 0 a; mkdir closed; echo x > closed/f; chmod 0 closed"
    assert person.sh(script, "--name", "x", "-q")[0] == 0
    done = person.layermount("diff", "x")
    assert done.returncode == 0, done
    assert done.stdout == b"M a  (mode)\nA closed/\nA closed/f\n"


def test_moved_files_that_are_alike(person: Person) -> None:
    """Without privilege the kernel does not record where a file came from."""
    for number, name in enumerate(("one", "two", "three")):
        path = person.owned(Path(shutil.copy(person.project / "a", person.project / name)))
        path.write_text(f"{number}\n")
        os.utime(path, ns=(1, 1))
    assert (
        person.sh("mv one 1; mv two 2; mv three 3; cp -p 1 copy; rm a", "--name", "x", "-q")[0] == 0
    )
    lines = person.layermount("diff", "x").stdout.decode().splitlines()
    assert lines == ["D a", "R one -> 1", "R two -> 2", "R three -> 3", "A copy"]
