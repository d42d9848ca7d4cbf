"""Extended attributes and times."""

import ctypes
import errno
import os
import struct
import subprocess

from support import LIBC, ROOT, check, fails, mount_only, other_user, read, write


@mount_only
def posix_acls_are_refused():
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF)
    for name in ["system.posix_acl_access", "system.posix_acl_default"]:
        fails(errno.EOPNOTSUPP, os.setxattr, "dir", name, acl)
        fails(errno.EOPNOTSUPP, os.getxattr, "dir", name)
    # Tools that copy them continue.
    subprocess.run(["cp", "-a", "rich", "rich-copy"], check=True)
    assert os.getxattr("rich-copy", "user.a") == b"value"


@mount_only
def xattrs_of_all_sizes():
    sizes = [0, 1, 255, 256, 4000, 4097, 65_536]
    for path in ["rich", "dir"]:
        for size in sizes:
            os.setxattr(path, f"user.s{size}", b"v" * size)
        for size in sizes:
            assert os.getxattr(path, f"user.s{size}") == b"v" * size
        fails(errno.E2BIG, os.setxattr, path, "user.large", b"v" * 65_537)
        name = "user." + "n" * 250
        os.setxattr(path, name, b"1")
        assert name in os.listxattr(path)
        fails(errno.ERANGE, os.setxattr, path, name + "n", b"1")
        # The attributes of an object are limited to 1 MiB in total.
        full = 0
        while full < 32:
            try:
                os.setxattr(path, f"user.full{full}", b"v" * 65_536)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                break
            full += 1
        assert 10 < full < 16, full
        assert len(os.listxattr(path)) > full
        os.setxattr(path, "user.full0", b"w" * 65_536)
        os.setxattr(path, "user.full1", b"w")
        os.setxattr(path, f"user.full{full}", b"v" * 65_000)
        fails(errno.ENOSPC, os.setxattr, path, "user.full1", b"w" * 65_536)


@check
def xattrs_are_created_replaced_and_removed():
    for path in ["rich", "dir", "small"]:
        os.setxattr(path, "user.one", b"1", os.XATTR_CREATE)
        fails(errno.EEXIST, os.setxattr, path, "user.one", b"2", os.XATTR_CREATE)
        os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
        fails(errno.ENODATA, os.setxattr, path, "user.two", b"2", os.XATTR_REPLACE)
        assert os.getxattr(path, "user.one") == b"2"
        os.removexattr(path, "user.one")
        fails(errno.ENODATA, os.getxattr, path, "user.one")
        fails(errno.ENODATA, os.removexattr, path, "user.one")
        fails(errno.EOPNOTSUPP, os.setxattr, path, "nowhere.x", b"")
    fails(errno.EPERM, os.setxattr, "link", "user.x", b"", follow_symlinks=False)
    fails(errno.EPERM, os.setxattr, "fifo", "user.x", b"")
    if ROOT:
        os.setxattr("small", "trusted.overlay.opaque", b"y")
        os.setxattr("link", "trusted.x", b"y", follow_symlinks=False)
        assert os.getxattr("small", "trusted.overlay.opaque") == b"y"
        assert os.listxattr("link", follow_symlinks=False) == ["trusted.x"]


@check
def trusted_xattrs_are_visible_to_root_only():
    os.setxattr("small", "user.x", b"y")
    if ROOT:
        os.setxattr("small", "trusted.x", b"y")
        assert sorted(os.listxattr("small")) == ["trusted.x", "user.x"]
        os.chmod("small", 0o644)

        def as_other_user():
            assert os.listxattr("small") == ["user.x"], os.listxattr("small")
            fails(errno.ENODATA, os.getxattr, "small", "trusted.x")

        assert other_user(as_other_user) == 0
    assert "user.x" in os.listxattr("small")


@check
def creation_times_are_monotonic():
    for number in range(50):
        made = [f"made-{number}-{step}" for step in range(5)]
        os.mkdir(made[0])
        write(made[1], b"")
        os.symlink("x", made[2])
        write(made[3], b"x")
        os.mkdir(made[4])
        stats = [os.lstat(path) for path in made]
        for older, younger in zip(stats, stats[1:]):
            assert older.st_mtime_ns <= younger.st_mtime_ns, (made, stats)
            assert older.st_ctime_ns <= younger.st_ctime_ns, (made, stats)


@check
def utimensat_sets_every_combination():
    now, omit = (1 << 30) - 1, (1 << 30) - 2

    def set_times(path, atime, mtime, flags=0):
        pair = struct.pack("qqqq", *atime, *mtime)
        if LIBC.utimensat(-100, path.encode(), pair, flags) != 0:
            raise OSError(ctypes.get_errno(), "utimensat")

    nofollow = 0x100
    for path, flags in [("small", 0), ("dir", 0), ("link", nofollow), ("fifo", 0), ("big", 0)]:
        stat = lambda: os.lstat(path)
        set_times(path, (1, 123_456_789), (2, 987_654_321), flags)
        assert (stat().st_atime_ns, stat().st_mtime_ns) == (1_123_456_789, 2_987_654_321)
        set_times(path, (0, omit), (5, 5), flags)
        assert (stat().st_atime_ns, stat().st_mtime_ns) == (1_123_456_789, 5_000_000_005)
        set_times(path, (7, 7), (0, omit), flags)
        assert (stat().st_atime_ns, stat().st_mtime_ns) == (7_000_000_007, 5_000_000_005)
        ctime = stat().st_ctime_ns
        set_times(path, (0, omit), (0, omit), flags)
        assert stat().st_ctime_ns == ctime
        set_times(path, (0, now), (-5, 0), flags)
        assert stat().st_mtime_ns == -5_000_000_000 and stat().st_atime_ns > 10**18
        fails(errno.EINVAL, set_times, path, (0, 10**9), (0, 0), flags)
    # Through a symbolic link, not on it.
    before = os.lstat("link").st_mtime_ns
    set_times("link", (9, 0), (9, 0))
    assert os.stat("small").st_mtime_ns == 9 * 10**9 and os.lstat("link").st_mtime_ns == before


@check
def directory_times_change_with_their_entries():
    def reset():
        for path in ["dir", "dir/sub", "."]:
            os.utime(path, (1, 1))

    reset()
    write("dir/made", b"")
    assert os.stat("dir").st_mtime > 1 and os.stat(".").st_mtime == 1
    reset()
    os.unlink("dir/made")
    assert os.stat("dir").st_mtime > 1
    reset()
    os.rename("dir/x", "dir/sub/x")
    assert os.stat("dir").st_mtime > 1 and os.stat("dir/sub").st_mtime > 1
    reset()
    write("dir/sub/x", b"content", os.O_WRONLY)
    os.chmod("dir/sub/x", 0o600)
    assert os.stat("dir/sub").st_mtime == 1
    os.utime("dir/sub/x", (1, 1))
    os.truncate("dir/sub/x", 2)
    assert os.stat("dir/sub/x").st_mtime > 1


@mount_only
def reads_do_not_change_access_times():
    os.utime("small", (1000, 1000))
    before = [os.stat(path).st_atime_ns for path in ("small", "big", "dir")]
    read("small")
    read("big")
    os.listdir("dir")
    assert [os.stat(path).st_atime_ns for path in ("small", "big", "dir")] == before


@mount_only
def reads_of_upper_files_do_not_change_access_times():
    write("made", b"new")
    write("small", b"changed", os.O_WRONLY)
    unlinked = os.open("big", os.O_RDWR)
    os.unlink("big")
    os.pwrite(unlinked, b"changed", 0)
    files = [os.open("made", os.O_RDWR), os.open("small", os.O_RDWR), unlinked]
    # With relatime, a read would update access times that are older than the modification.
    for fd in files:
        os.utime(fd, (1000, 2000))
    for fd in files:
        os.fsync(fd)
        # Not from the kernel's cache.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(os.pread(fd, 100, 0)) >= 3
        os.copy_file_range(fd, os.open("copy", os.O_WRONLY | os.O_CREAT, 0o644), 3, 0)
    assert [os.fstat(fd).st_atime for fd in files] == [1000] * 3
