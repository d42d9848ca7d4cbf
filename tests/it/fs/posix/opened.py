"""Descriptors and mappings that were opened before a change."""

import ctypes
import errno
import mmap
import os
import stat

from support import LIBC, check, in_child, read, write


@check
def open_descriptor_sees_later_writes():
    old = os.open("big", os.O_RDONLY)
    assert os.pread(old, 10, 0) == read("big")[:10]
    write("big", b"CHANGED", os.O_WRONLY)
    assert os.pread(old, 7, 0) == b"CHANGED"
    os.truncate("big", 3)
    assert os.fstat(old).st_size == 3 and os.pread(old, 10, 0) == b"CHA"
    with open("big", "ab") as file:
        file.write(b"more")
    assert os.pread(old, 10, 0) == b"CHAmore"


@check
def mapping_sees_later_writes():
    fd = os.open("big", os.O_RDONLY)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as old:
        private = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[0:3] = b"own"
        assert old[0:3] != b"own" and old[200_000:200_007] != b"CHANGED"
        writer = os.open("big", os.O_WRONLY)
        os.pwrite(writer, b"CHANGED", 200_000)
        os.pwrite(writer, b"CHANGED", 0)
        assert old[200_000:200_007] == b"CHANGED" and old[0:7] == b"CHANGED"
        assert private[0:3] == b"own"
        assert read("big")[0:7] == b"CHANGED"


@check
def shared_mappings_are_coherent():
    fd = os.open("big", os.O_RDWR)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size) as ours:

        def theirs():
            other = os.open("big", os.O_RDWR)
            with mmap.mmap(other, size) as mapping:
                mapping[150_000:150_005] = b"child"
                os.pwrite(other, b"written", 10)
                assert mapping[10:17] == b"written"
            return 0

        assert in_child(theirs) == 0
        assert ours[150_000:150_005] == b"child" and ours[10:17] == b"written"
        ours[150_000:150_006] = b"parent"
        assert os.pread(fd, 6, 150_000) == b"parent"
        ours.flush()
    assert read("big")[150_000:150_006] == b"parent"


@check
def unlinked_open_file_stays_usable():
    for path in ["small", "big"]:
        fd = os.open(path, os.O_RDWR)
        expected = os.pread(fd, 100, 0)
        os.unlink(path)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == expected
        os.pwrite(fd, b"still here", 0)
        assert os.pread(fd, 10, 0) == b"still here"
        os.ftruncate(fd, 4)
        assert os.fstat(fd).st_size == 4 and os.pread(fd, 10, 0) == b"stil"
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        assert os.lseek(fd, 0, os.SEEK_END) == 4
        assert LIBC.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, b"back", 0x400) == -1
        assert ctypes.get_errno() == errno.ENOENT
        os.close(fd)
    assert not [name for name in os.listdir(".") if name.startswith((".fuse", ".nfs"))]


@check
def replaced_open_file_stays_usable():
    fd = os.open("small", os.O_RDWR)
    write("fresh", b"fresh")
    os.rename("fresh", "small")
    assert read("small") == b"fresh" and os.pread(fd, 5, 0) == b"alpha"
    assert os.fstat(fd).st_nlink == 0
