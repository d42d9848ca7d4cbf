"""Listings of directories that change meanwhile."""

import ctypes
import os
import stat
import threading

from support import LIBC, UPPER, check, write

LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
LIBC.opendir.argtypes = [ctypes.c_char_p]
LIBC.telldir.restype = ctypes.c_long
for function in [LIBC.readdir, LIBC.telldir, LIBC.closedir, LIBC.rewinddir]:
    function.argtypes = [ctypes.c_void_p]
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def next_name(directory):
    entry = LIBC.readdir(directory)
    return ctypes.string_at(entry + 19) if entry else None


def rest_of(directory):
    names = []
    while (name := next_name(directory)) is not None:
        names.append(name.decode())
    return names


@check
def unchanged_entries_are_listed_exactly_once():
    stay = {f"entry-{number:04}" for number in range(0, 3000, 2)}
    stop = threading.Event()

    def churn():
        number = 0
        while not stop.is_set():
            write(f"many/passing-{number % 50}", b"")
            os.rename(f"many/passing-{number % 50}", f"many/renamed-{number % 50}")
            os.unlink(f"many/renamed-{number % 50}")
            removed = f"many/entry-{(number * 2 + 1) % 3000:04}"
            if os.path.exists(removed):
                os.unlink(removed)
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


@check
def directory_can_be_emptied_while_listed():
    with os.scandir("many") as entries:
        count = 0
        for entry in entries:
            os.unlink(entry.path)
            count += 1
    assert count == 3000 and os.listdir("many") == []
    os.rmdir("many")


@check
def seekdir_returns_to_entries():
    directory = LIBC.opendir(b"many")
    positions = []
    while True:
        position, name = LIBC.telldir(directory), next_name(directory)
        if name is None:
            break
        positions.append((position, name))
    assert len({position for position, _ in positions}) == len(positions) == 3002
    for position, name in positions[::97] + positions[::-211]:
        LIBC.seekdir(directory, position)
        assert next_name(directory) == name
    # Also after other entries were removed.
    for _, name in positions[1::2]:
        if name not in (b".", b".."):
            os.unlink(b"many/" + name)
    for position, name in positions[::100]:
        if name not in (b".", b".."):
            LIBC.seekdir(directory, position)
            assert next_name(directory) == name
    LIBC.rewinddir(directory)
    assert next_name(directory) is not None
    LIBC.closedir(directory)


@check
def listing_ends_while_names_are_created():
    def each(path, there, change):
        count = 0
        with os.scandir(path) as entries:
            for entry in entries:
                change(entry.path)
                count += 1
                assert count < 10 * there, "the listing does not end"
        # ext4 may list new names, too.
        assert count == there or not UPPER, count

    def move_away_and_back(name):
        os.rename(name, "aside")
        os.rename("aside", name)

    # More than fit in one call of getdents.
    os.mkdir("made")
    for number in range(1500):
        write(f"made/entry-{number:04}", b"")
    for path, there in [("many", 3000), ("made", 1500)]:
        each(path, there, lambda name: os.rename(name, name + ".o"))
        assert all(name.endswith(".o") for name in os.listdir(path))
    each("made", 1500, move_away_and_back)
    each("made", 1500, lambda name: write(name + ".new", b""))
    assert len(os.listdir("made")) >= 3000


@check
def concurrent_listings_are_independent():
    os.mkdir("made")
    begun = {f"entry-{number:04}" for number in range(1500)}
    for name in begun:
        write(f"made/{name}", b"")
    # Each lists the entries that existed when it started, however many listings there are.
    listings = []
    for number in range(20):
        directory = LIBC.opendir(b"made")
        listings.append((directory, [next_name(directory).decode()], {f"late-{n}" for n in range(number)}))
        write(f"made/late-{number}", b"")
    for directory, first, there in listings[::-1]:
        names = first + rest_of(directory)
        assert len(names) == len(set(names)) and begun | there <= set(names), names
        LIBC.rewinddir(directory)
        everything = begun | {f"late-{n}" for n in range(20)}
        assert set(rest_of(directory)) - {".", ".."} == everything
        LIBC.closedir(directory)


@check
def directory_with_100_000_entries():
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
