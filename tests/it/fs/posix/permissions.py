"""Permissions, owners and set-user-ID bits."""

import ctypes
import errno
import mmap
import os
import stat
import struct

from support import (
    KEEP_SIZE,
    LIBC,
    PUNCH_HOLE,
    ROOT,
    check,
    fails,
    fallocate,
    other_user,
    read,
    write,
)


def with_open(change, flags=os.O_RDWR):
    def open_and_change(path):
        fd = os.open(path, flags)
        change(fd)
        os.close(fd)

    return open_and_change


def copy_into(fd):
    source = os.open("big", os.O_RDONLY)
    os.copy_file_range(source, fd, 10)
    os.close(source)


# Calls that change the content of a file.
CHANGES = [
    with_open(lambda fd: os.write(fd, b"x")),
    with_open(lambda fd: os.ftruncate(fd, 1)),
    with_open(lambda fd: fallocate(fd, 0, 0, 100)),
    with_open(lambda fd: os.pwritev(fd, [b"x"], 3)),
    with_open(lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 10)),
    with_open(copy_into),
    with_open(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND),
    with_open(lambda fd: os.writev(fd, [mmap.mmap(-1, 4096)]), os.O_WRONLY | os.O_DIRECT),
    with_open(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    lambda path: os.truncate(path, 7),
]


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@check
def writes_clear_set_user_id():
    for path in ["small", "fresh"]:
        write(path, b"x")
        for change in CHANGES:
            os.chmod(path, 0o6777)
            if ROOT:
                assert other_user(lambda: change(path)) == 0
            else:
                change(path)
            assert mode_of(path) == 0o777, oct(mode_of(path))
            if ROOT:
                os.chmod(path, 0o6777)
                change(path)
                assert mode_of(path) == 0o6777
        # A set-group-ID bit without group execution stays if the writer is in the group.
        for change in CHANGES:
            os.chmod(path, 0o2767)
            if ROOT:
                assert other_user(lambda: change(path)) == 0
                assert mode_of(path) == 0o767, oct(mode_of(path))
                os.chown(path, -1, 4321)
                os.chmod(path, 0o2767)
                assert other_user(lambda: change(path), groups=[1234, 4321]) == 0
            else:
                change(path)
            assert mode_of(path) == 0o2767, oct(mode_of(path))


def cached_mode(path):
    """Returns the mode that the kernel has cached, without a request for other attributes."""
    buffer = ctypes.create_string_buffer(256)
    # STATX_MODE alone.
    assert LIBC.statx(-100, os.fsencode(path), 0, 2, buffer) == 0
    return struct.unpack_from("H", buffer.raw, 28)[0] & 0o7777


@check
def cleared_mode_bits_are_visible_at_once():
    for path in ["small", "fresh"]:
        write(path, b"x")
        for change in CHANGES:
            os.chmod(path, 0o6777)
            assert cached_mode(path) == 0o6777
            if ROOT:
                assert other_user(lambda: change(path)) == 0
            else:
                change(path)
            assert cached_mode(path) == 0o777, oct(cached_mode(path))


@check
def chown_clears_set_user_id():
    os.chmod("small", 0o6755)
    os.chown("small", os.geteuid(), os.getegid())
    assert stat.S_IMODE(os.stat("small").st_mode) == 0o755
    os.chmod("small", 0o2666)
    os.chown("small", os.geteuid(), os.getegid())
    assert mode_of("small") == 0o2666
    if ROOT:
        # From a group that the owner is not in, to one that the owner is in.
        os.chown("small", 65534, 4321)
        os.chmod("small", 0o2666)
        assert other_user(lambda: os.chown("small", -1, 65534)) == 0
        assert mode_of("small") == 0o666
    os.chmod("dir", 0o2755)
    os.chown("dir", os.geteuid(), os.getegid())
    assert stat.S_IMODE(os.stat("dir").st_mode) == 0o2755
    if not ROOT:
        fails(errno.EPERM, os.chown, "small", 12345, -1)


@check
def chown_without_owner_clears_set_user_id():
    def change():
        for path in ["small", "fresh", "dir"]:
            before = os.stat(path).st_ctime_ns
            # The clock of the file system has a coarse resolution.
            while os.fstat(clock).st_ctime_ns <= before:
                os.pwrite(clock, b"x", 0)
            os.chown(path, -1, -1)
            assert os.stat(path).st_ctime_ns > before, path

    clock = os.open("clock", os.O_RDWR | os.O_CREAT)
    write("fresh", b"x")
    for path in ["small", "fresh"]:
        if ROOT:
            os.chown(path, 65534, 65534)
        os.chmod(path, 0o6755)
    if ROOT:
        os.chown("dir", 65534, 65534)
        assert other_user(change) == 0
    else:
        change()
    for path in ["small", "fresh"]:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o755, path
    if ROOT:
        # A call of another user does not, whatever it returns.
        os.chmod("tool", 0o6777)
        other_user(lambda: os.chown("tool", -1, -1))
        assert stat.S_IMODE(os.stat("tool").st_mode) == 0o6777
        # A write of root keeps the bits.
        write("tool", b"x")
        assert stat.S_IMODE(os.stat("tool").st_mode) == 0o6777


@check
def set_group_id_directories_pass_on_their_group():
    group = os.getegid()
    if ROOT:
        group = 4321
        os.chown("dir", -1, group)
    os.chmod("dir", 0o2775)
    os.mkdir("dir/made", 0o755)
    write("dir/file", b"")
    os.symlink("x", "dir/symlink")
    assert os.stat("dir/made").st_gid == os.stat("dir/file").st_gid == group
    assert os.lstat("dir/symlink").st_gid == group
    assert os.stat("dir/made").st_mode & stat.S_ISGID
    assert not os.stat("dir/file").st_mode & stat.S_ISGID


@check
def sticky_bit_protects_files_of_others():
    os.mkdir("shared")
    os.chmod("shared", 0o1777)
    write("shared/mine", b"")
    if not ROOT:
        os.unlink("shared/mine")
        return
    assert other_user(lambda: os.unlink("shared/mine")) == errno.EPERM
    assert other_user(lambda: os.rename("shared/mine", "shared/theirs")) == errno.EPERM
    assert other_user(lambda: write("shared/own", b"")) == 0
    assert other_user(lambda: os.unlink("shared/own")) == 0
    os.chmod("shared", 0o777)
    assert other_user(lambda: os.unlink("shared/mine")) == 0


@check
def umask_is_applied_once():
    for mask in [0, 0o022, 0o027, 0o777]:
        old = os.umask(mask)
        try:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir("d", 0o777)
            os.mkfifo("p", 0o666)
        finally:
            os.umask(old)
        modes = [stat.S_IMODE(os.lstat(path).st_mode) for path in ("f", "d", "p")]
        assert modes == [0o666 & ~mask, 0o777 & ~mask, 0o666 & ~mask], (oct(mask), modes)
        os.unlink("f")
        os.rmdir("d")
        os.unlink("p")


@check
def modes_are_enforced():
    if not ROOT:
        os.chmod("small", 0)
        fails(errno.EACCES, os.open, "small", os.O_RDONLY)
        os.chmod("dir", 0o500)
        fails(errno.EACCES, os.unlink, "dir/x")
        fails(errno.EACCES, os.mkdir, "dir/new")
        os.chmod("dir", 0o600)
        fails(errno.EACCES, os.stat, "dir/x")
        os.chmod("dir", 0o700)
        return
    os.chmod("small", 0o600)
    assert other_user(lambda: read("small") and 0) == errno.EACCES
    os.chmod("small", 0o604)
    assert other_user(lambda: read("small") and 0) == 0
    assert other_user(lambda: os.chmod("small", 0o777)) == errno.EPERM
    assert other_user(lambda: os.utime("small", (1, 1))) == errno.EPERM
    assert other_user(lambda: os.unlink("dir/x")) == errno.EACCES
    fd = os.open("small", os.O_RDONLY)
    os.chmod("small", 0)
    assert os.read(fd, 5) == b"alpha"
