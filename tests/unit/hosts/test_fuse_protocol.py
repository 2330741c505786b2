from __future__ import annotations

import enum
import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from layermount.hosts.fuse import protocol

# What an installed header may lack, as the kernel's header of protocol 7.45 has it. A name that the
# older header gives to something else is taken over with a macro.
NEWER = """
#if FUSE_KERNEL_MINOR_VERSION < 39
#define FUSE_CREATE_SUPP_GROUP (1ULL << 34)
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#define FUSE_STATX 52
struct fuse_sx_time { int64_t tv_sec; uint32_t tv_nsec; int32_t __reserved; };
struct fuse_statx {
    uint32_t mask, blksize;
    uint64_t attributes;
    uint32_t nlink, uid, gid;
    uint16_t mode, __spare0[1];
    uint64_t ino, size, blocks, attributes_mask;
    struct fuse_sx_time atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t __spare2[14];
};
struct fuse_statx_in {
    uint32_t getattr_flags, reserved; uint64_t fh; uint32_t sx_flags, sx_mask;
};
struct fuse_statx_out {
    uint64_t attr_valid; uint32_t attr_valid_nsec, flags; uint64_t spare[2]; struct fuse_statx stat;
};
#endif
#if FUSE_KERNEL_MINOR_VERSION < 40
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FUSE_NO_EXPORT_SUPPORT (1ULL << 38)
#define FUSE_HAS_RESEND (1ULL << 39)
#define FOPEN_PASSTHROUGH (1 << 7)
#define FUSE_NOTIFY_RESEND 7
struct newer_open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };
#define fuse_open_out newer_open_out
#endif
#if FUSE_KERNEL_MINOR_VERSION < 41
#define FUSE_ALLOW_IDMAP (1ULL << 40)
#endif
#if FUSE_KERNEL_MINOR_VERSION < 42
#define FUSE_OVER_IO_URING (1ULL << 41)
#endif
#if FUSE_KERNEL_MINOR_VERSION < 43
#define FUSE_REQUEST_TIMEOUT (1ULL << 42)
struct newer_init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2, max_stack_depth;
    uint16_t request_timeout, unused[11];
};
#define fuse_init_out newer_init_out
#endif
#if FUSE_KERNEL_MINOR_VERSION < 44
#define FUSE_NOTIFY_INC_EPOCH 8
#endif
#if FUSE_KERNEL_MINOR_VERSION < 45
#define FUSE_NOTIFY_PRUNE 9
#define FUSE_COPY_FILE_RANGE_64 53
struct fuse_copy_file_range_out { uint64_t bytes_copied; };
#endif
// Whole answers.
struct entry_answer { struct fuse_out_header header; struct fuse_entry_out entry; };
struct attr_answer { struct fuse_out_header header; struct fuse_attr_out attr; };
struct open_answer { struct fuse_out_header header; struct fuse_open_out open; };
struct create_answer {
    struct fuse_out_header header; struct fuse_entry_out entry; struct fuse_open_out open;
};
"""

ATTR = (
    "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev "
    "blksize flags"
)
ENTRY = "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"
OPEN = "fh open_flags backing_id"
INIT_OUT = (
    "major minor max_readahead flags max_background congestion_threshold max_write time_gran "
    "max_pages map_alignment flags2 max_stack_depth request_timeout"
)
SETATTR = (
    "valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 "
    "uid gid unused5"
)
DIRENT = "ino off namelen type"


def below(member: str, names: str) -> str:
    return " ".join(f"{member}.{name}" for name in names.split())


ENTRY_OUT = f"{ENTRY} {below('attr', ATTR)}"
ATTR_OUT = f"attr_valid attr_valid_nsec dummy {below('attr', ATTR)}"
HEADER = below("header", "len error unique")
STATX_TIMES = " ".join(
    below(f"stat.{name}", "tv_sec tv_nsec") for name in ("atime", "btime", "ctime", "mtime")
)
IN_AND_OUT = "fh offset size {}_flags lock_owner flags padding"

# Name in the module: C type, and its members in the order of the format. "|" ends what is compared
# of a longer struct: an older kernel sends no more.
LAYOUTS = {
    "IN_HEADER": (
        "struct fuse_in_header",
        "len opcode unique nodeid uid gid pid total_extlen padding",
    ),
    "OUT_HEADER": ("struct fuse_out_header", "len error unique"),
    "INIT_IN": ("struct fuse_init_in", "major minor max_readahead flags flags2"),
    "INIT_IN_OLD": ("struct fuse_init_in", "major minor max_readahead flags | flags2"),
    "INIT_OUT": (
        "struct fuse_init_out",
        INIT_OUT,
    ),
    "ATTR": ("struct fuse_attr", ATTR),
    "ENTRY_OUT": ("struct fuse_entry_out", ENTRY_OUT),
    "ATTR_OUT": ("struct fuse_attr_out", ATTR_OUT),
    "OPEN_OUT": ("struct fuse_open_out", OPEN),
    "ENTRY_ANSWER": ("struct entry_answer", f"{HEADER} {below('entry', ENTRY_OUT)}"),
    "ATTR_ANSWER": ("struct attr_answer", f"{HEADER} {below('attr', ATTR_OUT)}"),
    "OPEN_ANSWER": ("struct open_answer", f"{HEADER} {below('open', OPEN)}"),
    "CREATE_ANSWER": (
        "struct create_answer",
        f"{HEADER} {below('entry', ENTRY_OUT)} {below('open', OPEN)}",
    ),
    "FORGET_IN": ("struct fuse_forget_in", "nlookup"),
    "BATCH_FORGET_IN": ("struct fuse_batch_forget_in", "count dummy"),
    "FORGET_ONE": ("struct fuse_forget_one", "nodeid nlookup"),
    "GETATTR_IN": ("struct fuse_getattr_in", "getattr_flags dummy fh"),
    "SETATTR_IN": (
        "struct fuse_setattr_in",
        SETATTR,
    ),
    "MKNOD_IN": ("struct fuse_mknod_in", "mode rdev umask padding"),
    "MKDIR_IN": ("struct fuse_mkdir_in", "mode umask"),
    "RENAME_IN": ("struct fuse_rename_in", "newdir"),
    "RENAME2_IN": ("struct fuse_rename2_in", "newdir flags padding"),
    "LINK_IN": ("struct fuse_link_in", "oldnodeid"),
    "OPEN_IN": ("struct fuse_open_in", "flags open_flags"),
    "CREATE_IN": ("struct fuse_create_in", "flags mode umask open_flags"),
    "READ_IN": ("struct fuse_read_in", IN_AND_OUT.format("read")),
    "WRITE_IN": ("struct fuse_write_in", IN_AND_OUT.format("write")),
    "WRITE_OUT": ("struct fuse_write_out", "size padding"),
    "RELEASE_IN": ("struct fuse_release_in", "fh flags release_flags lock_owner"),
    "FLUSH_IN": ("struct fuse_flush_in", "fh unused padding lock_owner"),
    "FSYNC_IN": ("struct fuse_fsync_in", "fh fsync_flags padding"),
    "SETXATTR_IN": ("struct fuse_setxattr_in", "size flags setxattr_flags padding"),
    "SETXATTR_IN_OLD": ("struct fuse_setxattr_in", "size flags | setxattr_flags"),
    "GETXATTR_IN": ("struct fuse_getxattr_in", "size padding"),
    "GETXATTR_OUT": ("struct fuse_getxattr_out", "size padding"),
    "ACCESS_IN": ("struct fuse_access_in", "mask padding"),
    "STATFS_OUT": (
        "struct fuse_statfs_out",
        below("st", "blocks bfree bavail files ffree bsize namelen frsize"),
    ),
    "INTERRUPT_IN": ("struct fuse_interrupt_in", "unique"),
    "IOCTL_IN": ("struct fuse_ioctl_in", "fh flags cmd arg in_size out_size"),
    "IOCTL_OUT": ("struct fuse_ioctl_out", "result flags in_iovs out_iovs"),
    "FALLOCATE_IN": ("struct fuse_fallocate_in", "fh offset length mode padding"),
    "LSEEK_IN": ("struct fuse_lseek_in", "fh offset whence padding"),
    "LSEEK_OUT": ("struct fuse_lseek_out", "offset"),
    "COPY_FILE_RANGE_IN": (
        "struct fuse_copy_file_range_in",
        "fh_in off_in nodeid_out fh_out off_out len flags",
    ),
    "COPY_FILE_RANGE_OUT": ("struct fuse_copy_file_range_out", "bytes_copied"),
    "STATX_IN": ("struct fuse_statx_in", "getattr_flags reserved fh sx_flags sx_mask"),
    "STATX_OUT": (
        "struct fuse_statx_out",
        "attr_valid attr_valid_nsec flags "
        + below("stat", "mask blksize attributes nlink uid gid mode ino size blocks")
        + f" stat.attributes_mask {STATX_TIMES} "
        + below("stat", "rdev_major rdev_minor dev_major dev_minor"),
    ),
    "DIRENT": ("struct fuse_dirent", DIRENT),
    "DIRENTPLUS": (
        "struct fuse_direntplus",
        f"{below('entry_out', ENTRY_OUT)} {below('dirent', DIRENT)}",
    ),
    "INVAL_INODE_OUT": ("struct fuse_notify_inval_inode_out", "ino off len"),
    "INVAL_ENTRY_OUT": ("struct fuse_notify_inval_entry_out", "parent namelen flags"),
}
# Unsigned in the header, but the kernel takes them for signed: what was before 1970 is negative.
TIMES = {"atime", "mtime", "ctime"}

# Prefix in the module, prefix in the header.
CONSTANT_PREFIXES = {
    "FOPEN_": "FOPEN_",
    "FATTR_": "FATTR_",
    "GETATTR_": "FUSE_GETATTR_",
    "OPEN_KILL": "FUSE_OPEN_KILL",
    "WRITE_KILL": "FUSE_WRITE_KILL",
    "FSYNC_": "FUSE_FSYNC_",
    "SETXATTR_ACL": "FUSE_SETXATTR_ACL",
    "IOCTL_DIR": "FUSE_IOCTL_DIR",
    "EXPIRE_ONLY": "FUSE_EXPIRE_ONLY",
    "ROOT_ID": "FUSE_ROOT_ID",
    "MAJOR": "FUSE_KERNEL_VERSION",
}
ENUMERATIONS: dict[type[enum.IntEnum | enum.IntFlag], str] = {
    protocol.Opcode: "FUSE_",
    protocol.Init: "FUSE_",
    protocol.Notify: "FUSE_NOTIFY_",
}


@dataclass(frozen=True)
class Field:
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True)
class Layout:
    size: int
    fields: tuple[Field, ...]


def fields_of(layout: struct.Struct) -> Layout:
    """Where each value of a format lies."""
    found, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        times = int(count or 1)
        size = struct.calcsize(f"={code}")
        if code != "x":
            found += [
                Field(offset + number * size, size, code.islower()) for number in range(times)
            ]
        offset += times * size
    return Layout(layout.size, tuple(found))


def constants() -> dict[str, tuple[str, int]]:
    """Name in the module to the name in the header and the value in the module."""
    found = {
        f"{kind.__name__}.{member.name}": (f"{prefix}{member.name}", int(member))
        for kind, prefix in ENUMERATIONS.items()
        for member in kind
    }
    for name, value in vars(protocol).items():
        for prefix, theirs in CONSTANT_PREFIXES.items():
            if name.startswith(prefix) and isinstance(value, int):
                found[name] = (theirs + name.removeprefix(prefix), value)
    return found


def members(names: str) -> tuple[list[str], str | None]:
    """The members to compare, and the one at which a shorter struct ends."""
    compared, _, end = names.partition(" | ")
    return compared.split(), end or None


def questions() -> Iterable[str]:
    """C statements that tell of every layout and constant on a line."""
    for name, (kind, names) in LAYOUTS.items():
        compared, end = members(names)
        size = f"sizeof({kind})" if end is None else f"offsetof({kind}, {end})"
        yield f'printf("{name} %zu\\n", {size});'
        for member in compared:
            value = f"(({kind} *)0)->{member}"
            yield (
                f'printf("{name} %zu %zu %d\\n", offsetof({kind}, {member}), sizeof({value}), '
                f"(__typeof__({value}))-1 < 0);"
            )
    for name, (theirs, _) in constants().items():
        yield f'printf("{name} %llu\\n", (unsigned long long){theirs});'


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, ...]]]:
    """What the header says of each name: lines of numbers."""
    base = tmp_path_factory.mktemp("header")
    lines = "\n".join(questions())
    (base / "ask.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fuse.h>\n"
        f"{NEWER}\nint main(void) {{\n{lines}\nreturn 0;\n}}\n"
    )
    subprocess.run(["gcc", "-o", base / "ask", base / "ask.c"], check=True)
    done = subprocess.run([base / "ask"], capture_output=True, text=True, check=True)
    answers: dict[str, list[tuple[int, ...]]] = {}
    for line in done.stdout.splitlines():
        name, *numbers = line.split()
        answers.setdefault(name, []).append(tuple(map(int, numbers)))
    return answers


def test_every_struct_is_compared() -> None:
    ours = {name for name, value in vars(protocol).items() if isinstance(value, struct.Struct)}
    assert ours == LAYOUTS.keys()


def test_every_number_is_compared() -> None:
    ours = {name for name, value in vars(protocol).items() if type(value) is int}
    compared = {name for name in constants() if "." not in name}
    # What this side chooses itself.
    assert ours == compared | {"MINOR", "OLDEST_MINOR"}


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_struct_is_laid_out_as_in_the_header(
    told: dict[str, list[tuple[int, ...]]], name: str
) -> None:
    (size,), *places = told[name]
    names, _ = members(LAYOUTS[name][1])
    theirs = Layout(
        size,
        tuple(
            Field(offset, length, bool(signed) or member.rpartition(".")[2] in TIMES)
            for (offset, length, signed), member in zip(places, names, strict=True)
        ),
    )
    assert fields_of(getattr(protocol, name)) == theirs


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", constants())
def test_a_number_is_the_headers(told: dict[str, list[tuple[int, ...]]], name: str) -> None:
    assert told[name] == [(constants()[name][1],)]


def test_a_format_has_no_padding_of_its_own() -> None:
    native = [name for name in LAYOUTS if not getattr(protocol, name).format.startswith("=")]
    assert native == []
