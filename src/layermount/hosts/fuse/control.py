"""The control socket of a live mount: what other processes may ask the one that serves it.

A Unix stream socket `TOKEN.sock` in the run directory, for its owner and root. A client sends one
JSON object in a line (`{"ask": "status"}`, `{"ask": "explain", "path": ...}`, `{"ask": "events"}`)
and gets `{"answer": ...}` or `{"error": ...}`; after the answer to "events" comes one line for each
event, until either side ends. The client's side is in `asking.py`.

Each client has a thread. None of them holds up the engine: events wait in a bounded queue, and what
does not fit is counted and told.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from layermount.config import Capabilities, LayerMountConfig
from layermount.engine.overlay import Overlay
from layermount.errors import ConfigError, LayerMountError
from layermount.events import Event
from layermount.hosts import told
from layermount.hosts.run_directory import socket_path
from layermount.hosts.rundir import Record

#: Events that wait for one client before further ones are dropped.
BACKLOG = 10_000

_CLIENTS = 64
_LONGEST_QUESTION = 65536
_PATIENCE_S = 10
_PEER = struct.Struct("iII")
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
# What accept(2) gives when the listening socket was shut down.
_CLOSED = (errno.EINVAL, errno.EBADF)

Report = Callable[[], dict[str, object]]


class Control:
    """Answers questions about one mount, from `start` to `close`."""

    def __init__(self, token: str, overlay: Overlay) -> None:
        self._token = token
        self._overlay = overlay
        self._session: Report = dict
        self._record: Record | None = None
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._is_closed = False

    def bind(self) -> None:
        """Make the socket; clients that come wait until `start`."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_path(self._token) as path:
            old = os.umask(0o177)
            try:
                self._listener.bind(path)
            finally:
                os.umask(old)
        self._listener.listen()

    def start(self, record: Record, session: Report) -> None:
        """Answer from now on, in threads of its own.

        Args:
            record: What the run directory says about the mount.
            session: What the connection with the kernel has to tell, for JSON.
        """
        self._record, self._session = record, session
        _thread(self._accept, "layermount-control")

    def close(self) -> None:
        """Take the socket away and leave every client. Idempotent."""
        with self._lock:
            if self._is_closed or self._listener is None:
                return
            self._is_closed = True
            clients = tuple(self._clients)
        with _while_there():
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in clients:
            with _while_there():
                client.shutdown(socket.SHUT_RDWR)
        with socket_path(self._token) as path, contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  `bind` comes first
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _CLOSED:
                    return
                raise
            with self._lock:
                is_wanted = not self._is_closed and len(self._clients) < _CLIENTS
                if is_wanted:
                    self._clients.add(client)
            if is_wanted:
                _thread(self._serve, "layermount-client", client)
            else:
                client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            with _while_there():
                self._converse(client)
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def _converse(self, client: socket.socket) -> None:
        client.settimeout(_PATIENCE_S)
        raw = _read_line(client)
        client.settimeout(None)
        if raw is None:
            return
        question = _parsed(raw)
        if question.get("ask") == "events" and _is_ours(client):
            self._stream(client)
        else:
            _send(client, self._reply(client, question))

    def _reply(self, client: socket.socket, question: dict[str, Any]) -> dict[str, object]:
        try:
            if not _is_ours(client):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            return {"answer": self._answer(question)}
        except (LayerMountError, OSError) as error:
            return {"error": told.to_data(error)}

    def _answer(self, question: dict[str, Any]) -> object:
        match question:
            case {"ask": "status"}:
                return self._status()
            case {"ask": "explain", "path": str(path)} if "\0" not in path:
                return self._explain(path)
            case _:
                raise ConfigError("the daemon does not know this question")

    def _explain(self, path: str) -> dict[str, object]:
        # A start that nobody asks does without them.
        from layermount.engine.explain import explain  # noqa: PLC0415
        from layermount.engine.paths import canonical_parts, naming  # noqa: PLC0415

        with naming(path):
            return asdict(explain(self._overlay, canonical_parts(self._overlay, path)))

    def _status(self) -> dict[str, object]:
        assert self._record is not None  # noqa: S101  `start` comes first
        return {
            "mount": asdict(self._record),
            "config": _config(self._overlay.config),
            "overlay": asdict(self._overlay.counters.copy()),
            "session": self._session(),
            "daemon": {"pid": os.getpid(), "memory": _memory()},
        }

    def _stream(self, client: socket.socket) -> None:
        with Backlog() as backlog, self._overlay.events.subscribe(backlog.put):
            _send(client, {"answer": "events"})
            wait = select.poll()
            wait.register(client, select.POLLIN)
            wait.register(backlog.fd, select.POLLIN)
            while True:
                ready = dict(wait.poll())
                if client.fileno() in ready:
                    return  # it says nothing more, so it has ended
                events, dropped = backlog.take()
                for event in events:
                    _send(client, {name: getattr(event, name) for name in _EVENT_FIELDS})
                if dropped:
                    _send(client, {"kind": "dropped", "count": dropped})


_EVENT_FIELDS = tuple(Event.__dataclass_fields__)


class Backlog:
    """Events that one client has not got yet. `put` never waits.

    Attributes:
        fd: Readable when there is something to take.
    """

    def __init__(self, limit: int = BACKLOG) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._limit = limit
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._is_closed = False

    def put(self, event: Event) -> None:
        """Keep an event, or count it as dropped when too many wait."""
        with self._lock:
            if len(self._events) >= self._limit:
                self._dropped += 1
            else:
                self._events.append(event)
            # A subscription may deliver once more after its end: to a number that may be another
            # file's by then.
            if not self._is_closed:
                os.eventfd_write(self.fd, 1)

    def take(self) -> tuple[list[Event], int]:
        """What waits, oldest first, and how many were dropped after the last of them."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            events, dropped = list(self._events), self._dropped
            self._events.clear()
            self._dropped = 0
        return events, dropped

    def __enter__(self) -> Backlog:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._is_closed = True
            os.close(self.fd)


@contextlib.contextmanager
def _while_there() -> Iterator[None]:
    """Around talking to a client, who may be gone."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _is_ours(client: socket.socket) -> bool:
    """Whether the one who asks is the user who mounted it, or root."""
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, user, _ = _PEER.unpack(raw)
    return user in (0, os.geteuid())


def _read_line(client: socket.socket) -> bytes | None:
    """A whole line, or None when none comes."""
    raw = b""
    while not raw.endswith(b"\n"):
        try:
            piece = client.recv(_LONGEST_QUESTION)
        except TimeoutError:
            return None
        if not piece or len(raw) > _LONGEST_QUESTION:
            return None
        raw += piece
    return raw


def _parsed(raw: bytes) -> dict[str, Any]:
    """The question, or an empty one for what is none."""
    try:
        question = json.loads(raw)
    except ValueError:
        return {}
    return question if isinstance(question, dict) else {}


def _send(client: socket.socket, message: dict[str, object]) -> None:
    client.sendall(json.dumps(message).encode("ascii") + b"\n")


def _config(config: LayerMountConfig) -> dict[str, object]:
    """The configuration, for JSON."""
    work, upper = config.work_dir_path, config.upper_path
    used = [c.name for c in Capabilities if c & config.capabilities]
    return {
        "upper_path": None if upper is None else str(upper),
        "lower_paths": list(map(str, config.lower_paths)),
        "work_dir_path": None if work is None else str(work),
        "capabilities": [name.lower() for name in used if name is not None],
        "durability": str(config.durability),
        "dialect": config.dialect,
        "lower_dialects": list(config.lower_dialects),
        "own_redirects": config.own_redirects,
        "path_cache_capacity": config.path_cache_capacity,
    }


def _memory() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _thread(target: Callable[..., None], name: str, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
