"""Exact points of what a file system must do, each a function with a name of its own.

    points.py NAME DIRECTORY [UPPER]

DIRECTORY holds the tree that points.rs makes. The same functions run on ext4, so what they say is
what a plain directory does; those marked `mount_only` tell of documented differences, and look
into UPPER, where a mount keeps what was copied up.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
POINTS = {}
MOUNT_ONLY = set()
ROOT = os.geteuid() == 0
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 8, 16, 32


def point(function):
    POINTS[function.__name__] = function
    return function


def mount_only(function):
    MOUNT_ONLY.add(function.__name__)
    return point(function)


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


def other_user(function):
    """Calls a function as somebody else and returns what it returns, a small number."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status = function() or 0
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(function):
    """Calls a function in another process and returns what it returns, a small number."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = int(function() or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copied_up():
    """Content that the upper directory holds, by path."""
    found = set()
    for root, _, names in os.walk(UPPER):
        if "/upper" in root:
            found.update(os.path.join(root.split("/upper", 1)[1], name)[1:] for name in names)
    return found


# --- identity


@point
def numbers_are_kept_by_copy_up_and_rename():
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


@point
def numbers_in_listings_are_those_of_the_objects():
    write("dir/new", b"")
    write("dir/x", b"changed")
    for place in [".", "dir"]:
        for entry in os.scandir(place):
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino, entry.path
    # Through getdents itself, dot and dot-dot too.
    assert listing("dir")[b"."] == os.stat("dir").st_ino
    assert listing("dir")[b".."] == os.stat(".").st_ino
    assert listing("dir/sub")[b".."] == os.stat("dir").st_ino
    # Listed twice, so that it may be kept; then elsewhere.
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


@point
def a_number_is_not_given_to_two_objects():
    numbers = set()
    held = []
    for count in range(300):
        fd = os.open(f"n{count}", os.O_CREAT | os.O_RDWR)
        numbers.add(os.fstat(fd).st_ino)
        os.unlink(f"n{count}")
        held.append(fd)
    assert len(numbers) == 300


# --- links


@point
def hard_links_are_one_object():
    one, two = os.stat("hard-a"), os.stat("hard-b")
    assert one.st_ino == two.st_ino and one.st_nlink == 2
    write("hard-a", b"through a", os.O_WRONLY | os.O_TRUNC)
    assert read("hard-b") == b"through a"
    os.chmod("hard-b", 0o611)
    assert os.stat("hard-a").st_mode & 0o777 == 0o611
    os.link("hard-b", "dir/hard-c")
    assert os.stat("hard-a").st_nlink == 3
    os.unlink("hard-a")
    assert os.stat("hard-b").st_nlink == 2 and read("dir/hard-c") == b"through a"
    os.rename("hard-b", "dir/hard-c")  # two names of one object: nothing is done
    assert os.path.exists("hard-b") and os.stat("hard-b").st_nlink == 2
    os.unlink("hard-b")
    assert os.stat("dir/hard-c").st_nlink == 1


@point
def links_to_links_and_special_files():
    os.link("link", "link2", follow_symlinks=False)
    assert os.lstat("link2").st_ino == os.lstat("link").st_ino and os.lstat("link").st_nlink == 2
    assert os.readlink("link2") == "small"
    os.link("fifo", "fifo2")
    assert os.stat("fifo").st_nlink == 2
    fails(errno.EPERM, os.link, "dir", "dir2")
    fails(errno.EEXIST, os.link, "small", "big")


@point
def directories_count_their_subdirectories():
    assert os.stat("dir").st_nlink == 3
    os.mkdir("dir/more")
    assert os.stat("dir").st_nlink == 4
    os.rename("dir/more", "more")
    assert os.stat("dir").st_nlink == 3
    os.rmdir("more")
    os.mkdir("other")
    os.rename("dir/sub", "other/sub")
    assert (os.stat("dir").st_nlink, os.stat("other").st_nlink) == (2, 3)
    os.mkdir("fresh")
    assert os.stat("fresh").st_nlink == 2
    rename("fresh", "other/sub", EXCHANGE)
    assert os.stat("other").st_nlink == 3
    rename("small", "fresh", EXCHANGE)
    assert stat.S_ISDIR(os.stat("small").st_mode)


@point
def directories_held_open_know_that_they_are_gone():
    fd = os.open("empty", os.O_RDONLY)
    os.rmdir("empty")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    fails(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


# --- what was open before


@point
def an_old_descriptor_sees_what_is_written_later():
    old = os.open("big", os.O_RDONLY)
    assert os.pread(old, 10, 0) == read("big")[:10]
    write("big", b"CHANGED", os.O_WRONLY)
    assert os.pread(old, 7, 0) == b"CHANGED"
    os.truncate("big", 3)
    assert os.fstat(old).st_size == 3 and os.pread(old, 10, 0) == b"CHA"
    with open("big", "ab") as file:
        file.write(b"more")
    assert os.pread(old, 10, 0) == b"CHAmore"


@point
def an_old_mapping_sees_what_is_written_later():
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


@point
def shared_mappings_are_coherent_among_processes():
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


@point
def an_unlinked_file_lives_while_it_is_open():
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


@point
def a_replaced_file_lives_while_it_is_open():
    fd = os.open("small", os.O_RDWR)
    write("fresh", b"fresh")
    os.rename("fresh", "small")
    assert read("small") == b"fresh" and os.pread(fd, 5, 0) == b"alpha"
    assert os.fstat(fd).st_nlink == 0


# --- copying up


@point
def copying_up_keeps_mode_owner_times_and_attributes():
    before = os.stat("rich")
    names = {name: os.getxattr("rich", name) for name in os.listxattr("rich")}
    assert b"value" in names.values()
    write("rich", b"N", os.O_WRONLY)
    after = os.stat("rich")
    for field in ["st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_ino", "st_atime_ns"]:
        assert getattr(before, field) == getattr(after, field), field
    assert {name: os.getxattr("rich", name) for name in os.listxattr("rich")} == names
    assert after.st_mtime_ns > before.st_mtime_ns
    # A change of attributes leaves the time of the content.
    before = os.stat("dir/x")
    os.chmod("dir/x", 0o640)
    os.setxattr("dir/x", "user.new", b"1")
    after = os.stat("dir/x")
    assert (before.st_mtime_ns, before.st_atime_ns) == (after.st_mtime_ns, after.st_atime_ns)
    assert after.st_ctime_ns > before.st_ctime_ns


@point
def copying_up_leaves_the_times_of_the_directories_above():
    before = [os.stat(path).st_mtime_ns for path in [".", "dir", "dir/sub"]]
    write("dir/sub/z", b"changed", os.O_WRONLY)
    os.chmod("dir/x", 0o600)
    os.truncate("dir/y", 0)
    assert [os.stat(path).st_mtime_ns for path in [".", "dir", "dir/sub"]] == before


@point
def copying_up_keeps_holes():
    before = os.stat("sparse")
    assert before.st_blocks * 512 < before.st_size / 2
    write("sparse", b"x", os.O_WRONLY)
    after = os.stat("sparse")
    assert after.st_size == before.st_size and after.st_blocks * 512 < after.st_size / 2
    fd = os.open("sparse", os.O_RDONLY)
    assert os.lseek(fd, 8192, os.SEEK_DATA) <= 1 << 20 and os.pread(fd, 6, 1 << 20) == b"island"
    assert os.lseek(fd, (1 << 20) + 200_000, os.SEEK_HOLE) < before.st_size


@mount_only
def reading_and_failing_copy_nothing_up():
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
def opening_for_writing_copies_nothing_up():
    for flags in [os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT]:
        os.close(os.open("big", flags))
    fd = os.open("big", os.O_RDWR)
    os.pread(fd, 10, 0)
    os.write(fd, b"")
    assert copied_up() == set()
    # Nor do attributes, names and links.
    os.chmod("big", 0o600)
    os.utime("big")
    os.link("big", "big2")
    os.rename("big", "dir/big3")
    os.setxattr("big2", "user.x", b"y")
    assert copied_up() == set()
    os.pwrite(fd, b"x", 5)
    assert len(copied_up()) == 1, copied_up()


@point
def a_name_may_become_another_type():
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


# --- listings


@point
def entries_that_stay_are_listed_once_whatever_else_happens():
    stay = {f"entry-{number:04}" for number in range(0, 3000, 2)}
    stop = threading.Event()

    def churn():
        number = 0
        while not stop.is_set():
            write(f"many/passing-{number % 50}", b"")
            os.rename(f"many/passing-{number % 50}", f"many/renamed-{number % 50}")
            os.unlink(f"many/renamed-{number % 50}")
            odd = f"many/entry-{(number * 2 + 1) % 3000:04}"
            if os.path.exists(odd):
                os.unlink(odd)
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            names = os.listdir("many")
            assert stay <= set(names), sorted(stay - set(names))[:5]
            of_stay = [name for name in names if name in stay]
            assert len(of_stay) == len(stay)
    finally:
        stop.set()
        thread.join()


@point
def a_listing_may_be_emptied_while_it_is_read():
    with os.scandir("many") as entries:
        count = 0
        for entry in entries:
            os.unlink(entry.path)
            count += 1
    assert count == 3000 and os.listdir("many") == []
    os.rmdir("many")


@point
def places_in_a_listing_can_be_come_back_to():
    LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
    LIBC.opendir.argtypes = [ctypes.c_char_p]
    LIBC.telldir.restype = ctypes.c_long
    for function in [LIBC.readdir, LIBC.telldir, LIBC.closedir, LIBC.rewinddir]:
        function.argtypes = [ctypes.c_void_p]
    LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

    def next_name():
        entry = LIBC.readdir(directory)
        return ctypes.string_at(entry + 19) if entry else None

    directory = LIBC.opendir(b"many")
    places = []
    while True:
        place, name = LIBC.telldir(directory), next_name()
        if name is None:
            break
        places.append((place, name))
    assert len({place for place, _ in places}) == len(places) == 3002
    for place, name in places[::97] + places[::-211]:
        LIBC.seekdir(directory, place)
        assert next_name() == name
    # Also after others were removed.
    for _, name in places[1::2]:
        if name not in (b".", b".."):
            os.unlink(b"many/" + name)
    for place, name in places[::100]:
        if name not in (b".", b".."):
            LIBC.seekdir(directory, place)
            assert next_name() == name
    LIBC.rewinddir(directory)
    assert next_name() is not None
    LIBC.closedir(directory)


@point
def a_hundred_thousand_entries():
    os.mkdir("huge")
    fd = os.open("huge", os.O_RDONLY)
    count = 100_000
    for number in range(count):
        os.mknod(f"h{number}", 0o600 | stat.S_IFREG, dir_fd=fd)
    names = os.listdir("huge")
    assert len(names) == len(set(names)) == count
    for number in range(0, count, 2):
        os.unlink(f"h{number}", dir_fd=fd)
    assert len(os.listdir("huge")) == count // 2
    os.rename("huge", "dir/huge")
    assert sum(1 for _ in os.scandir("dir/huge")) == count // 2
    assert not os.path.exists("dir/huge/h0") and os.path.exists("dir/huge/h99999")


# --- content


@mount_only
def temporary_files_without_a_name_are_refused():
    fails(errno.EOPNOTSUPP, os.open, ".", os.O_TMPFILE | os.O_RDWR)
    import tempfile

    with tempfile.TemporaryFile(dir=".") as file:  # falls back to a name that it removes
        file.write(b"x")
    assert not any(name.startswith("tmp") for name in os.listdir("."))


@point
def appends_of_several_processes_do_not_mix():
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


@point
def first_writers_at_once_lose_nothing():
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


@point
def direct_reads_and_writes():
    buffer = mmap.mmap(-1, 8192)
    original = read("big")
    fd = os.open("big", os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [buffer], 131_072) == 8192
    assert bytes(buffer) == original[131_072 : 131_072 + 8192]
    buffer[:] = b"D" * 8192
    assert os.pwritev(fd, [buffer], 4096) == 8192
    os.close(fd)
    assert read("big") == original[:4096] + b"D" * 8192 + original[12_288:]
    # What is cached and what goes past the cache are the same.
    cached = os.open("big", os.O_RDWR)
    os.pread(cached, 100, 0)
    fd = os.open("big", os.O_RDWR | os.O_DIRECT)
    buffer[:] = b"E" * 8192
    os.pwritev(fd, [buffer], 0)
    assert os.pread(cached, 8192, 0) == b"E" * 8192
    os.pwrite(cached, b"cached", 0)
    os.preadv(fd, [buffer], 0)
    assert buffer[:6] == b"cached"


@point
def space_is_allocated_punched_and_zeroed():
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
def ranges_cannot_be_collapsed_or_inserted():
    fd = os.open("big", os.O_RDWR)
    fails(errno.EOPNOTSUPP, fallocate, fd, COLLAPSE, 4096, 4096)
    fails(errno.EOPNOTSUPP, fallocate, fd, INSERT, 4096, 4096)
    other = os.open("clone", os.O_RDWR | os.O_CREAT)
    fails(errno.EOPNOTSUPP, fcntl.ioctl, other, 0x40049409, fd)


@point
def holes_and_data_are_found():
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


@point
def what_is_written_through_a_mapping_is_data():
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


@point
def ranges_are_copied_between_files():
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


@point
def reads_and_writes_of_all_shapes():
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
        # Once the new program runs, its file is busy.
        while os.readlink(f"/proc/{running.pid}/exe") != os.path.realpath("sleep"):
            time.sleep(0.001)
        os.open("sleep", os.O_WRONLY)
    finally:
        running.kill()
        running.wait()


# --- locks


@point
def flocks_exclude_other_processes():
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
    assert in_child(other) == 7, "a copy-up keeps locks"
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert in_child(other) == 0


@point
def posix_locks_exclude_other_processes_byte_by_byte():
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


@point
def locks_of_open_files_exclude_each_other():
    set_lock = 37  # F_OFD_SETLK
    lock = lambda kind: struct.pack("hhqqi4x", kind, 0, 0, 10, 0)
    one, two = os.open("small", os.O_RDWR), os.open("small", os.O_RDWR)
    fcntl.fcntl(one, set_lock, lock(fcntl.F_WRLCK))
    fails(errno.EAGAIN, fcntl.fcntl, two, set_lock, lock(fcntl.F_WRLCK))
    os.close(os.open("small", os.O_RDONLY))
    fails(errno.EAGAIN, fcntl.fcntl, two, set_lock, lock(fcntl.F_RDLCK))
    os.close(one)
    fcntl.fcntl(two, set_lock, lock(fcntl.F_WRLCK))


# --- permissions


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


# --- attributes


@mount_only
def access_control_lists_are_refused():
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF)
    for name in ["system.posix_acl_access", "system.posix_acl_default"]:
        fails(errno.EOPNOTSUPP, os.setxattr, "dir", name, acl)
        fails(errno.EOPNOTSUPP, os.getxattr, "dir", name)
    # Yet what copies them goes on.
    subprocess.run(["cp", "-a", "rich", "rich-copy"], check=True)
    assert os.getxattr("rich-copy", "user.a") == b"value"


@mount_only
def attributes_of_all_sizes():
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
        # All of one object together: 1 MiB.
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


@point
def attributes_are_made_replaced_and_removed():
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


@point
def trusted_attributes_are_shown_to_root_alone():
    os.setxattr("small", "user.x", b"y")
    if ROOT:
        os.setxattr("small", "trusted.x", b"y")
        assert sorted(os.listxattr("small")) == ["trusted.x", "user.x"]
        os.chmod("small", 0o644)

        def look():
            assert os.listxattr("small") == ["user.x"], os.listxattr("small")
            fails(errno.ENODATA, os.getxattr, "small", "trusted.x")

        assert other_user(look) == 0
    assert "user.x" in os.listxattr("small")


@point
def what_is_made_later_is_not_older():
    for number in range(50):
        made = [f"made-{number}-{step}" for step in range(5)]
        os.mkdir(made[0])
        write(made[1], b"")
        os.symlink("x", made[2])
        write(made[3], b"x")
        os.mkdir(made[4])
        looks = [os.lstat(path) for path in made]
        for older, younger in zip(looks, looks[1:]):
            assert older.st_mtime_ns <= younger.st_mtime_ns, (made, looks)
            assert older.st_ctime_ns <= younger.st_ctime_ns, (made, looks)


@point
def times_are_set_in_every_combination():
    now, omit = (1 << 30) - 1, (1 << 30) - 2

    def set_times(path, atime, mtime, flags=0):
        pair = struct.pack("qqqq", *atime, *mtime)
        if LIBC.utimensat(-100, path.encode(), pair, flags) != 0:
            raise OSError(ctypes.get_errno(), "utimensat")

    nofollow = 0x100
    for path, flags in [("small", 0), ("dir", 0), ("link", nofollow), ("fifo", 0), ("big", 0)]:
        look = lambda: os.lstat(path)
        set_times(path, (1, 123_456_789), (2, 987_654_321), flags)
        assert (look().st_atime_ns, look().st_mtime_ns) == (1_123_456_789, 2_987_654_321)
        set_times(path, (0, omit), (5, 5), flags)
        assert (look().st_atime_ns, look().st_mtime_ns) == (1_123_456_789, 5_000_000_005)
        set_times(path, (7, 7), (0, omit), flags)
        assert (look().st_atime_ns, look().st_mtime_ns) == (7_000_000_007, 5_000_000_005)
        ctime = look().st_ctime_ns
        set_times(path, (0, omit), (0, omit), flags)
        assert look().st_ctime_ns == ctime
        set_times(path, (0, now), (-5, 0), flags)
        assert look().st_mtime_ns == -5_000_000_000 and look().st_atime_ns > 10**18
        fails(errno.EINVAL, set_times, path, (0, 10**9), (0, 0), flags)
    # Through a link, not on it.
    before = os.lstat("link").st_mtime_ns
    set_times("link", (9, 0), (9, 0))
    assert os.stat("small").st_mtime_ns == 9 * 10**9 and os.lstat("link").st_mtime_ns == before


@point
def changes_of_names_are_seen_in_the_times_of_their_directories():
    def ages():
        for path in ["dir", "dir/sub", "."]:
            os.utime(path, (1, 1))

    ages()
    write("dir/made", b"")
    assert os.stat("dir").st_mtime > 1 and os.stat(".").st_mtime == 1
    ages()
    os.unlink("dir/made")
    assert os.stat("dir").st_mtime > 1
    ages()
    os.rename("dir/x", "dir/sub/x")
    assert os.stat("dir").st_mtime > 1 and os.stat("dir/sub").st_mtime > 1
    ages()
    write("dir/sub/x", b"content", os.O_WRONLY)
    os.chmod("dir/sub/x", 0o600)
    assert os.stat("dir/sub").st_mtime == 1
    os.utime("dir/sub/x", (1, 1))
    os.truncate("dir/sub/x", 2)
    assert os.stat("dir/sub/x").st_mtime > 1


@mount_only
def reading_does_not_change_access_times():
    os.utime("small", (1000, 1000))
    before = [os.stat(path).st_atime_ns for path in ("small", "big", "dir")]
    read("small")
    read("big")
    os.listdir("dir")
    assert [os.stat(path).st_atime_ns for path in ("small", "big", "dir")] == before


# --- names


@point
def names_of_255_bytes_of_any_kind():
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


@point
def links_of_4095_bytes():
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


@point
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


@point
def renames_with_and_without_flags():
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
def whiteouts_cannot_be_asked_for():
    fails(errno.EINVAL, rename, "small", "fresh", WHITEOUT)


@mount_only
def links_from_outside_are_refused():
    with open(os.path.join(UPPER, "..", "outside"), "w"):
        pass
    fails(errno.EXDEV, os.link, os.path.join(UPPER, "..", "outside"), "inside")
    fails(errno.EXDEV, os.rename, "small", os.path.join(UPPER, "..", "outside"))


@point
def the_file_system_tells_of_its_space():
    seen = os.statvfs(".")
    assert seen.f_bsize >= 512 and seen.f_blocks >= seen.f_bfree >= seen.f_bavail > 0
    assert seen.f_files >= seen.f_ffree > 0
    # Others use the disk, too: at some moment nothing changed between the three questions.
    for _ in range(1000):
        before, seen, after = os.statvfs(UPPER or "."), os.statvfs("."), os.statvfs(UPPER or ".")
        if before == after:
            assert (seen.f_frsize, seen.f_blocks, seen.f_bfree) == (before.f_frsize, before.f_blocks, before.f_bfree)
            return
    assert False, "never the same"


@point
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
def writing_through_a_fifo_leaves_its_time():
    os.utime("fifo", (1000, 1000))
    opened = os.open("fifo", os.O_RDWR)
    os.write(opened, b"x")
    assert os.stat("fifo").st_mtime == 1000


@mount_only
def extents_and_flags_cannot_be_asked_for():
    fd = os.open("big", os.O_RDONLY)
    fails(errno.EOPNOTSUPP, fcntl.ioctl, fd, 0xC020660B, bytearray(32))  # FS_IOC_FIEMAP
    fails(errno.ENOTTY, fcntl.ioctl, fd, 0x80086601, bytearray(8))  # FS_IOC_GETFLAGS


# --- watching and making durable


@point
def changes_are_told_to_who_watches():
    watcher = LIBC.inotify_init1(os.O_NONBLOCK)
    everything = 0xFFF
    assert LIBC.inotify_add_watch(watcher, b"dir", everything) >= 0
    own = LIBC.inotify_add_watch(watcher, b"small", everything)
    assert own >= 0
    write("dir/made", b"x")
    os.rename("dir/made", "dir/renamed")
    os.unlink("dir/renamed")
    write("small", b"y", os.O_WRONLY)
    os.chmod("small", 0o600)
    os.unlink("small")
    select.select([watcher], [], [], 5)
    events, raw, at = [], os.read(watcher, 65536), 0
    while at < len(raw):
        watch, mask, _, length = struct.unpack_from("iIII", raw, at)
        name = raw[at + 16 : at + 16 + length].rstrip(b"\0").decode()
        events.append((watch == own, mask & 0xFFFF, name))
        at += 16 + length
    for wanted in [
        (False, 0x100, "made"), (False, 0x2, "made"), (False, 0x8, "made"), (False, 0x40, "made"),
        (False, 0x80, "renamed"), (False, 0x200, "renamed"),
        (True, 0x2, ""), (True, 0x4, ""), (True, 0x400, ""),
    ]:
        assert wanted in events, (wanted, events)


@point
def syncing_succeeds_on_all_that_can_be_opened():
    for path in ["small", "big", "dir", "."]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        assert LIBC.syncfs(fd) == 0
    write("fresh", b"x")
    fd = os.open("fresh", os.O_RDWR | os.O_SYNC)
    os.write(fd, b"synced")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0) == b"synced"
    LIBC.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint]
    assert LIBC.sync_file_range(fd, 0, 0, 7) == 0


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        for found in POINTS:
            print(found, "mount_only" if found in MOUNT_ONLY else "everywhere")
        sys.exit(0)
    UPPER = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
    os.chdir(sys.argv[2])
    POINTS[sys.argv[1]]()
