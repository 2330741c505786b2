"""Asking the process that serves a mount: the client's side of `control.py`.

It imports nothing of the engine: a question is to be fast.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO, Any

from layermount.errors import HostError
from layermount.hosts import told
from layermount.hosts.run_directory import socket_path
from layermount.hosts.rundir import Record

_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)
_PATIENCE_S = 30

Answer = dict[str, Any]


def status(record: Record) -> Answer:
    """What the daemon of a mount has done and has open.

    Its parts: "mount" (the record), "config", "overlay" (the engine's counters), "session" (what
    the kernel asked for) and "daemon" (the process).

    Raises:
        HostError: It does not answer, or there is none to ask.
    """
    with _asked(record, {"ask": "status"}) as (answer, _):
        found: Answer = answer
        return found


def explain(record: Record, path: str) -> Answer:
    """The fields of an `Explanation` of a merged path, as the live overlay has it.

    Raises:
        HostError: The daemon does not answer, or there is none to ask.
        OSError: As `LayerMount.explain`.
    """
    with _asked(record, {"ask": "explain", "path": path}) as (answer, _):
        found: Answer = answer
        return found


def events(record: Record) -> Generator[Answer, None, None]:
    """Each later event of a live mount as its fields, until it is unmounted.

    What was lost because it was read too slowly comes as {"kind": "dropped", "count": ...}. The
    subscription stands when the first item, {"kind": "subscribed"}, has come; closing the generator
    ends it.

    Raises:
        HostError: The daemon does not answer, or there is none to ask.
    """
    with _asked(record, {"ask": "events"}) as (_, stream):
        yield {"kind": "subscribed"}
        for line in stream:
            yield json.loads(line)


@contextmanager
def _asked(record: Record, question: Answer) -> Iterator[tuple[Any, IO[bytes]]]:
    """The answer to a question, and what comes after it."""
    if record.host != "fuse":
        raise HostError(
            f"{record.target!r} is mounted by the {record.host}, which has no daemon to ask",
            hint="mount it with --host fuse",
        )
    with _connected(record) as connection, connection.makefile("rb") as stream:
        connection.sendall(json.dumps(question).encode("ascii") + b"\n")
        line = stream.readline()
        if not line:
            raise HostError(f"the daemon of {record.target!r} ended without an answer")
        reply = json.loads(line)
        if "error" in reply:
            raise told.from_data(reply["error"])
        # What comes later may take its time.
        connection.settimeout(None)
        yield reply["answer"], stream


@contextmanager
def _connected(record: Record) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            with socket_path(record.token) as path:
                connection.connect(path)
        except OSError as error:
            if error.errno not in _NOBODY:
                raise
            raise HostError(
                f"the daemon of {record.target!r} does not answer: {error.strerror}",
                hint="`layermount umount` takes a mount away that nobody serves",
            ) from error
        yield connection
