"""What copies a file up, and what a copy-up preserves."""

import errno
import os
import shutil
import subprocess

from support import NOREPLACE, check, copied_up, fails, mount_only, read, rename, write


@check
def copy_up_keeps_metadata():
    before = os.stat("rich")
    names = {name: os.getxattr("rich", name) for name in os.listxattr("rich")}
    assert b"value" in names.values()
    write("rich", b"N", os.O_WRONLY)
    after = os.stat("rich")
    for field in ["st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_ino", "st_atime_ns"]:
        assert getattr(before, field) == getattr(after, field), field
    assert {name: os.getxattr("rich", name) for name in os.listxattr("rich")} == names
    assert after.st_mtime_ns > before.st_mtime_ns
    # Changes of attributes keep the modification time.
    before = os.stat("dir/x")
    os.chmod("dir/x", 0o640)
    os.setxattr("dir/x", "user.new", b"1")
    after = os.stat("dir/x")
    assert (before.st_mtime_ns, before.st_atime_ns) == (after.st_mtime_ns, after.st_atime_ns)
    assert after.st_ctime_ns > before.st_ctime_ns


@check
def copy_up_keeps_times_of_parents():
    before = [os.stat(path).st_mtime_ns for path in [".", "dir", "dir/sub"]]
    write("dir/sub/z", b"changed", os.O_WRONLY)
    os.chmod("dir/x", 0o600)
    os.truncate("dir/y", 0)
    assert [os.stat(path).st_mtime_ns for path in [".", "dir", "dir/sub"]] == before


@check
def copy_up_keeps_holes():
    before = os.stat("sparse")
    assert before.st_blocks * 512 < before.st_size / 2
    write("sparse", b"x", os.O_WRONLY)
    after = os.stat("sparse")
    assert after.st_size == before.st_size and after.st_blocks * 512 < after.st_size / 2
    fd = os.open("sparse", os.O_RDONLY)
    assert os.lseek(fd, 8192, os.SEEK_DATA) <= 1 << 20 and os.pread(fd, 6, 1 << 20) == b"island"
    assert os.lseek(fd, (1 << 20) + 200_000, os.SEEK_HOLE) < before.st_size


@mount_only
def reads_and_failures_copy_nothing_up():
    read("big")
    list(os.walk("."))
    os.stat("small")
    os.listxattr("rich")
    os.readlink("link")
    os.access("small", os.W_OK)
    fails(errno.EEXIST, os.mkdir, "small")
    fails(errno.EEXIST, os.link, "big", "small")
    fails(errno.ENOTDIR, os.rmdir, "small")
    fails(errno.ENOTEMPTY, os.rmdir, "dir")
    fails(errno.ENOTEMPTY, os.rename, "empty", "dir")
    fails(errno.EISDIR, os.rename, "small", "dir")
    fails(errno.EEXIST, rename, "big", "small", NOREPLACE)
    fails(errno.EEXIST, os.open, "small", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fails(errno.EINVAL, os.truncate, "small", -1)
    fails(errno.ENODATA, os.removexattr, "small", "user.none")
    fails(errno.EEXIST, os.setxattr, "rich", "user.a", b"", os.XATTR_CREATE)
    subprocess.run(["./tool"], check=True, stdout=subprocess.DEVNULL)
    assert copied_up() == set(), copied_up()


@mount_only
def open_for_writing_copies_nothing_up():
    for flags in [os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT]:
        os.close(os.open("big", flags))
    fd = os.open("big", os.O_RDWR)
    os.pread(fd, 10, 0)
    os.write(fd, b"")
    assert copied_up() == set()
    # Changes of attributes, names and links do not either.
    os.chmod("big", 0o600)
    os.utime("big")
    os.link("big", "big2")
    os.rename("big", "dir/big3")
    os.setxattr("big2", "user.x", b"y")
    assert copied_up() == set()
    os.pwrite(fd, b"x", 5)
    assert len(copied_up()) == 1, copied_up()


@check
def names_can_change_their_type():
    for name in ["small", "dir", "link", "fifo", "empty"]:
        makers = [
            lambda: write(name, b"new"),
            lambda: os.mkdir(name),
            lambda: os.symlink("new", name),
            lambda: os.mkfifo(name),
        ]
        for make in makers:
            if os.path.isdir(name) and not os.path.islink(name):
                shutil.rmtree(name)
            else:
                os.unlink(name)
            assert not os.path.lexists(name)
            make()
            if os.path.isdir(name) and not os.path.islink(name):
                assert os.listdir(name) == []
        os.unlink(name)
