"""Names, paths, symbolic links and special files."""

import errno
import fcntl
import os
import shutil
import socket
import stat

from support import (
    EXCHANGE,
    NOREPLACE,
    ROOT,
    UPPER,
    WHITEOUT,
    check,
    fails,
    mount_only,
    read,
    rename,
    write,
)


@check
def names_of_255_arbitrary_bytes():
    names = [
        b"n" * 255,
        b"\xff" * 255,
        bytes(byte for byte in range(1, 256) if byte != ord("/")),
        "ü".encode() * 127,
        b".wh.name",
        b".wh..wh..opq",
        b"-rf",
        b"new\nline",
        b" ",
    ]
    for name in names:
        for make, remove in [(os.mkdir, os.rmdir), (lambda n: write(n, b""), os.unlink)]:
            make(name)
            assert name in os.listdir(b".")
            os.rename(name, b"dir/" + name)
            assert name in os.listdir(b"dir")
            remove(b"dir/" + name)
    for call in [os.stat, os.mkdir, os.unlink, os.rmdir, os.listdir]:
        fails(errno.ENAMETOOLONG, call, b"n" * 256)
    fails(errno.ENAMETOOLONG, os.rename, "small", "n" * 256)
    fails(errno.ENAMETOOLONG, os.symlink, "x", "n" * 256)
    assert os.pathconf(".", "PC_NAME_MAX") == 255
    assert os.statvfs(".").f_namemax == 255


@check
def symlinks_of_4095_bytes():
    for length in [1, 59, 60, 61, 255, 256, 4000, 4095]:
        target = ("t" * 254 + "/") * 17
        target = target[:length]
        os.symlink(target, f"l{length}")
        assert os.readlink(f"l{length}") == target
        assert os.lstat(f"l{length}").st_size == length
    fails(errno.ENAMETOOLONG, os.symlink, "t" * 4096, "long")
    fails(errno.ENOENT, os.symlink, "", "nothing")
    os.symlink("loop", "loop")
    fails(errno.ELOOP, os.stat, "loop")


@check
def paths_deeper_than_path_max():
    fd = os.open(".", os.O_RDONLY)
    for depth in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    file = os.open("bottom", os.O_CREAT | os.O_RDWR, dir_fd=fd)
    os.write(file, b"deep")
    os.rename("bottom", "moved", src_dir_fd=fd, dst_dir_fd=fd)
    assert os.pread(file, 10, 0) == b"deep"
    os.symlink("moved", "link", dir_fd=fd)
    assert os.stat("link", dir_fd=fd).st_size == 4
    os.rename("d" * 200, "dir/moved")
    assert os.stat("moved", dir_fd=fd).st_size == 4
    shutil.rmtree("dir/moved")


@check
def rename_flags():
    fails(errno.EEXIST, rename, "small", "big", NOREPLACE)
    rename("small", "fresh", NOREPLACE)
    fails(errno.ENOENT, rename, "small", "big", EXCHANGE)
    rename("fresh", "dir", EXCHANGE)
    assert read("dir") == b"alpha\n" and sorted(os.listdir("fresh")) == ["sub", "x", "y"]
    fails(errno.EINVAL, rename, "fresh", "fresh/sub/below", 0)
    fails(errno.EINVAL, rename, "fresh", "big", NOREPLACE | EXCHANGE)
    fails(errno.ENOTDIR, os.rename, "fresh", "dir")
    fails(errno.EISDIR, os.rename, "dir", "fresh")
    os.rename("fresh", "empty")
    assert sorted(os.listdir("empty")) == ["sub", "x", "y"]
    os.rename("empty/sub/z", "empty/x")
    assert sorted(os.listdir("empty")) == ["sub", "x", "y"]


@mount_only
def rename_whiteout_is_refused():
    fails(errno.EINVAL, rename, "small", "fresh", WHITEOUT)


@mount_only
def links_across_the_mount_are_refused():
    with open(os.path.join(UPPER, "..", "outside"), "w"):
        pass
    fails(errno.EXDEV, os.link, os.path.join(UPPER, "..", "outside"), "inside")
    fails(errno.EXDEV, os.rename, "small", os.path.join(UPPER, "..", "outside"))


@check
def statvfs_reports_the_underlying_file_system():
    seen = os.statvfs(".")
    assert seen.f_bsize >= 512 and seen.f_blocks >= seen.f_bfree >= seen.f_bavail > 0
    assert seen.f_files >= seen.f_ffree > 0
    # Other programs use the disk, too: retry until nothing changed between the calls.
    for _ in range(1000):
        before, seen, after = os.statvfs(UPPER or "."), os.statvfs("."), os.statvfs(UPPER or ".")
        if before == after:
            assert (seen.f_frsize, seen.f_blocks, seen.f_bfree) == (before.f_frsize, before.f_blocks, before.f_bfree)
            return
    assert False, "the underlying file system changed between all calls"


@check
def special_files_work():
    opened = os.open("fifo", os.O_RDWR)
    os.write(opened, b"through the fifo")
    assert os.read(os.open("fifo", os.O_RDONLY | os.O_NONBLOCK), 100) == b"through the fifo"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.listen(1)
    client = socket.socket(socket.AF_UNIX)
    client.connect("socket")
    client.send(b"hello")
    assert listener.accept()[0].recv(10) == b"hello"
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    if ROOT:
        for number, (major, minor) in enumerate([(0, 0), (1, 3), (259, 70_000)]):
            os.mknod(f"device{number}", 0o600 | stat.S_IFCHR, os.makedev(major, minor))
            assert os.stat(f"device{number}").st_rdev == os.makedev(major, minor)
    else:
        fails(errno.EPERM, os.mknod, "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@mount_only
def fifo_writes_do_not_change_times():
    os.utime("fifo", (1000, 1000))
    opened = os.open("fifo", os.O_RDWR)
    os.write(opened, b"x")
    assert os.stat("fifo").st_mtime == 1000


@mount_only
def fiemap_and_getflags_are_refused():
    fd = os.open("big", os.O_RDONLY)
    fails(errno.EOPNOTSUPP, fcntl.ioctl, fd, 0xC020660B, bytearray(32))  # FS_IOC_FIEMAP
    fails(errno.ENOTTY, fcntl.ioctl, fd, 0x80086601, bytearray(8))  # FS_IOC_GETFLAGS
