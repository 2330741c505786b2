"""The main job on real files: run commands over Python's own standard library, look, keep, drop.

Nothing outside this folder is changed; the last step proves it. Run it with `make demo`.
"""

from __future__ import annotations

import ensurepip
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from layermount import LayerMount, LayerMountConfig
from layermount.testing.trees import digest

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
COMMAND = Path(sys.executable).with_name("layermount")
SHOWN = 12


def main() -> None:
    """Run the whole demonstration."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.environ["LAYERMOUNT_STATE_DIR"] = str(WORK / "views")
    library = find_library()
    os.chdir(library)
    before = digest(library)
    count = sum(len(files) for _, _, files in os.walk(library))
    say(f"The base: {library}, {count} files. Nothing below may change it.")
    try:
        change(library)
        look()
        keep_and_go_on()
        in_process(library)
        drop()
        unchanged = digest(library) == before
    finally:
        clean_up()
    say(f"The base is {'byte for byte what it was' if unchanged else 'CHANGED'}.")
    sys.exit(0 if unchanged else 1)


def clean_up() -> None:
    """Leave nothing behind, also when a step failed."""
    if (WORK / "views" / "demo").is_dir():
        subprocess.run([COMMAND, "discard", "demo"], check=True)
    shutil.rmtree(WORK)


def find_library() -> Path:
    """Python's standard library; a copy in this folder where its files are somebody else's.

    Without privilege the kernel copies up only what belongs to the user.
    """
    library = Path(sysconfig.get_path("stdlib")).resolve()
    if os.geteuid() in (0, library.stat().st_uid):
        return library
    say(f"{library} belongs to another user: a copy of it is the base")
    copy = WORK / "library"
    shutil.copytree(library, copy, symlinks=True)
    return copy


def change(library: Path) -> None:
    """Install, compile, delete, rename and edit, over a view of the library."""
    python = shlex.quote(sys.executable)
    script = f"""
        set -e
        {python} -m pip install --quiet --no-index --no-deps --no-warn-script-location \\
            --disable-pip-version-check --root-user-action=ignore --target added {find_wheel()}
        {python} -m compileall -q -f asyncio email http json unittest xml
        rm -r pydoc_data
        mv wsgiref gateway
        mv this.py zen.py
        printf '%s\\n' '# changed in the view' >> json/__init__.py
        {python} -c 'import json; print("inside:", json.__file__)'
    """
    say("A wheel is installed into it, packages are compiled, deleted, renamed and edited:")
    started = time.monotonic()
    layermount("run", "--name", "demo", "--", "sh", "-c", script, show="run --name demo -- sh …")
    print(f"    done in {time.monotonic() - started:.1f} s")
    fate = "there" if (library / "pydoc_data").is_dir() else "GONE"
    say(f"Outside, nothing happened: pydoc_data is {fate}.")


def find_wheel() -> Path:
    """A wheel that every Python has with it: pip's own."""
    places = [Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")]
    found = sorted(wheel for place in places for wheel in place.glob("pip-*.whl"))
    if not found:
        sys.exit("this Python has no pip wheel with it; install python3-venv")
    return found[-1]


def look() -> None:
    """What changed, why a path shows what it shows, and where it is."""
    say("What changed, deletions first:")
    layermount("diff", "demo", "--stat")
    say("The content of a change:")
    layermount("diff", "demo", "-p", "json/__init__.py")
    say("Why a deleted file is not there, and where a renamed one comes from:")
    layermount("explain", "demo", "pydoc_data/__init__.py")
    layermount("explain", "demo", "gateway/util.py")


def keep_and_go_on() -> None:
    """The view is kept under its name; another command goes on in it."""
    say("The changes are kept. The next command goes on where the last one stopped:")
    layermount("list")
    layermount("run", "--name", "demo", "--", "ls", "-d", "added", "gateway", "zen.py")


def in_process(library: Path) -> None:
    """The same view from Python, without any mount."""
    say("The same from Python, in this process and without a mount, over an upper of its own:")
    upper = WORK / "upper"
    upper.mkdir()
    with LayerMount.create(LayerMountConfig(upper, [library])) as mount:
        mount.on_event(lambda event: print(f"    event: {event.kind} {event.path}"))
        with mount.open("json/decoder.py", "a", encoding="utf-8") as file:
            file.write("# changed through the library\n")
        mount.unlink("json/scanner.py")
        print("   ", sorted(path.name for path in mount.path("json").glob("*.py")))
        print("   ", mount.resolve_path("json/decoder.py").full_path)


def drop() -> None:
    """The kept view is dropped."""
    say("Dropped:")
    layermount("discard", "demo")
    layermount("list")


def layermount(*arguments: str, show: str | None = None) -> None:
    """Run the command, and print the beginning of what it prints."""
    print(f"$ layermount {show or shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        errors="replace",
    )
    lines = done.stdout.splitlines()
    for line in lines[:SHOWN] if len(lines) > SHOWN + 1 else lines:
        print("   ", line)
    if len(lines) > SHOWN + 1:
        print(f"    … {len(lines) - SHOWN - 1} lines more")
        print("   ", lines[-1])
    if done.returncode:
        sys.exit(f"layermount ended with {done.returncode}")


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
