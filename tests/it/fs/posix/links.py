"""Link counts."""

import errno
import os
import stat

from support import EXCHANGE, check, fails, read, rename, write


@check
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
    os.rename("hard-b", "dir/hard-c")  # no effect: two names of one object
    assert os.path.exists("hard-b") and os.stat("hard-b").st_nlink == 2
    os.unlink("hard-b")
    assert os.stat("dir/hard-c").st_nlink == 1


@check
def hard_links_to_symlinks_and_fifos():
    os.link("link", "link2", follow_symlinks=False)
    assert os.lstat("link2").st_ino == os.lstat("link").st_ino and os.lstat("link").st_nlink == 2
    assert os.readlink("link2") == "small"
    os.link("fifo", "fifo2")
    assert os.stat("fifo").st_nlink == 2
    fails(errno.EPERM, os.link, "dir", "dir2")
    fails(errno.EEXIST, os.link, "small", "big")


@check
def directory_link_counts():
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


@check
def removed_open_directory_has_no_links():
    fd = os.open("empty", os.O_RDONLY)
    os.rmdir("empty")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    fails(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
