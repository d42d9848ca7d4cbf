"""Who may do what."""

import errno
import os
import stat
import time

from support import (
    KEEP_SIZE,
    PUNCH_HOLE,
    ROOT,
    fails,
    fallocate,
    other_user,
    point,
    read,
    write,
)


@point
def writing_takes_the_set_user_id_bits():
    for path in ["small", "fresh"]:
        write(path, b"x")
        for change in [
            lambda fd: os.write(fd, b"x"),
            lambda fd: os.ftruncate(fd, 1),
            lambda fd: fallocate(fd, 0, 0, 100),
            lambda fd: os.pwritev(fd, [b"x"], 3),
            lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 10),
            lambda fd: os.copy_file_range(os.open("big", os.O_RDONLY), fd, 10),
        ]:
            os.chmod(path, 0o6777)
            if ROOT:
                assert other_user(lambda: change(os.open(path, os.O_RDWR))) is not None
            else:
                change(os.open(path, os.O_RDWR))
            mode = stat.S_IMODE(os.stat(path).st_mode)
            assert mode == 0o777, oct(mode)
            if ROOT:
                os.chmod(path, 0o6777)
                change(os.open(path, os.O_RDWR))
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o6777
        # A set-group-id bit without the group's execution is another matter, and stays.
        os.chmod(path, 0o2767)
        if not ROOT:
            write(path, b"y", os.O_WRONLY)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o2767


@point
def giving_a_file_away_takes_the_set_user_id_bits():
    os.chmod("small", 0o6755)
    os.chown("small", os.geteuid(), os.getegid())
    assert stat.S_IMODE(os.stat("small").st_mode) == 0o755
    os.chmod("dir", 0o2755)
    os.chown("dir", os.geteuid(), os.getegid())
    assert stat.S_IMODE(os.stat("dir").st_mode) == 0o2755
    if not ROOT:
        fails(errno.EPERM, os.chown, "small", 12345, -1)


@point
def naming_no_owner_takes_the_set_user_id_bits():
    def change():
        for path in ["small", "fresh", "dir"]:
            before = os.stat(path).st_ctime_ns
            time.sleep(0.02)
            os.chown(path, -1, -1)
            assert os.stat(path).st_ctime_ns > before, path

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
        # Nobody else's call does that, whatever it returns.
        os.chmod("tool", 0o6777)
        other_user(lambda: os.chown("tool", -1, -1))
        assert stat.S_IMODE(os.stat("tool").st_mode) == 0o6777
        # What root writes keeps the bits.
        write("tool", b"x")
        assert stat.S_IMODE(os.stat("tool").st_mode) == 0o6777


@point
def what_is_made_in_a_set_group_id_directory_is_of_its_group():
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


@point
def the_sticky_bit_protects_the_files_of_others():
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


@point
def the_umask_is_applied_once():
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


@point
def permissions_are_those_of_the_modes():
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
