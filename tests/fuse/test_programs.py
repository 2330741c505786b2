"""Real programs over a mounted overlay: held against a plain directory, or by their own checks.

What happens between processes on one file is in `test_sharing.py`.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from layermount.linux import files
from layermount.testing import trees
from layermount.testing.trees import Snapshot, assert_same
from tests import forked
from tests.fuse.places import Place

#: What an overlay does not have in common with a plain directory.
NOT_IN_PLAIN = ("nlink", "inode")
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}
ROWS = 100


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shown(root: Path) -> Snapshot:
    """Everything below `root` but its own time, which every new name changes."""
    found = trees.without(trees.snapshot(root), *NOT_IN_PLAIN)
    return {**found, **trees.without({".": found["."]}, "mtime_ns")}


def assert_copied(here: Path, there: Path) -> None:
    assert_same(shown(here), shown(there), (str(here), str(there)))


def rich(root: Path) -> Path:
    """A tree with some of everything that a file can have."""
    nobody = 0xFFFFFFFF
    rights = ((1, 6, nobody), (2, 4, 1000), (4, 4, nobody), (16, 6, nobody), (32, 4, nobody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *right) for right in rights)
    content = random.Random(1)  # noqa: S311  # test data
    trees.build(
        root,
        {
            "plain": trees.file(b"hello", mode=0o640, owner=(1000, 1001)),
            "set-id": trees.file(b"#!/bin/sh\n", mode=0o6755),
            "large": trees.file(content.randbytes(700_000)),
            "attributes": trees.file(xattrs={"user.k": b"v", "security.k": bytes(9)}),
            "acl": trees.file(mode=0o664, xattrs={"system.posix_acl_access": acl}),
            "dir": trees.directory(mode=0o2770, xattrs={"system.posix_acl_default": acl}),
            "dir/a name with spaces and ü": trees.file(b"x"),
            "dir/link": trees.symlink("../plain"),
            "dir/dangling": trees.symlink("/nowhere"),
            "dir/same": trees.hardlink("large"),
            "fifo": trees.fifo(),
            "device": trees.device(1, 3),
            **{f"many/{n:03}": trees.file(b"%d" % n) for n in range(200)},
        },
    )
    with (root / "sparse").open("wb") as sparse:
        sparse.write(b"start")
        sparse.truncate(3_000_000)
    return root


@pytest.mark.needs("git")
class TestGit:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        """A repository with two branches and a few dozen files."""
        root = tmp_path / "repository"
        run("git", "init", "--quiet", "--initial-branch=main", root)
        for commit in range(4):
            for n in range(20):
                path = root / f"dir{n % 4}/file{n + commit}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{n} in {commit}\n" * (n * 10 + 1))
            self.commit(root, str(commit))
        run("git", "checkout", "--quiet", "-b", "other", "HEAD~2", cwd=root)
        (root / "dir1/file1").unlink()
        run("git", "mv", "dir2", "moved", cwd=root)
        self.commit(root, "other")
        run("git", "checkout", "--quiet", "main", cwd=root)
        return root

    @staticmethod
    def commit(root: Path, message: str) -> None:
        run("git", "add", "--all", cwd=root)
        run("git", "commit", "--quiet", "-m", message, cwd=root, **GIT)

    def test_clone(self, place: Place, repository: Path, tmp_path: Path) -> None:
        with place.mount():
            clones = place.target / "clone", tmp_path / "clone"
            for clone in clones:
                run("git", "clone", "--quiet", repository, clone)
            self.work_on(clones[0], clones[1])

    def test_a_repository_in_the_lower(
        self, place: Place, repository: Path, tmp_path: Path
    ) -> None:
        for where in (place.lower, tmp_path):
            run("git", "clone", "--quiet", repository, where / "clone")
        digest = trees.digest(place.lower)
        with place.mount():
            self.work_on(place.target / "clone", tmp_path / "clone")
        with place.mount():
            run("git", "fsck", "--full", "--strict", cwd=place.target / "clone")
        assert trees.digest(place.lower) == digest

    def work_on(self, clone: Path, plain: Path) -> None:
        for branch in ("other", "main", "other"):
            for root in (clone, plain):
                run("git", "checkout", "--quiet", branch, cwd=root)
            assert run("git", "status", "--porcelain", cwd=clone) == ""
            assert self.tree(clone) == self.tree(plain)
        (clone / "dir0/new").write_text("new")
        self.commit(clone, "new")
        merge = ("-c", "merge.directoryRenames=true", "merge", "--quiet", "-m", "merged")
        run("git", *merge, "origin/main", cwd=clone, **GIT)
        run("git", "gc", "--quiet", "--aggressive", "--prune=now", cwd=clone)
        run("git", "fsck", "--full", "--strict", cwd=clone)
        run("git", "reset", "--quiet", "--hard", "origin/other", cwd=clone)
        run("git", "clean", "-fdxq", cwd=clone)
        assert self.tree(clone) == self.tree(plain)
        assert run("git", "status", "--porcelain", cwd=clone) == ""

    @staticmethod
    def tree(root: Path) -> dict[str, tuple[int, bytes | int | None]]:
        found = trees.snapshot(root)
        return {
            path: (entry.mode, entry.content)
            for path, entry in found.items()
            if path.split("/")[0] != ".git"
        }


@pytest.mark.needs("gcc", "make")
class TestMake:
    MAKEFILE = """\
objects = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(objects)
\tgcc -o $@ $^
%.o: %.c all.h
\tgcc -O0 -c -o $@ $<
"""

    def sources(self, root: Path) -> None:
        root.mkdir()
        (root / "Makefile").write_text(self.MAKEFILE)
        (root / "all.h").write_text("".join(f"int f{n}(void);\n" for n in range(40)))
        for n in range(40):
            (root / f"f{n}.c").write_text(f'#include "all.h"\nint f{n}(void) {{ return {n}; }}\n')
        called = " + ".join(f"f{n}()" for n in range(40))
        main = (
            f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%d", {called}); }}\n'
        )
        (root / "main.c").write_text(main)

    @pytest.mark.parametrize("built", [False, True], ids=["sources", "built"])
    def test_make(self, place: Place, built: bool) -> None:
        """With the sources in the lower, and with what is made of them there too."""
        self.sources(place.lower / "project")
        if built:
            run("make", "-j2", cwd=place.lower / "project")
        project = place.target / "project"
        with place.mount():
            if built:
                run("make", "--question", cwd=project)
                (project / "all.h").touch()
            assert run("make", "-j2", cwd=project).count("gcc -O0") == 41
            run("make", "--question", cwd=project)
            assert run(project / "program") == "780"
        with place.mount():
            run("make", "--question", cwd=project)
            (project / "f3.c").write_text('#include "all.h"\nint f3(void) { return 1003; }\n')
            assert run("make", "-j2", cwd=project).splitlines()[0] == "gcc -O0 -c -o f3.o f3.c"
            assert run(project / "program") == "1780"


class TestSqlite:
    @pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
    def test_two_writers(self, place: Place, mode: str) -> None:
        """The database starts in the lower; two processes write, and a third reads along."""
        with closing(self.connect(place.lower / "database", mode)) as database:
            database.execute("create table rows (writer integer, number integer, data blob)")
            database.execute("create index by_number on rows (number)")
            database.executemany("insert into rows values (9, ?, zeroblob(900))", [(0,)] * 50)
        path = place.target / "database"
        with place.mount():
            writers = [self.start(path, mode, number) for number in range(2)]
            counts = [self.count(path, mode) for _ in range(10)]
            for pid in writers:
                assert os.waitpid(pid, 0)[1] == 0
            assert counts == sorted(counts)
            assert self.count(path, mode) == 50 + 2 * ROWS
        with place.mount():
            assert self.count(path, mode) == 50 + 2 * ROWS

    @staticmethod
    def connect(path: Path, mode: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=100, isolation_level=None)
        assert database.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        return database

    def start(self, path: Path, mode: str, writer: int) -> int:
        pid = forked.fork()
        if pid == 0:
            status = 1
            try:
                self.write(path, mode, writer)
                status = 0
            finally:
                os._exit(status)
        return pid

    def write(self, path: Path, mode: str, writer: int) -> None:
        with closing(self.connect(path, mode)) as database:
            for number in range(ROWS):
                database.execute("begin immediate")
                row = (writer, number, bytes(number * 10))
                database.execute("insert into rows values (?, ?, ?)", row)
                database.execute("update rows set number = number + 1 where writer = 9")
                database.execute("commit")

    def count(self, path: Path, mode: str) -> int:
        with closing(self.connect(path, mode)) as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            number: int = database.execute("select count(*) from rows").fetchone()[0]
            return number


class TestInstallers:
    def test_pip(self, place: Place, tmp_path: Path) -> None:
        """A virtual environment in the lower gets a package on top, and loses it."""
        wheel = self.wheel(tmp_path)
        run(sys.executable, "-m", "venv", "--without-pip", place.lower / "environment")
        digest = trees.digest(place.lower)
        python = place.target / "environment/bin/python"
        quiet = ("--disable-pip-version-check", "--no-cache-dir")
        pip = (sys.executable, "-m", "pip", "--python", python, *quiet)
        with place.mount():
            run(*pip, "install", "--quiet", "--no-index", wheel)
            assert run(python, "-c", "import example; print(example.NAME)") == "example\n"
            assert run(place.target / "environment/bin/example-name") == "example\n"
        with place.mount():
            run(*pip, "uninstall", "--quiet", "--yes", "example")
            assert "example" not in run("find", place.target)
        assert trees.digest(place.lower) == digest

    @staticmethod
    def wheel(base: Path) -> Path:
        path, meta = base / "example-1.0-py3-none-any.whl", "example-1.0.dist-info"
        content = {
            "example/__init__.py": "NAME = 'example'\ndef main():\n    print(NAME)\n",
            f"{meta}/METADATA": "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n",
            f"{meta}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{meta}/entry_points.txt": "[console_scripts]\nexample-name = example:main\n",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
            record = "".join(f"{name},,\n" for name in [*content, f"{meta}/RECORD"])
            archive.writestr(f"{meta}/RECORD", record)
        return path

    @pytest.mark.needs("dpkg-deb")
    def test_dpkg(self, place: Place, tmp_path: Path) -> None:
        """A package built from a lower's tree and unpacked over it, beside a plain directory."""
        root = place.lower / "package"
        trees.build(
            root,
            {
                "DEBIAN/control": trees.file(
                    b"Package: example\nVersion: 1\nArchitecture: all\n"
                    b"Maintainer: a <a@b>\nDescription: an example\n"
                ),
                "usr/bin/example": trees.file(b"#!/bin/sh\necho example\n", mode=0o755),
                "usr/share/link": trees.symlink("../bin/example"),
                **{f"usr/share/many/{n}": trees.file(b"%d" % n * 999) for n in range(100)},
            },
        )
        trees.build(place.lower / "root", {"usr/share/many/5": trees.file(b"old")})
        with place.mount():
            archive = place.target / "example.deb"
            run("dpkg-deb", "--build", place.target / "package", archive)
            run("dpkg-deb", "--extract", archive, place.target / "root")
            run("dpkg-deb", "--extract", archive, tmp_path / "root")
            assert_copied(place.target / "root", tmp_path / "root")
            assert run(place.target / "root/usr/share/link") == "example\n"


class TestCopies:
    """There and back again, with everything that a file can have."""

    @pytest.mark.needs("rsync")
    def test_rsync(self, place: Place, tmp_path: Path) -> None:
        source = f"{rich(tmp_path / 'source')}/"
        trees.build(place.lower, {"copy/many/000": trees.file(b"old"), "copy/x/y": trees.file()})
        copy, back = f"{place.target / 'copy'}/", f"{tmp_path / 'back'}/"
        rsync = ("rsync", "-aHAX", "--sparse", "--devices", "--specials", "--checksum", "--delete")
        with place.mount():
            for here, there in ((source, copy), (copy, back)):
                run(*rsync, here, there)
                assert run(*rsync, "--dry-run", "--itemize-changes", here, there) == ""
            assert_copied(Path(copy), Path(source))
            assert_copied(Path(back), Path(source))

    def test_tar(self, place: Place, tmp_path: Path) -> None:
        source = rich(tmp_path / "source")
        tar = ("tar", "--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner")
        trees.build(place.lower, {"copy/many/000": trees.file(b"old")})
        with place.mount():
            copy, archive = place.target / "copy", tmp_path / "archive"
            run(*tar, "-C", source, "-cf", archive, ".")
            run(*tar, "-C", copy, "-xpf", archive)
            assert_copied(copy, source)
            run(*tar, "-C", copy, "-cf", place.target / "archive", ".")
            run(*tar, "-C", source, "--compare", "-f", place.target / "archive")

    @pytest.mark.parametrize("of", ["lower", "upper"])
    def test_cp(self, place: Place, tmp_path: Path, of: str) -> None:
        """Into the mount and out of it."""
        source = rich(tmp_path / "source")
        if of == "lower":
            run("cp", "-a", source, place.lower / "copy")
        with place.mount():
            if of == "upper":
                run("cp", "-a", source, place.target / "copy")
            for step in ("copy/inside", "back"):
                there = (place.target if "/" in step else tmp_path) / step
                run("cp", "-a", place.target / "copy/many", there)
                assert_copied(there, source / "many")
            run("cp", "-a", place.target / "copy", tmp_path / "whole")
            run("rm", "-r", tmp_path / "whole/inside")
            # Making and removing a name in it changed its time.
            os.utime(tmp_path / "whole", ns=(trees.LONG_AGO_NS,) * 2)
            assert_copied(tmp_path / "whole", source)

    def test_removal(self, place: Place) -> None:
        trees.build(place.lower, {f"tree/{n % 7}/{n % 5}/{n}": trees.file() for n in range(300)})
        digest = trees.digest(place.lower)
        with place.mount():
            run("cp", "-a", place.target / "tree", place.target / "copy")
            run("find", place.target / "tree/3", "-delete")
            run("rm", "-r", place.target / "tree/4")
            run("find", place.target / "copy", "-type", "f", "-delete")
            assert sorted(os.listdir(place.target / "tree")) == ["0", "1", "2", "5", "6"]
            (place.target / "tree/3").mkdir()
        with place.mount():
            assert run("find", place.target / "copy", "-type", "f") == ""
            assert sorted(os.listdir(place.target / "tree")) == ["0", "1", "2", "3", "5", "6"]
            assert os.listdir(place.target / "tree/3") == []
            run("find", place.target, "-mindepth", "1", "-delete")
            assert os.listdir(place.target) == []
        assert trees.digest(place.lower) == digest


class TestSystem:
    """Single things that programs want of a filesystem."""

    def test_ten_thousand_open_files(self, place: Place) -> None:
        for n in range(5000):
            path = place.lower / f"{n % 100}/{n}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"%d" % n)
        with place.mount():
            forked.in_child(lambda: self.open_many(place.target))

    @staticmethod
    def open_many(root: Path) -> None:
        """Half of them read from the lower, half written."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, 12_000))
        read = [os.open(root / f"{n % 100}/{n}", os.O_RDONLY) for n in range(5000)]
        made = [os.open(root / f"new{n}", os.O_RDWR | os.O_CREAT) for n in range(5000)]
        for n, fd in enumerate(made):
            assert os.write(fd, b"%d" % n) == len(str(n))
        for fds in (read, made):
            for n, fd in enumerate(fds):
                assert os.pread(fd, 10, 0) == b"%d" % n
                os.close(fd)

    def test_socket(self, place: Place) -> None:
        with place.mount():
            path = str(place.target / "socket")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)
                server.listen()
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
                    accepted, _ = server.accept()
                    with accepted:
                        client.sendall(b"hello")
                        assert accepted.recv(10) == b"hello"
            assert stat.S_ISSOCK(os.lstat(path).st_mode)
            with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
                client.connect(path)

    def test_fifo(self, place: Place) -> None:
        """One of a lower, between two processes, and after it was copied up."""
        trees.build(place.lower, {"fifo": trees.fifo()})
        with place.mount():
            for mode in (0o600, 0o640):
                (place.target / "fifo").chmod(mode)
                written = subprocess.Popen(["sh", "-c", 'echo hello >"$0"', place.target / "fifo"])
                assert (place.target / "fifo").read_text() == "hello\n"
                assert written.wait() == 0

    @pytest.mark.parametrize("where", ["lower", "upper"])
    def test_a_running_program_is_not_written(self, place: Place, where: str) -> None:
        sleep = Path("/bin/sleep").read_bytes()
        if where == "lower":
            trees.build(place.lower, {"sleep": trees.file(sleep, mode=0o755)})
        with place.mount():
            program = place.target / "sleep"
            if where == "upper":
                program.write_bytes(sleep)
                program.chmod(0o755)
            with subprocess.Popen([program, "100"]) as running:
                for flags in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
                    with pytest.raises(OSError, match="Text file busy"):
                        os.close(os.open(program, flags))
                running.kill()
            with program.open("ab"), pytest.raises(OSError, match="Text file busy"):
                subprocess.Popen([program, "0"])
            run(program, "0")
            assert program.read_bytes() == sleep

    def test_temporary_files(self, place: Place) -> None:
        """O_TMPFILE, and the name that it gets later."""
        with place.mount():
            fd = os.open(place.target, os.O_TMPFILE | os.O_RDWR, 0o640)
            try:
                os.write(fd, b"hello")
                assert os.listdir(place.target) == []
                # Only with a directory does os.link() follow the link.
                os.link(f"/proc/self/fd/{fd}", place.target / "named", src_dir_fd=fd)
                os.pwrite(fd, b"J", 0)
            finally:
                os.close(fd)
            assert (place.target / "named").read_bytes() == b"Jello"

    def test_a_name_exchanged(self, place: Place) -> None:
        trees.build(place.lower, {"a/x": trees.file(b"a"), "b/y": trees.file(b"b")})
        a, b = place.target / "a", place.target / "b"
        with place.mount():
            files.renameat2(-100, str(a), -100, str(b), files.RENAME_EXCHANGE)
            assert (os.listdir(a), os.listdir(b)) == (["y"], ["x"])

    def test_free_space_is_the_uppers(self, place: Place) -> None:
        with place.mount():
            here, there = os.statvfs(place.target), os.statvfs(place.upper)
            assert (here.f_blocks, here.f_files) == (there.f_blocks, there.f_files)
            assert here.f_namemax == 255

    def test_times(self, place: Place) -> None:
        """Writing and reading change the times that they do elsewhere."""
        trees.build(place.lower, {"file": trees.file(b"lower")})
        with place.mount():
            path = place.target / "file"
            start = time.time_ns() - 10**7
            assert path.stat().st_mtime_ns == trees.LONG_AGO_NS
            with path.open("ab") as file:
                file.write(b"x")
                file.flush()
                assert os.fstat(file.fileno()).st_mtime_ns >= start
            assert path.stat().st_mtime_ns >= start
            os.utime(path, ns=(1, 2))
            path.chmod(0o600)
            assert path.stat().st_mtime_ns == 2
            assert path.stat().st_ctime_ns >= start
