"""How many names an object has."""

import errno
import os
import stat

from support import EXCHANGE, fails, point, read, rename, write


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
