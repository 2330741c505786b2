"""What `layermount run -- true` costs: `python benchmarks/start.py [--quick] [--user NAME]`.

As root it runs everything as an ordinary user, where that user can run this Python at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from filesystems import loop_filesystem, on_term
from measure import Action, Goal, Row, compare, in_turn, steady, table

#: The least there is to do: a throw-away overlay in a user namespace, and the command in it.
_SCRIPT = """
set -e
place=$(mktemp -d -p "$1"); mkdir "$place/upper" "$place/work"
unshare --user --map-root-user --mount sh -c '
    mount -t overlay -o "userxattr,lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$1"
    cd "$1"; exec true' sh "$PWD" "$place"
chmod -R u+rwx "$place"; rm -r "$place"
"""


def _become(user: str) -> list[str]:
    """The words that run a command as `user`; none when that user cannot run this Python."""
    if os.geteuid() != 0:
        return []
    entry = pwd.getpwnam(user)
    words = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    probe = [*words, sys.executable, "-c", "import layermount.cli.main"]
    able = subprocess.run(probe, cwd="/", stderr=subprocess.DEVNULL, check=False).returncode == 0
    return words if able else []


def _command(base: Path, words: Sequence[str]) -> Action:
    """Run a command in the directory `view`, with its state below `base`."""
    places = {f"XDG_{kind}_HOME": str(base / "state") for kind in ("CACHE", "DATA", "STATE")}
    environment = {
        **os.environ,
        **places,
        "HOME": str(base / "state"),
        "XDG_RUNTIME_DIR": str(base / "state"),
    }
    return lambda: subprocess.run(words, cwd=base / "view", env=environment, check=True)


def starting(user: str, rounds: int) -> Iterator[Row]:
    """A view made, `true` run in it, and the view dropped."""
    become = _become(user)
    with loop_filesystem("ext4", 1024**3) as base:
        for path in (base, base / "view", base / "state"):
            path.mkdir(mode=0o700, exist_ok=True)
            if become:
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        if become:
            # mkdtemp made the way to the mount its own user's.
            base.parent.parent.chmod(0o711)
        (base / "view/file").write_bytes(b"")
        commands = {
            "layermount run": [sys.executable, "-m", "layermount", "run", "--", "true"],
            "unshare + mount": ["sh", "-c", _SCRIPT, "sh", str(base / "state")],
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -I -S -c pass": [sys.executable, "-I", "-S", "-c", "pass"],
        }
        targets = {
            name: steady(_command(base, [*become, *words])) for name, words in commands.items()
        }
        samples = in_turn(targets, rounds)
    who = user if become else pwd.getpwuid(os.geteuid()).pw_name
    for against in list(commands)[1:]:
        yield compare(f"run `true`, as {who}", samples, "layermount run", against, Goal())


def main() -> None:
    """Run it and print it."""
    on_term()
    parser = argparse.ArgumentParser(description="Measure the start of a throw-away view.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    parser.add_argument("--user", default="nobody", help="who runs it when root measures")
    arguments = parser.parse_args()
    rows = list(starting(arguments.user, 5 if arguments.quick else 20))
    if arguments.json:
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows]}))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
