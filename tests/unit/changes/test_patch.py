from __future__ import annotations

import difflib
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermount.changes.diff import Difference
from layermount.changes.patch import LARGEST, patch
from layermount.config import LayerMountConfig
from layermount.testing.trees import Tree, build, file, symlink

pytestmark = pytest.mark.needs("patch")


def patches(base: Path, lower: Tree, upper: Tree) -> bytes:
    """The patch of everything that an upper changes, as it is printed."""
    build(base / "lower", lower)
    build(base / "upper", upper)
    config = LayerMountConfig(base / "upper", [base / "lower"])
    with Difference(config) as difference:
        lines = [line for change in difference.changes() for line in patch(difference, change)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


#: Few different lines, so that many are equal, and what other tools take for line ends.
LINES = st.sampled_from([b"a", b"b", b"", b"\r", b"\x0c", b"\xff", "\x85\u2028".encode(), b"-- x"])
TEXTS = st.builds(
    lambda lines, end: b"\n".join(lines) + end,
    st.lists(LINES, max_size=30),
    st.sampled_from([b"", b"\n"]),
)


@given(old=TEXTS, new=TEXTS)
def test_patch_makes_the_old_text_the_new_one(old: bytes, new: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        content = patches(base, {"f": file(old)}, {"f": file(new, mtime_ns=5)})
        if old == new:
            assert content == b""
            return
        command = ["patch", "-p1", "--batch", "--binary", "--fuzz=0", "--posix"]
        done = subprocess.run(
            command, input=content, cwd=base / "lower", capture_output=True, check=False
        )
        assert done.returncode == 0, (done, content)
        left = base / "lower/f"
        assert (left.read_bytes() if left.exists() else b"") == new


@given(old=st.lists(st.integers(0, 3), max_size=40), new=st.lists(st.integers(0, 3), max_size=40))
def test_a_patch_is_about_as_short_as_difflib_makes_it(old: list[int], new: list[int]) -> None:
    texts = ["".join(f"{n}\n" for n in side) for side in (old, new)]
    with tempfile.TemporaryDirectory() as name:
        trees = ({"f": file(text.encode(), mtime_ns=n)} for n, text in enumerate(texts))
        content = patches(Path(name), *trees).decode().splitlines()
    reference = list(difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines()))
    assert len(content) <= len(reference) + 2 * min(len(old), len(new))


CASES: dict[str, tuple[Tree, Tree, bytes]] = {
    "added": ({}, {"f": file(b"x\n")}, b"--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n"),
    "added empty": ({}, {"f": file(b"")}, b""),
    "with a space": (
        {}, {"a b": file(b"x\n")}, b"--- /dev/null\n+++ b/a b\t\n@@ -0,0 +1 @@\n+x\n",
    ),
    "with a newline": (
        {}, {"a\n\x01": file(b"x\n")}, b'--- /dev/null\n+++ "b/a\\n\\001"\n@@ -0,0 +1 @@\n+x\n',
    ),
    "binary": ({"f": file(b"\0")}, {"f": file(b"x")}, b"Binary files a/f and b/f differ\n"),
    "metadata only": ({"f": file(b"x")}, {"f": file(b"x", mode=0o600)}, b""),
    "a link": ({"f": symlink("a")}, {"f": symlink("b")}, b"-f -> a\n+f -> b\n"),
    "a file becomes a link": (
        {"f": file(b"x\n")}, {"f": symlink("b")},
        b"+f -> b\n--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lower", "upper", "expected"), CASES.values(), ids=CASES)
def test_a_patch(tmp_path: Path, lower: Tree, upper: Tree, expected: bytes) -> None:
    assert patches(tmp_path, lower, upper) == expected


def test_a_long_file_with_a_short_change(tmp_path: Path) -> None:
    lines = [b"%d\n" % n for n in range(300_000)]
    old, new = b"".join(lines), b"".join([*lines[:150_000], b"new\n", *lines[150_001:]])
    content = patches(tmp_path, {"f": file(old)}, {"f": file(new, mtime_ns=5)})
    assert content.splitlines()[6:8] == [b"-150000", b"+new"]
    assert len(old) < LARGEST


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    content = patches(tmp_path, {}, {"f": file(b"x" * (LARGEST + 1))})
    assert content == b"Binary files /dev/null and b/f differ\n"
