"""Shared by all checks."""

import ctypes
import errno
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
CHECKS = {}
MOUNT_ONLY = set()
ROOT = os.geteuid() == 0
UPPER = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 8, 16, 32


def check(function):
    CHECKS[function.__name__] = function
    return function


def mount_only(function):
    MOUNT_ONLY.add(function.__name__)
    return check(function)


def fails(number, call, *args, **named):
    try:
        call(*args, **named)
    except OSError as error:
        assert error.errno == number, (error, errno.errorcode[number])
        return
    raise AssertionError(f"{call.__name__}{args} should fail with {errno.errorcode[number]}")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data, flags=os.O_WRONLY | os.O_CREAT):
    fd = os.open(path, flags, 0o644)
    os.write(fd, data)
    os.close(fd)


def fallocate(fd, mode, offset, length):
    LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if LIBC.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def rename(source, target, flags):
    if LIBC.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def other_user(function, groups=()):
    """Calls a function as the user 65534. Returns its result, or the number of the error that it raised."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setgroups(list(groups))
            os.setgid(65534)
            os.setuid(65534)
            status = function() or 0
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(function):
    """Calls a function in another process and returns its result, a small number."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = int(function() or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copied_up():
    """Returns the paths of the files in the upper directory."""
    found = set()
    for root, _, names in os.walk(UPPER):
        if "/upper" in root:
            found.update(os.path.join(root.split("/upper", 1)[1], name)[1:] for name in names)
    return found
