"""Requests about open files.

All open files of one inode reach its data in the same way (`open_state.Mode`), chosen at the first
open. Descriptors are opened when they are needed and shared by all open files of the inode: a
request names the inode, the kernel keeps flags and positions. Rules: H1 to H8.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layermount.engine.handles import Handle, read_now
from layermount.engine.node import Node
from layermount.engine.refusals import refusal
from layermount.engine.tree import Shown
from layermount.hosts.fuse import protocol, replies
from layermount.hosts.fuse.known import Known
from layermount.hosts.fuse.open_state import CACHED, CLOSED, PASSTHROUGH, OpenState
from layermount.hosts.fuse.protocol import FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH, Opcode
from layermount.hosts.fuse.request import Request
from layermount.hosts.fuse.serving import Handler, Payload, Serving

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
#: What an open file of the engine needs to know; the kernel keeps the rest (O_APPEND, O_SYNC …).
_KEPT = _ACCESS | os.O_TRUNC
#: More than this is copied between files elsewhere, while others are served.
_QUICK = 1 << 20
_OPENED = replies.opened(flags=FOPEN_KEEP_CACHE)
#: The pages that the kernel has of the file are older than the file.
_OPENED_ANEW = replies.opened()


class Files:
    """Handlers of requests about open files."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._overlay = serving.overlay
        self._tree = serving.tree
        self._table = serving.table

    def handlers(self) -> dict[Opcode, Handler]:
        """What is handled here."""
        return {
            Opcode.OPEN: self.open,
            Opcode.CREATE: self.create,
            Opcode.TMPFILE: self.tmpfile,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.RELEASE: self.release,
            Opcode.FSYNC: self.fsync,
            Opcode.LSEEK: self.lseek,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range_64,
        }

    # Opening.

    def open(self, request: Request) -> bytes | None:
        """An open file; ESTALE sends the caller to the inode that took this one's name."""
        flags, more = protocol.OPEN_IN.unpack_from(request.body)
        known = self._table[request.nodeid]
        state = known.state
        if state is None:
            state = known.state = OpenState()
        elif state.retired:
            raise refusal(errno.ESTALE, known.node.name)
        if flags & _ACCESS == os.O_RDONLY and not flags & os.O_TRUNC:
            return self._open_reading(known, state)
        answer = self._open_writing(request, known, state, flags)
        if more & protocol.OPEN_KILL_SUIDGID and known.is_setid and answer is not None:
            self._serving.drop_setid(known)
        return answer

    def _open_reading(self, known: Known, state: OpenState) -> bytes:
        if self._overlay.gate is not None:
            # The gate is asked about each open file.
            self._keep(state, self._handle(known, state, os.O_RDONLY))
        by_kernel = state.mode is PASSTHROUGH
        if state.mode is CLOSED and (known.is_big or state.backing):
            by_kernel = self._registered(known, state, writing=False)
        return self._opened(state, by_kernel=by_kernel)

    def _open_writing(
        self, request: Request, known: Known, state: OpenState, flags: int
    ) -> bytes | None:
        node = known.node
        if not state.backs_upper or self._overlay.gate is not None or flags & os.O_TRUNC:
            if self._serving.is_slow(node, data=not flags & os.O_TRUNC):
                self._serving.after_copy_up(request, node, self.open)
                return None
            if self._serving.must_retire(known):
                self._overlay.copy_up(node)
                self._serving.retire(known)
                raise refusal(errno.ESTALE, node.name)
            before = self._tree.counters.copy_ups
            self._keep(state, self._handle(known, state, flags & _KEPT))
            self._serving.copied_up_since(before, node)
        by_kernel = state.mode is PASSTHROUGH
        if state.mode is CLOSED:
            by_kernel = self._registered(known, state, writing=True)
        state.writers += flags & _ACCESS != os.O_RDONLY
        return self._opened(state, by_kernel=by_kernel)

    def _handle(self, known: Known, state: OpenState, flags: int) -> Handle:
        """A new handle: by the file's name, or by an open file that has none any more."""
        if known.node.removed and state.handle is not None:
            return state.handle.reopen(flags)
        return self._overlay.open(known.node, flags)

    def _keep(self, state: OpenState, handle: Handle) -> None:
        """Keep a handle for all open files of an inode, if it can do what those kept cannot.

        Those stay: another thread may be at work with one.
        """
        if handle.is_writable and state.writer is None:
            state.writer = handle
        elif handle.flags & _ACCESS != os.O_WRONLY and state.reader is None:
            state.reader = handle
        else:
            handle.close()

    def _registered(self, known: Known, state: OpenState, *, writing: bool) -> bool:
        """Whether the kernel has the file that the data is in now, registering it if need be."""
        backings = self._serving.backings
        if not backings.is_on or not (known.node.in_upper or self._serving.registers_lowers):
            return False
        if state.backing and (state.backs_upper or not (writing or known.node.in_upper)):
            return True
        handle = state.writer if writing else state.handle
        opened = self._handle(known, state, os.O_RDONLY) if handle is None else handle
        try:
            if not opened.in_upper and (writing or not self._serving.registers_lowers):
                return False
            return backings.register(state, opened.fileno(), is_upper=opened.in_upper)
        finally:
            if handle is None:
                opened.close()

    def _opened(self, state: OpenState, *, by_kernel: bool) -> bytes:
        state.opens += 1
        if by_kernel:
            self._serving.backings.use(state)
            return replies.opened(flags=FOPEN_PASSTHROUGH, backing=state.backing)
        state.mode = CACHED
        if state.is_stale:
            state.is_stale = False
            return _OPENED_ANEW
        return _OPENED

    def create(self, request: Request) -> bytes | None:
        """A new file, open."""
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(request.body)
        name = replies.decoded(request.body[protocol.CREATE_IN.size : -1])
        parent = self._table.directory(request.nodeid)
        before = self._tree.counters.copy_ups
        with self._serving.caller.acting(request.uid, request.gid, umask):
            node, handle = self._overlay.create(parent, name, flags & _ACCESS, mode)
        self._serving.copied_up_since(before, parent)
        with self._tree.lock:
            shown = self._tree.shown(node)
        known = self._table.learn(node, shown)
        return self._created(known, handle, shown, flags)

    def tmpfile(self, request: Request) -> bytes:
        """A new file without a name, open."""
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(request.body)
        parent = self._table.directory(request.nodeid)
        before = self._tree.counters.copy_ups
        with self._serving.caller.acting(request.uid, request.gid, umask):
            node, handle = self._overlay.tmpfile(parent, flags & (_ACCESS | os.O_EXCL), mode)
        self._serving.copied_up_since(before, parent)
        status = handle.fstat()
        shown = status, node.inode or status.st_ino, 0, status.st_blocks
        return self._created(self._table.learn(node, shown), handle, shown, flags)

    def _created(self, known: Known, handle: Handle, shown: Shown, flags: int) -> bytes:
        state = known.state = OpenState()
        writes = flags & _ACCESS != os.O_RDONLY
        if writes:
            state.writer, state.writers = handle, 1
        else:
            state.reader = handle
        by_kernel = self._registered(known, state, writing=writes)
        opened = self._opened(state, by_kernel=by_kernel)
        return replies.entry(known.nodeid, shown) + opened

    def release(self, request: Request) -> bytes:
        """The end of an open file."""
        _, flags, _, _ = protocol.RELEASE_IN.unpack_from(request.body)
        known = self._table[request.nodeid]
        state = known.state
        if state is None:
            raise refusal(errno.EBADF, known.node.name)
        state.opens -= 1
        if flags & _ACCESS != os.O_RDONLY:
            state.writers -= 1
            if state.mode is PASSTHROUGH:
                self._written_by_kernel(known, state, flags)
        if not state.opens:
            self._last_closed(known, state)
        return b""

    def _written_by_kernel(self, known: Known, state: OpenState, flags: int) -> None:
        """A file that may have been written without a request is open for writing once less."""
        state.is_stale = True
        if flags & _ACCESS == os.O_RDWR:
            # A map has changed it without the kernel's taking note.
            self._serving.wire.forget_attributes(known.nodeid)

    def _last_closed(self, known: Known, state: OpenState) -> None:
        state.close_handles()
        state.mode = CLOSED
        if state.retired or known.node.removed:
            self._serving.backings.release(state)
        elif state.backing:
            self._serving.backings.idle(state)

    # Data.

    def read(self, request: Request) -> Payload | None:
        """Bytes of a file; what is not in memory is waited for elsewhere."""
        _, offset, size, *_ = protocol.READ_IN.unpack_from(request.body)
        known = self._table[request.nodeid]
        state, node = self._state(known), known.node
        if state.handle is None and not known.is_big and not node.removed:
            # Small files are read at once and not again: the kernel keeps their pages.
            data = self._read_once(node, size, offset)
            if data is not None:
                return data
        handle = self._reader(known)
        data = handle.read_now(size, offset)
        if data is not None:
            return data
        self._serving.wire.later(request, lambda _: handle.read(size, offset))
        return None

    def _read_once(self, node: Node, size: int, offset: int) -> memoryview | None:
        """Bytes of a file that need not stay open for them; None where the disk is waited for."""
        with self._tree.lock:
            _, directory, name = self._tree.data_of(node)
            fd = directory.open(name)
        try:
            data = read_now(fd, size, offset)
        finally:
            os.close(fd)
        if data is not None:
            counters = self._tree.counters
            counters.reads += 1
            counters.bytes_read += len(data)
        return data

    def _state(self, known: Known) -> OpenState:
        if known.state is None:
            raise refusal(errno.EBADF, known.node.name)
        return known.state

    def _reader(self, known: Known) -> Handle:
        state = self._state(known)
        if state.writer is not None and _reads(state.writer):
            return state.writer
        if state.reader is None:
            state.reader = self._handle(known, state, os.O_RDONLY)
        return state.reader

    def _writer(self, known: Known) -> Handle:
        state = self._state(known)
        if state.writer is None:
            state.writer = self._handle(known, state, os.O_RDWR)
        return state.writer

    def _any(self, known: Known) -> Handle:
        return self._state(known).handle or self._reader(known)

    def write(self, request: Request) -> bytes:
        """Write bytes; the number of those that were written."""
        _, offset, size, flags, *_ = protocol.WRITE_IN.unpack_from(request.body)
        start = protocol.WRITE_IN.size
        known = self._table[request.nodeid]
        count = self._writer(known).write(request.body[start : start + size], offset)
        if flags & protocol.WRITE_KILL_SUIDGID and known.is_setid:
            self._serving.drop_setid(known)
        return protocol.WRITE_OUT.pack(count, 0)

    def fsync(self, request: Request) -> None:
        """A file on disk."""
        _, flags, _ = protocol.FSYNC_IN.unpack_from(request.body)
        handle = self._any(self._table[request.nodeid])

        def work(_request: Request) -> bytes:
            handle.fsync(data_only=bool(flags & protocol.FSYNC_FDATASYNC))
            return b""

        self._serving.wire.later(request, work)

    def lseek(self, request: Request) -> bytes:
        """Where data or a hole begins."""
        _, offset, whence, _ = protocol.LSEEK_IN.unpack_from(request.body)
        known = self._table[request.nodeid]
        state = self._state(known)
        # What a map has written is in no file until it is synced, so nothing is called a hole.
        if state.retired or (state.mode is CACHED and state.writers):
            return protocol.LSEEK_OUT.pack(_seek_whole(self._serving.shown(known), offset, whence))
        return protocol.LSEEK_OUT.pack(self._any(known).seek(offset, whence))

    def fallocate(self, request: Request) -> bytes:
        """Room for data, or a hole."""
        _, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(request.body)
        self._writer(self._table[request.nodeid]).fallocate(mode, offset, length)
        return b""

    def copy_file_range(self, request: Request) -> bytes | None:
        """Copy between two files; the answer's number has 32 bits."""
        return self._copy(request, lambda count: protocol.WRITE_OUT.pack(count, 0))

    def copy_file_range_64(self, request: Request) -> bytes | None:
        """Copy between two files."""
        return self._copy(request, protocol.COPY_FILE_RANGE_OUT.pack)

    def _copy(self, request: Request, pack: Callable[[int], bytes]) -> bytes | None:
        _, offset, nodeid, _, target_offset, size, _ = protocol.COPY_FILE_RANGE_IN.unpack_from(
            request.body
        )
        known = self._table[request.nodeid]
        if known.state is not None and known.state.retired:
            # What the kernel reads there is not what the name leads to: the caller copies.
            raise refusal(errno.EXDEV, known.node.name)
        source = self._reader(known)
        target = self._writer(self._table[nodeid])

        def work(_request: Request) -> bytes:
            return pack(source.copy_range_to(target, offset, target_offset, min(size, 1 << 30)))

        if size <= _QUICK:
            return work(request)
        self._serving.wire.later(request, work)
        return None


def _seek_whole(shown: Shown, offset: int, whence: int) -> int:
    """Where data or the hole at the end begins in a file that is not looked into."""
    size = shown[0].st_size
    if offset >= size:
        raise refusal(errno.ENXIO)
    return offset if whence == os.SEEK_DATA else size


def _reads(handle: Handle) -> bool:
    return handle.flags & _ACCESS == os.O_RDWR
