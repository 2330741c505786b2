"""The run directory: one record for each mount, so that others find it and nobody's mount stays.

A record is written before its mount is attached and removed after it is unmounted, so at every
moment there are at least as many records as mounts. A record whose mount is not there, or whose
mount has lost its owner, is swept. Mounts of private namespaces have no record: they end with their
last process.

A record is a JSON object in `TOKEN.json`, never synced: no mount survives the machine. It is
replaced only where somebody else makes the mount, whose number is known afterwards. Beside it a
mount with a daemon has `TOKEN.sock`, its control socket, and `TOKEN.log`, what went wrong in it; a
log that says something outlives its mount.
"""

from __future__ import annotations

import enum
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from layermount.errors import HostError
from layermount.hosts import detach
from layermount.hosts.run_directory import directory
from layermount.linux import mountinfo, processes
from layermount.linux.processes import ProcessIdentity

_VERSION = 1
_SUFFIX = ".json"
_SOCKET, _LOG = ".sock", ".log"
_UNREADABLE = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM)
_REFUSED = (errno.EBUSY, errno.EPERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One mount of ours.

    Attributes:
        token: Names the record; no two mounts have the same.
        host: "kernel", "fuse".
        target: The mount point, an absolute real path.
        mount_id: The kernel's number of the mount; 0 while somebody else is about to make it.
        fstype: Its type in mountinfo.
        source: Its source in mountinfo; holds the token, so a number given anew deceives nobody.
        lowers: The lowers' paths, index 0 wins.
        upper: Path, or None for a read-only mount.
        work: Path, or None for a read-only mount.
        volatile: Whether the upper was not synced, and says so until it is unmounted cleanly.
        owner: The process whose end makes the mount stale; None for one that stays.
        writer: The process that made it.
        mount_namespace: Inode of the mount namespace it is in.
        pid_namespace: Inode of the pid namespace the pids are of.
        boot: The kernel's boot id.
        created_ns: Wall clock, nanoseconds since 1970-01-01 UTC.
    """

    token: str
    host: str
    target: str
    mount_id: int
    fstype: str
    source: str
    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    volatile: bool
    owner: ProcessIdentity | None
    writer: ProcessIdentity
    mount_namespace: int
    pid_namespace: int
    boot: str
    created_ns: int


class State(enum.StrEnum):
    """What has become of a recorded mount."""

    LIVE = "live"
    """It is there, and its owner too."""
    STALE = "stale"
    """It is there, and its owner is dead."""
    PENDING = "pending"
    """It is not there, and its maker lives: not attached yet, or just unmounted."""
    ELSEWHERE = "elsewhere"
    """It is in another mount namespace, which has processes."""
    GONE = "gone"
    """It is not there."""


class Outcome(enum.StrEnum):
    """What a sweep did about one record."""

    UNMOUNTED = "unmounted"
    FORGOTTEN = "forgotten"
    REFUSED = "refused"
    """The mount is in use, or not ours to unmount; mount and record stay."""


class Swept(NamedTuple):
    """One record a sweep acted on; `error` says why where it was refused."""

    record: Record
    outcome: Outcome
    error: OSError | None = None


def new_token() -> str:
    """A name for a mount that no other has."""
    return os.urandom(8).hex()


def place() -> tuple[int, int, str]:
    """Where this process is: mount namespace, pid namespace, boot id."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return os.stat("/proc/self/ns/mnt").st_ino, os.stat("/proc/self/ns/pid").st_ino, boot


def write(record: Record) -> None:
    """Keep a record; it appears whole or not at all."""
    home = directory()
    raw = json.dumps({"version": _VERSION, **asdict(record)}).encode("ascii")
    writer = record.writer
    temporary = home / f".{writer.pid}.{writer.start_time}.{record.token}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, raw)
    finally:
        os.close(fd)
    temporary.replace(home / f"{record.token}{_SUFFIX}")


def get(token: str) -> Record:
    """The record of that name.

    Raises:
        HostError: It cannot be read.
        FileNotFoundError: There is none.
    """
    path = directory() / f"{token}{_SUFFIX}"
    return _parsed(path, path.read_bytes())


def forget(record: Record) -> None:
    """Remove a record; one that is gone already is fine."""
    (directory() / f"{record.token}{_SUFFIX}").unlink(missing_ok=True)


def records() -> list[Record]:
    """The mounts of ours that are there, in this mount namespace, oldest first.

    A stale one is among them until it is swept.

    Raises:
        HostError: A record cannot be read.
    """
    shown = (State.LIVE, State.STALE)
    return [record for record, state in _states() if state in shown]


def find(target: Path) -> Record | None:
    """The newest mount of ours at `target`, or None."""
    path = os.path.realpath(target)
    return next((r for r in reversed(records()) if r.target == path), None)


def sweep(unmount: Callable[[Record], None] | None = None) -> list[Swept]:
    """Unmount what has lost its owner and forget what is not there any more.

    Only the very mount that a record names is unmounted: number, type, source and mount point agree
    with mountinfo. One that is in use stays.

    Args:
        unmount: How to unmount; None means umount2(2) where the mount is on top of its mount point.

    Raises:
        HostError: A record cannot be read.
    """
    swept = []
    for record, state in _states():
        if state is State.GONE:
            forget(record)
            swept.append(Swept(record, Outcome.FORGOTTEN))
        elif state is State.STALE:
            swept.append(_unmount(record, unmount or _detach))
    _remove_leftovers()
    return swept


def _unmount(record: Record, unmount: Callable[[Record], None]) -> Swept:
    try:
        unmount(record)
    except OSError as error:
        if error.errno in _REFUSED:
            return Swept(record, Outcome.REFUSED, error)
        raise
    forget(record)
    return Swept(record, Outcome.UNMOUNTED)


def _detach(record: Record) -> None:
    detach.unmount(record.target, record.mount_id, record.source, lazy=False)


def _remove_leftovers() -> None:
    """Remove records whose writer died while writing, and what stood beside one that is gone."""
    home = directory()
    for name in os.listdir(home):
        fields = name.split(".")
        if fields[0] == "" and len(fields) == 4:
            writer = ProcessIdentity(int(fields[1]), int(fields[2]))
            is_left = not processes.is_alive(writer)
        elif name.endswith((_SOCKET, _LOG)):
            # A daemon makes its record first and removes it last.
            is_left = not (home / f"{fields[0]}{_SUFFIX}").exists() and not _is_telling(home / name)
        else:
            is_left = False
        if is_left:
            (home / name).unlink(missing_ok=True)


def _is_telling(path: Path) -> bool:
    """Whether it is a log with something in it."""
    try:
        return path.suffix == _LOG and path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _states() -> Iterator[tuple[Record, State]]:
    """Every record with its state, oldest first."""
    # Records are read before mounts: a mount attached in between is not taken for gone.
    known = sorted(_read_all(), key=lambda record: record.created_ns)
    mounts = mountinfo.mounts() if known else []
    here = place() if known else (0, 0, "")
    for record in known:
        yield record, _state(record, mounts, here)


def _state(record: Record, mounts: list[mountinfo.Mount], here: tuple[int, int, str]) -> State:
    mount_namespace, pid_namespace, boot = here
    if record.boot != boot:
        return State.GONE
    if record.mount_namespace != mount_namespace:
        return State.ELSEWHERE if _is_inhabited(record.mount_namespace) else State.GONE
    there = _is_among(record, mounts)
    if record.pid_namespace != pid_namespace:
        # Its pids mean nothing here, so nothing is known to be dead.
        return State.LIVE if there else State.PENDING
    if not there:
        if processes.is_alive(record.writer):
            return State.PENDING
        # Its writer may have attached it after mountinfo was read, and ended since.
        there = _is_among(record, mountinfo.mounts())
    if not there:
        return State.GONE
    owned = record.owner is None or processes.is_alive(record.owner)
    return State.LIVE if owned else State.STALE


def _is_among(record: Record, mounts: list[mountinfo.Mount]) -> bool:
    wanted = (record.target, record.fstype, record.source)
    found = (m for m in mounts if (m.target, m.fstype, m.source) == wanted)
    return any(record.mount_id in (0, mount.mount_id) for mount in found)


def _is_inhabited(mount_namespace: int) -> bool:
    """Whether a process that this one may look at lives in the mount namespace."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}/ns/mnt").st_ino == mount_namespace:
                return True
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
    return False


def _read_all() -> Iterator[Record]:
    home = directory()
    for name in os.listdir(home):
        if not name.endswith(_SUFFIX) or name.startswith("."):
            continue
        try:
            raw = (home / name).read_bytes()
        except FileNotFoundError:
            continue  # unmounted in between
        yield _parsed(home / name, raw)


def _parsed(path: Path, raw: bytes) -> Record:
    try:
        fields = json.loads(raw)
        version = fields.pop("version")
        fields["lowers"] = tuple(fields["lowers"])
        for name in ("owner", "writer"):
            fields[name] = fields[name] and ProcessIdentity(**fields[name])
        record = Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"the mount record {str(path)!r} cannot be read: {error}"
        raise HostError(message, hint="unmount what it was for, and remove it") from error
    if version != _VERSION:
        raise HostError(
            f"the mount record {str(path)!r} is of version {version}",
            hint="unmount it with the layermount that mounted it",
        )
    return record
