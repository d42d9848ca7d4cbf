"""Makes tar archives as programs other than GNU tar make them, byte by byte or with tarfile.

Usage: archives.py GOOD BAD. GNU tar extracts the archives in GOOD without an error; those in BAD it refuses or
extracts partially.
"""

import io
import os
import sys
import tarfile

GOOD, BAD = sys.argv[1:]
OWNER = os.geteuid()
GROUP = os.getegid()


def octal(number, size):
    return b"%0*o\0" % (size - 1, number)


def binary(number, size):
    """A number in base 256, as GNU tar and Go write numbers that are negative or too large for octal."""
    return (((1 << (8 * size - 1)) | (number & ((1 << (8 * size - 2)) - 1)) |
             ((1 << (8 * size - 2)) if number < 0 else 0))).to_bytes(size, "big")


def header(name, kind=b"0", size=0, mode=0o644, mtime=1_000_000_000, link=b"", magic=b"ustar\x0000",
           prefix=b"", uid=OWNER, gid=GROUP, tail=b"", signed=False, major=0, minor=0):
    def field(value, length):
        return value if isinstance(value, bytes) else octal(value, length)
    block = name.ljust(100, b"\0") + field(mode, 8) + field(uid, 8) + field(gid, 8)
    block += field(size, 12) + field(mtime, 12) + b" " * 8 + kind + link.ljust(100, b"\0") + magic
    block += b"\0" * 64 + octal(major, 8) + octal(minor, 8) + prefix
    block = block.ljust(512 - len(tail), b"\0") + tail
    assert len(block) == 512, (name, len(block))
    total = sum(b - 256 if signed and b > 127 else b for b in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data):
    return data + b"\0" * (-len(data) % 512)


def record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax(records, kind=b"x"):
    data = b"".join(record(k, v) for k, v in records)
    return header(b"PaxHeaders.0/x", kind, len(data)) + padded(data)


def file(name, data=b"content", **more):
    return header(name, size=more.pop("size", len(data)), **more) + padded(data)


END = b"\0" * 1024


def write(where, name, *parts, end=END):
    with open(os.path.join(where, name), "wb") as f:
        f.write(b"".join(parts) + end)


def good(name, *parts, **more):
    write(GOOD, name, *parts, **more)


def bad(name, *parts, **more):
    write(BAD, name, *parts, **more)


V7 = b"\0" * 8
GNU = b"ustar  \0"

# As Go's archive/tar writes: names split into a prefix, times with fractions, base 256.
good("go-prefix.tar", file(b"n" * 90, prefix=b"p" * 100), header(b"d/", b"5", mode=0o755))
good("go-times.tar", pax([(b"mtime", b"-1.5")]), file(b"a", mtime=0), pax([(b"mtime", b"1234567890.75")]),
     file(b"b", mtime=1234567890), pax([(b"mtime", b"-0.25"), (b"path", "é\n".encode())]), file(b"c"))
good("go-gnu.tar", file(b"a", magic=GNU, mtime=binary(-86400 * 365, 12)),
     file(b"b", magic=GNU, mtime=binary(1 << 33, 12)), file(b"c", magic=GNU, size=binary(7, 12)))
good("go-links.tar", file(b"a"), header(b"l", b"1", link=b"a"), header(b"s", b"2", link=b"a", mode=0o644),
     header(b"f", b"6", mode=0o600))
good("pax-global.tar", pax([(b"mtime", b"77"), (b"comment", b"0123")], b"g"), file(b"a"),
     pax([(b"mtime", b"88")]), file(b"b"), pax([(b"path", b"c")]), file(b"cut"), file(b"d"))
good("pax-long.tar", pax([(b"path", b"/".join([b"e" * 200] * 3)), (b"size", b"7")]), file(b"cut", size=0),
     pax([(b"linkpath", b"f" * 300)]), header(b"s", b"2", link=b"cut"))
good("pax-link-size.tar", pax([(b"size", b"0")]), file(b"a", b""), header(b"l", b"1", link=b"a", size=4096), file(b"b"))
good("sun-pax.tar", header(b"x", b"X", len(record(b"path", b"sun"))) + padded(record(b"path", b"sun")), file(b"cut"))

# As star writes: a shorter prefix with times behind it, sparse files of its own.
times = b"07346545000 07346545000 " + b"\0" * 8 + b"tar\0"
good("star.tar", file(b"name", prefix=b"a/prefix", tail=b"\0" + times), file(b"b"))
holes = octal(0, 12) + octal(512, 12) + octal(8192, 12) + octal(512, 12) + octal(16384, 12) + octal(0, 12)
sparse = b"\0" * 11 + holes.ljust(96, b"\0") + octal(16384, 12) + octal(0, 12) + times
good("star-sparse.tar", header(b"s", b"S", 1024, tail=sparse) + b"a" * 512 + b"b" * 512, file(b"after"))

# v7 and other old programs.
good("v7.tar", header(b"d/", b"\0", mode=0o750, magic=V7), file(b"d/a", kind=b"\0", magic=V7),
     header(b"l", b"1", link=b"d/a", magic=V7), header(b"s", b"2", link=b"d/a", magic=V7))
good("v7-spaces.tar", file(b"a", kind=b"\0", magic=V7, mode=b"   644 \0", uid=b"%6o \0" % OWNER, gid=b"%6o \0" % GROUP,
                         size=b"          7 ", mtime=b" 7346545000 "))
good("signed-checksum.tar", file("ümlaut".encode(), signed=True), file(b"b"))
good("contiguous.tar", file(b"a", kind=b"7"), file(b"b"))
good("unknown-type.tar", file(b"a", kind=b"Q"), file(b"b"))
good("no-end.tar", file(b"a"), file(b"b"), end=b"")
good("one-zero-block.tar", file(b"a"), end=b"\0" * 512 + file(b"not-read") + END)
good("garbage-behind.tar", file(b"a"), end=END + b"garbage" * 500)
good("sizes-of-others.tar", header(b"d/", b"5", 777, 0o755), header(b"s", b"2", 5, link=b"x"),
     header(b"f", b"6", 9), file(b"a"))
good("label.tar", header(b"LABEL", b"V", magic=GNU), file(b"a", magic=GNU))
good("dots.tar", header(b"./", b"5", mode=0o700), file(b"./a//b/./c"), file(b"./d/"[:-1]), file(b"e/./f"))
good("absolute.tar", file(b"/abs/a"), header(b"/abs/l", b"1", link=b"/abs/a"), header(b"/abs/s", b"2", link=b"/abs/a"),
     header(b"//", b"5", mode=0o755))
good("link-climbs.tar", file(b"a"), header(b"l", b"1", link=b"../../a"))

# Later entries replace earlier ones.
good("file-then-directory.tar", file(b"x"), header(b"x/", b"5", mode=0o711), file(b"x/y"))
good("directory-then-file.tar", header(b"x", b"5", mode=0o711), file(b"x"))
good("directory-twice.tar", file(b"x/y"), header(b"x", b"5", mode=0o711, mtime=5), header(b"x", b"5", mode=0o750, mtime=7))
good("link-then-directory.tar", header(b"d", b"5", mode=0o755), header(b"x", b"2", link=b"d"), header(b"x", b"5", mode=0o700), file(b"x/y"))
good("link-then-file.tar", file(b"a", b"kept"), header(b"x", b"2", link=b"a"), file(b"x", b"new"))
good("hard-link-then-file.tar", file(b"a", b"first"), header(b"b", b"1", link=b"a"), file(b"a", b"second"),
     header(b"c", b"1", link=b"a"), file(b"d"), file(b"d", b"third"), header(b"d", b"1", link=b"b"))
good("fifo-then-file.tar", header(b"x", b"6"), file(b"x"), file(b"y"), header(b"y", b"6"))
good("link-to-itself.tar", file(b"a"), header(b"a", b"1", link=b"a"))
good("hard-link-to-symlink.tar", header(b"s", b"2", link=b"nowhere"), header(b"l", b"1", link=b"s"))

# Through symbolic links to directories of the archive.
good("through-link.tar", header(b"usr/lib", b"5", mode=0o755), header(b"lib", b"2", link=b"usr/lib"), file(b"lib/a"),
     file(b"lib/new/b"), header(b"lib2", b"2", link=b"lib/new"), file(b"lib2/c"), header(b"l", b"1", link=b"lib2/b"))
bad("through-absolute.tar", header(b"x", b"2", link=b"/tmp"), file(b"x/escaped"))
bad("through-dots.tar", header(b"d/e", b"5", mode=0o755), header(b"d/x", b"2", link=b"../.."), file(b"d/x/escaped"))
bad("through-nothing.tar", header(b"x", b"2", link=b"nowhere"), file(b"x/a"))
bad("through-ring.tar", header(b"x", b"2", link=b"y"), header(b"y", b"2", link=b"x"), file(b"x/a"))
bad("through-file.tar", file(b"x"), file(b"x/a"))
bad("climbs.tar", file(b"../a"))
bad("climbs-within.tar", file(b"a/../../b"))
bad("link-to-nothing.tar", header(b"l", b"1", link=b"a"))
bad("link-to-directory.tar", header(b"d", b"5", mode=0o755), header(b"l", b"1", link=b"d"))
bad("full-directory-then-file.tar", file(b"x/y"), file(b"x"))
bad("long-name.tar", pax([(b"path", b"e" * 300)]), file(b"cut"))
bad("cut-in-content.tar", file(b"a", b"x" * 2000)[:1024], end=b"")
bad("cut-in-header.tar", file(b"a"), end=header(b"b")[:300])
bad("no-header.tar", file(b"a"), end=b"garbage" * 500)
bad("pax-malformed.tar", header(b"x", b"x", 8) + padded(b"99 a=b\n\n"), file(b"a"))
bad("bad-size.tar", file(b"a", size=b"zzzzzzzzzzz\0"))
bad("continued.tar", header(b"a", b"M", 7, magic=GNU) + padded(b"content"))

# What Python's tarfile writes.
for name, form in [("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT), ("ustar", tarfile.USTAR_FORMAT)]:
    with tarfile.open(os.path.join(GOOD, f"python-{name}.tar"), "w", format=form) as tar:
        def add(name, kind=tarfile.REGTYPE, content=b"", **more):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.uid, info.gid, info.mtime = kind, len(content), OWNER, GROUP, 10**9
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
        add("d", tarfile.DIRTYPE, mode=0o2750)
        add("d/a", content=b"a" * 100_000, mode=0o640)
        add("d/b", content=b"", mode=0o4755)
        add("d/l", tarfile.LNKTYPE, linkname="d/a", mode=0o640)
        add("d/s", tarfile.SYMTYPE, linkname="a")
        if form != tarfile.USTAR_FORMAT:
            add("long/" + "n" * 150, content=b"long")
            add("long/s", tarfile.SYMTYPE, linkname="t" * 150)
            add("old", content=b"old", mtime=-1_000_000)
            if OWNER == 0:
                add("owned", content=b"o", uid=3_000_000, gid=4_000_000)
