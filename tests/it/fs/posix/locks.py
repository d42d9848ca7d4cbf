"""Locks."""

import errno
import fcntl
import os
import struct

from support import check, fails, in_child, write


@check
def flock_excludes_other_processes():
    fd = os.open("small", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def other():
        mine = os.open("small", os.O_RDWR)
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 7
        return 0

    assert in_child(other) == 7
    write("small", b"copied up", os.O_WRONLY)
    assert in_child(other) == 7, "the copy-up lost the lock"
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert in_child(other) == 0


@check
def posix_locks_exclude_byte_ranges():
    fd = os.open("big", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 50)

    def other(start):
        mine = os.open("big", os.O_RDWR)
        try:
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
        except OSError as error:
            assert error.errno in (errno.EAGAIN, errno.EACCES)
            return 7
        return 0

    assert [in_child(lambda: other(start)) for start in (0, 45, 60, 145, 150)] == [0, 7, 7, 7, 0]
    os.close(os.open("big", os.O_RDONLY))  # closing any descriptor drops the process's locks
    assert in_child(lambda: other(60)) == 0


@check
def open_file_description_locks_exclude_each_other():
    set_lock = 37  # F_OFD_SETLK
    lock = lambda kind: struct.pack("hhqqi4x", kind, 0, 0, 10, 0)
    one, two = os.open("small", os.O_RDWR), os.open("small", os.O_RDWR)
    fcntl.fcntl(one, set_lock, lock(fcntl.F_WRLCK))
    fails(errno.EAGAIN, fcntl.fcntl, two, set_lock, lock(fcntl.F_WRLCK))
    os.close(os.open("small", os.O_RDONLY))
    fails(errno.EAGAIN, fcntl.fcntl, two, set_lock, lock(fcntl.F_RDLCK))
    os.close(one)
    fcntl.fcntl(two, set_lock, lock(fcntl.F_WRLCK))
