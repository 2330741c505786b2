"""One connection with the kernel: negotiation, the loop that serves requests, notifications.

One thread reads and answers; what may block goes to a small pool. What requests mean is in the
modules beside this. Source: the kernel's Documentation/filesystems/fuse/fuse.rst, fuse(4).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

from layermount.engine.overlay import Overlay
from layermount.errors import LayerMountError
from layermount.events import set_actor
from layermount.hosts.base import errno_of
from layermount.hosts.fuse import protocol
from layermount.hosts.fuse.attributes import Attributes
from layermount.hosts.fuse.directories import Directories
from layermount.hosts.fuse.files import Files
from layermount.hosts.fuse.ioctls import Ioctls
from layermount.hosts.fuse.names import Names
from layermount.hosts.fuse.policy import Passthrough
from layermount.hosts.fuse.pool import Pool
from layermount.hosts.fuse.protocol import IN_HEADER, OUT_HEADER, Init, Notify, Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Payload, Serving

MAX_WRITE: Final = 1 << 20
_PAGES: Final = MAX_WRITE // 4096
_WORKERS: Final = 4
#: What is asked for; what the kernel does not offer is done without.
_WANTED: Final = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA
    | Init.HANDLE_KILLPRIV_V2
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.NO_EXPORT_SUPPORT
    | Init.PASSTHROUGH
)
_BODY: Final = IN_HEADER.size
_AGAIN = (errno.EINTR, errno.EAGAIN, errno.ENOENT)
#: Nobody waits for an answer any more, or the overlay was unmounted.
_NOBODY = (errno.ENOENT, errno.ENODEV)
#: Answers up to this size are joined; larger ones are not copied once more (bytes).
_SMALL: Final = 4096


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides agreed on."""

    minor: int
    flags: Init


class Session:
    """Serves an overlay on an open FUSE device until it is unmounted."""

    def __init__(
        self, overlay: Overlay, device_fd: int, passthrough: Passthrough = Passthrough.AUTO
    ) -> None:
        """Take over the device; the overlay stays the caller's.

        Args:
            overlay: What is shown.
            device_fd: /dev/fuse, mounted.
            passthrough: Which files of layers the kernel reads and writes by itself where it may.
        """
        self._device_fd = device_fd
        self._passthrough = passthrough
        self._pool = Pool(_WORKERS)
        self._counts = [0] * (max(Opcode) + 1)
        self.negotiated: Negotiated | None = None
        self._serving = Serving(overlay, self, passthrough)
        self._handlers = self._dispatch_table()

    def _dispatch_table(self) -> dict[int, Handler]:
        table: dict[Opcode, Handler] = {
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.INTERRUPT: self._pass,
            Opcode.NOTIFY_REPLY: self._pass,
            Opcode.DESTROY: self._destroy,
        }
        for group in (Names, Attributes, Files, Directories, Ioctls):
            table.update(group(self._serving).handlers())
        return {int(opcode): handler for opcode, handler in table.items()}

    # Serving.

    def serve(self) -> None:
        """Negotiate, then answer every request, until the overlay is unmounted.

        Raises:
            OSError: EPROTO when the kernel is too old.
        """
        try:
            with self._serving.caller.serving():
                self._negotiate()
                self._loop()
        finally:
            set_actor(None)
            self._pool.close()
            self._serving.close()
            os.close(self._device_fd)

    def _loop(self) -> None:
        buffer = bytearray(MAX_WRITE + 4096)
        view, buffers, request = memoryview(buffer), [buffer], Request()
        handlers, counts, lock = self._handlers, self._counts, self._serving.lock
        events, reply = self._serving.overlay.events, self.reply
        device_fd, readv, unpack = self._device_fd, os.readv, IN_HEADER.unpack_from
        while True:
            try:
                size = readv(device_fd, buffers)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in _AGAIN:
                    continue
                raise
            if not size:
                return  # a device never says so; the other end of a socket does
            (_, opcode, unique, request.nodeid, request.uid, request.gid, request.pid, _, _) = (
                unpack(buffer)
            )
            handler = handlers.get(opcode)
            if handler is None:
                self.refuse(unique, errno.ENOSYS)
                continue
            counts[opcode] += 1
            request.opcode, request.unique = opcode, unique
            request.body = view[_BODY:size]
            if events.has_subscribers:
                set_actor(request.pid)
            try:
                with lock:
                    payload = handler(request)
            except Exception as error:
                self._fail(request, error)
                continue
            if payload is not None:
                reply(unique, payload)

    def _answer(self, request: Request, handler: Handler) -> None:
        try:
            payload = handler(request)
        except Exception as error:
            self._fail(request, error)
            return
        if payload is not None:
            self.reply(request.unique, payload)

    def _fail(self, request: Request, error: Exception) -> None:
        """Answer with an errno, whatever was raised: whoever asked would wait for ever."""
        self.refuse(request.unique, errno_of(error))
        if not isinstance(error, OSError | LayerMountError):
            self._report(repr(request), error)

    def _report(self, request: str, error: Exception) -> None:
        """Log a fault of ours, elsewhere: a traceback is made of files that the mount may cover."""

        def work() -> None:
            import logging  # noqa: PLC0415  nothing else needs it, and the start is to be fast

            logging.getLogger(__name__).error("request %s failed", request, exc_info=error)

        self._pool.submit(work)

    def reply(self, unique: int, payload: Payload) -> None:
        """Answer a request."""
        header = OUT_HEADER.pack(16 + len(payload), 0, unique)
        try:
            if len(payload) <= _SMALL:
                os.write(self._device_fd, header + payload)
            else:
                os.writev(self._device_fd, (header, payload))
        except OSError as error:
            if error.errno not in _NOBODY:
                raise

    def refuse(self, unique: int, number: int) -> None:
        """Answer a request with an errno."""
        self._send(OUT_HEADER.pack(16, -number, unique))

    def _send(self, message: bytes) -> None:
        try:
            os.write(self._device_fd, message)
        except OSError as error:
            if error.errno not in _NOBODY:
                raise

    def later(self, request: Request, work: Handler) -> None:
        """Answer a request with what `work` returns, outside this thread and without the lock."""
        kept = request.copy()
        self._pool.submit(lambda: self._work(kept, work))

    def _work(self, request: Request, work: Handler) -> None:
        set_actor(request.pid)
        self._answer(request, work)

    # What needs no answer, or nearly none.

    def _pass(self, _request: Request) -> None:
        """An interrupt: what blocks here is short, or its answer comes all the same."""

    def _destroy(self, _request: Request) -> bytes:
        return b""

    def _forget(self, request: Request) -> None:
        (count,) = protocol.FORGET_IN.unpack_from(request.body)
        self._serving.forget(request.nodeid, count)

    def _batch_forget(self, request: Request) -> None:
        start = protocol.BATCH_FORGET_IN.size
        for nodeid, count in protocol.FORGET_ONE.iter_unpack(request.body[start:]):
            self._serving.forget(nodeid, count)

    # Negotiation.

    def _negotiate(self) -> None:
        while self.negotiated is None:
            raw = os.read(self._device_fd, MAX_WRITE + 4096)
            _, opcode, unique, *_ = IN_HEADER.unpack_from(raw)
            if opcode != Opcode.INIT:
                raise OSError(errno.EPROTO, f"the kernel began with request {opcode}")
            self._init(unique, raw[IN_HEADER.size :])

    def _init(self, unique: int, body: bytes) -> None:
        major, minor, readahead, low = protocol.INIT_IN_OLD.unpack_from(body)
        if major != protocol.MAJOR or minor < protocol.OLDEST_MINOR:
            self.refuse(unique, errno.EPROTO)
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}, too old")
        offered = Init(low)
        if offered & Init.INIT_EXT:
            offered |= Init(protocol.INIT_IN.unpack_from(body)[4] << 32)
        flags = self._chosen(offered)
        self.negotiated = Negotiated(min(minor, protocol.MINOR), flags)
        self._serving.negotiated(flags, self._device_fd)
        depth = self._serving.stack_depth if flags & Init.PASSTHROUGH else 0
        self.reply(
            unique,
            protocol.INIT_OUT.pack(
                protocol.MAJOR, self.negotiated.minor, readahead, flags & 0xFFFFFFFF, 64, 48,
                MAX_WRITE, 1, _PAGES, 0, flags >> 32, depth, 0,
            ),
        )  # fmt: skip

    def _chosen(self, offered: Init) -> Init:
        wanted = _WANTED
        if self._passthrough is Passthrough.OFF:
            wanted &= ~Init.PASSTHROUGH
        return wanted & offered

    # Notifications.

    def forget_attributes(self, nodeid: int) -> None:
        """Let the kernel ask for the metadata of an inode anew. Waits for nothing."""
        self._notify(Notify.INVAL_INODE, protocol.INVAL_INODE_OUT.pack(nodeid, -1, 0))

    def _notify(self, code: Notify, payload: bytes) -> None:
        self._send(OUT_HEADER.pack(16 + len(payload), code, 0) + payload)

    # Telling.

    def status(self) -> dict[str, object]:
        """What was asked so far and what is open, for JSON."""
        counts = {Opcode(n).name.lower(): count for n, count in enumerate(self._counts) if count}
        agreed = self.negotiated
        return {
            "protocol": None if agreed is None else f"{protocol.MAJOR}.{agreed.minor}",
            "requests": counts,
            **self._serving.status(),
        }
