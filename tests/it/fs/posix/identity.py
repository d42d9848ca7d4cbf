"""Inode numbers."""

import ctypes
import os
import stat
import struct

from support import EXCHANGE, LIBC, check, rename, write


@check
def inode_numbers_survive_copy_up_and_rename():
    for path in ["big", "dir", "dir/x", "link", "fifo"]:
        before = os.lstat(path)
        os.utime(path, follow_symlinks=False)
        if stat.S_ISREG(before.st_mode):
            write(path, b"new", os.O_WRONLY)
        if not stat.S_ISLNK(before.st_mode):
            os.chmod(path, 0o700)
        os.rename(path, path + "-moved")
        after = os.lstat(path + "-moved")
        assert (before.st_ino, before.st_dev) == (after.st_ino, after.st_dev), path
        os.rename(path + "-moved", path)
    assert len({os.lstat(path).st_dev for path in ["big", "dir", "small", "link", "."]}) == 1


@check
def d_ino_equals_st_ino():
    write("dir/new", b"")
    write("dir/x", b"changed")
    for place in [".", "dir"]:
        for entry in os.scandir(place):
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino, entry.path
    # getdents also lists "." and "..".
    assert listing("dir")[b"."] == os.stat("dir").st_ino
    assert listing("dir")[b".."] == os.stat(".").st_ino
    assert listing("dir/sub")[b".."] == os.stat("dir").st_ino
    # Listed twice, so that the kernel may cache the listing; then moved.
    assert listing("dir/sub") == listing("dir/sub")
    os.rename("dir/sub", "many/sub")
    assert listing("many/sub")[b".."] == os.stat("many").st_ino
    assert listing("empty") == listing("empty")
    rename("many/sub", "empty", EXCHANGE)
    assert listing("empty")[b".."] == os.stat(".").st_ino
    assert listing("many/sub")[b".."] == os.stat("many").st_ino


def listing(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    buffer, found = ctypes.create_string_buffer(65536), {}
    while True:
        count = LIBC.syscall(217, fd, buffer, 65536)
        assert count >= 0, ctypes.get_errno()
        if count == 0:
            os.close(fd)
            return found
        at = 0
        while at < count:
            number, _, length = struct.unpack_from("<QqH", buffer.raw, at)
            found[buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]] = number
            at += length


@check
def inode_numbers_are_unique():
    numbers = set()
    held = []
    for count in range(300):
        fd = os.open(f"n{count}", os.O_CREAT | os.O_RDWR)
        numbers.add(os.fstat(fd).st_ino)
        os.unlink(f"n{count}")
        held.append(fd)
    assert len(numbers) == 300
