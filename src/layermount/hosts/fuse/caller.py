"""Who asks: what is made belongs to the caller, with the caller's umask.

A daemon with privileges lets the filesystem itself decide about owner, group, set-group-id and
default ACLs, by taking on the caller's identity for files around the call. It keeps its
capabilities: permissions were checked by the kernel before it asked. Source: setfsuid(2),
capabilities(7), "SECBIT_NO_SETUID_FIXUP".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from layermount.linux import credentials


class Caller:
    """The identity that new entries are made with, of the one thread that serves.

    Use it as `with caller.acting(uid, gid, umask):` inside `with caller.serving():`.
    """

    def __init__(self) -> None:
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._may_change = self._uid == 0
        self._umask = -1
        self._wanted = self._uid, self._gid

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Around everything that this thread serves: its identity and umask are its own."""
        credentials.unshare_fs()
        old = os.umask(0)
        self._umask = 0
        if self._may_change:
            credentials.keep_capabilities_on_fsuid()
        try:
            yield
        finally:
            if self._may_change:
                credentials.keep_capabilities_on_fsuid(on=False)
            os.umask(old)

    def acting(self, uid: int, gid: int, umask: int | None = None) -> Caller:
        """For a `with`: new entries belong to `uid` and `gid`.

        Args:
            uid: As the request has it.
            gid: As the request has it.
            umask: Of the caller; None where it does not count.

        Raises:
            OSError: EPERM when this process may not make files for others.
        """
        if not self._may_change and uid != self._uid:
            raise OSError(errno.EPERM, "the mount's user cannot make files for others")
        self._wanted = uid, gid
        if umask is not None and umask != self._umask:
            os.umask(umask)
            self._umask = umask
        return self

    def __enter__(self) -> None:
        uid, gid = self._wanted
        if self._may_change:
            if gid != self._gid:
                credentials.setfsgid(gid)
            if uid != self._uid:
                credentials.setfsuid(uid)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        uid, gid = self._wanted
        if self._may_change:
            if uid != self._uid:
                credentials.setfsuid(self._uid)
            if gid != self._gid:
                credentials.setfsgid(self._gid)
