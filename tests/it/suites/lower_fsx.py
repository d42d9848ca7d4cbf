"""Random changes of files, which an older descriptor and an older mapping must see.

    lower_fsx.py OPERATIONS DIRECTORY WORK

Changes every file in DIRECTORY that many times, with its name as the seed. The expected final content is
written to WORK/NAME.expected.
"""

import ctypes
import mmap
import os
import random
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LARGEST = 500_000
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


def fallocate(fd, mode, offset, length):
    call = LIBC.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if call(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def check(what, found, expected):
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), None)
        raise SystemExit(f"{what}: {len(found)} and {len(expected)} bytes, first difference at {at}")


def exercise(path, operations, expected_path):
    rng = random.Random(os.path.basename(path))
    with open(path, "rb") as file:
        good = bytearray(file.read())
    old = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(old, len(good), mmap.MAP_SHARED, mmap.PROT_READ) if good else None
    mapped_size = len(good)
    # Fills the kernel's cache, which could become stale.
    check("first read", os.pread(old, LARGEST, 0), bytes(good))
    fd = os.open(path, os.O_RDWR)

    for number in range(operations):
        offset, length = rng.randrange(LARGEST * 4 // 5), rng.randrange(1, 70_000)
        if rng.random() < 0.3:
            length = rng.randrange(1, 20)
        if rng.random() < 0.3 and good:
            offset = min(rng.choice([0, 4095, 4096, 131_071, 131_072, len(good)]), LARGEST)
        what = rng.randrange(12)
        where = f"{path}, operation {number} ({what}) at {offset}, {length} bytes"
        if what <= 3:
            data = rng.randbytes(length)
            os.pwrite(fd, data, offset)
            good.extend(bytes(max(0, offset - len(good))))
            good[offset : offset + length] = data
        elif what == 4:
            size = rng.choice([0, 1, offset, len(good), max(0, len(good) - 1)])
            os.ftruncate(fd, size)
            good.extend(bytes(max(0, size - len(good))))
            del good[size:]
        elif what == 5:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
            end = min(len(good), offset + length)
            if offset < end:
                good[offset:end] = bytes(end - offset)
        elif what == 6:
            keep = rng.random() < 0.5
            fallocate(fd, ZERO_RANGE | (KEEP_SIZE if keep else 0), offset, length)
            end = offset + length
            if not keep:
                good.extend(bytes(max(0, end - len(good))))
            end = min(len(good), end)
            if offset < end:
                good[offset:end] = bytes(end - offset)
        elif what == 7 and good:
            end = min(len(good), offset + length)
            if offset < end:
                start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                with mmap.mmap(fd, end - start, offset=start) as writable:
                    data = rng.randbytes(end - offset)
                    writable[offset - start : end - start] = data
                    good[offset:end] = data
        elif what == 8:
            os.close(fd)
            fd = os.open(path, os.O_RDWR)
        elif what == 9:
            source = rng.randrange(max(1, len(good)))
            if source + length <= offset or offset + length <= source:
                count = os.copy_file_range(fd, fd, length, source, offset)
                data = bytes(good[source : source + count])
                if count:
                    good.extend(bytes(max(0, offset - len(good))))
                    good[offset : offset + count] = data
        elif what == 10:
            os.fsync(fd)
        else:
            appender = os.open(path, os.O_WRONLY | os.O_APPEND)
            if len(good) < LARGEST:
                data = rng.randbytes(length)
                os.write(appender, data)
                good.extend(data)
            os.close(appender)

        if os.fstat(old).st_size != len(good):
            raise SystemExit(f"{where}: size {os.fstat(old).st_size}, expected {len(good)}")
        reader = rng.choice([old, fd])
        check(where, os.pread(reader, length + 5000, max(0, offset - 2500)),
              bytes(good[max(0, offset - 2500) : max(0, offset - 2500) + length + 5000]))
        if mapped and rng.random() < 0.3:
            # Pages beyond the end must not be accessed.
            end = min(mapped_size, len(good))
            check(where + ", mapping", mapped[:end], bytes(good[:end]))
        if rng.random() < 0.05:
            check(where + ", whole", os.pread(old, len(good) + 1, 0), bytes(good))

    check(path, os.pread(old, len(good) + 1, 0), bytes(good))
    os.close(old)
    os.close(fd)
    with open(expected_path, "wb") as file:
        file.write(good)


def main():
    operations, directory, work = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    for name in sorted(os.listdir(directory)):
        exercise(os.path.join(directory, name), operations, os.path.join(work, name + ".expected"))


main()
