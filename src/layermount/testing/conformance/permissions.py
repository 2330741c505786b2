"""Cases: who may do what, and what a change by others clears. Rules P, A4, N2.

All of them need another user than the caller.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable

from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.conformance.children import ALICE, BOB, User
from layermount.testing.conformance.faces import Face
from layermount.testing.trees import Tree, directory, file, symlink

COLLECTION = Collection("permissions")
case = COLLECTION.case

NEEDS = (Trait.ROOT, Trait.OTHER_USERS)
#: Group of the files that a supplementary group opens.
_CLUB = 4444
_MEMBER = User(4545, 4545, (4646, _CLUB))
#: `security.capability` with one capability: struct vfs_cap_data of <linux/capability.h>.
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

_TREE: Tree = {
    "open": file(b"open", mode=0o666),
    "readable": file(b"readable", mode=0o644),
    "closed": file(b"closed", mode=0o600),
    "club": file(b"club", mode=0o660, owner=(0, _CLUB)),
    "hers": file(b"hers", mode=0o600, owner=(ALICE.uid, ALICE.gid)),
    "tmp": directory(mode=0o777),
    "private": directory(mode=0o700),
    "private/f": file(b"f", mode=0o666),
    "listed": directory(mode=0o744),
    "listed/f": file(),
    "entered": directory(mode=0o711),
    "entered/f": file(b"f", mode=0o644),
}


def _with(operation: str, *arguments: object) -> Callable[[Face], object]:
    """An operation with its arguments, for a face that is there later."""

    def act(face: Face) -> object:
        return getattr(face, operation)(*arguments)

    return act


@case(_TREE, needs=NEEDS)
def files(shown: Showing) -> None:
    """P1: another user reads and writes what the modes allow, and nothing else."""

    def act(face: Face) -> None:
        same(face.read("readable"), b"readable")
        fails(errno.EACCES, face.write, "readable", b"x", 0)
        fails(errno.EACCES, face.truncate, "readable", 0)
        fails(errno.EACCES, face.read, "closed")
        fails(errno.EACCES, face.read, "club")
        face.write("open", b"OPEN", 0)
        face.append("hers", b"!")

    shown.as_user(ALICE, act)
    same(shown.face.read("open"), b"OPEN")
    same((shown.face.stat("open").st_uid, shown.face.stat("open").st_mode & 0o7777), (0, 0o666))
    same(shown.face.read("hers"), b"hers!")
    same(shown.face.stat("hers").st_uid, ALICE.uid)


@case(_TREE, needs=NEEDS)
def refusals_copy_nothing_up(shown: Showing) -> None:
    """P1: what is refused leaves no copy behind."""

    def act(face: Face) -> None:
        fails(errno.EACCES, face.write, "readable", b"x", 0)
        fails(errno.EACCES, face.overwrite, "closed", b"x")
        fails(errno.EPERM, face.chmod, "open", 0o600)
        fails(errno.EPERM, face.chown, "open", ALICE.uid, -1)
        fails(errno.EACCES, face.unlink, "open")
        fails(errno.EACCES, face.rename, "open", "new", 0)
        fails(errno.EACCES, face.mkdir, "new", 0o755)
        fails(errno.EACCES, face.setxattr, "readable", "user.k", b"v", 0)

    shown.as_user(ALICE, act)
    same(os.listdir(shown.layers.upper or ""), [])


@case(_TREE, needs=NEEDS)
def directories(shown: Showing) -> None:
    """P1: search and read permission of directories count on every step of a path."""

    def act(face: Face) -> None:
        fails(errno.EACCES, face.stat, "private/f")
        fails(errno.EACCES, face.listdir, "private")
        same(face.read("entered/f"), b"f")
        fails(errno.EACCES, face.listdir, "entered")
        same(os.listdir("listed"), ["f"])
        fails(errno.EACCES, face.stat, "listed/f")
        fails(errno.EACCES, face.create, "entered/new", 0o644, b"")

    for _ in range(2):
        shown.as_user(ALICE, act)
        for path in ("private", "entered", "listed"):
            # The same again with directories that have come up.
            shown.face.utimens(path, 1, 1)


@case(_TREE, needs=NEEDS)
def supplementary_groups(shown: Showing) -> None:
    """P1: every group that a process has counts."""
    same(shown.as_user(_MEMBER, lambda face: face.append("club", b"!")), 1)
    same(shown.as_user(_MEMBER, lambda face: face.read("club")), b"club!")
    shown.as_user(BOB, lambda face: fails(errno.EACCES, face.read, "club"))
    found = shown.face.stat("club")
    same((found.st_uid, found.st_gid, found.st_mode & 0o7777), (0, _CLUB, 0o660))


@case(_TREE, needs=NEEDS)
def access(shown: Showing) -> None:
    """P1: access(2) says what open(2) would do."""
    allowed = (
        ("readable", os.R_OK),
        ("closed", os.F_OK),
        ("open", os.R_OK | os.W_OK),
        ("entered", os.X_OK),
    )
    refused = (
        ("readable", os.W_OK),
        ("readable", os.X_OK),
        ("closed", os.R_OK),
        ("entered", os.R_OK),
        ("private/f", os.F_OK),
    )

    def act(face: Face) -> None:
        same([one for one in allowed if not face.access(*one)], [], "refused")
        same([one for one in refused if face.access(*one)], [], "allowed")

    shown.as_user(ALICE, act)
    assert not shown.face.access("readable", os.X_OK), "root may run what nobody may"
    assert shown.face.access("closed", os.R_OK | os.W_OK), "root may not write"


@case(_TREE, needs=NEEDS)
def new_entries_belong_to_who_makes_them(shown: Showing) -> None:
    """N2: owner and group of what is new are its maker's, whatever serves the tree."""

    def act(face: Face) -> None:
        face.create("tmp/f", 0o640, b"hers")
        face.mkdir("tmp/d", 0o750)
        face.symlink("tmp/l", "f")
        face.mknod("tmp/p", stat.S_IFIFO | 0o600, 0)
        face.create("tmp/d/deep", 0o600, b"")
        fails(errno.EPERM, face.mknod, "tmp/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))

    shown.as_user(ALICE, act)
    for path in ("tmp/f", "tmp/d", "tmp/l", "tmp/p", "tmp/d/deep"):
        found = shown.face.stat(path)
        same((found.st_uid, found.st_gid), (ALICE.uid, ALICE.gid), path)
    shown.as_user(BOB, lambda face: fails(errno.EACCES, face.read, "tmp/f"))


_STICKY: Tree = {
    "tmp": directory(mode=0o1777),
    "tmp/lower": file(b"alice's", owner=(ALICE.uid, ALICE.gid)),
    "tmp/d/f": file(),
}


@case(_STICKY, needs=NEEDS)
def sticky_directories(shown: Showing) -> None:
    """P1: in a sticky directory only the owner removes and moves an entry."""
    shown.as_user(ALICE, lambda face: face.create("tmp/new", 0o666, b""))

    def act(face: Face) -> None:
        face.create("tmp/his", 0o644, b"")
        for name in ("lower", "new"):
            fails((errno.EPERM, errno.EACCES), face.unlink, f"tmp/{name}")
            fails((errno.EPERM, errno.EACCES), face.rename, f"tmp/{name}", "tmp/x", 0)
            fails((errno.EPERM, errno.EACCES), face.rename, "tmp/his", f"tmp/{name}", 0)
        face.unlink("tmp/his")

    shown.as_user(BOB, act)
    for path in ("tmp/lower", "tmp/new"):
        shown.as_user(ALICE, _with("unlink", path))
    same(sorted(name for name, _ in shown.face.listdir("tmp")), ["d"])


_SHARED: Tree = {"club": directory(mode=0o2777, owner=(0, _CLUB)), "club/d/f": file()}


@case(_SHARED, needs=NEEDS)
def set_group_id_directories(shown: Showing) -> None:
    """N2: what is made in a set-group-id directory gets its group; directories get the bit too."""

    def act(face: Face) -> None:
        face.create("club/f", 0o664, b"")
        face.mkdir("club/new", 0o755)
        face.mkdir("club/new/deep", 0o755)
        face.symlink("club/l", "f")
        # No member, so no file of the group with the bit and the right to be run.
        face.create("club/program", 0o2775, b"")

    shown.as_user(ALICE, act)
    for path in ("club/f", "club/new", "club/new/deep", "club/l", "club/program"):
        found = shown.face.stat(path)
        same((found.st_uid, found.st_gid), (ALICE.uid, _CLUB), path)
    same(shown.face.stat("club/new").st_mode & 0o7777, 0o2755)
    same(shown.face.stat("club/new/deep").st_mode & 0o7777, 0o2755)
    same(shown.face.stat("club/program").st_mode & 0o7777, 0o755)
    same(shown.face.stat("club/f").st_mode & 0o7777, 0o644)


_PROGRAMS: Tree = {
    "user": file(b"#!", mode=0o4777),
    "group": file(b"#!", mode=0o2777),
    "both": file(b"#!", mode=0o6777),
    "locking": file(b"#!", mode=0o2767),
}


@case(_PROGRAMS, upper={"own": file(b"#!", mode=0o6777)}, needs=NEEDS)
def writing_clears_set_id(shown: Showing) -> None:
    """A1: who writes to a program of another takes its set-id bits away; root leaves them."""
    for path in (*_PROGRAMS, "own"):
        shown.face.append(path, b"/bin/sh")
    modes = {path: shown.face.stat(path).st_mode & 0o7777 for path in (*_PROGRAMS, "own")}
    expected = {path: entry.mode for path, entry in _PROGRAMS.items()} | {"own": 0o6777}
    same(modes, expected, "written by root")
    for path in (*_PROGRAMS, "own"):
        shown.as_user(ALICE, _with("append", path, b"\n"))
    modes = {path: shown.face.stat(path).st_mode & 0o7777 for path in (*_PROGRAMS, "own")}
    without = {"user": 0o777, "group": 0o777, "both": 0o777, "own": 0o777}
    locking = modes.pop("locking")
    same(modes, without, "written by another")
    # Whether it is a lock (mandatory locking) is no longer of meaning; kernels differ.
    assert locking in (0o2767, 0o767), oct(locking)


@case(_PROGRAMS, needs=NEEDS)
def truncating_clears_set_id(shown: Showing) -> None:
    """A1, C7: so does truncating, by path, by descriptor and on opening."""
    shown.as_user(ALICE, lambda face: face.truncate("user", 1))
    shown.as_user(ALICE, lambda face: face.overwrite("group", b""))

    def act(face: Face) -> None:
        with face.open("both", os.O_RDWR) as fd:
            os.ftruncate(fd, 0)

    shown.as_user(ALICE, act)
    for path in ("user", "group", "both"):
        same(shown.face.stat(path).st_mode & 0o7777, 0o777, path)


_ABLE: Tree = {
    "lower": file(b"#!", mode=0o777, xattrs={"security.capability": _CAPABILITY}),
    "kept": file(b"#!", mode=0o777, xattrs={"security.capability": _CAPABILITY}),
}


@case(_ABLE, needs=NEEDS)
def writing_clears_capabilities(shown: Showing) -> None:
    """A1: a program loses its capabilities when it is written or changes hands, and not before."""
    shown.face.create("upper", 0o777, b"#!")
    shown.face.chmod("upper", 0o777)
    shown.face.setxattr("upper", "security.capability", _CAPABILITY, 0)
    shown.face.chmod("kept", 0o766)
    same(shown.face.getxattr("kept", "security.capability"), _CAPABILITY)
    for path in ("lower", "upper"):
        same(shown.face.getxattr(path, "security.capability"), _CAPABILITY)
        shown.as_user(ALICE, _with("append", path, b"\n"))
        fails(errno.ENODATA, shown.face.getxattr, path, "security.capability")
    shown.face.chown("kept", 5, 5)
    fails(errno.ENODATA, shown.face.getxattr, "kept", "security.capability")


@case(_TREE, needs=NEEDS)
def owners_alone(shown: Showing) -> None:
    """A4: only owner and root change modes and set times; who may write sets them to now."""

    def by_another(face: Face) -> None:
        fails(errno.EPERM, face.chmod, "open", 0o600)
        fails(errno.EPERM, face.utimens, "open", 1, 1)
        fails(errno.EPERM, face.setxattr, "open", "system.posix_acl_access", b"", 0)
        os.utime("open")
        fails(errno.EACCES, os.utime, "readable")
        face.setxattr("open", "user.k", b"v", 0)

    def by_the_owner(face: Face) -> None:
        face.chmod("hers", 0o640)
        face.utimens("hers", 1, 1)
        face.chown("hers", -1, ALICE.gid)
        fails(errno.EPERM, face.chown, "hers", BOB.uid, -1)
        fails(errno.EPERM, face.chown, "hers", -1, BOB.gid)

    shown.as_user(ALICE, by_another)
    shown.as_user(ALICE, by_the_owner)
    assert shown.face.stat("open").st_mtime_ns > shown.face.stat("readable").st_mtime_ns
    same(shown.face.getxattr("open", "user.k"), b"v")


@case(
    {
        "hers": directory(owner=(ALICE.uid, ALICE.gid)),
        "hers/f": file(b"root's"),
        "hers/d/x": file(),
    },
    needs=NEEDS,
)
def removing_what_others_own(shown: Showing) -> None:
    """P1, R1: who may write a directory removes a lower's entry; the mark is not his to see."""

    def act(face: Face) -> None:
        fails((errno.EACCES, errno.ENOTEMPTY), face.rmdir, "hers/d")
        face.unlink("hers/f")
        face.create("hers/f", 0o644, b"hers")
        face.rename("hers/f", "hers/g", 0)
        fails(errno.ENOENT, face.stat, "hers/f")

    shown.as_user(ALICE, act)
    same(shown.face.stat("hers/g").st_uid, ALICE.uid)
    same(sorted(name for name, _ in shown.face.listdir("hers")), ["d", "g"])


@case({"secret": file(b"secret", mode=0o600), "l": symlink("secret")}, needs=NEEDS)
def descriptors_stay_open(shown: Showing) -> None:
    """P1: rights are asked for at opening; a mode that changes later takes nothing away."""
    with shown.face.open("secret", os.O_RDWR) as fd:

        def act(face: Face) -> None:
            fails(errno.EACCES, face.read, "secret")
            same(os.pread(fd, 10, 0), b"secret")
            os.pwrite(fd, b"S", 0)

        shown.as_user(ALICE, act)
    same(shown.face.read("secret"), b"Secret")


@case({"run": file(b"#!/bin/sh\nexit 7\n", mode=0o755), "not": file(b"#!/bin/sh\n")}, needs=NEEDS)
def programs_run(shown: Showing) -> None:
    """P1: what may be run is run, from a lower and from the upper."""

    def act(_face: Face) -> int:
        pid = os.posix_spawn("./run", ["./run"], {})
        fails(errno.EACCES, os.posix_spawn, "./not", ["./not"], {})
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    for _ in range(2):
        same(shown.as_user(ALICE, act), 7)
        shown.face.append("run", b"#\n")
