"""The FUSE wire format: opcodes, flags and layouts of messages. Data only.

Source: the kernel's include/uapi/linux/fuse.h, protocol 7.31 to 7.45. Numbers are in the machine's
byte order, structs are padded to eight bytes. What the fields mean is told where they are used.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

#: The protocol this side speaks; the kernel answers in the lower of the two minor numbers.
MAJOR: Final = 7
MINOR: Final = 45
#: Before this the kernel caches no directories and no links, and takes 128 KiB at once.
OLDEST_MINOR: Final = 31

ROOT_ID: Final = 1


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Init(enum.IntFlag):
    """What is negotiated by INIT; from bit 32 on the bits travel in the field `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


# FOPEN_*: how the kernel treats an open file or directory.
FOPEN_DIRECT_IO: Final = 1
FOPEN_KEEP_CACHE: Final = 2
FOPEN_NONSEEKABLE: Final = 4
FOPEN_CACHE_DIR: Final = 8
FOPEN_STREAM: Final = 16
FOPEN_NOFLUSH: Final = 32
FOPEN_PARALLEL_DIRECT_WRITES: Final = 64
FOPEN_PASSTHROUGH: Final = 128

# FATTR_*: which fields of a SETATTR count.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

GETATTR_FH: Final = 1 << 0
# The caller may not keep set-user-id, set-group-id: in OPEN (with O_TRUNC) and in WRITE.
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
IOCTL_DIR: Final = 1 << 4


class Notify(enum.IntEnum):
    """What this side tells the kernel unasked."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


EXPIRE_ONLY: Final = 1

# Headers. Of a request: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding.
IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
# Of an answer: len, error (negative errno, or a notification's code), unique.
OUT_HEADER: Final = struct.Struct("=IiQ")

# major, minor, max_readahead, flags, flags2, then eleven unused numbers
INIT_IN: Final = struct.Struct("=IIIII44x")
# What kernels before 7.36 send: no flags2.
INIT_IN_OLD: Final = struct.Struct("=IIII")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, request_timeout, then unused numbers
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")

# ino, size, blocks, atime, mtime, ctime, the nanoseconds of the three, mode, nlink, uid, gid, rdev,
# blksize, flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
ATTR: Final = struct.Struct(f"={_ATTR}")
# nodeid, generation, entry_valid, attr_valid, the nanoseconds of the two
_ENTRY: Final = "QQQQII"
ENTRY_OUT: Final = struct.Struct(f"={_ENTRY}{_ATTR}")
# attr_valid, its nanoseconds, padding
_ATTR_OUT: Final = "QII"
ATTR_OUT: Final = struct.Struct(f"={_ATTR_OUT}{_ATTR}")
# fh, open_flags, backing_id
_OPEN_OUT: Final = "QIi"
OPEN_OUT: Final = struct.Struct(f"={_OPEN_OUT}")

# Whole answers, packed in one step.
ENTRY_ANSWER: Final = struct.Struct(f"=IiQ{_ENTRY}{_ATTR}")
ATTR_ANSWER: Final = struct.Struct(f"=IiQ{_ATTR_OUT}{_ATTR}")
OPEN_ANSWER: Final = struct.Struct(f"=IiQ{_OPEN_OUT}")
CREATE_ANSWER: Final = struct.Struct(f"=IiQ{_ENTRY}{_ATTR}{_OPEN_OUT}")

# nlookup
FORGET_IN: Final = struct.Struct("=Q")
# count, padding; then as often nodeid, nlookup
BATCH_FORGET_IN: Final = struct.Struct("=II")
FORGET_ONE: Final = struct.Struct("=QQ")
# getattr_flags, padding, fh
GETATTR_IN: Final = struct.Struct("=IIQ")
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, the nanoseconds of the three, mode,
# unused, uid, gid, unused
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
# mode, rdev, umask, padding; then the name
MKNOD_IN: Final = struct.Struct("=IIII")
# mode, umask; then the name
MKDIR_IN: Final = struct.Struct("=II")
# newdir; then both names
RENAME_IN: Final = struct.Struct("=Q")
# newdir, flags, padding; then both names
RENAME2_IN: Final = struct.Struct("=QII")
# oldnodeid; then the name
LINK_IN: Final = struct.Struct("=Q")
# flags, open_flags
OPEN_IN: Final = struct.Struct("=II")
# flags, mode, umask, open_flags; then the name
CREATE_IN: Final = struct.Struct("=IIII")
# fh, offset, size, read_flags, lock_owner, flags, padding
READ_IN: Final = struct.Struct("=QQIIQII")
# fh, offset, size, write_flags, lock_owner, flags, padding; then the bytes
WRITE_IN: Final = struct.Struct("=QQIIQII")
# size, padding
WRITE_OUT: Final = struct.Struct("=II")
# fh, flags, release_flags, lock_owner
RELEASE_IN: Final = struct.Struct("=QIIQ")
# fh, unused, padding, lock_owner
FLUSH_IN: Final = struct.Struct("=QIIQ")
# fh, fsync_flags, padding
FSYNC_IN: Final = struct.Struct("=QII")
# size, flags, setxattr_flags, padding; then the name and the value
SETXATTR_IN: Final = struct.Struct("=IIII")
# What is sent without SETXATTR_EXT: size, flags.
SETXATTR_IN_OLD: Final = struct.Struct("=II")
# size, padding; then the name
GETXATTR_IN: Final = struct.Struct("=II")
# size, padding
GETXATTR_OUT: Final = struct.Struct("=II")
# mask, padding
ACCESS_IN: Final = struct.Struct("=II")
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = struct.Struct("=QQQQQIII28x")
# unique of the request to interrupt
INTERRUPT_IN: Final = struct.Struct("=Q")
# fh, flags, cmd, arg, in_size, out_size; then the input
IOCTL_IN: Final = struct.Struct("=QIIQII")
# result, flags, in_iovs, out_iovs; then the output
IOCTL_OUT: Final = struct.Struct("=iIII")
# fh, offset, length, mode, padding
FALLOCATE_IN: Final = struct.Struct("=QQQII")
# fh, offset, whence, padding
LSEEK_IN: Final = struct.Struct("=QQII")
# offset
LSEEK_OUT: Final = struct.Struct("=Q")
# fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY_FILE_RANGE_IN: Final = struct.Struct("=QQQQQQQ")
# How many bytes were copied.
COPY_FILE_RANGE_OUT: Final = struct.Struct("=Q")
# getattr_flags, reserved, fh, sx_flags, sx_mask
STATX_IN: Final = struct.Struct("=IIQII")
# attr_valid, its nanoseconds, flags, spare; then struct fuse_statx: mask, blksize, attributes,
# nlink, uid, gid, mode, ino, size, blocks, attributes_mask, seconds and nanoseconds of atime,
# btime, ctime and mtime, major and minor number of rdev and of dev, spare
STATX_OUT: Final = struct.Struct("=QII16x IIQIIIH2xQQQQ qI4x qI4x qI4x qI4x IIII 112x")
# ino, off, namelen, type; then the name
DIRENT: Final = struct.Struct("=QQII")
DIRENTPLUS: Final = struct.Struct(f"={_ENTRY}{_ATTR}QQII")

# Notifications, after an answer's header with the code as error and no unique.
# ino, off (negative: attributes only), len (0: to the end)
INVAL_INODE_OUT: Final = struct.Struct("=Qqq")
# parent, namelen, flags; then the name and NUL
INVAL_ENTRY_OUT: Final = struct.Struct("=QII")
