"""What a directory lists while it changes."""

import ctypes
import os
import stat
import threading

from support import LIBC, UPPER, point, write

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
    directory = LIBC.opendir(b"many")
    places = []
    while True:
        place, name = LIBC.telldir(directory), next_name(directory)
        if name is None:
            break
        places.append((place, name))
    assert len({place for place, _ in places}) == len(places) == 3002
    for place, name in places[::97] + places[::-211]:
        LIBC.seekdir(directory, place)
        assert next_name(directory) == name
    # Also after others were removed.
    for _, name in places[1::2]:
        if name not in (b".", b".."):
            os.unlink(b"many/" + name)
    for place, name in places[::100]:
        if name not in (b".", b".."):
            LIBC.seekdir(directory, place)
            assert next_name(directory) == name
    LIBC.rewinddir(directory)
    assert next_name(directory) is not None
    LIBC.closedir(directory)


@point
def a_listing_ends_though_names_are_made_meanwhile():
    def each(path, there, change):
        count = 0
        with os.scandir(path) as entries:
            for entry in entries:
                change(entry.path)
                count += 1
                assert count < 10 * there, "this listing does not end"
        # ext4 may show what a name became, too.
        assert count == there or not UPPER, count

    def move_away_and_back(name):
        os.rename(name, "aside")
        os.rename("aside", name)

    # More than are listed at once.
    os.mkdir("made")
    for number in range(1500):
        write(f"made/entry-{number:04}", b"")
    for path, there in [("many", 3000), ("made", 1500)]:
        each(path, there, lambda name: os.rename(name, name + ".o"))
        assert all(name.endswith(".o") for name in os.listdir(path))
    each("made", 1500, move_away_and_back)
    each("made", 1500, lambda name: write(name + ".new", b""))
    assert len(os.listdir("made")) >= 3000


@point
def listings_of_one_directory_do_not_disturb_each_other():
    os.mkdir("made")
    begun = {f"entry-{number:04}" for number in range(1500)}
    for name in begun:
        write(f"made/{name}", b"")
    # Each knows what was there when it began, however many there are.
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
