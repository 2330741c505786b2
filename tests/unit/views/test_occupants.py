from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from layermount.hosts import kernel_private
from layermount.views.occupants import occupants
from tests.forked import fork


@pytest.mark.needs("userns")
def test_a_process_in_a_private_overlay_is_found_by_its_upper(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = fork()
    if child == 0:
        try:
            lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
            kernel_private.enter(lower, lowers=[lower], upper=upper, work=work, user_marks=True)
            os.write(writer, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x"
        assert occupants()[str(tmp_path / "upper")] == [child]
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert str(tmp_path / "upper") not in occupants()
