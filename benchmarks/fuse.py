"""What the FUSE host costs: `python benchmarks/fuse.py [--quick] [--json] [--only NAME ...]`.

Needs root, loop devices, `mkfs.ext4`, `gcc`, `git`, `fuse-overlayfs`, and 8 GiB of disk. README.md
beside this says how to read what it prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filesystems import loop_filesystem, on_term, run
from ledger import Clock, Ledger, Line, Sample, compiled, lines, table
from measure import Goal
from peers import FUSE_OVERLAYFS, KERNEL, OURS, PEERS, Layers, Peer, by_kernel, mounted
from small_files import NEEDLE, SmallFiles, archive, copied, repository, small_files
from trees import big_file

GIB = 1024**3
MIB = 1024**2
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    directories: int = 500
    names: int = 20_000
    one_directory: int = 10_000
    appended: int = 2_000
    synced: int = 200
    removed: int = 4
    archived: int = 4_000
    versioned: int = 3_000
    big: int = GIB
    small_writes: int = 65_536
    rounds: int = 5


QUICK = Scale(100, 5_000, 3_000, 500, 50, 1, 1_000, 1_000, 128 * MIB, 8_192, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One peer's layers, and where it is mounted.

    Attributes:
        base: The directory of all this.
        lowers: Nearest first.
        upper: For what only reads; what writes gets an empty one each time.
    """

    base: Path
    lowers: list[Path]
    upper: Path

    def layers(self) -> Layers:
        """The layers as they are."""
        return Layers(self.lowers, self.upper, self.base / "work", self.base / "merged")

    @contextmanager
    def fresh(self) -> Iterator[Layers]:
        """The lowers below an empty upper, which is gone afterwards with all that was written."""
        made = dataclasses.replace(self.layers(), upper=self.base / "fresh")
        yield made
        for path in (made.upper, made.work):
            shutil.rmtree(path, ignore_errors=True)
        run("sync", "--file-system", self.base)


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What the steps of one workload share."""

    scale: Scale
    ledger: Ledger
    lists: Path
    files: SmallFiles

    def chosen(self, count: int, suffix: str = "") -> Path:
        """A list of names that are there, in no order; with a suffix, of names that are not."""
        chooser = random.Random(1)  # noqa: S311  a fixed choice, no secret
        names = [f"{name}{suffix}" for name in self.files.files]
        return self.listed(f"chosen{suffix}", chooser.sample(names, min(count, len(names))))

    def listed(self, name: str, names: Sequence[str]) -> Path:
        """A list for the client."""
        path = self.lists / name
        path.write_text("".join(f"{each}\n" for each in names))
        return path

    @contextmanager
    def clock(self, peer: Peer, layers: Layers, *, syncing: bool = False) -> Iterator[Clock]:
        """A mount, and what times over it; whatever the mount left in `work` is gone at the end."""
        with mounted(peer, layers, syncing=syncing) as mount:
            yield Clock(self.ledger, peer.name, mount)
        shutil.rmtree(layers.work)


Session = Callable[[Bench, Peer, Place], None]


def _in_turn(
    bench: Bench, places: dict[str, Place], peers: Sequence[Peer], *sessions: Session
) -> None:
    """Every session of every peer, round by round, who is first changing from round to round."""
    for number in range(bench.scale.rounds + 1):
        for session in sessions:
            for turn in range(len(peers)):
                peer = peers[(number + turn) % len(peers)]
                session(bench, peer, places[peer.name])


def _places(
    base: Path, layers: Path, peers: Sequence[Peer], lowers: Sequence[str]
) -> dict[str, Place]:
    """A copy of `layers` for each peer."""
    found = {}
    for number, peer in enumerate(peers):
        own = base / f"peer{number}"
        own.mkdir()
        copy = copied(layers, own / "layers")
        found[peer.name] = Place(own, [copy / name for name in lowers], copy / "upper")
    return found


# Looking: the layers of small files, upper and all.


def _walking(bench: Bench, peer: Peer, place: Place) -> None:
    entries = bench.files.entries
    with bench.clock(peer, place.layers()) as clock:
        before = clock.mount.resident()
        clock.command("walk, cold", entries, "find", ".", "-ls")
        clock.command("walk, warm", entries, "find", ".", "-ls")
        after = clock.mount.resident()
    if before is not None and after is not None:
        bench.ledger.memory.setdefault(peer.name, []).append((after - before) / entries)


def _looking(bench: Bench, peer: Peer, place: Place) -> None:
    there = bench.chosen(bench.scale.names)
    missing = bench.chosen(bench.scale.names, ".none")
    with bench.clock(peer, place.layers()) as clock:
        clock.names("look up, cold", "stat", there)
        clock.names("look up, warm", "stat", there)
        clock.names("missing, cold", "missing", missing)
        clock.names("missing, warm", "missing", missing)
        clock.names("open + read + close, cold", "read", there)
        clock.names("open + read + close, warm", "read", there)
        clock.names("open + close", "open", there)


def _searching(bench: Bench, peer: Peer, place: Place) -> None:
    files = len(bench.files.files)
    with bench.clock(peer, place.layers()) as clock:
        for step in ("grep -r, cold", "grep -r, warm"):
            clock.command(step, files, "grep", "-r", NEEDLE, ".")


def looking(bench: Bench, base: Path, peers: Sequence[Peer]) -> None:
    """What only reads, over small files."""
    places = _places(base, bench.files.base, peers, ("near", "far"))
    _in_turn(bench, places, peers, _walking, _looking, _searching)


# Changing: the same lowers below an empty upper.


def _creating(bench: Bench, peer: Peer, place: Place) -> None:
    directories = [f"{name.rpartition('/')[0]}" for name in bench.files.lower_files[::100]][:100]
    count = bench.scale.names
    names = [f"{directories[n % len(directories)]}/made{n:05}" for n in range(count)]
    made, renamed = bench.listed("made", names), bench.listed("new", [f"{n}.new" for n in names])
    with place.fresh() as layers, bench.clock(peer, layers) as clock:
        clock.names("create + write 4k + close", "create", made)
        clock.names("rename", "rename", made)
        clock.names("unlink", "unlink", renamed)


def _filling(bench: Bench, peer: Peer, place: Place) -> None:
    count = bench.scale.one_directory
    names = bench.listed("filled", [f"filled/file{number:05}" for number in range(count)])
    with place.fresh() as layers, bench.clock(peer, layers) as clock:
        (clock.mount.path / "filled").mkdir()
        first, last = clock.names("create in one directory", "touch", names)
    for step, seconds in ((_FIRST, first), (_LAST, last)):
        bench.ledger.add(step, 1_000, peer.name, Sample(seconds))


_FIRST, _LAST = "of these the first 1000", "of these the last 1000"


def _copying_up(bench: Bench, peer: Peer, place: Place) -> None:
    files, tops = bench.files, bench.files.tops
    below = [name for name in files.lower_files if name.startswith(f"{tops[1]}/")]
    appended = bench.listed("appended", below[: bench.scale.appended])
    removed = tops[2 : 2 + bench.scale.removed]
    with place.fresh() as layers, bench.clock(peer, layers) as clock:
        clock.names("copy-up by append", "append", appended)
        clock.command("chmod -R", _within(files, tops[:1]), "chmod", "-R", "go-rwx", tops[0])
        clock.command("rm -r of a lower tree", _within(files, removed), "rm", "-r", *removed)


def _within(files: SmallFiles, tops: Sequence[str]) -> int:
    return sum(name.partition("/")[0] in tops for name in files.lower_files)


def _syncing(bench: Bench, peer: Peer, place: Place) -> None:
    if peer.name == FUSE_OVERLAYFS:
        return  # it never syncs what it copies up
    names = bench.listed("synced", bench.files.lower_files[: bench.scale.synced])
    with place.fresh() as layers, bench.clock(peer, layers, syncing=True) as clock:
        clock.names("copy-up by append, each synced", "append", names)


def _unpacking(bench: Bench, peer: Peer, place: Place) -> None:
    tar = bench.lists / "archive.tar"
    with place.fresh() as layers, bench.clock(peer, layers) as clock:
        (clock.mount.path / "unpacked").mkdir()
        clock.command("tar x", bench.scale.archived, "tar", "-x", "-C", "unpacked", "-f", tar)


def changing(bench: Bench, base: Path, peers: Sequence[Peer]) -> None:
    """What writes, over small files."""
    shown = bench.files.base
    places = _places(base, shown, peers, ("near", "far"))
    archive(bench.lists / "archive.tar", bench.scale.archived)
    sessions = (_creating, _filling, _copying_up, _syncing, _unpacking)
    _in_turn(bench, places, peers, *sessions)


# A repository.


def _asking_git(bench: Bench, peer: Peer, place: Place) -> None:
    words = ("git", "--no-optional-locks", "status", "--porcelain")
    refresh = ("git", "update-index", "-q", "--refresh")
    count = bench.scale.versioned
    with place.fresh() as layers:
        with bench.clock(peer, layers) as clock:
            # What the index keeps of each file is that of another mount.
            clock.command("git update-index --refresh, cold", count, *refresh)
            clock.command("git status, warm", count, *words)
        with bench.clock(peer, layers) as clock:
            clock.command("git status, cold", count, *words)


def versioning(bench: Bench, base: Path, peers: Sequence[Peer]) -> None:
    """What git makes of a repository in a lower."""
    made = base / "made"
    (made / "upper").mkdir(parents=True)
    repository(made / "repository", bench.scale.versioned)
    places = _places(base, made, peers, ("repository",))
    _in_turn(bench, places, peers, _asking_git)


# Bytes of one big file.


def _reading_by_requests(bench: Bench, peer: Peer, place: Place) -> None:
    """A lower's file as it is read unless told otherwise: its readers see what is written later."""
    count = bench.scale.big // MIB
    run("cp", place.lowers[0] / "big", "/dev/null")
    with bench.clock(peer, place.layers()) as clock:
        for step in ("read 1 MiB by requests, cold", "read 1 MiB by requests, warm"):
            clock.bytes(step, "readall", "big", MIB, count)


def _reading(bench: Bench, peer: Peer, place: Place) -> None:
    scale, peer = bench.scale, by_kernel(peer)
    run("cp", place.lowers[0] / "big", "/dev/null")
    with bench.clock(peer, place.layers()) as clock:
        for step in ("read 1 MiB, cold", "read 1 MiB, warm"):
            clock.bytes(step, "readall", "big", MIB, scale.big // MIB)
        clock.bytes("read 4k in order, warm", "readall", "big", _BLOCK, scale.big // _BLOCK)
    with bench.clock(peer, place.layers()) as clock:
        for step in ("read 4k anywhere, cold", "read 4k anywhere, again"):
            clock.bytes(step, "pick", "big", _BLOCK, scale.names)
    with bench.clock(peer, place.layers()) as clock:
        for step in ("touch mapped pages, cold", "touch mapped pages, warm"):
            clock.bytes(step, "mapall", "big", _BLOCK, scale.big // _BLOCK)


def _writing(bench: Bench, peer: Peer, place: Place) -> None:
    scale = bench.scale
    with place.fresh() as layers, bench.clock(peer, layers) as clock:
        clock.bytes("write 1 MiB", "writeall", "new", MIB, scale.big // MIB)
        # Before it is written to the disk.
        (clock.mount.path / "new").unlink()
        clock.bytes("write 4k", "writeall", "other", _BLOCK, scale.small_writes)
        (clock.mount.path / "other").unlink()


def copying(bench: Bench, base: Path, peers: Sequence[Peer]) -> None:
    """Bytes of one big file in a lower, and of one in the upper."""
    made = base / "made"
    for name in ("upper", "lower"):
        (made / name).mkdir(parents=True)
    big_file(made / "lower/big", bench.scale.big)
    places = _places(base, made, peers, ("lower",))
    _in_turn(bench, places, peers, _reading_by_requests, _reading, _writing)


# Mounting.


def _mounting(bench: Bench, peer: Peer, place: Place) -> None:
    with bench.clock(peer, place.layers()) as clock:
        bench.ledger.add("mount", 1, peer.name, Sample(clock.mount.seconds, clock.mount.cpu()))


def mounting(bench: Bench, base: Path, peers: Sequence[Peer]) -> None:
    """From the start of the command to the first answer."""
    made = base / "made"
    for name in ("upper", "lower"):
        (made / name).mkdir(parents=True)
    places = _places(base, made, peers, ("lower",))
    _in_turn(bench, places, peers, *[_mounting] * 4)


WORKLOADS: dict[str, tuple[Callable[[Bench, Path, Sequence[Peer]], None], int]] = {
    "mount": (mounting, GIB),
    "look": (looking, 4 * GIB),
    "change": (changing, 4 * GIB),
    "git": (versioning, GIB),
    "bytes": (copying, 8 * GIB),
}

_LIKE_FUSE_OVERLAYFS = (FUSE_OVERLAYFS, Goal(ratio=1.0))
_LIKE_THE_KERNEL = (KERNEL, Goal(ratio=1.3))
#: By step, who it is compared to and what is wished for.
GOALS = {
    "mount": (FUSE_OVERLAYFS, Goal(seconds=0.1)),
    **dict.fromkeys(
        (
            "walk, cold",
            "walk, warm",
            "look up, cold",
            "look up, warm",
            "missing, cold",
            "missing, warm",
            "open + read + close, cold",
            "open + read + close, warm",
            "open + close",
            "grep -r, cold",
            "grep -r, warm",
            "create + write 4k + close",
            "rename",
            "unlink",
            "create in one directory",
            "copy-up by append",
            "chmod -R",
            "rm -r of a lower tree",
            "tar x",
            "git status, warm",
            "git status, cold",
        ),
        _LIKE_FUSE_OVERLAYFS,
    ),
    **dict.fromkeys(
        (
            "read 1 MiB by requests, cold",
            "read 1 MiB by requests, warm",
            "read 1 MiB, cold",
            "read 1 MiB, warm",
            "read 4k in order, warm",
            "read 4k anywhere, cold",
            "read 4k anywhere, again",
            "touch mapped pages, cold",
            "touch mapped pages, warm",
            "write 1 MiB",
            "write 4k",
        ),
        _LIKE_THE_KERNEL,
    ),
}
#: The last of many files in a directory may cost this much of the first.
_FLAT = 1.3
_INODE = 1024


def _memory_note(ledger: Ledger) -> Iterator[str]:
    for peer, found in ledger.memory.items():
        each = statistics.median(found)
        verdict = f" (goal {_INODE}: {'holds' if each <= _INODE else '**MISSED**'})"
        yield f"memory of {peer}: {each:.0f} bytes an inode{verdict if peer == OURS else ''}"


def _flat_note(ledger: Ledger) -> Iterator[str]:
    ends = zip(*(ledger.samples.get(step, {}).items() for step in (_FIRST, _LAST)), strict=True)
    for (peer, first), (_, last) in ends:
        each = [mine.seconds / other.seconds for mine, other in zip(last, first, strict=True)]
        ratio = statistics.median(each)
        verdict = f" (goal {_FLAT}: {'holds' if ratio <= _FLAT else '**MISSED**'})"
        yield (
            f"create in one directory, last against first thousand, {peer}: "
            f"{ratio:.2f}×{verdict if peer == OURS else ''}"
        )


def measured(names: Sequence[str], scale: Scale, peers: Sequence[Peer]) -> Ledger:
    """The samples of these workloads."""
    with tempfile.TemporaryDirectory(prefix="layermount-benchmark-") as own:
        lists = Path(own)
        lists.chmod(0o755)
        ledger = Ledger(compiled(Path(__file__).with_name("client.c"), lists / "client"))
        for name in names:
            workload, size = WORKLOADS[name]
            with loop_filesystem("ext4", size) as base:
                directories = scale.directories if name in {"look", "change"} else 1
                files = small_files(base / "small", directories)
                workload(Bench(scale, ledger, lists, files), base, peers)
    ledger.drop_first()
    return ledger


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the FUSE host against its peers.")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: two minutes")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--rounds", type=int, help="how often, after one that does not count")
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], default=None)
    return parser.parse_args()


def main() -> None:
    """Run what was asked for and print it."""
    on_term()
    arguments = _arguments()
    scale = QUICK if arguments.quick else Scale()
    if arguments.rounds is not None:
        scale = dataclasses.replace(scale, rounds=arguments.rounds)
    peers = [peer for peer in PEERS if not arguments.peers or peer.name in arguments.peers]
    ledger = measured([name for name in WORKLOADS if name in arguments.only], scale, peers)
    found: list[Line] = lines(ledger, GOALS)
    notes = [*_flat_note(ledger), *_memory_note(ledger)]
    if arguments.json:
        print(json.dumps({"lines": [dataclasses.asdict(line) for line in found], "notes": notes}))
        return
    print(table(found))
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()
