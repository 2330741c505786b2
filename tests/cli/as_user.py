"""The command as an ordinary user, also with an interpreter that only root can reach.

Everything is imported first, then the privileges go, and what is left is `layermount ARGUMENTS`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import layermount
from tests.forked import become

# What the standard library and click import only when they need it.
_LATE = ("click._textwrap", "difflib", "encodings.ascii", "json", "locale", "shlex", "traceback")


def _main() -> None:
    names = [module.name for module in pkgutil.walk_packages(layermount.__path__, "layermount.")]
    for name in (*names, *_LATE):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    become(int(sys.argv[1]))
    sys.argv = ["layermount", *sys.argv[2:]]
    importlib.import_module("layermount.cli.main").main()


_main()
