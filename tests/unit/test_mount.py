"""`LayerMount`, the face of the library: layers, paths, explanations, gates, counters, threads."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layermount import (
    AccessDeniedError,
    ClosedError,
    ConfigError,
    EventKind,
    LayerMount,
    LayerMountConfig,
    Operation,
    Role,
)
from layermount.layer.marks import OCI
from layermount.testing.trees import (
    Entry,
    Tree,
    build,
    digest,
    directory,
    file,
    symlink,
    whiteout,
)
from tests.forked import USER, in_child, user_directory
from tests.unit.overlays import (
    BIG,
    config_of,
    files_below,
    heard,
    in_turn,
    is_shell,
    make_layers,
    names_below,
    nothing,
    open_layers,
    open_overlay,
)

Act = Callable[[LayerMount], object]

# Where things come from.

LAYERS: list[Tree] = [
    {"up": file(b"up"), "both": file(b"upper"), "gone": whiteout(), "od": directory(opaque=True)},
    {
        "low": file(b"low"),
        "both": file(b"lower"),
        "gone": file(),
        "d/f": file(b"f"),
        "od/hidden": file(),
        "bin": symlink("usr/bin"),
        "usr/bin/app": file(b"app"),
    },
    {"deep": file(b"deep"), "d/g": file(b"g"), "both": file(b"deepest")},
]
# path: origin, layer, index, path in it, is_whiteout, is_opaque.
RESOLVED: dict[str, tuple[str | None, str | None, int | None, str | None, bool, bool]] = {
    "up": ("upper", "upper", None, "upper/up", False, False),
    "/up/": ("upper", "upper", None, "upper/up", False, False),
    "both": ("upper", "upper", None, "upper/both", False, False),
    "low": ("lower", "lower[0]", 0, "lower0/low", False, False),
    "deep": ("lower", "lower[1]", 1, "lower1/deep", False, False),
    "d": ("lower", "lower[0]", 0, "lower0/d", False, False),
    "d/f": ("lower", "lower[0]", 0, "lower0/d/f", False, False),
    "d/g": ("lower", "lower[1]", 1, "lower1/d/g", False, False),
    "bin": ("lower", "lower[0]", 0, "lower0/bin", False, False),
    "bin/app": ("lower", "lower[0]", 0, "lower0/usr/bin/app", False, False),
    "d/../bin/./app": ("lower", "lower[0]", 0, "lower0/usr/bin/app", False, False),
    "gone": (None, None, None, None, True, False),
    "gone/below": (None, None, None, None, True, False),
    "missing": (None, None, None, None, False, False),
    "missing/below": (None, None, None, None, False, False),
    "low/below": (None, None, None, None, False, False),
    "od": ("upper", "upper", None, "upper/od", False, True),
    "od/hidden": (None, None, None, None, False, False),
    "": ("upper", "upper", None, "upper", False, False),
}


@pytest.mark.parametrize("path", RESOLVED)
def test_resolve_path(tmp_path: Path, path: str) -> None:
    make_layers(tmp_path, *LAYERS[1:], upper=LAYERS[0])
    with open_layers(tmp_path) as mount:
        found = mount.resolve_path(path)
    origin, layer, index, full_path, is_whiteout, is_opaque = RESOLVED[path]
    assert (found.origin, found.layer, found.lower_index) == (origin, layer, index)
    assert found.full_path == (None if full_path is None else tmp_path / full_path)
    assert (found.is_whiteout, found.is_opaque) == (is_whiteout, is_opaque)
    if found.full_path is not None:
        assert found.full_path.exists() or found.full_path.is_symlink()


def test_resolve_path_tells_a_missing_parent_of_two_dots(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"f": file()}) as mount:
        for path, error in (("missing/../f", FileNotFoundError), ("f/../f", NotADirectoryError)):
            with pytest.raises(error):
                mount.resolve_path(path)
            with pytest.raises(error):
                mount.stat(path)


# One case for each role: layers (upper first), what is done, the path, the roles by layer.
ROLES: dict[str, tuple[list[Tree], Act, str, list[Role]]] = {
    "answers": ([{}, {"f": file()}], nothing, "f", [Role.ABSENT, Role.ANSWERS]),
    "absent everywhere": ([{}, {}], nothing, "f", [Role.ABSENT, Role.ABSENT]),
    "merged": (
        [{"d/a": file()}, {"d/b": file()}, {}, {"d/c": file()}],
        nothing,
        "d",
        [Role.ANSWERS, Role.MERGED, Role.ABSENT, Role.MERGED],
    ),
    "data": (
        [{}, {"f": file(BIG)}],
        lambda m: m.chmod("f", 0o600),
        "f",
        [Role.ANSWERS, Role.DATA],
    ),
    "data under another name": (
        [{}, {"f": file(BIG)}],
        in_turn(lambda m: m.chmod("f", 0o600), lambda m: m.rename("f", "g")),
        "g",
        [Role.ANSWERS, Role.DATA],
    ),
    "deletes": (
        [{"f": whiteout()}, {"f": file()}],
        nothing,
        "f",
        [Role.DELETES, Role.HIDDEN],
    ),
    "deletes from above": (
        [{"d": whiteout()}, {"d/f": file()}],
        nothing,
        "d/f",
        [Role.DELETES, Role.HIDDEN],
    ),
    "a lower deletes": (
        [{}, {"f": whiteout()}, {"f": file()}],
        nothing,
        "f",
        [Role.ABSENT, Role.DELETES, Role.HIDDEN],
    ),
    "hidden by a file": (
        [{}, {"f": file()}, {"f": file()}],
        nothing,
        "f",
        [Role.ABSENT, Role.ANSWERS, Role.HIDDEN],
    ),
    "hidden by an opaque directory": (
        [{"d": directory(opaque=True)}, {"d/f": file()}],
        nothing,
        "d",
        [Role.ANSWERS, Role.HIDDEN],
    ),
    "hidden below an opaque directory": (
        [{"d": directory(opaque=True)}, {"d/f": file()}],
        nothing,
        "d/f",
        [Role.ABSENT, Role.HIDDEN],
    ),
    "moved": (
        [{}, {"d/f": file(), "e": file()}],
        in_turn(lambda m: m.unlink("e"), lambda m: m.rename("d", "e")),
        "e/f",
        [Role.ABSENT, Role.ANSWERS],
    ),
    "moved away": (
        [{}, {"d/f": file()}],
        lambda m: m.rename("d", "e"),
        "d",
        [Role.DELETES, Role.HIDDEN],
    ),
    "remade": (
        [{}, {"d/f": file()}],
        in_turn(lambda m: m.create_whiteout("d"), lambda m: m.mkdir("d")),
        "d/f",
        [Role.ABSENT, Role.HIDDEN],
    ),
    "root": ([{}, {}, {}], nothing, "", [Role.ANSWERS, Role.MERGED, Role.MERGED]),
}


@pytest.mark.parametrize("case", ROLES)
def test_explain_gives_each_layer_its_role(tmp_path: Path, case: str) -> None:
    (upper, *lowers), act, path, roles = ROLES[case]
    with open_overlay(tmp_path, *lowers, upper=upper) as mount:
        act(mount)
        explanation = mount.explain(path)
    names = ["upper", *(f"lower[{number}]" for number in range(len(lowers)))]
    assert [verdict.layer for verdict in explanation.verdicts] == names
    assert [verdict.role for verdict in explanation.verdicts] == roles
    assert all(verdict.reason for verdict in explanation.verdicts)
    for verdict in explanation.verdicts:
        assert Path(verdict.source).parent == tmp_path
        there = Path(verdict.source, verdict.path)
        assert (verdict.role is Role.ABSENT) == (verdict.path == "")
        assert there.exists() or there.is_char_device()
    assert set(roles) <= set(Role)


def test_every_role_has_a_case() -> None:
    assert {role for *_, roles in ROLES.values() for role in roles} == set(Role)


def random_tree(source: random.Random, depth: int = 3) -> Tree:
    tree: dict[str, Entry] = {}
    for name in source.sample("abcd", source.randint(1, 4)):
        match source.randrange(6 if depth else 3):
            case 0:
                tree[name] = file(source.randbytes(source.randrange(9)))
            case 1:
                tree[name] = whiteout()
            case 2:
                tree[name] = symlink("a")
            case _:
                tree[name] = directory(opaque=source.random() < 0.2)
                below = random_tree(source, depth - 1)
                tree |= {f"{name}/{path}": entry for path, entry in below.items()}
    return tree


def change_at_random(source: random.Random, mount: LayerMount) -> None:
    for _ in range(12):
        paths = [*names_below(mount), "new", "a/new"]
        old, new = source.choice(paths), source.choice(paths)
        changes: list[Callable[[], object]] = [
            lambda: mount.unlink(old),  # noqa: B023  used at once
            lambda: mount.rmdir(old),  # noqa: B023
            lambda: mount.rename(old, new),  # noqa: B023
            lambda: mount.mkdir(new),  # noqa: B023
            lambda: mount.chmod(old, 0o700, follow_symlinks=False),  # noqa: B023
            lambda: mount.create_whiteout(old),  # noqa: B023
            lambda: mount.set_opaque(old),  # noqa: B023
        ]
        try:
            source.choice(changes)()
        except OSError as error:
            if error.errno in (errno.EIO, errno.EBADF, errno.ESTALE):
                raise


@pytest.mark.parametrize("seed", range(12))
def test_explain_agrees_with_stat(tmp_path: Path, seed: int) -> None:
    """Whatever was done to a tree, the answer's entry on disk is the one that is shown."""
    source = random.Random(seed)  # noqa: S311  # the same trees in every run
    layers = [random_tree(source) for _ in range(3)]
    with open_overlay(tmp_path, *layers[1:], upper=layers[0]) as mount:
        change_at_random(source, mount)
        assert_explained(mount, tmp_path)
        shown = names_below(mount)
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == shown
        assert_explained(mount, tmp_path)


def assert_explained(mount: LayerMount, base: Path) -> None:
    shown = set(names_below(mount))
    on_disk = {
        name for layer in base.iterdir() if layer.name != ".layermount-work"
        for name in files_below(layer)
    }  # fmt: skip
    for path in shown | on_disk:
        # Below a link another path is explained than the one that is written.
        parents = [str(above) for above in Path(path).parents if above != Path()]
        if any(above in shown and stat.S_ISLNK(mount.lstat(above).st_mode) for above in parents):
            continue
        answer = mount.explain(path).answer
        assert (answer is not None) == (path in shown) == mount.exists(path, follow_symlinks=False)
        if answer is None:
            continue
        status = mount.lstat(path)
        real = os.lstat(Path(answer.source, answer.path))
        assert (status.st_mode, status.st_mtime_ns) == (real.st_mode, real.st_mtime_ns)
        assert status.st_size == real.st_size or stat.S_ISDIR(status.st_mode)
        roles = [verdict.role for verdict in mount.explain(path).verdicts]
        assert roles.count(Role.ANSWERS) == 1


# Layers on purpose.


def test_merge_directory(tmp_path: Path) -> None:
    make_layers(tmp_path, *LAYERS[1:], upper=LAYERS[0])
    with open_layers(tmp_path) as mount:
        found = [(entry.name, entry.origin) for entry in mount.merge_directory()]
        assert found == [
            ("bin", "lower"), ("both", "upper"), ("d", "lower"), ("deep", "lower"),
            ("low", "lower"), ("od", "upper"), ("up", "upper"), ("usr", "lower"),
        ]  # fmt: skip
        entries = {entry.name: entry for entry in mount.merge_directory("d")}
        assert {name: entry.stat for name, entry in entries.items()} == {
            name: mount.stat(f"d/{name}") for name in ("f", "g")
        }
        for path, number in (("missing", errno.ENOENT), ("up", errno.ENOTDIR)):
            with pytest.raises(OSError, match=path) as caught:
                list(mount.merge_directory(path))
            assert caught.value.errno == number


def test_merge_directory_leaves_out_what_is_removed_meanwhile(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {name: file() for name in "abc"}) as mount:
        entries = mount.merge_directory()
        assert next(entries).name == "a"
        mount.unlink("b")
        assert [entry.name for entry in entries] == ["c"]


def test_ensure_in_upper(tmp_path: Path) -> None:
    tree: Tree = {"d/f": file(BIG, xattrs={"user.x": b"1"}), "d/l": symlink("f"), "e/f": file()}
    with open_overlay(tmp_path, tree) as mount:
        for path in ("d/f", "d/f", "d/l", "e", ""):
            mount.ensure_in_upper(path)
        assert files_below(tmp_path / "upper") == ["d", "d/f", "d/l", "e"]
        assert (tmp_path / "upper/d/f").read_bytes() == BIG
        assert (tmp_path / "upper/d/l").readlink() == Path("f")
        assert mount.resolve_path("d/f").origin == "upper"
        with pytest.raises(FileNotFoundError):
            mount.ensure_in_upper("missing")


def test_set_opaque(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"d/f": file(), "f": file()}, upper={"d/u": file()}) as mount:
        mount.set_opaque("d")
        assert mount.listdir("d") == ["u"]
        mount.set_opaque("d")
        mount.set_opaque("new/made")
        assert mount.resolve_path("new/made").is_opaque
        for path, number in (("", errno.EINVAL), ("f", errno.ENOTDIR), ("f/x", errno.ENOTDIR)):
            with pytest.raises(OSError, match=r".") as caught:
                mount.set_opaque(path)
            assert caught.value.errno == number
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == ["d", "d/u", "f", "new", "new/made"]


def test_create_whiteout(tmp_path: Path) -> None:
    tree: Tree = {"d/f": file(), "d/sub/x": file(), "f": file()}
    with open_overlay(tmp_path, tree, upper={"u": file(), "ud/x": file()}) as mount:
        for path in ("d", "u", "ud", "never", "f", "f"):
            mount.create_whiteout(path)
            assert mount.resolve_path(path).is_whiteout
        assert names_below(mount) == []
        for path, number in (("", errno.EINVAL), ("none/x", errno.ENOENT)):
            with pytest.raises(OSError, match=r".") as caught:
                mount.create_whiteout(path)
            assert caught.value.errno == number
    upper = tmp_path / "upper"
    assert files_below(upper) == ["d", "f", "never", "u", "ud"]
    assert all(path.is_char_device() and path.stat().st_rdev == 0 for path in upper.iterdir())
    with open_layers(tmp_path) as mount:
        assert names_below(mount) == []
        mount.mkdir("d")
        assert names_below(mount) == ["d"]


def test_lowers_in_another_dialect(tmp_path: Path) -> None:
    make_layers(tmp_path, {}, {"d/f": file(), "d/keep": file(), "od/f": file()})
    oci = {"d/f": whiteout(), "od": directory(opaque=True), "od/own": file()}
    build(tmp_path / "lower0", oci, marks=OCI)
    with open_layers(tmp_path, lower_dialects=["oci", None]) as mount:
        assert names_below(mount) == ["d", "d/keep", "od", "od/own"]
        assert mount.explain("d/f").is_deleted


# Opening and closing.


def test_a_transient_overlay_leaves_nothing(tmp_path: Path) -> None:
    make_layers(tmp_path, {"f": file(b"old")})
    before = digest(tmp_path / "lower0")
    work = tmp_path / "new/work"
    with LayerMount.create_transient(work, [tmp_path / "lower0"]) as mount:
        assert mount.path("f").read_bytes() == b"old"
        mount.path("f").write_text("new")
        mount.makedirs("a/b")
        mount.chmod("a", 0)
        assert len(list(work.iterdir())) == 1
    assert list(work.iterdir()) == []
    assert digest(tmp_path / "lower0") == before


def test_a_transient_overlay_needs_no_lower(tmp_path: Path) -> None:
    with (
        LayerMount.create_transient(tmp_path) as first,
        LayerMount.create_transient(tmp_path) as second,
    ):
        first.mkdir("d")
        assert (first.listdir(), second.listdir()) == (["d"], [])
    assert list(tmp_path.iterdir()) == []


def test_a_transient_overlay_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        LayerMount.create_transient(tmp_path / "work", [tmp_path, tmp_path])
    with pytest.raises(ConfigError):
        LayerMount.create_transient(tmp_path / "work", tmp_path)  # type: ignore[arg-type]  # one path
    assert list((tmp_path / "work").iterdir()) == []


def test_a_transient_overlay_drops_directories_that_nobody_may_enter() -> None:
    with user_directory() as base:

        def run() -> None:
            with LayerMount.create_transient(base / "work") as mount:
                mount.makedirs("a/b/c")
                mount.path("a/b/c/f").write_text("f")
                for path in ("a/b/c", "a/b", "a"):
                    mount.chmod(path, 0)

        in_child(run, user=USER)
        assert list((base / "work").iterdir()) == []


CLOSED: dict[str, Act] = {
    "open": lambda m: m.open("f"),
    "open to write": lambda m: m.open("f", "w"),
    "create_file": lambda m: m.create_file("new"),
    "stat": lambda m: m.stat("f"),
    "exists": lambda m: m.exists("f"),
    "access": lambda m: m.access("f", os.R_OK),
    "listdir": lambda m: m.listdir(),
    "walk": lambda m: list(m.walk()),
    "readlink": lambda m: m.readlink("f"),
    "mkdir": lambda m: m.mkdir("new"),
    "makedirs": lambda m: m.makedirs("new/x"),
    "symlink": lambda m: m.symlink("t", "new"),
    "link": lambda m: m.link("f", "new"),
    "mkfifo": lambda m: m.mkfifo("new"),
    "unlink": lambda m: m.unlink("f"),
    "rmdir": lambda m: m.rmdir("d"),
    "rename": lambda m: m.rename("f", "new"),
    "exchange": lambda m: m.exchange("f", "d"),
    "truncate": lambda m: m.truncate("f", 0),
    "chmod": lambda m: m.chmod("f", 0o600),
    "chown": lambda m: m.chown("f", -1, -1),
    "utime": lambda m: m.utime("f", ns=(0, 0)),
    "getxattr": lambda m: m.getxattr("f", "user.x"),
    "listxattr": lambda m: m.listxattr("f"),
    "setxattr": lambda m: m.setxattr("f", "user.x", b""),
    "removexattr": lambda m: m.removexattr("f", "user.x"),
    "resolve_path": lambda m: m.resolve_path("f"),
    "explain": lambda m: m.explain("f"),
    "explain the root": lambda m: m.explain(""),
    "ensure_in_upper": lambda m: m.ensure_in_upper("f"),
    "set_opaque": lambda m: m.set_opaque("d"),
    "create_whiteout": lambda m: m.create_whiteout("f"),
    "merge_directory": lambda m: list(m.merge_directory()),
    "volume_info": lambda m: m.volume_info(),
    "delete_file": lambda m: m.delete_file("f"),
    "check_can_delete_file": lambda m: m.check_can_delete_file("f"),
    "rename_file": lambda m: m.rename_file("f", "new"),
    "path": lambda m: m.path("f").read_bytes(),
    "glob": lambda m: list(m.path().glob("*")),
}


def test_after_close_every_operation_is_an_error(tmp_path: Path) -> None:
    mount = open_overlay(tmp_path, {"f": file(), "d": directory()})
    mount.stat("f")
    stats = mount.get_stats()
    assert not mount.is_closed
    mount.close()
    mount.close()
    assert mount.is_closed
    for name, act in CLOSED.items():
        with pytest.raises(ClosedError, match="closed"):
            assert act(mount) is not None, name
    # What it has done and what it was made from can still be asked.
    assert mount.get_stats() == stats
    assert mount.config == config_of(tmp_path)


def test_an_upper_is_free_again_after_a_failure_in_the_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_overlay(tmp_path, {}):
        raise RuntimeError
    open_layers(tmp_path).close()


# A union without an upper.

CHANGES: dict[str, Act] = {
    "write": lambda m: m.open("f", "r+b"),
    "overwrite": lambda m: m.open("f", "wb"),
    "append": lambda m: m.open("f", "ab"),
    "create": lambda m: m.create_file("new"),
    "create below": lambda m: m.path("d/new").write_text(""),
    "truncate": lambda m: m.truncate("f", 0),
    "mkdir": lambda m: m.mkdir("new"),
    "symlink": lambda m: m.symlink("t", "new"),
    "link": lambda m: m.link("f", "new"),
    "mknod": lambda m: m.mknod("new"),
    "mkfifo": lambda m: m.mkfifo("new"),
    "unlink": lambda m: m.unlink("f"),
    "rmdir": lambda m: m.rmdir("empty"),
    "rename": lambda m: m.rename("f", "new"),
    "exchange": lambda m: m.exchange("f", "d"),
    "chmod": lambda m: m.chmod("f", 0o600),
    "chown": lambda m: m.chown("f", -1, -1),
    "utime": lambda m: m.utime("f", ns=(0, 0)),
    "touch": lambda m: m.path("f").touch(),
    "setxattr": lambda m: m.setxattr("f", "user.x", b""),
    "removexattr": lambda m: m.removexattr("f", "user.there"),
    "ensure_in_upper": lambda m: m.ensure_in_upper("f"),
    "set_opaque": lambda m: m.set_opaque("d"),
    "create_whiteout": lambda m: m.create_whiteout("f"),
    "delete_file": lambda m: m.delete_file("f"),
    "check_can_delete_file": lambda m: m.check_can_delete_file("f"),
    "rename_file": lambda m: m.rename_file("f", "new"),
}


def test_without_an_upper_every_change_is_refused(tmp_path: Path) -> None:
    lowers: list[Tree] = [
        {"f": file(b"f", xattrs={"user.there": b"1"}), "d/x": file()},
        {"d/y": file(b"y"), "empty": directory()},
    ]
    make_layers(tmp_path, *lowers)
    before = [digest(tmp_path / name) for name in ("lower0", "lower1")]
    config = LayerMountConfig(None, [tmp_path / "lower0", tmp_path / "lower1"])
    with LayerMount.create(config) as mount:
        events = heard(mount)
        for name, act in CHANGES.items():
            with pytest.raises(OSError, match=r".") as caught:
                act(mount)
            assert (name, caught.value.errno) == (name, errno.EROFS)
        assert events == []
        assert names_below(mount) == ["d", "d/x", "d/y", "empty", "f"]
        assert mount.path("d/y").read_bytes() == b"y"
        assert mount.access("f", os.R_OK)
        assert not mount.access("f", os.W_OK)
        assert mount.volume_info().total_size > 0
        assert [verdict.layer for verdict in mount.explain("d").verdicts] == [
            "lower[0]",
            "lower[1]",
        ]
        assert mount.resolve_path("d/y").lower_index == 1
    assert [digest(tmp_path / name) for name in ("lower0", "lower1")] == before


# Gates.


class Refuser:
    """A gate that refuses one operation, or that of one path, and remembers what it was asked."""

    def __init__(self, operation: Operation | None = None, path: str | None = None) -> None:
        self.operation = operation
        self.path = path
        self.asked: list[tuple[Operation, str]] = []

    def check(self, operation: Operation, path: str) -> None:
        self.asked.append((operation, path))
        if operation is self.operation and self.path in (None, path):
            raise AccessDeniedError(f"no {operation} of {path!r}", hint="ask somebody")


# What each call asks, over the layers below: the call, and every question that it must ask.
GATED: dict[str, tuple[Act, list[tuple[Operation, str]]]] = {
    "open": (lambda m: m.open("d/f").close(), [(Operation.OPEN, "d/f")]),
    "open to write": (lambda m: m.open("d/f", "r+").close(), [(Operation.WRITE, "d/f")]),
    "overwrite": (lambda m: m.open("d/f", "w").close(), [(Operation.WRITE, "d/f")]),
    "create": (lambda m: m.create_file("d/n").close(), [(Operation.CREATE, "d/n")]),
    "mkdir": (lambda m: m.mkdir("d/n"), [(Operation.CREATE, "d/n")]),
    "symlink": (lambda m: m.symlink("t", "d/n"), [(Operation.CREATE, "d/n")]),
    "mknod": (lambda m: m.mkfifo("d/n"), [(Operation.CREATE, "d/n")]),
    "link": (
        lambda m: m.link("d/f", "e/n"),
        [(Operation.LINK, "d/f"), (Operation.CREATE, "e/n")],
    ),
    "unlink": (lambda m: m.unlink("d/f"), [(Operation.DELETE, "d/f")]),
    "rmdir": (lambda m: m.rmdir("e"), [(Operation.DELETE, "e")]),
    "rename": (
        lambda m: m.rename("d/f", "e/n"),
        [(Operation.RENAME, "d/f"), (Operation.RENAME, "e/n")],
    ),
    "exchange": (
        lambda m: m.exchange("d/f", "e"),
        [(Operation.RENAME, "d/f"), (Operation.RENAME, "e")],
    ),
    "stat": (lambda m: m.stat("d/f"), [(Operation.GET_INFO, "d/f")]),
    "exists": (lambda m: m.exists("d/f"), [(Operation.GET_INFO, "d/f")]),
    "readlink": (lambda m: m.readlink("l"), [(Operation.GET_INFO, "l")]),
    "follow a link": (
        lambda m: m.open("l").close(),
        [(Operation.GET_INFO, "l"), (Operation.OPEN, "d/f")],
    ),
    "resolve_path": (lambda m: m.resolve_path("d/f"), [(Operation.GET_INFO, "d/f")]),
    "explain": (lambda m: m.explain("d/f"), [(Operation.GET_INFO, "d/f")]),
    "explain nothing": (lambda m: m.explain("no/x"), [(Operation.GET_INFO, "no/x")]),
    "listdir": (lambda m: m.listdir("d"), [(Operation.READ_DIRECTORY, "d")]),
    "walk": (
        lambda m: list(m.walk("d")),
        [(Operation.READ_DIRECTORY, "d")],
    ),
    "merge_directory": (
        lambda m: list(m.merge_directory("d")),
        [(Operation.READ_DIRECTORY, "d"), (Operation.GET_INFO, "d/f")],
    ),
    "chmod": (lambda m: m.chmod("d/f", 0o600), [(Operation.SET_SECURITY, "d/f")]),
    "chown": (lambda m: m.chown("d/f", -1, -1), [(Operation.SET_SECURITY, "d/f")]),
    "setxattr": (lambda m: m.setxattr("d/f", "user.n", b""), [(Operation.SET_SECURITY, "d/f")]),
    "removexattr": (lambda m: m.removexattr("d/f", "user.x"), [(Operation.SET_SECURITY, "d/f")]),
    "getxattr": (lambda m: m.getxattr("d/f", "user.x"), [(Operation.GET_SECURITY, "d/f")]),
    "listxattr": (lambda m: m.listxattr("d/f"), [(Operation.GET_SECURITY, "d/f")]),
    "utime": (lambda m: m.utime("d/f", ns=(0, 0)), [(Operation.SET_INFO, "d/f")]),
    "truncate": (lambda m: m.truncate("d/f", 0), [(Operation.SET_SIZE, "d/f")]),
    "ensure_in_upper": (lambda m: m.ensure_in_upper("d/f"), [(Operation.WRITE, "d/f")]),
    "set_opaque": (
        lambda m: m.set_opaque("e"),
        [(Operation.GET_INFO, "e"), (Operation.DELETE, "e")],
    ),
    "create_whiteout": (lambda m: m.create_whiteout("d/f"), [(Operation.DELETE, "d/f")]),
    "root": (lambda m: m.listdir(""), [(Operation.READ_DIRECTORY, "")]),
}
GATED_LAYER: Tree = {
    "d/f": file(b"f", xattrs={"user.x": b"1"}),
    "e": directory(),
    "l": symlink("d/f"),
}


@pytest.mark.parametrize("call", GATED)
def test_every_operation_asks_the_gate_first(tmp_path: Path, call: str) -> None:
    """W-29: each entry point, and both ends of what has two, is asked; on no nothing happens."""
    act, questions = GATED[call]
    make_layers(tmp_path, GATED_LAYER)
    gate = Refuser()
    with LayerMount.create(config_of(tmp_path), gate=gate) as mount:
        for operation, path in questions:
            gate.asked.clear()
            gate.operation, gate.path = operation, path
            with pytest.raises(AccessDeniedError) as caught:
                act(mount)
            assert gate.asked[-1] == (operation, path)
            assert caught.value.errno == errno.EACCES
            assert caught.value.hint == "ask somebody"
        assert list((tmp_path / "upper").iterdir()) == []
        gate.asked.clear()
        gate.operation = None
        act(mount)
        assert gate.asked == questions


def test_a_denied_operation_is_a_permission_error_with_the_path(tmp_path: Path) -> None:
    make_layers(tmp_path, GATED_LAYER)
    config = config_of(tmp_path)
    with LayerMount.create(config, gate=Refuser(Operation.WRITE)) as mount:
        with pytest.raises(PermissionError) as caught:
            mount.open("./d//f", "w")
        assert caught.value.filename == "./d//f"
        assert mount.get_stats().copy_ups == 0


def test_a_denied_operation_is_reported(tmp_path: Path) -> None:
    make_layers(tmp_path, GATED_LAYER)
    config = config_of(tmp_path)
    with LayerMount.create(config, gate=Refuser(Operation.WRITE)) as mount:
        events = heard(mount)
        with pytest.raises(PermissionError):
            mount.open("d/f", "w")
        assert events == [(EventKind.ACCESS_DENIED, "d/f")]


# Paths as `os` has them.

SPELLINGS = [
    "d", "d/", "d/.", "d/..", ".", "..", "/", "f", "f/", "f/.", "l", "l/", "dl", "dl/", "dl/.",
    "dangling", "dangling/", "empty/", "empty/.", "none", "none/", "none/.", "none/x", "d/x", "f/x",
]  # fmt: skip
SPELLED: Tree = {
    "d/in": file(b"in"),
    "f": file(b"f"),
    "l": symlink("f"),
    "dl": symlink("empty"),
    "dangling": symlink("nowhere"),
    "empty": directory(),
    "other": file(b"other"),
    "od": directory(),
}
BY_PATH: dict[str, Callable[[Any, Callable[[str], str], str], object]] = {
    "stat": lambda o, at, p: stat.S_IFMT(o.stat(at(p)).st_mode),
    "lstat": lambda o, at, p: stat.S_IFMT(o.stat(at(p), follow_symlinks=False).st_mode),
    "listdir": lambda o, at, p: sorted(set(o.listdir(at(p))) & {"in", "d", "f", "x"}),
    "readlink": lambda o, at, p: o.readlink(at(p)),
    "access": lambda o, at, p: o.access(at(p), os.W_OK),
    "unlink": lambda o, at, p: o.unlink(at(p)),
    "rmdir": lambda o, at, p: o.rmdir(at(p)),
    "mkdir": lambda o, at, p: o.mkdir(at(p)),
    "symlink": lambda o, at, p: o.symlink("t", at(p)),
    "link": lambda o, at, p: o.link(at(p), at("new"), **no_follow(o)),
    "link to": lambda o, at, p: o.link(at("other"), at(p), **no_follow(o)),
    "mkfifo": lambda o, at, p: o.mkfifo(at(p)),
    "rename": lambda o, at, p: o.rename(at(p), at("new")),
    "rename with a slash": lambda o, at, p: o.rename(at(p), at("new/")),
    "rename a file to": lambda o, at, p: o.rename(at("other"), at(p)),
    "rename a directory to": lambda o, at, p: o.rename(at("od"), at(p)),
    "truncate": lambda o, at, p: o.truncate(at(p), 1),
    "chmod": lambda o, at, p: o.chmod(at(p), 0o711),
    "utime": lambda o, at, p: o.utime(at(p), ns=(1, 1)),
}
# The root of a filesystem is no directory in another one.
AT_THE_ROOT = {
    ".": "/", "..": "/", "/": "/", "d/..": "/",
}  # fmt: skip


def no_follow(operations: Any) -> dict[str, bool]:
    return {"follow_symlinks": False} if operations is os else {}


@pytest.mark.parametrize("call", BY_PATH)
def test_paths_are_spelled_as_for_os(tmp_path: Path, call: str) -> None:
    """Slashes at the end, dots, links: same results, same errnos, same trees as on a directory."""
    tree = {f"{n}/{path}": entry for n in range(len(SPELLINGS)) for path, entry in SPELLED.items()}
    plain = build(tmp_path / "plain", tree)
    with open_overlay(tmp_path, tree) as mount:
        for number, spelling in enumerate(SPELLINGS):
            act = BY_PATH[call]
            expected = attempt(act, os, lambda p, n=number: f"{plain}/{n}/{p}", spelling)
            found = attempt(act, mount, lambda p, n=number: f"{n}/{p}", spelling)
            assert (spelling, found) == (spelling, expected)
        assert names_below(mount) == files_below(plain)


def attempt(act: Callable[..., object], *arguments: object) -> object:
    try:
        return act(*arguments)
    except OSError as error:
        return type(error), error.errno


ROOT_CALLS: dict[str, tuple[Act, int]] = {
    "unlink": (lambda m: m.unlink("/"), errno.EBUSY),
    "rmdir": (lambda m: m.rmdir(""), errno.EBUSY),
    "delete_file": (lambda m: m.delete_file("/"), errno.EBUSY),
    "check_can_delete_file": (lambda m: m.check_can_delete_file("/"), errno.EBUSY),
    "rename": (lambda m: m.rename("/", "x"), errno.EBUSY),
    "rename to": (lambda m: m.rename("f", "/"), errno.EBUSY),
    "mkdir": (lambda m: m.mkdir("/"), errno.EEXIST),
    "open": (lambda m: m.open("/"), errno.EISDIR),
    "truncate": (lambda m: m.truncate("/", 0), errno.EISDIR),
}


@pytest.mark.parametrize("call", ROOT_CALLS)
def test_the_root_stays(tmp_path: Path, call: str) -> None:
    act, number = ROOT_CALLS[call]
    with open_overlay(tmp_path, {"f": file()}) as mount:
        with pytest.raises(OSError, match=r".") as caught:
            act(mount)
        assert caught.value.errno == number
        assert names_below(mount) == ["f"]


def test_errors_name_the_paths_of_the_overlay(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"d/f": file()}) as mount:
        with pytest.raises(FileNotFoundError) as caught:
            mount.open("d/none")
        assert str(caught.value) == "[Errno 2] No such file or directory: 'd/none'"
        with pytest.raises(OSError, match=r"'d' -> 'd/x'") as caught_os:
            mount.rename("d", "d/x")
        assert caught_os.value.errno == errno.EINVAL


# Numbers.


def test_every_counter_moves(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"d/f": file(b"0123456789")}) as mount:
        start = mount.get_stats()
        assert (start.copy_ups, start.reads, start.writes, start.active_handles) == (0, 0, 0, 0)
        mount.stat("d/f")
        looked = mount.get_stats()
        assert looked.cache_misses == start.cache_misses + 2
        mount.stat("d/f")
        again = mount.get_stats()
        assert (again.cache_misses, again.cache_hits) == (
            looked.cache_misses,
            looked.cache_hits + 2,
        )
        with mount.open("d/f", "rb", 0) as opened:
            assert opened.read(4) == b"0123"
            assert mount.get_stats().active_handles == 1
        with mount.open("d/f", "r+b", 0) as opened:
            opened.write(b"abc")
        end = mount.get_stats()
        assert (end.reads, end.bytes_read) == (1, 4)
        assert (end.writes, end.bytes_written) == (1, 3)
        assert (end.copy_ups, end.active_handles) == (2, 0)
        # What was given out is a copy.
        assert start.copy_ups == 0
        assert all(getattr(end, name) for name in end.__slots__ if name != "active_handles")


def test_volume_info(tmp_path: Path) -> None:
    with open_overlay(tmp_path) as mount:
        status = os.statvfs(tmp_path / "upper")
        info = mount.volume_info()
        assert info.total_size == status.f_blocks * status.f_frsize
        assert 0 < info.free_size <= info.total_size
        assert info.label == "LayerMount"


# Threads.


def run_all(*functions: Callable[[], object]) -> None:
    """Run functions in threads of their own, all at once; what one raises is raised here."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        try:
            start.wait(60)
            function()
        except BaseException as error:  # noqa: BLE001  raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def test_many_threads_in_one_directory(tmp_path: Path) -> None:
    """Creating, copying up, renaming, removing and reading at once; the tree is as expected."""
    workers, rounds = 6, 25
    tree = {f"d/{worker}-{n}": file(b"old") for worker in range(workers) for n in range(rounds)}
    with open_overlay(tmp_path, tree | {"d/still": file(BIG)}) as mount:
        mount.on_event(str)

        def work(worker: int) -> None:
            for number in range(rounds):
                name = f"d/{worker}-{number}"
                mount.path(f"{name}.new").write_bytes(b"%d" % worker)
                with mount.open(name, "ab") as opened:
                    opened.write(b"+")
                mount.rename(name, f"{name}.moved")
                assert mount.path(f"{name}.moved").read_bytes() == b"old+"
                if number % 2:
                    mount.unlink(f"{name}.new")
                assert f"{worker}-{number}.moved" in mount.listdir("d")
                assert not mount.exists(name)

        def read() -> None:
            for _ in range(rounds):
                assert mount.path("d/still").read_bytes() == BIG
                for path in mount.path("d").glob("*.moved"):
                    path.exists()
                list(mount.merge_directory("d"))

        def touch() -> None:
            for number in range(rounds):
                mount.chmod("d/still", 0o600 | number % 8)
                mount.ensure_in_upper("d/still")

        run_all(*(lambda worker=w: work(worker) for w in range(workers)), read, touch)
        expected = sorted(
            [f"{w}-{n}.moved" for w in range(workers) for n in range(rounds)]
            + [f"{w}-{n}.new" for w in range(workers) for n in range(0, rounds, 2)]
            + ["still"]
        )
        assert sorted(mount.listdir("d")) == expected
        assert mount.get_stats().active_handles == 0
    with open_layers(tmp_path) as mount:
        assert sorted(mount.listdir("d")) == expected
        assert {mount.path(f"d/{n}").read_bytes() for n in expected if "moved" in n} == {b"old+"}
    assert os.listdir(tmp_path / ".layermount-work/upper/work") == []


def test_many_threads_want_one_name(tmp_path: Path) -> None:
    """Of all that create, one does; of all that remove, one does; those that open all get it."""
    with open_overlay(tmp_path, {"d/x": file(b"old")}) as mount:
        for number in range(20):
            won: list[int] = []
            lost: list[int] = []

            def create(worker: int) -> None:
                try:
                    mount.create_file(f"d/{number}").close()  # noqa: B023  used at once
                    won.append(worker)  # noqa: B023
                except FileExistsError:
                    lost.append(worker)  # noqa: B023

            run_all(*(lambda worker=w: create(worker) for w in range(4)))
            assert (len(won), len(lost)) == (1, 3)
            won.clear()
            lost.clear()

            def remove(worker: int) -> None:
                try:
                    mount.unlink(f"d/{number}")  # noqa: B023
                    won.append(worker)  # noqa: B023
                except FileNotFoundError:
                    lost.append(worker)  # noqa: B023

            run_all(*(lambda worker=w: remove(worker) for w in range(4)))
            assert (len(won), len(lost)) == (1, 3)
            run_all(
                *(lambda: mount.path(f"e/{number}/deep").mkdir(parents=True, exist_ok=True),) * 4,  # noqa: B023
            )
            run_all(*(lambda: mount.path("d/x").write_bytes(b"new"),) * 4)
        assert names_below(mount, "d") == ["d/x"]
        assert mount.path("d/x").read_bytes() == b"new"


def test_opening_to_create_never_fails_because_others_remove(tmp_path: Path) -> None:
    """With O_CREAT a name that is there, or not, or just going, is opened."""
    with open_overlay(tmp_path, {"d/x": file(b"old")}) as mount:
        done = threading.Event()

        def write() -> None:
            try:
                for _ in range(300):
                    mount.open("d/x", "wb").close()
            finally:
                done.set()

        def remove() -> None:
            while not done.is_set():
                mount.path("d/x").unlink(missing_ok=True)

        run_all(write, write, remove)


def test_one_copy_up_for_all_who_wait(tmp_path: Path) -> None:
    with open_overlay(tmp_path, {"d/f": file(BIG)}) as mount:
        events = heard(mount)
        run_all(*(lambda: mount.ensure_in_upper("d/f"),) * 6)
        assert events == [(EventKind.COPY_UP, "d"), (EventKind.COPY_UP, "d/f")]
        assert mount.path("d/f").read_bytes() == BIG
        assert not is_shell(tmp_path, "d/f")


def use_more_directories_than_descriptors(base: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # Every few instructions another thread goes on.
    sys.setswitchinterval(1e-6)
    with open_layers(base) as mount:

        def each(act: Callable[[str], object]) -> None:
            for _ in range(10):
                for number in range(40):
                    act(f"{number}/f")

        run_all(
            lambda: each(lambda path: mount.chmod(path, 0o640)),
            lambda: each(lambda path: mount.utime(path, ns=(1, 1))),
            lambda: each(lambda path: mount.truncate(path, 1)),
            lambda: each(lambda path: mount.listdir(os.path.dirname(path))),
            lambda: each(mount.stat),
            lambda: each(lambda path: mount.path(path).read_bytes()),
        )


def test_many_threads_in_more_directories_than_there_are_descriptors(tmp_path: Path) -> None:
    """A directory's descriptor is closed while nobody is using it, and never under somebody."""
    make_layers(tmp_path, {f"{number}/f": file(b"old") for number in range(40)})
    in_child(lambda: use_more_directories_than_descriptors(tmp_path))


def test_closing_while_others_work_ends_in_closed_errors(tmp_path: Path) -> None:
    mount = open_overlay(tmp_path, {f"{n}": file(BIG) for n in range(50)})

    def work() -> None:
        for number in itertools.cycle(range(50)):
            with mount.open(str(number), "r+b", 0) as opened:
                opened.write(b"x")

    def work_until_closed() -> None:
        with pytest.raises(ClosedError):
            work()

    run_all(work_until_closed, work_until_closed, mount.close)
    with open_layers(tmp_path) as again:
        assert len(again.listdir()) == 50
