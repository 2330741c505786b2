from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layermount.linux import mounts
from layermount.testing.trees import digest
from tests.cli.command import DEADLINE_S, ORDINARY, Person, assert_error, at_home, wait_for
from tests.forked import user_directory

# A device that everybody may open, in a mount namespace that lasts as long as its input.
_NAMESPACE = """
set -e
mount -t tmpfs -o mode=755 device "$0"
mknod -m 666 "$0/fuse" c 10 229
mount --bind "$0/fuse" /dev/fuse
umount --lazy "$0"
echo ready
read -r _
"""


@dataclass(frozen=True, slots=True)
class Inhabitant(Person):
    """Somebody in a mount namespace.

    Attributes:
        namespace: A process in it; None for the one that the tests are in.
    """

    namespace: int | None = None

    def _entering(self) -> list[str | bytes]:
        if self.namespace is None:
            return []
        return ["nsenter", f"--mount=/proc/{self.namespace}/ns/mnt", "--"]

    def command(self, *arguments: str | Path | bytes) -> list[str | bytes]:
        return [*self._entering(), *Person.command(self, *arguments)]

    def sh(self, script: str, *arguments: str | Path, **_options: Any) -> tuple[int, str, str]:
        """`sh -c SCRIPT` as this person: status, standard output, standard error."""
        given = ["sh", "-c", script, *map(str, arguments)]
        if self.uid != os.geteuid():
            user = str(self.uid)
            given = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *given]
        done = subprocess.run(
            [*self._entering(), *given], capture_output=True, timeout=DEADLINE_S, check=False
        )
        return done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr)

    @property
    def target(self) -> Path:
        return self.base / "target"

    @property
    def upper(self) -> Path:
        return self.base / "upper"

    def layers(self) -> tuple[str | Path, ...]:
        return ("--lower", self.project, "--upper", self.upper)

    def is_mounted(self) -> bool:
        pid = "self" if self.namespace is None else str(self.namespace)
        return f" {self.target} " in Path(f"/proc/{pid}/mountinfo").read_text()

    def daemon(self) -> int:
        pid: int = self.json("status", self.target)["daemon"]["pid"]
        return pid


@contextlib.contextmanager
def _namespace(base: Path) -> Iterator[int]:
    device = base / "device"
    device.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE]
    with subprocess.Popen(
        [*command, str(device)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield holder.pid
        holder.communicate(b"\n", timeout=DEADLINE_S)


@contextlib.contextmanager
def _inhabitant(uid: int) -> Iterator[Inhabitant]:
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(user_directory(uid))
        stack.enter_context(at_home(base, uid))
        space = None if uid == os.geteuid() else stack.enter_context(_namespace(base))
        somebody = Inhabitant(uid, base, base / "project", space)
        for path in (somebody.target, somebody.upper):
            path.mkdir()
            somebody.owned(path)
        yield somebody
        for record in somebody.json("list")["mounts"]:
            os.kill(record["owner"]["pid"], signal.SIGKILL)
            somebody.layermount("list")
        if space is None and os.path.ismount(somebody.target):
            mounts.umount2(str(somebody.target), mounts.MNT_DETACH)


_ROOT = pytest.param(0, marks=pytest.mark.needs("root", "fuse"), id="root")
_USER = pytest.param(ORDINARY, marks=pytest.mark.needs("fuse"), id="user")


@pytest.fixture(params=[_ROOT, _USER] if os.geteuid() == 0 else [_USER])
def anybody(request: pytest.FixtureRequest) -> Iterator[Inhabitant]:
    """Somebody who may have FUSE: root, and an ordinary user."""
    with _inhabitant(request.param) as somebody:
        yield somebody


@pytest.fixture
def user() -> Iterator[Inhabitant]:
    """An ordinary user who may have FUSE."""
    with _inhabitant(ORDINARY) as somebody:
        yield somebody


@pytest.fixture
def root() -> Iterator[Inhabitant]:
    """Root, where a test is marked as needing it."""
    with _inhabitant(os.geteuid()) as somebody:
        yield somebody


def test_a_mount_from_start_to_end(anybody: Inhabitant) -> None:
    before = digest(anybody.project)
    target = anybody.target
    shown = anybody.json("mount", "--host", "fuse", *anybody.layers(), target)
    assert (shown["host"], shown["target"], shown["fstype"]) == (
        *("fuse", str(target), "fuse.layermount"),
    )
    done = anybody.sh(f"cd {target} && cat a && echo changed >a && rm b && mkdir new")
    assert done == (0, "one\n", "")
    (mount,) = anybody.json("list")["mounts"]
    assert mount == shown
    assert b" fuse " in anybody.layermount("list").stdout
    diff = b"D b\nM a\nA new/\n"
    assert anybody.layermount("diff", target).stdout == diff
    explained = anybody.layermount("explain", target, "b").stdout.decode().splitlines()
    assert explained[0] == "b: deleted"
    assert explained[2].split()[:2] == ["upper", "deletes"]
    assert anybody.json("explain", target, "a")["verdicts"][0]["role"] == "answers"
    full_path = anybody.layermount("resolve", target, "a").stdout
    assert full_path == f"{anybody.upper}/a\n".encode()
    status = anybody.json("status", target)
    assert status["mount"] == shown
    assert status["session"]["requests"]["mkdir"] == 1
    assert status["overlay"]["copy_ups"] >= 1
    table = anybody.layermount("status", target).stdout.decode()
    assert f"process {status['daemon']['pid']}" in table
    assert anybody.layermount("umount", target).returncode == 0
    assert not anybody.is_mounted()
    assert os.listdir(anybody.base / "run") == []
    assert anybody.layermount("diff", *anybody.layers()).stdout == diff
    assert digest(anybody.project) == before


def test_events(anybody: Inhabitant) -> None:
    anybody.layermount("mount", "--host", "fuse", *anybody.layers(), anybody.target)
    with anybody.start("events", anybody.target, "--json") as listener:
        assert listener.stdout is not None
        assert listener.stderr is not None
        assert listener.stderr.readline() == f"layermount: listening to {anybody.target}\n".encode()
        anybody.sh(f"cd {anybody.target} && mkdir d && mv d e && rmdir e")
        seen = [json.loads(listener.stdout.readline()) for _ in range(3)]
        assert [(e["kind"], e["path"]) for e in seen] == [
            *(("created", "d"), ("renamed", "e"), ("removed", "e")),
        ]
        anybody.layermount("umount", anybody.target)
        assert listener.communicate(timeout=DEADLINE_S) == (b"", b"")
        assert listener.returncode == 0


def test_events_are_told_to_people(anybody: Inhabitant) -> None:
    anybody.layermount("mount", "--host", "fuse", *anybody.layers(), anybody.target)
    with anybody.start("events", anybody.target) as listener:
        assert listener.stdout is not None
        assert listener.stderr is not None
        listener.stderr.readline()
        anybody.sh(f"mkdir {anybody.target}/d && mv {anybody.target}/d {anybody.target}/e")
        assert listener.stdout.readline() == b"created d\n"
        assert listener.stdout.readline() == b"renamed d -> e\n"
        listener.send_signal(signal.SIGINT)
        listener.communicate(timeout=DEADLINE_S)
        assert listener.returncode == 130


@pytest.mark.needs("fuse")
def test_an_ordinary_user_gets_fuse_and_is_told_why(user: Inhabitant) -> None:
    done = user.layermount("mount", *user.layers(), user.target)
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("layermount: mounted through FUSE: an ordinary user cannot")
    assert user.sh(f"cat {user.target}/a") == (0, "one\n", "")
    assert user.layermount("umount", user.target).returncode == 0
    done = user.layermount("mount", "--host", "kernel", *user.layers(), user.target)
    assert_error(done, 41, "the kernel cannot show an overlay here")


@pytest.mark.needs("root", "overlay", "fuse")
def test_root_gets_the_kernel_unless_it_cannot(root: Inhabitant) -> None:
    many = [root.base / f"lower{number}" for number in range(501)]
    for path in many:
        path.mkdir()
    lowers = [word for path in many for word in ("--lower", path)]
    done = root.layermount("mount", *root.layers(), root.target, "--json")
    assert (json.loads(done.stdout)["host"], done.stderr) == ("kernel", b"")
    assert_error(root.layermount("status", root.target), 40, "has no daemon")
    root.layermount("umount", root.target)
    done = root.layermount("mount", *lowers, root.target, "--json")
    assert json.loads(done.stdout)["host"] == "fuse"
    told = b"mounted through FUSE: the kernel's overlayfs takes 500 lowers, these are 501"
    assert done.stderr == b"layermount: " + told + b"\n"
    root.layermount("umount", root.target)
    os.setxattr(root.upper, "user.layermount.redirects", b"y")
    done = root.layermount("mount", *root.layers(), root.target)
    assert b"the upper holds redirects that the kernel does not follow" in done.stderr
    assert root.daemon()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground(anybody: Inhabitant, number: signal.Signals) -> None:
    arguments = ("--host", "fuse", "--foreground", "--json", *anybody.layers(), anybody.target)
    with anybody.start("mount", *arguments) as process:
        wait_for(anybody.is_mounted, "the mount")
        assert anybody.sh(f"cat {anybody.target}/a") == (0, "one\n", "")
        os.kill(anybody.daemon(), number)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["target"] == str(anybody.target)
    assert not anybody.is_mounted()
    assert os.listdir(anybody.base / "run") == []


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize(("passthrough", "registered"), [("auto", 0), ("all", 1), ("off", 0)])
def test_which_files_the_kernel_reads_by_itself(
    root: Inhabitant, passthrough: str, registered: int
) -> None:
    (root.project / "big").write_bytes(bytes(200_000))
    options = ("--host", "fuse", "--passthrough", passthrough)
    done = root.layermount("mount", *options, *root.layers(), root.target)
    assert (done.returncode, done.stderr) == (0, b"")
    (root.target / "big").read_bytes()
    served = json.loads(root.layermount("status", "--json", root.target).stdout)["session"]
    assert served["passthrough"] == (passthrough != "off")
    assert served["registered_files"] == registered
    assert root.layermount("umount", root.target).returncode == 0


@pytest.mark.parametrize("end", ["list", "mount", "umount"])
def test_what_a_dead_daemon_left_is_taken_away(anybody: Inhabitant, end: str) -> None:
    mount = ("mount", "--host", "fuse", *anybody.layers(), anybody.target)
    anybody.layermount(*mount)
    pid = anybody.daemon()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: anybody.sh(f"ls {anybody.target}")[0], "the connection's end")
    status, _, told = anybody.sh(f"ls {anybody.target}")
    assert status != 0
    assert "not connected" in told
    if end == "mount":
        done = anybody.layermount(*mount)
        assert (done.returncode, b"had lost its daemon" in done.stderr) == (0, True)
        assert anybody.sh(f"cat {anybody.target}/a") == (0, "one\n", "")
        end = "umount"
    assert anybody.layermount(*((end,) if end == "list" else (end, anybody.target))).returncode == 0
    anybody.layermount("list")
    assert not anybody.is_mounted()
    assert os.listdir(anybody.base / "run") == []


def test_a_busy_mount_stays_and_its_user_is_named(anybody: Inhabitant) -> None:
    anybody.layermount("mount", "--host", "fuse", *anybody.layers(), anybody.target)
    with subprocess.Popen(
        [*anybody._entering(), *_as(anybody), "sh", "-c", f"cd {anybody.target} && exec sleep 60"]
    ) as user:
        wait_for(lambda: Path(f"/proc/{user.pid}/comm").read_text() == "sleep\n", "its start")
        done = anybody.layermount("umount", anybody.target)
        assert_error(done, 40, "cannot unmount", str(anybody.target))
        assert f"sleep ({user.pid})".encode() in done.stderr
        assert anybody.layermount("umount", "--lazy", anybody.target).returncode == 0
        assert not anybody.is_mounted()
        user.kill()
    wait_for(lambda: os.listdir(anybody.base / "run") == [], "the daemon's end")


def _as(somebody: Inhabitant) -> list[str]:
    if somebody.uid == os.geteuid():
        return []
    uid = str(somebody.uid)
    return ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"]


@pytest.mark.needs("root", "overlay", "fuse")
def test_a_kept_view_is_mounted(root: Inhabitant) -> None:
    assert Person.sh(root, "echo x > a; rm b", "--name", "x", "-q")[0] == 0
    assert root.layermount("mount", "--host", "fuse", "--view", "x", root.target).returncode == 0
    assert root.sh(f"cat {root.target}/a; ls {root.target}") == (0, "x\na\nsub\ntext\n", "")
    assert_error(root.layermount("discard", "x"), 14, "in use")
    assert root.layermount("umount", root.target).returncode == 0
    assert root.layermount("discard", "x").returncode == 0


@pytest.mark.needs("root", "overlay", "fuse")
def test_who_may_look_in(root: Inhabitant) -> None:
    for flags, status in (((), 2), (("--allow-other",), 0)):
        root.layermount("mount", "--host", "fuse", *flags, *root.layers(), root.target)
        look = ("setpriv", "--reuid", "12345", "--clear-groups", "ls", root.target)
        root.base.chmod(0o755)
        assert subprocess.run(look, capture_output=True, check=False).returncode == status
        root.layermount("umount", root.target)


@pytest.mark.needs("fuse")
def test_for_other_users_the_administrator_must_agree(user: Inhabitant) -> None:
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("/etc/fuse.conf has user_allow_other")
    done = user.layermount("mount", "--allow-other", *user.layers(), user.target)
    assert_error(done, 40, "cannot mount at", "user_allow_other", hint=False)
    assert os.listdir(user.base / "run") == []


# What is typed, the exit code, and what is said.
REFUSED = {
    "a FUSE option for the kernel": (
        ("--host", "kernel", "--foreground", "."),
        *(2, "--foreground is for the FUSE host"),
    ),
    "no target": (("nowhere",), 2, "'nowhere' does not exist"),
    "a file": (("a",), 2, "'a' is a file"),
}


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize(("arguments", "status", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(root: Inhabitant, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = root.layermount("mount", "--lower", root.upper, *arguments)
    assert_error(done, status, words)


@pytest.mark.parametrize("command", ["status", "events"])
def test_nothing_is_mounted_there(anybody: Inhabitant, command: str) -> None:
    done = anybody.layermount(command, anybody.target)
    assert_error(done, 46, "no overlay is mounted", str(anybody.target))
