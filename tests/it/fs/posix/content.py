"""Reading, writing, holes and mappings."""

import errno
import fcntl
import mmap
import os
import socket
import subprocess
import threading
import time

from support import (
    COLLAPSE,
    INSERT,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    check,
    fails,
    fallocate,
    mount_only,
    read,
)


@mount_only
def o_tmpfile_is_refused():
    fails(errno.EOPNOTSUPP, os.open, ".", os.O_TMPFILE | os.O_RDWR)
    import tempfile

    with tempfile.TemporaryFile(dir=".") as file:  # falls back to a named file
        file.write(b"x")
    assert not any(name.startswith("tmp") for name in os.listdir("."))


@check
def concurrent_appends_do_not_mix():
    lines, workers = 300, 6
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            fd = os.open("small", os.O_WRONLY | os.O_APPEND)
            for number in range(lines):
                os.write(fd, f"{worker} {number} {'x' * (worker * 30)}\n".encode())
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = read("small").decode().splitlines()[1:]
    expected = {f"{w} {n} {'x' * (w * 30)}" for w in range(workers) for n in range(lines)}
    assert len(found) == lines * workers and set(found) == expected


@check
def concurrent_first_writes_lose_nothing():
    size = os.stat("big").st_size
    start = threading.Barrier(16)

    def work(own):
        fd = os.open("big", os.O_RDWR)
        start.wait()
        for at in range(own, size, 16 * 997):
            os.pwrite(fd, bytes([own]), at)
        os.close(fd)

    expected = bytearray(read("big"))
    for own in range(16):
        for at in range(own, size, 16 * 997):
            expected[at] = own
    threads = [threading.Thread(target=work, args=(own,)) for own in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read("big") == bytes(expected)


@check
def direct_io():
    buffer = mmap.mmap(-1, 8192)
    original = read("big")
    fd = os.open("big", os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [buffer], 131_072) == 8192
    assert bytes(buffer) == original[131_072 : 131_072 + 8192]
    buffer[:] = b"D" * 8192
    assert os.pwritev(fd, [buffer], 4096) == 8192
    os.close(fd)
    assert read("big") == original[:4096] + b"D" * 8192 + original[12_288:]
    # Cached and direct I/O see each other's writes.
    cached = os.open("big", os.O_RDWR)
    os.pread(cached, 100, 0)
    fd = os.open("big", os.O_RDWR | os.O_DIRECT)
    buffer[:] = b"E" * 8192
    os.pwritev(fd, [buffer], 0)
    assert os.pread(cached, 8192, 0) == b"E" * 8192
    os.pwrite(cached, b"cached", 0)
    os.preadv(fd, [buffer], 0)
    assert buffer[:6] == b"cached"


@check
def fallocate_modes():
    for path in ["big", "fresh"]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        good = bytearray(os.pread(fd, 1 << 20, 0))
        fallocate(fd, KEEP_SIZE, len(good), 50_000)
        assert os.fstat(fd).st_size == len(good)
        fallocate(fd, 0, len(good), 60_000)
        good.extend(bytes(60_000))
        assert os.pread(fd, 1 << 20, 0) == bytes(good)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 5000, 30_000)
        good[5000:35_000] = bytes(30_000)
        fallocate(fd, ZERO_RANGE, len(good) - 100, 300)
        good[-100:] = bytes(300)
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, len(good) - 10, 300)
        good[-10:] = bytes(10)
        assert os.pread(fd, 1 << 20, 0) == bytes(good)
        fails(errno.EOPNOTSUPP, fallocate, fd, PUNCH_HOLE, 0, 10)
        fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
        reader = os.open(path, os.O_RDONLY)
        fails(errno.EBADF, fallocate, reader, 0, 0, 10)


@mount_only
def collapse_and_insert_range_are_refused():
    fd = os.open("big", os.O_RDWR)
    fails(errno.EOPNOTSUPP, fallocate, fd, COLLAPSE, 4096, 4096)
    fails(errno.EOPNOTSUPP, fallocate, fd, INSERT, 4096, 4096)
    other = os.open("clone", os.O_RDWR | os.O_CREAT)
    fails(errno.EOPNOTSUPP, fcntl.ioctl, other, 0x40049409, fd)


@check
def seek_hole_and_seek_data():
    for path in ["sparse", "made"]:
        if path == "made":
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 3 << 20)
            os.pwrite(fd, b"island", 1 << 20)
            os.fsync(fd)
        else:
            fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        data = os.lseek(fd, 0, os.SEEK_DATA)
        assert 0 < data <= 1 << 20, data
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        assert 1 << 20 < hole < size
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        fails(errno.ENXIO, os.lseek, fd, hole, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, size, os.SEEK_HOLE)
        fails(errno.ENXIO, os.lseek, fd, size + 1, os.SEEK_DATA)
        assert os.lseek(fd, 5, os.SEEK_SET) == 5 and os.lseek(fd, 2, os.SEEK_CUR) == 7
    fd = os.open("big", os.O_RDONLY)
    size = os.fstat(fd).st_size
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0 and os.lseek(fd, 0, os.SEEK_HOLE) == size


@check
def mapped_writes_are_data():
    for path in ["sparse", "made"]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 3 << 20)
        with mmap.mmap(fd, 3 << 20) as view:
            view[2 << 20] = view[(2 << 20) + (512 << 10)] = 1
            assert os.lseek(fd, 3 << 19, os.SEEK_DATA) == 2 << 20
            hole = os.lseek(fd, 2 << 20, os.SEEK_HOLE)
            assert 2 << 20 < hole < (2 << 20) + (512 << 10), hole
            view[hole] = view[0] = 1
            assert os.lseek(fd, 2 << 20, os.SEEK_HOLE) > hole
            assert os.lseek(fd, hole, os.SEEK_DATA) == hole and os.lseek(fd, 0, os.SEEK_DATA) == 0
            view[5] = 2
        assert os.pread(fd, 6, 0) == b"\x01\0\0\0\0\x02"


@check
def copy_file_range_and_sendfile():
    original = read("big")
    source, target = os.open("big", os.O_RDONLY), os.open("copy", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(original):
        count = os.copy_file_range(source, target, 1 << 30)
        assert count > 0
        done += count
    assert read("copy") == original
    assert os.copy_file_range(source, target, 10) == 0
    lower = os.open("small", os.O_RDWR)
    assert os.copy_file_range(source, lower, 5000, 100_000, 2) == 5000
    assert read("small")[2:5002] == original[100_000:105_000]
    fails(errno.EINVAL, os.copy_file_range, target, target, 100, 0, 50)
    with open("copy", "rb") as file, socket.socket() as _:
        other = os.open("sent", os.O_WRONLY | os.O_CREAT)
        assert os.sendfile(other, file.fileno(), 0, 100_000) == 100_000
    assert read("sent") == original[:100_000]


@check
def vectored_and_boundary_io():
    original = read("big")
    fd = os.open("big", os.O_RDWR)
    parts = [bytearray(7), bytearray(4096), bytearray(100)]
    assert os.preadv(fd, parts, 131_000) == 4203
    assert b"".join(parts) == original[131_000 : 131_000 + 4203]
    assert os.pread(fd, 100, len(original)) == b"" and os.pread(fd, 100, len(original) - 3) == original[-3:]
    os.pwritev(fd, [b"one", b"two"], len(original) + 10_000)
    assert read("big") == original + bytes(10_000) + b"onetwo"
    assert os.write(fd, b"") == 0
    fails(errno.EISDIR, os.open, "dir", os.O_WRONLY)
    fails(errno.EISDIR, os.read, os.open("dir", os.O_RDONLY), 10)
    fails(errno.EFBIG, os.truncate, "small", 1 << 62)
    fails(errno.ETXTBSY, write_while_running)


def write_while_running():
    running = subprocess.Popen(["./sleep", "60"])
    try:
        # The file is busy once it is being executed.
        while os.readlink(f"/proc/{running.pid}/exe") != os.path.realpath("sleep"):
            time.sleep(0.001)
        os.open("sleep", os.O_WRONLY)
    finally:
        running.kill()
        running.wait()
