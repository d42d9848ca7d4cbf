"""inotify and sync calls."""

import ctypes
import os
import select
import struct

from support import LIBC, check, write


@check
def inotify_reports_changes():
    watcher = LIBC.inotify_init1(os.O_NONBLOCK)
    everything = 0xFFF
    assert LIBC.inotify_add_watch(watcher, b"dir", everything) >= 0
    own = LIBC.inotify_add_watch(watcher, b"small", everything)
    assert own >= 0
    write("dir/made", b"x")
    os.rename("dir/made", "dir/renamed")
    os.unlink("dir/renamed")
    write("small", b"y", os.O_WRONLY)
    os.chmod("small", 0o600)
    os.unlink("small")
    select.select([watcher], [], [], 5)
    events, raw, at = [], os.read(watcher, 65536), 0
    while at < len(raw):
        watch, mask, _, length = struct.unpack_from("iIII", raw, at)
        name = raw[at + 16 : at + 16 + length].rstrip(b"\0").decode()
        events.append((watch == own, mask & 0xFFFF, name))
        at += 16 + length
    for wanted in [
        (False, 0x100, "made"), (False, 0x2, "made"), (False, 0x8, "made"), (False, 0x40, "made"),
        (False, 0x80, "renamed"), (False, 0x200, "renamed"),
        (True, 0x2, ""), (True, 0x4, ""), (True, 0x400, ""),
    ]:
        assert wanted in events, (wanted, events)


@check
def sync_calls_succeed():
    for path in ["small", "big", "dir", "."]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        assert LIBC.syncfs(fd) == 0
    write("fresh", b"x")
    fd = os.open("fresh", os.O_RDWR | os.O_SYNC)
    os.write(fd, b"synced")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0) == b"synced"
    LIBC.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint]
    assert LIBC.sync_file_range(fd, 0, 0, 7) == 0
