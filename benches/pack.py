#!/usr/bin/env python3
"""Side by side: packing and re-packing images with envfs and with mksquashfs, in one run.

    benches/pack.py --tree DIR [--rounds 3] [--only WORD,…] [--json FILE]

    pack      the whole tree, at each codec and level, same block size and number of processors:
              wall time, size of the image, peak memory of the process
    commit    10 MB in 500 new files on a mounted environment, against mksquashfs of the same tree on disk
    read      content without a mount (examples/read_image.rs), per processor: everything, against
              sqfs2tar and unsquashfs writing to nowhere; random 4 KiB, against squashfuse_ll; and
              with two threads against one, and against half of what two processes take side by side,
              which is as well as the machine can

Each pair runs in turn, round after round; ratios are medians of the ratios within a round. The tree
is read once before, so that neither side pays for the disk. Run it on a quiet machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODECS = [
    ("zstd 4", ["-comp", "zstd", "-Xcompression-level", "4"], "zstd:4"),
    ("zstd 15", ["-comp", "zstd", "-Xcompression-level", "15"], "zstd:15"),
    ("gzip 9", ["-comp", "gzip", "-Xcompression-level", "9"], "gzip:9"),
    ("xz", ["-comp", "xz"], "xz"),
    ("lz4", ["-comp", "lz4"], "lz4"),
]


def timed(*command, cwd=None):
    """Seconds and peak memory (MiB) of a command, which must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{errors.decode(errors='replace')}")
    return seconds, usage.ru_maxrss / 1024


def side_by_side(*command):
    """Half of the time of two processes, each on its own processor: the best that two threads could do here."""
    began = time.perf_counter()
    both = [subprocess.Popen(["taskset", "-c", str(at), *map(str, command)], stdout=subprocess.DEVNULL) for at in (0, 1)]
    for process in both:
        if process.wait() != 0:
            sys.exit(f"{' '.join(map(str, command))} failed")
    return (time.perf_counter() - began) / 2


class Table:
    """Rows of two sides, and their ratios."""

    def __init__(self):
        self.rows = {}

    def add(self, name, ours, theirs):
        self.rows.setdefault(name, []).append((ours, theirs))

    def last(self, name):
        return self.line(name, self.rows[name])

    @staticmethod
    def line(name, pairs):
        ours = statistics.median(a for a, _ in pairs)
        theirs = statistics.median(b for _, b in pairs)
        ratios = [a / b for a, b in pairs]
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}" if len(ratios) > 1 else ""
        return f"{name:44}{ours:12.2f}{theirs:12.2f}{statistics.median(ratios):10.3f}  {spread}"

    def text(self):
        head = f"{'':44}{'envfs':>12}{'the other':>12}{'ratio':>10}  spread"
        return "\n".join([head, *(self.line(*row) for row in self.rows.items())])


def pack(table, tree, scratch, envfs, rounds, codecs):
    for name, theirs, ours in codecs:
        for _ in range(rounds):
            a, b = scratch / "ours.sqfs", scratch / "theirs.sqfs"
            for image in (a, b):
                image.unlink(missing_ok=True)
            seconds_b, memory_b = timed("mksquashfs", tree, b, *theirs, "-b", "128K", "-no-progress", "-quiet")
            seconds_a, memory_a = timed(envfs, "-q", "image", "pack", tree, a, "--compression", ours, "--block-size", "131072")
            table.add(f"pack {name}: seconds", seconds_a, seconds_b)
            table.add(f"pack {name}: image, MB", a.stat().st_size / 1e6, b.stat().st_size / 1e6)
            table.add(f"pack {name}: peak memory, MiB", memory_a, memory_b)
        for what in ("seconds", "image, MB", "peak memory, MiB"):
            print(table.last(f"pack {name}: {what}"), file=sys.stderr, flush=True)


def commit(table, tree, scratch, envfs, rounds, codecs):
    for name, theirs, ours in codecs:
        home, image, merged = scratch / "home", scratch / "first.sqfs", scratch / "merged.sqfs"
        # The same on the disk: mksquashfs need not read through our mount.
        plain = scratch / "plain"
        for old in (home, plain):
            shutil.rmtree(old, ignore_errors=True)
        timed("cp", "-a", tree, plain)
        image.unlink(missing_ok=True)
        timed(envfs, "-q", "image", "pack", tree, image, "--compression", ours)
        home.mkdir()
        (home / "config.toml").write_text(f'compression = "{ours}"\n')
        timed(envfs, "--home", home, "-q", "import", image, "bench", "--prefix", scratch / "mount")
        timed(envfs, "--home", home, "-q", "mount", "bench")
        try:
            for turn in range(rounds):
                made = scratch / "mount" / f"made-{turn}"
                made.mkdir()
                for n in range(500):
                    (made / f"f{n}").write_bytes(os.urandom(10_000) + bytes([n % 251]) * 10_000)
                shutil.copytree(made, plain / made.name)
                seconds_a, _ = timed(envfs, "--home", home, "-q", "commit", "bench")
                merged.unlink(missing_ok=True)
                seconds_b, _ = timed("mksquashfs", plain, merged, *theirs, "-b", "128K", "-no-progress", "-quiet")
                table.add(f"commit 10 MB in 500 files, {name}: seconds", seconds_a, seconds_b)
        finally:
            timed(envfs, "--home", home, "-q", "unmount", "bench")
        print(table.last(f"commit 10 MB in 500 files, {name}: seconds"), file=sys.stderr, flush=True)


def read(table, tree, scratch, envfs, rounds):
    """Content through the library, per processor: against sqfs2tar and unsquashfs, which read in turn
    without writing files, and against squashfuse for random reads (with its kernel side)."""
    image, large = scratch / "read.sqfs", scratch / "large"
    reader = envfs.parent / "examples/read_image"
    timed("mksquashfs", tree, image, "-comp", "zstd", "-b", "128K", "-no-progress", "-quiet")
    one, two = ["taskset", "-c", "0"], ["taskset", "-c", "0,1"]
    compare = lambda name, ours, theirs: table.add(name, timed(*ours)[0], timed(*theirs)[0])

    def threads(name, image, before, after):
        ours, _ = timed(*two, reader, image, *before, 2, *after)
        table.add(f"{name}, two threads (one thread)", ours, timed(*two, reader, image, *before, 1, *after)[0])
        table.add(f"{name}, two threads (half of two processes)", ours, side_by_side(reader, image, *before, 1, *after))

    for _ in range(rounds):
        compare("read all, one processor (sqfs2tar)", [*one, reader, image, "all", 1], [*one, "sqfs2tar", image])
        compare("read all, one processor (unsquashfs)", [*one, reader, image, "all", 1],
                [*one, "unsquashfs", "-quiet", "-no-progress", "-p", 1, "-pf", "/dev/stdout", image])
        threads("read all", image, ["all"], [])
    # One large file of what libraries are made of.
    with open(large, "wb") as out:
        for path in sorted(tree.rglob("*.so*")):
            if path.is_file() and out.tell() < 256 << 20:
                out.write(path.read_bytes())
    (scratch / "one").mkdir()
    large.rename(scratch / "one" / "large")
    image.unlink()
    timed("mksquashfs", scratch / "one", image, "-comp", "zstd", "-b", "128K", "-no-progress", "-quiet")
    mount = scratch / "squashfuse"
    mount.mkdir()
    script = ("import os,sys,random\nr=random.Random(1);f=os.open(sys.argv[1],os.O_RDONLY);n=os.fstat(f).st_size//4096\n"
              "os.posix_fadvise(f,0,0,os.POSIX_FADV_RANDOM)\nfor i in range(3000): os.pread(f,4096,r.randrange(n)*4096)")
    for _ in range(rounds):
        compare("read large file, one processor (unsquashfs)", [*one, reader, image, "all", 1],
                [*one, "unsquashfs", "-quiet", "-no-progress", "-p", 1, "-cat", image, "large"])
        timed(*one, "squashfuse_ll", image, mount)
        try:
            compare("3000 random reads of 4 KiB, one processor (squashfuse_ll)",
                    [*one, reader, image, "random", 1, "large", 3000], [*one, sys.executable, "-c", script, mount / "large"])
        finally:
            subprocess.run(["fusermount3", "-u", mount], check=True)
        threads("random reads", image, ["random"], ["large", 6000])
    for name in table.rows:
        if "read" in name:
            print(table.last(name), file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="directory to pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="pack,commit,read", help="parts to run, separated by commas")
    parser.add_argument("--codecs", help="only these codecs (zstd 4, gzip 9, …), separated by commas")
    parser.add_argument("--scratch", type=Path, help="where to work [a directory below /var/tmp]")
    parser.add_argument("--envfs", type=Path, default=Path("target/release/envfs"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tree, envfs = arguments.tree.resolve(), arguments.envfs.resolve()
    codecs = [c for c in CODECS if not arguments.codecs or c[0] in arguments.codecs.split(",")]
    table = Table()
    scratch = Path(tempfile.mkdtemp(prefix="envfs-bench-", dir=arguments.scratch or "/var/tmp"))
    try:
        subprocess.run(["tar", "cf", "/dev/null", "--exclude=.", tree], check=False, stderr=subprocess.DEVNULL)
        if "pack" in arguments.only:
            pack(table, tree, scratch, envfs, arguments.rounds, codecs)
        if "commit" in arguments.only:
            commit(table, tree, scratch, envfs, arguments.rounds, [c for c in codecs if c[0].startswith("zstd")])
        if "read" in arguments.only:
            read(table, tree, scratch, envfs, arguments.rounds)
        print(table.text())
        if arguments.json:
            arguments.json.write_text(json.dumps({"tree": str(tree), "pairs": table.rows}, indent=1))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
