"""`python -m layermount` is the command `layermount`."""

from __future__ import annotations

from layermount.cli.main import main

if __name__ == "__main__":
    main()
