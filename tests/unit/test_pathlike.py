"""`LayerMountPath`: what `pathlib.Path` gives on a plain copy of the same tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from layermount import LayerMount, LayerMountPath
from layermount.testing.trees import LONG_AGO_NS, Tree, build, directory, fifo, file, symlink
from tests.unit.overlays import is_shell, names_below, open_overlay

# The same tree, by layers: the upper first. Together they are WHOLE.
UPPER: Tree = {"docs/new.md": file(b"new"), ".hidden": file(b"h"), "link": symlink("docs")}
LOWERS: list[Tree] = [
    {"docs/a.md": file(b"a"), "docs/sub/b.md": file(b"b"), "file.txt": file(b"text\n")},
    {
        "docs/sub/deep/c.MD": file(b"c"),
        "dangling": symlink("nowhere"),
        "loop": symlink("loop"),
        "filelink": symlink("docs/a.md"),
        "empty": directory(),
        "odd[1]": file(b"odd"),
        "docs/.dot/x.md": file(b"x"),
        "a b": file(b"space"),
        "pipe": fifo(),
    },
]
WHOLE: Tree = {**LOWERS[1], **LOWERS[0], **UPPER}


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerMount]:
    """An overlay to look at only."""
    with open_overlay(tmp_path_factory.mktemp("layers"), *LOWERS, upper=UPPER) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain directory to look at only."""
    return build(tmp_path_factory.mktemp("plain") / "tree", WHOLE)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[LayerMount]:
    """An overlay to change."""
    with open_overlay(tmp_path, *LOWERS, upper=UPPER) as opened:
        yield opened


PATTERNS = [
    "*", "*.txt", "*.md", "docs/*", "docs/*.md", "*/*.md", "*/*/*.md", "**/*.md", "**/*.MD",
    "docs/**/*.md", "**/*", "**/sub/*", "docs/sub", "docs/./sub", "file.txt", "nothing", "no/thing",
    "file.txt/*", "file.txt/x", "link/*", "link/*.md", "link", "filelink", "filelink/*",
    "dangling/*",
    "d*", "?ink", "[dl]*", "[!dl]*", "odd[[]1]", "odd[1]", ".*", "**/.*", "**/.dot/*", "*/", "d*/",
    "**/deep/*", "**/**/*.md", "docs//a.md", "* *", "empty/*", "empty", "**/c.*", "docs/*/deep/*",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_glob_is_pathlibs(mount: LayerMount, plain: Path, pattern: str) -> None:
    expected = sorted(str(path.relative_to(plain)) for path in plain.glob(pattern))
    assert sorted(str(path) for path in mount.path().glob(pattern)) == expected


@pytest.mark.parametrize("pattern", ["*.md", "sub/*", "*", "x.md"])
def test_rglob_is_pathlibs(mount: LayerMount, plain: Path, pattern: str) -> None:
    for start in ("", "docs", "docs/sub"):
        expected = sorted(str(path.relative_to(plain)) for path in (plain / start).rglob(pattern))
        assert sorted(str(path) for path in mount.path(start).rglob(pattern)) == expected


def test_two_stars_are_every_directory(mount: LayerMount) -> None:
    """As before Python 3.13, where it became every entry."""
    found = sorted(str(path) for path in mount.path("docs").glob("**"))
    assert found == ["docs", "docs/.dot", "docs/sub", "docs/sub/deep"]


def test_glob_of_what_is_no_pattern(mount: LayerMount, plain: Path) -> None:
    for root in (mount.path(), plain):
        with pytest.raises(ValueError, match="pattern"):
            list(root.glob(""))
        with pytest.raises(NotImplementedError):
            list(root.glob("/docs"))


PURE: dict[str, Callable[[Any], object]] = {
    "name": lambda path: path.name,
    "stem": lambda path: path.stem,
    "suffix": lambda path: path.suffix,
    "parts": lambda path: path.parts,
    "str": str,
    "parent": lambda path: str(path.parent),
    "parent of parent": lambda path: str(path.parent.parent),
    "join": lambda path: str(path / "x" / "y"),
    "joinpath": lambda path: str(path.joinpath("x", "y/z", "..")),
    "with_name": lambda path: str(path.with_name("other")),
    "relative_to itself": lambda path: str(path.relative_to(path)),
    "relative_to parent": lambda path: str(path.relative_to(str(path.parent))),
    "relative_to another": lambda path: path.relative_to("elsewhere"),
    "equal": lambda path: (path == path / "", path == path / "x", path == "text"),
    "less": lambda path: (path < path / "x", min(path / "b", path / "a").name),
    "hash": lambda path: len({path, path / "", path / "x"}),
}


@pytest.mark.parametrize("call", PURE)
def test_a_path_itself_is_as_pathlibs(mount: LayerMount, call: str) -> None:
    for text in ("a", "a/b.txt", "a/./b//c.tar.gz", "a/../b", ".hidden"):
        expected = form(PURE[call], PurePosixPath(text))
        if expected == "." and "relative" not in call:
            # The root has no name of its own.
            expected = ""
        assert (text, form(PURE[call], mount.path(text))) == (text, expected)


def form(act: Callable[[Any], object], path: object) -> object:
    """What a call gives; an exception's class and errno."""
    try:
        return act(path)
    except (OSError, ValueError) as error:
        return type(error), getattr(error, "errno", None)


def test_a_path_without_and_with_a_slash_is_the_same(mount: LayerMount) -> None:
    path = mount.path("docs/a.md")
    assert path == mount.path("/docs/a.md") == mount.path() / "docs" / "a.md"
    assert repr(path) == "LayerMountPath('docs/a.md')"
    # As in pathlib: what has a slash in front starts at the root.
    assert mount.path("docs") / "/file.txt" == mount.path("file.txt")
    assert str(mount.path()) == str(mount.path().parent) == ""
    assert path != PurePosixPath("docs/a.md")


def test_paths_of_two_overlays_differ(mount: LayerMount, tmp_path: Path) -> None:
    with open_overlay(tmp_path / "other") as other:
        assert mount.path("a") != other.path("a")
        assert len({mount.path("a"), other.path("a"), mount.path("a")}) == 2


def test_a_path_is_none_of_this_machine(mount: LayerMount) -> None:
    with pytest.raises(TypeError):
        os.stat(mount.path("file.txt"))  # type: ignore[arg-type]  # that is the point


LOOKS: dict[str, Callable[[Any], object]] = {
    "exists": lambda path: path.exists(),
    "is_dir": lambda path: path.is_dir(),
    "is_file": lambda path: path.is_file(),
    "is_symlink": lambda path: path.is_symlink(),
    "stat": lambda path: path.stat().st_mode,
    "lstat": lambda path: path.lstat().st_mode,
    "stat of a link": lambda path: path.stat(follow_symlinks=False).st_mode,
    "size": lambda path: path.is_file() and path.stat().st_size,
    "readlink": lambda path: str(path.readlink()),
    "iterdir": lambda path: sorted(child.name for child in path.iterdir()),
    "read_bytes": lambda path: path.read_bytes(),
    "read_text": lambda path: path.read_text("utf-8"),
    "read in vain": lambda path: path.read_text("no-such-encoding"),
}
PLACES = [
    "", "docs", "docs/a.md", "docs/sub/deep/c.MD", "link", "link/a.md", "filelink", "dangling",
    "loop", "loop/x", "missing", "missing/x", "file.txt", "file.txt/x", "empty", "a b", "odd[1]",
    "docs/../file.txt", "link/../file.txt",
]  # fmt: skip


@pytest.mark.parametrize("call", LOOKS)
def test_looking_is_as_in_pathlib(mount: LayerMount, plain: Path, call: str) -> None:
    def act(path: Any) -> object:
        try:
            return LOOKS[call](path)
        except LookupError as error:
            return str(error)

    for place in PLACES:
        assert (place, form(act, mount.path(place))) == (place, form(act, plain / place))


def test_exists_may_look_at_the_link_itself(mount: LayerMount) -> None:
    assert mount.path("dangling").exists(follow_symlinks=False)
    assert not mount.path("dangling").exists()
    assert not mount.path("missing").exists(follow_symlinks=False)


def test_walk(mount: LayerMount, plain: Path) -> None:
    walked = [(str(top), names, others) for top, names, others in mount.path("docs").walk()]
    assert walked == [
        ("docs", [".dot", "sub"], ["a.md", "new.md"]),
        ("docs/.dot", [], ["x.md"]),
        ("docs/sub", ["deep"], ["b.md"]),
        ("docs/sub/deep", [], ["c.MD"]),
    ]
    # A link to a directory is no directory here.
    _, names, others = next(mount.path().walk())
    assert names == ["docs", "empty"]
    assert {"link", "filelink", "dangling", "pipe"} <= set(others)
    assert sorted(names + others) == sorted(path.name for path in plain.iterdir())


def test_walk_does_not_enter_what_is_taken_out(mount: LayerMount) -> None:
    seen = []
    for top, names, _ in mount.path().walk():
        seen.append(str(top))
        names[:] = [name for name in names if name != "sub"]
    assert seen == ["", "docs", "docs/.dot", "empty"]


CHANGES: dict[str, Callable[[Any], object]] = {
    "write_bytes": lambda root: (root / "docs/a.md").write_bytes(b"changed"),
    "write_bytes new": lambda root: (root / "new").write_bytes(b"new"),
    "write_text": lambda root: (root / "docs/a.md").write_text("größe", encoding="utf-8"),
    "write through a link": lambda root: (root / "filelink").write_bytes(b"by link"),
    "write below a link": lambda root: (root / "link/fresh").write_bytes(b"by link"),
    "write to a directory": lambda root: (root / "docs").write_bytes(b""),
    "write below nothing": lambda root: (root / "none/x").write_bytes(b""),
    "open": lambda root: write_by(root / "docs/sub/b.md", "r+b"),
    "open to append": lambda root: write_by(root / "docs/sub/b.md", "ab"),
    "open exclusively": lambda root: write_by(root / "docs/sub/b.md", "xb"),
    "touch": lambda root: (root / "fresh").touch(),
    "touch mode": lambda root: (root / "fresh").touch(0o600),
    "touch existing": lambda root: (root / "docs/a.md").touch(),
    "touch a directory": lambda root: (root / "docs").touch(),
    "touch exclusively": lambda root: (root / "docs/a.md").touch(exist_ok=False),
    "touch a dangling link": lambda root: (root / "dangling").touch(),
    "mkdir": lambda root: (root / "fresh").mkdir(),
    "mkdir mode": lambda root: (root / "fresh").mkdir(0o700),
    "mkdir there": lambda root: (root / "docs").mkdir(),
    "mkdir there, allowed": lambda root: (root / "docs").mkdir(exist_ok=True),
    "mkdir on a file": lambda root: (root / "file.txt").mkdir(exist_ok=True),
    "mkdir on a link": lambda root: (root / "link").mkdir(exist_ok=True),
    "mkdir without parents": lambda root: (root / "x/y/z").mkdir(),
    "mkdir with parents": lambda root: (root / "x/y/z").mkdir(parents=True),
    "mkdir with some parents": lambda root: (root / "docs/sub/y/z").mkdir(parents=True),
    "mkdir with parents there": lambda root: (root / "docs/sub").mkdir(parents=True),
    "mkdir with parents there, allowed": lambda root: (root / "docs/sub").mkdir(
        parents=True, exist_ok=True
    ),
    "mkdir below a file": lambda root: (root / "file.txt/x/y").mkdir(parents=True),
    "rmdir": lambda root: (root / "empty").rmdir(),
    "rmdir full": lambda root: (root / "docs").rmdir(),
    "rmdir a file": lambda root: (root / "file.txt").rmdir(),
    "rmdir a link": lambda root: (root / "link").rmdir(),
    "unlink": lambda root: (root / "file.txt").unlink(),
    "unlink a link": lambda root: (root / "link").unlink(),
    "unlink a directory": lambda root: (root / "docs").unlink(),
    "unlink nothing": lambda root: (root / "missing").unlink(),
    "unlink nothing, allowed": lambda root: (root / "missing").unlink(missing_ok=True),
    "symlink_to": lambda root: (root / "fresh").symlink_to("docs/a.md"),
    "symlink_to taken": lambda root: (root / "link").symlink_to("docs/a.md"),
    "chmod": lambda root: (root / "docs/a.md").chmod(0o640),
    "chmod through a link": lambda root: (root / "filelink").chmod(0o604),
    "chmod nothing": lambda root: (root / "missing").chmod(0o600),
}


def write_by(path: Any, mode: str) -> None:
    with path.open(mode) as opened:
        opened.write(b"++")


@pytest.mark.parametrize("change", CHANGES)
def test_changing_is_as_in_pathlib(fresh: LayerMount, tmp_path: Path, change: str) -> None:
    plain = build(tmp_path / "plain", WHOLE)
    assert form(CHANGES[change], fresh.path()) == form(CHANGES[change], plain)
    assert names_below(fresh) == sorted(str(path.relative_to(plain)) for path in plain.rglob("*"))
    for path in plain.rglob("*"):
        same = fresh.path(str(path.relative_to(plain)))
        expected, found = path.lstat(), same.lstat()
        assert (found.st_mode, same.is_file()) == (expected.st_mode, path.is_file())
        if path.is_file():
            assert same.read_bytes() == path.read_bytes()
        was_old = expected.st_mtime_ns == LONG_AGO_NS
        assert (found.st_mtime_ns == LONG_AGO_NS) == was_old, path


@pytest.mark.parametrize("call", ["rename", "replace"])
def test_rename_gives_the_new_path(fresh: LayerMount, call: str) -> None:
    path = fresh.path("docs/a.md")
    for target in ("file.txt", fresh.path("empty/b")):
        path = getattr(path, call)(target)
        assert isinstance(path, LayerMountPath)
        assert path.read_bytes() == b"a"
    assert str(path) == "empty/b"
    assert not fresh.path("docs/a.md").exists()


@pytest.mark.parametrize("as_path", [True, False])
def test_hardlink_to(fresh: LayerMount, as_path: bool) -> None:
    source = fresh.path("docs/a.md")
    fresh.path("second").hardlink_to(source if as_path else "docs/a.md")
    fresh.path("second").write_bytes(b"both")
    assert source.read_bytes() == b"both"
    assert source.stat().st_nlink == 2


def test_touch_copies_no_data(fresh: LayerMount, tmp_path: Path) -> None:
    fresh.path("docs/sub/b.md").touch()
    assert is_shell(tmp_path, "docs/sub/b.md")
    assert fresh.path("docs/sub/b.md").stat().st_mtime_ns > LONG_AGO_NS


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe name\n")
    with open_overlay(tmp_path, {f"d/{name}": file(b"lower")}) as mount:
        path = mount.path("d") / name
        assert path.read_bytes() == b"lower"
        path.write_bytes(b"changed")
        path.rename(f"d/{name}2")
        assert os.listdir(os.fsencode(tmp_path / "upper/d")).count(b"\xff\xfe name\n2") == 1
        assert [child.name for child in mount.path("d").iterdir()] == [f"{name}2"]


def test_a_name_with_a_nul_byte_is_no_name(mount: LayerMount) -> None:
    for act in (mount.stat, mount.open, mount.mkdir, mount.listdir, mount.unlink, mount.explain):
        with pytest.raises(ValueError, match="null byte"):
            act("a\0b")
