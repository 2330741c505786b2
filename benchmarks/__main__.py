"""Every benchmark, one after another: `python -m benchmarks [--quick] [--json]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("engine.py", "fuse.py", "start.py")

if __name__ == "__main__":
    for script in SCRIPTS:
        command = [sys.executable, str(Path(__file__).with_name(script)), *sys.argv[1:]]
        subprocess.run(command, check=True)
