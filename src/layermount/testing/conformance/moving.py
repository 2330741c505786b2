"""Cases: renaming, with every flag and every kind of target. Rules M, H3."""

from __future__ import annotations

import errno
import os

from layermount.linux.files import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.conformance.visibility import names
from layermount.testing.trees import Tree, directory, file, symlink, whiteout

COLLECTION = Collection("moving")
case = COLLECTION.case

_FILES: Tree = {"a": file(b"lower a", mode=0o640), "b": file(b"lower b"), "d/f": file(b"f")}


_PLACES = (("a", b"a"), ("b", b"b"), ("u", b"u"))


@case(_FILES, upper={"u": file(b"upper"), "b": file(b"upper b")})
def files(shown: Showing) -> None:
    """M1, M3: a file of any layer moves with all it has, its old name is gone and stays gone."""
    for old, new, data in (("a", "x", b"lower a"), ("b", "d/b", b"upper b"), ("u", "a", b"upper")):
        before = shown.face.stat(old)
        shown.face.rename(old, new, 0)
        fails(errno.ENOENT, shown.face.stat, old)
        same(shown.face.read(new), data)
        after = shown.face.stat(new)
        same((after.st_mode, after.st_mtime_ns), (before.st_mode, before.st_mtime_ns))
    shown.show_again()
    same((names(shown), names(shown, "d")), (["a", "d", "x"], ["b", "f"]))


@case(_FILES, upper={"u": file(b"upper")})
def replacing(shown: Showing) -> None:
    """M1: what is at the new name is replaced, from whatever layer either is."""
    for old, new in (("a", "b"), ("u", "d/f"), ("d/f", "b")):
        data = shown.face.read(old)
        shown.face.rename(old, new, 0)
        same(shown.face.read(new), data)
        fails(errno.ENOENT, shown.face.stat, old)
    shown.show_again()
    same((names(shown), names(shown, "d")), (["b", "d"], []))
    same(shown.face.read("b"), b"upper")


@case(_FILES, upper={"gone": whiteout(), "u": file(b"u")})
def noreplace(shown: Showing) -> None:
    """M1: RENAME_NOREPLACE is EEXIST for a name that is seen in any layer, else it moves."""
    for new in ("b", "u", "d"):
        fails(errno.EEXIST, shown.face.rename, "a", new, RENAME_NOREPLACE)
    shown.face.rename("a", "new", RENAME_NOREPLACE)
    shown.face.rename("new", "a", RENAME_NOREPLACE)
    shown.face.rename("u", "gone", RENAME_NOREPLACE)
    same(names(shown), ["a", "b", "d", "gone"])


@case(_FILES, upper={"u": file(b"upper"), "v/w": file(b"w")})
def exchange(shown: Showing) -> None:
    """M1, M3: RENAME_EXCHANGE lets two entries of any layers and kinds change places."""
    for left, right in (("a", "b"), ("a", "u"), ("d/f", "v/w"), ("b", "v")):
        shown.face.rename(left, right, RENAME_EXCHANGE)
    fails(errno.ENOENT, shown.face.rename, "a", "none", RENAME_EXCHANGE)
    shown.show_again()
    same(shown.face.read("a"), b"upper")
    same(shown.face.read("u"), b"lower b")
    same(shown.face.read("b/w"), b"f")
    same(shown.face.read("d/f"), b"w")


@case(_FILES, upper={"u": file(b"upper")}, needs=[Trait.NUMBERS_STAY, Trait.NUMBERS_MOVE])
def numbers(shown: Showing) -> None:
    """I1, M1: what moves keeps its number, when it comes up for it too, and in the next run."""
    before = {data: shown.face.stat(path).st_ino for path, data in _PLACES}
    shown.face.rename("a", "d/x", 0)
    shown.face.rename("b", "u", RENAME_EXCHANGE)
    for _ in range(2):
        moved = (("d/x", b"a"), ("u", b"b"), ("b", b"u"))
        same({data: shown.face.stat(path).st_ino for path, data in moved}, before)
        shown.show_again()


@case(_FILES)
def flags_refused(shown: Showing) -> None:
    """M1: RENAME_WHITEOUT from a caller, both flags, and unknown ones are EINVAL."""
    for flags in (RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_EXCHANGE, 8):
        fails(errno.EINVAL, shown.face.rename, "a", "new", flags)
    same(shown.face.read("a"), b"lower a")


@case(_FILES, needs=[Trait.LINKS_ARE_ONE])
def two_names_of_one_file(shown: Showing) -> None:
    """M2: renaming one name of a file onto another does nothing, and a name onto itself."""
    shown.face.link("a", "c")
    shown.face.rename("a", "c", 0)
    same(names(shown), ["a", "b", "c", "d"])
    shown.face.rename("b", "b", 0)
    same(shown.face.read("b"), b"lower b")


_TREES: Tree = {
    "full/f": file(),
    "empty": directory(),
    "file": file(b"file"),
    "link": symlink("full"),
}


@case(_TREES, upper={"new/n": file(b"n"), "bare": directory(), "plain": file(b"plain")})
def onto_other_kinds(shown: Showing) -> None:
    """M6: a directory takes the place of an empty one alone, a file never that of a directory."""
    face = shown.face
    fails(errno.ENOTEMPTY, face.rename, "new", "full", 0)
    fails(errno.ENOTDIR, face.rename, "new", "file", 0)
    fails(errno.ENOTDIR, face.rename, "new", "link", 0)
    fails(errno.EISDIR, face.rename, "plain", "empty", 0)
    fails(errno.EISDIR, face.rename, "file", "bare", 0)
    fails(errno.EINVAL, face.rename, "new", "new/below", 0)
    fails((errno.EINVAL, errno.ENOTEMPTY), face.rename, "new/n", "new", 0)
    face.rename("new", "empty", 0)
    same(names(shown, "empty"), ["n"])
    face.rename("empty", "bare", 0)
    same(face.read("bare/n"), b"n")
    same(names(shown), ["bare", "file", "full", "link", "plain"])


@case(_TREES, upper={"new/n": file(b"n")})
def into_itself(shown: Showing) -> None:
    """M6: a directory cannot move into itself (EINVAL), nor onto what it is in (ENOTEMPTY)."""
    shown.face.mkdir("new/sub", 0o755)
    fails(errno.EINVAL, shown.face.rename, "new", "new/sub/x", 0)
    fails(errno.EINVAL, shown.face.rename, "new", "new/sub", 0)
    fails(errno.ENOTEMPTY, shown.face.rename, "new/sub", "new", 0)
    fails(errno.EINVAL, shown.face.rename, "new", "new/sub", RENAME_EXCHANGE)
    fails(errno.EBUSY, shown.face.rename, "new/.", "x", 0)
    fails(errno.EBUSY, shown.face.rename, "new", "full/..", 0)
    fails(errno.ENOENT, shown.face.rename, "none", "x", 0)
    fails(errno.ENOENT, shown.face.rename, "new", "none/x", 0)
    fails(errno.ENOTDIR, shown.face.rename, "new", "file/x", 0)


_DEEP: tuple[Tree, ...] = (
    {"d/e/near": file(b"near"), "d/top": file(b"top"), "other/x": file()},
    {"d/e/far": file(b"far"), "d/gone": file()},
)


@case(
    *_DEEP,
    upper={"d/gone": whiteout(), "d/u": file(b"u")},
    needs=[Trait.MOVES_LOWER_DIRECTORIES],
)
def lower_directories(shown: Showing) -> None:
    """M4, V5: a lower's directory moves with everything in it, also twice, also back."""
    face = shown.face
    number = face.stat("d").st_ino
    for old, new in (("d", "moved"), ("moved/e", "other/e"), ("moved", "other/d")):
        face.rename(old, new, 0)
        fails(errno.ENOENT, face.stat, old)
    for _ in range(2):
        same(names(shown), ["other"])
        same(names(shown, "other"), ["d", "e", "x"])
        same(names(shown, "other/d"), ["top", "u"])
        same(names(shown, "other/e"), ["far", "near"])
        same(shown.face.read("other/e/far"), b"far")
        same(shown.face.stat("other/d").st_ino, number)
        shown.show_again()
    shown.face.append("other/e/far", b"!")
    shown.face.unlink("other/e/near")
    shown.face.rename("other/d", "d", 0)
    shown.face.rename("other/e", "d/e", 0)
    shown.show_again()
    same((names(shown, "d"), names(shown, "d/e")), (["e", "top", "u"], ["far"]))
    same(shown.face.read("d/e/far"), b"far!")


@case(*_DEEP, needs=[Trait.MOVES_LOWER_DIRECTORIES])
def old_place_of_a_directory(shown: Showing) -> None:
    """M3, M4, N4: what is made where a lower's directory was is new and empty."""
    shown.face.rename("d", "moved", 0)
    shown.face.mkdir("d", 0o755)
    same(names(shown, "d"), [])
    shown.face.create("d/new", 0o644, b"")
    shown.show_again()
    same(names(shown, "d"), ["new"])
    same(names(shown, "moved"), ["e", "gone", "top"])


@case(*_DEEP, needs=[Trait.MOVES_LOWER_DIRECTORIES])
def exchanged_directories(shown: Showing) -> None:
    """M1, M4: lowers' directories change places with one another, and with a new one."""
    shown.face.rename("d", "other", RENAME_EXCHANGE)
    shown.face.mkdir("new", 0o755)
    shown.face.create("new/n", 0o644, b"n")
    shown.face.rename("new", "other/e", RENAME_EXCHANGE)
    for _ in range(2):
        same(names(shown, "d"), ["x"])
        same(names(shown, "other"), ["e", "gone", "top"])
        same(names(shown, "other/e"), ["n"])
        same(names(shown, "new"), ["far", "near"])
        shown.show_again()


@case(*_DEEP, needs=[Trait.REFUSES_TO_MOVE_LOWER_DIRECTORIES])
def lower_directories_refused(shown: Showing) -> None:
    """M7, X5: where no redirect is kept, moving a lower's directory is EXDEV."""
    fails(errno.EXDEV, shown.face.rename, "d", "moved", 0)
    fails(errno.EXDEV, shown.face.rename, "d", "other", RENAME_EXCHANGE)
    same((names(shown), names(shown, "d")), (["d", "other"], ["e", "gone", "top"]))
    shown.face.mkdir("own", 0o755)
    shown.face.rename("own", "moved", 0)
    same(names(shown), ["d", "moved", "other"])


@case({"parent/name/lower": file(b"hidden")}, upper={"new/own": file(b"own")})
def directory_to_a_merged_parent(shown: Showing) -> None:
    """M5: a new directory shows only its own, where a lower has a deleted one of that name."""
    shown.face.unlink("parent/name/lower")
    shown.face.rmdir("parent/name")
    shown.face.rename("new", "parent/name", 0)
    same(names(shown, "parent/name"), ["own"])
    shown.show_again()
    same(names(shown, "parent/name"), ["own"])


@case({"parent/name/lower": file(b"below")}, {"moved": directory()}, upper={"new": directory()})
def directory_over_an_empty_merged_one(shown: Showing) -> None:
    """M5, M6: replacing a merged directory that is empty lets nothing of it through again."""
    shown.face.unlink("parent/name/lower")
    shown.face.rename("new", "parent/name", 0)
    same(names(shown, "parent/name"), [])
    shown.show_again()
    same(names(shown, "parent/name"), [])


@case({"f": file(b"data" * 3000, mode=0o600), "g": file(b"other")})
def metadata_changed_first(shown: Showing) -> None:
    """M8, C5: a file that only got new metadata has its data wherever it moves or is linked."""
    shown.face.chmod("f", 0o640)
    shown.face.link("f", "linked")
    shown.face.rename("f", "moved", 0)
    for _ in range(2):
        for path in ("moved", "linked"):
            same(shown.face.read(path), b"data" * 3000, path)
        shown.show_again()
    shown.face.append("linked", b"!")
    same(shown.face.read("moved"), b"data" * 3000 + b"!")


@case({"a": file(b"a"), "b": file(b"b")}, upper={"u": file(b"u")})
def open_files_go_on(shown: Showing) -> None:
    """M1, H3: files that are open do not notice that they move or are replaced."""
    with shown.face.open("a", os.O_RDWR) as a, shown.face.open("b", os.O_RDONLY) as b:
        shown.face.rename("a", "x", 0)
        os.pwrite(a, b"A", 0)
        same(shown.face.read("x"), b"A")
        shown.face.rename("x", "b", 0)
        same(os.pread(b, 10, 0), b"b")
        os.pwrite(a, b"AA", 0)
        same(shown.face.read("b"), b"AA")
        shown.face.rename("u", "b", 0)
        same(os.pread(a, 10, 0), b"AA")
        same(shown.face.read("b"), b"u")
